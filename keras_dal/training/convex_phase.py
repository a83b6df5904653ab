"""The second phase of `fit`: averaged weights, one pass over the stream for features, and the solved head."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dal import _backend, _keras
from keras_dal._backend import arrays
from keras_dal.analysis.alignment import alignment_of_cached
from keras_dal.features.tracing import to_numpy
from keras_dal.features.variables import Kept, are_equal, values_of
from keras_dal.finishing.solve import solve_head
from keras_dal.losses.keras_losses import clipped
from keras_dal.losses.lazy_targets import LazyTargets
from keras_dal.output.warning import described, warn
from keras_dal.training.frozen import Snapshot
from keras_dal.training.gathering import Gathering, evaluated_once
from keras_dal.training.logs import as_alignment, as_phase
from keras_dal.training.state import state_of
from keras_dal.training.statistics import BatchStatistics, have_moved

_FAR = 3.0  # of the loss of training plus its unit, that is nothing like it


class Incomplete(ValueError):
    """An epoch that was to read all data read some of it: the next one may read all."""


class ConvexPhase:
    """From the switch to the solved head, within one epoch of `fit`.

    Args:
        wrap: the `Wrap` of the model that `fit` trains.
        structure: the `Structure` of the model.
        loss: the `losses.Loss` it is compiled with.
        max_bytes: as in `solve_head`, and of features in memory.
    """

    def __init__(self, wrap, structure, loss, max_bytes):
        self._model, self._wrap, self.structure, self.loss = structure.model, wrap, structure, loss
        self._max_bytes = max_bytes
        self._weight = _keras.loss_weight(structure.model)
        self._before = Snapshot(structure.model, wrap)
        self.averaged_steps = wrap.averaged_steps
        self._gathering: Any = None
        self._read_with: Any = None
        self._shown, self._live, self.logs = {}, {}, {}
        self.train: Any = None
        self.result: Any = None

    def begin(self, statistics):
        """Freeze everything but the linear parameters; what was averaged becomes the weights.

        Args:
            statistics: as `since` of `have_moved`.
        """
        renew = state_of(self._wrap).has_average and have_moved(self._model, statistics)
        self._wrap.switch(self._model, structure=self.structure)
        self._gathering = Gathering(self.structure, renew, self._max_bytes)
        self._read_with = Kept((variable.path, variable) for variable in self._model.trainable_variables)

    def train_function(self, logs):
        """Return what stands in for the model's train function: it only reads.

        Args:
            logs: of the last step that trained, which other callbacks see again; with the phase, so that Keras does not
                take the metrics, of which nothing is known yet, in their place.
        """
        self._shown, self._live = logs, logs | as_phase(explores=False)
        return self._gathering.train_function(self._live)

    def show(self, with_alignment=True):
        """Let the logs that the epoch ends with, for callbacks before the monitor too, be of the solved model."""
        self.logs = self._solved_logs(with_alignment)
        self._live.update({name: value for name, value in self.logs.items() if name in self._live})

    @property
    def shown(self):
        """The logs of a step after the head was solved: of the names that steps have."""
        return dict(self._live)

    def forget(self):
        """Drop the batches that nobody has looked at yet."""
        self._gathering.forget()

    def take(self):
        """Look at what was read since the last call; where no step has trained, logs are of the first batch."""
        if "loss" not in self._live and self.batches == len(self._gathering.arrived):
            self._live.update(evaluated_once(self._model, self._gathering.arrived[0]))
        try:
            self._gathering.take()
        except ValueError:
            self._check_weights()  # which say more, where weights are why
            self._check_one_model()
            raise

    def _check_weights(self):
        lost = [v.path for v in self._model.trainable_variables if not np.isfinite(to_numpy(v)).all()]
        if lost:
            raise ValueError(f"Weights are not finite: the training has diverged. Received: {', '.join(lost)}")

    def _check_one_model(self):
        if moved := self._read_with.moved():
            raise ValueError(
                "Weights changed while the data were read, and the features are those of several models: let no "
                f"callback change weights in the epoch after the exploration. Received: {', '.join(moved)}"
            )

    @property
    def steps_of_statistics(self):
        return self._gathering.steps_of_statistics

    @property
    def batches(self):
        """How many were read."""
        return self._gathering.batches

    def end(self, expected):
        """Solve for the head on what was read; a second call changes nothing.

        Args:
            expected: how many batches there are, 0 where that is not known, infinity where it was stopped then.

        Raises:
            Incomplete: not everything was read.
            MemoryError: as for `solve_head`.
            ValueError: nothing was, or numbers are not finite.
        """
        if self.batches < expected:
            of = "an unknown number of" if np.isinf(expected) else expected
            raise Incomplete(
                "The epoch that reads the data was stopped by another callback, or the data ran out. Received: "
                f"{self.batches} of {of} batches"
            )
        if self.result is None:
            self._check_weights()
            self._check_one_model()
            self.train = self._gathering.finish()
            result = solve_head(self.structure, self.loss, self.train, self._max_bytes)
            self._check_start(result)
            if not np.isfinite(result.loss):
                raise ValueError(f"The head is not finite: the training has diverged. Received: loss {result.loss}")
            self.result = result
            state_of(self._wrap).mark_solved(renewed=self.steps_of_statistics > 0)

    def _check_start(self, result):
        """Raise where the loss before the solve is nothing like that of training: other features were read."""
        trained, start = float(self._shown.get("loss", np.nan)), self._weight * result.path[0].loss
        least = min(0.0, self._weight * result.floor)  # of counts, say, whose loss may be far below 0
        train = self.train.weighted
        unit = self._weight * self.loss.unit(self.targets(train), train.weights)
        far = least + _FAR * (trained - least + unit)
        if trained and start > far and self._shown_start(result) > far:  # 0 is shown of a step that tracks no loss
            raise ValueError(
                f"On what was read the loss is far above that of training. {self._advice()}, or use finish='descend'. "
                f"Received: loss {start:.4g} before the head was solved, {trained:.4g} in training"
            )

    def _shown_start(self, result):
        """Return the loss before the solve as `fit` shows it at most: Keras clips the probabilities it is given."""
        train, head, targets = self.train.weighted, self.structure.head(), self.targets(self.train.weighted)
        total = 0.0
        for rows in arrays.slices(len(train)):
            logits = head.logits(np.asarray(train.features[rows], np.float64), result.path[0].theta)
            values = self.loss.values(logits, targets[rows])
            total += train.weights[rows] @ (clipped(values) if self.structure.gives_probabilities else values)
        return self._weight * total / len(train)

    def _advice(self):
        """Return what may help where other features were read than those of training."""
        if _keras.has_own_train_step(self._model):
            return "Where the model's train_step prepares its inputs, do that in its test_step, too"
        if self.steps_of_statistics:
            return "Batch statistics of few or small batches mislead a deep network: train on more, or larger ones"
        if BatchStatistics(self._model).are_there:
            return "Leave average as it is where batch statistics have not settled"
        return "Lower the learning rate where the loss grows from epoch to epoch"

    def targets(self, train):
        """Return what the loss takes for the labels of these `CachedFeatures`."""
        return LazyTargets(self.loss, train.labels, self.structure.num_outputs)

    def _measured(self):
        """Return the alignment of the head on the features that were read, by the names of the logs."""
        if not self.structure.has_dense_part:
            return {}
        train = self.train.weighted
        return as_alignment(alignment_of_cached(self.structure, self.loss, train, self.targets(train)))

    def drop(self):
        """Let go of what was read, and of what is still to come."""
        if self._gathering is not None:
            self._gathering.discard()

    def undo(self):
        """Put back the weights and the phase from before; what was averaged is kept."""
        self.drop()
        self._before.restore()

    def _solved_logs(self, with_alignment):
        """Return loss, compiled metrics and alignment of the solved model on what was read, as `fit` logs them."""
        unknown = {name: _not_known(value) for name, value in self._shown.items()}
        logs = {**unknown, "loss": self._weight * self.result.loss}
        try:
            # not model.losses: what layers add of their outputs belongs to the graph of a step
            regularized = [v for v in self._model.trainable_variables if v.regularizer is not None]
            if regularized:
                added = _backend.in_one(lambda _: [v.regularizer(v) for v in regularized], self._model)
                logs["loss"] += sum(float(to_numpy(loss)) for loss in added(()))
            logs |= {**self._metrics(), "loss": logs["loss"]}
            logs |= self._measured() if with_alignment else {}
        except Exception as error:  # a metric of the user's own may take what only a training step has
            warn(
                "The metrics of the last epoch are missing: they could not be computed from labels and outputs alone. "
                f"Received: {described(error)}",
                error,
            )
        return logs

    def _metrics(self):
        model, train, activation = self._model, self.train, keras.activations.get(self.structure.activation)
        model.reset_metrics()
        found = {}
        shown = [metric for metric in model.metrics if metric.name in model.get_metrics_result()]
        before = [values_of(metric.variables) for metric in shown]

        def compute(batch):
            return _backend.in_replica(model.compute_metrics, model, None, *batch)

        update = _backend.in_one(compute, model, model.metrics_variables)
        for rows in arrays.slices(len(train), self._gathering.batch_size):  # some metrics are means over batches
            logits = self.result.logits(train.features[rows])
            outputs = activation(ops.convert_to_tensor(logits.astype("float32")))
            labels, weights = train.labels[rows], train.weights[rows].astype("float32")
            found = update((ops.convert_to_tensor(labels), outputs, ops.convert_to_tensor(weights)))
        unmoved = [m.name for m, values in zip(shown, before, strict=True) if are_equal(values_of(m.variables), values)]
        return _keras.logged({name: value for name, value in found.items() if name not in unmoved})


def _not_known(value):
    """Return NaN in the shape of what was logged."""
    shape = tuple(getattr(value, "shape", ()))
    return np.full(shape, np.nan) if shape and None not in shape else np.nan
