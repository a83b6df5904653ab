"""What the monitor gathers inside the training step: moments of features and label matrix, and a few images."""

import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_dal import _backend
from keras_dal.features.inputs import is_dense
from keras_dal.features.tracing import held_dtype, to_numpy
from keras_dal.training.kernel_change import NUM_PROBES

_PROBE_BYTES = 2**28  # of the inputs that are kept, at most
SUMS_BYTES = 2**30  # of the sums, at most


def _can_be_kept(spec):
    return None not in spec.shape[1:] and spec.dtype != "string" and not getattr(spec, "sparse", False)


def _kept_dtype(spec):
    """Return a dtype that holds what a model takes: float32 does not hold all integers."""
    if spec.dtype not in ("int32", "uint32", "int64", "uint64"):
        return "float32"
    return held_dtype("float64").replace("float", "int")  # JAX has neither in 64 bits unless it is set to


def _numbers(labels):
    """Return how many numbers a label has, None where a traced step does not know."""
    try:
        sizes = tuple(labels.shape)[1:]
    except ValueError:  # not even how many axes there are
        return None
    return None if None in sizes else math.prod(sizes)


def sums_fit(structure):
    """Return whether the sums for a model are small enough to be kept in its training step."""
    return 8 * (structure.num_features + 1 + structure.num_outputs) ** 2 <= SUMS_BYTES


class BadLabels(ValueError):
    """Labels or weights of an epoch that no loss can take: the moments of that epoch say nothing, the next ones may."""


class StepMoments(keras.metrics.Metric):
    r"""Sums \( [Z, 1, Y]^\top W [Z, 1, Y] \) over one epoch, and keeps the first few inputs it ever saw.

    A Keras metric, so that the sums are added up over replicas and part of the state on JAX. Its result is empty: the
    sums are read on the host, once an epoch.

    Args:
        structure: the `Structure` of the model: m features Z, and C outputs.
        loss: the `keras_dal.losses.Loss` that says what the label matrix Y is, `(n, C)`.
        input_specs: what the model's inputs look like, a structure of KerasTensors, or None; where that is not known,
            or they are large, no inputs are kept.
        with_sums: whether there are sums; samples are counted in any case.
        halves: dtypes of half precision in which features may have been computed.
    """

    def __init__(self, structure, loss, input_specs=None, with_sums=True, halves=()):
        super().__init__(name="keras_dal_moments", dtype=_backend.statistics_dtype())
        self.num_outputs, self.loss, self._with_sums = structure.num_outputs, loss, with_sums
        size = structure.num_features + 1 + structure.num_outputs if with_sums else 0
        self.sums = self.add_variable((size, size), "zeros", dtype=self.dtype, name="sums")
        self.count = self.add_variable((), "zeros", dtype=self.dtype, name="count")
        self.refused = self.add_variable((), "zeros", dtype=self.dtype, name="refused")
        self._halves = halves
        self.finer = self.add_variable((len(halves),), "zeros", dtype=self.dtype, name="finer")
        self._has_sums, self.has_failed, self.was_fed = True, False, False
        self.counting, self.measuring = self._add_switch("counting", 1), self._add_switch("measuring", with_sums)
        parts = tree.flatten(input_specs)
        known = input_specs is not None and all(map(_can_be_kept, parts))
        known = known and sum(4 * NUM_PROBES * math.prod(p.shape[1:]) for p in parts) <= _PROBE_BYTES
        self.probes: Any = [self._add_probe(part, number) for number, part in enumerate(parts)] if known else None
        self._as_inputs = functools.partial(tree.pack_sequence_as, input_specs)  # Keras would change a list kept here
        self.probed = self._add_switch("probed", 0)

    def _add_switch(self, name, value):
        initializer = "ones" if value else "zeros"
        return self.add_variable((), initializer, dtype="float32", aggregation="only_first_replica", name=name)

    def _add_probe(self, spec, number):
        name, shape = f"probe_{number}", (NUM_PROBES, *spec.shape[1:])
        return self.add_variable(shape, "zeros", dtype=_kept_dtype(spec), aggregation="only_first_replica", name=name)

    def update_state(self, *args, **kwargs):
        """Does nothing: a train_step of the user's own may update all metrics of the model with labels and outputs."""

    def add(self, x, y, features, sample_weight=None):
        """Adds one batch.

        Args:
            x: inputs of the model, `(k, ...)`.
            y: labels as Keras takes them.
            features: inputs of the head, `(k, m)`.
            sample_weight: `(k,)`, or None for ones.
        """
        if _numbers(y) not in (None, 1, self.num_outputs):
            raise ValueError(
                f"Labels must be one or {self.num_outputs} numbers. Received: labels of shape {tuple(y.shape)}"
            )
        self.was_fed = True
        batch = y, ops.stop_gradient(features), sample_weight
        _backend.where_set(self.counting, lambda: self._add(x, batch))  # one branch in all steps that do not count

    def _add(self, x, batch):
        _backend.add_where_set(self.counting, [self.count, self.refused], lambda: self._counts(*batch))
        if self._with_sums:
            _backend.add_where_set(self.measuring, [self.sums, self.finer], lambda: self._products(*batch))
        if self.probes is not None and (parts := self._like_probes(x)):
            _backend.where_set(1.0 - self.probed, lambda: self._keep_first(parts))

    def _targets(self, y):
        return self.loss.step_targets(ops.cast(y, self.dtype), self.num_outputs)

    def _weight(self, features, sample_weight):
        if sample_weight is None:
            return ops.ones_like(features[:, :1], dtype=self.dtype)
        return ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))

    def _counts(self, y, features, sample_weight):
        """Return how many samples of a batch count, and how many of these cannot be taken."""
        (_, known), weight = self._targets(y), self._weight(features, sample_weight)
        used = ops.cast(weight > 0, self.dtype)
        wrong = used * (1 - ops.cast(known, self.dtype)[:, None])
        return ops.sum(used), ops.sum(ops.where(weight >= 0, wrong, 1.0))

    def _products(self, y, features, sample_weight):
        """Return the sums of a batch, and how many of its features are no numbers of each half precision in use."""
        (targets, _), weight = self._targets(y), self._weight(features, sample_weight)
        halves = [ops.cast(_backend.as_computed(ops.cast(features, half)), features.dtype) for half in self._halves]
        finer = [ops.sum(ops.cast(half != features, self.dtype)) for half in halves]
        features = ops.cast(features, self.dtype)
        rows = ops.concatenate([features, ops.ones_like(features[:, :1]), targets], axis=1)
        rows = ops.cast(rows, self.dtype)  # which Keras joins in float32 on some backends
        counts = ops.stack(finer) if finer else ops.zeros((0,), self.dtype)
        return _backend.product(ops.transpose(rows), weight * rows), counts

    def dtypes(self):
        """Return the dtypes of half precision that all features in the sums are numbers of."""
        counts = to_numpy(self.finer) if self._halves else ()
        return [half for half, count in zip(self._halves, counts, strict=True) if not count]

    def _like_probes(self, x):
        """Return the parts of inputs that are as the model declares them, none where it takes others.

        It may take one that is in a dict, several in another order, one without channels, a sparse one, or None for an
        optional one; a train_step of the user's own need not tell any.
        """
        parts = [] if x is None else tree.flatten(x)
        if not all(map(is_dense, parts)):
            return []
        try:
            if len(self.probes) > 1:
                tree.assert_same_structure(self._as_inputs(self.probes), x)
            pairs = list(zip(self.probes, parts, strict=True))
        except (ValueError, TypeError):
            return []
        return parts if all(tuple(probe.shape[1:]) == tuple(part.shape[1:]) for probe, part in pairs) else []

    def _keep_first(self, parts):
        for probe, part in zip(self.probes, parts, strict=True):
            self._keep(probe, part)
        self.probed.assign(ops.ones((), dtype="float32"))

    def _keep(self, probe, x):
        index = ops.arange(NUM_PROBES, dtype="int32") % ops.shape(x)[0]  # a small batch repeats its samples
        first = ops.take(ops.cast(x, probe.dtype), index, axis=0)
        probe.assign(ops.where(self.probed.value == 0, first, probe.value))

    def reset_state(self):
        """Does nothing: Keras resets metrics before it validates, and the epoch is not over then."""

    def clear(self, measuring=True, counting=True):
        """Starts an epoch at zero.

        Args:
            measuring: whether products are summed up in it, if it counts.
            counting: whether it counts at all: whether samples are counted, and their labels checked.
        """
        self.measuring.assign(float(measuring))
        self.counting.assign(float(counting))
        if self._has_sums and self._with_sums:  # with thousands of features this takes as long as some steps
            self.sums.assign(ops.zeros(self.sums.shape, dtype=self.dtype))
        self._has_sums = measuring
        self.count.assign(ops.zeros((), dtype=self.dtype))
        self.refused.assign(ops.zeros((), dtype=self.dtype))
        self.finer.assign(ops.zeros(self.finer.shape, dtype=self.dtype))

    def result(self):
        return {}

    def read(self, with_sums=True):
        """Return the sums as float64 `(m + 1 + C, m + 1 + C)`, or None, and the number of samples in them.

        Raises:
            BadLabels: labels that are out of range, no probabilities or not finite, or negative weights.
        """
        if refused := int(to_numpy(self.refused)):
            raise BadLabels(
                f"The labels of {self.loss.name} must be what it takes: classes from 0 to C - 1, probabilities, or "
                "finite values, and sample weights not negative. Received: "
                f"{refused} samples with other labels or weights"
            )
        count = round(float(to_numpy(self.count)))
        return to_numpy(self.sums).astype(np.float64) if with_sums else None, count

    def samples(self):
        """Return the inputs kept, as the model takes them, or None."""
        if self.probes is None or not to_numpy(self.probed):
            return None
        return self._as_inputs([to_numpy(probe) for probe in self.probes])
