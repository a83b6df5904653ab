"""The numerical check behind `find_structure`: random parameters, and what must hold for every value of them.

Homogeneity of degree one, `f = sum_k theta_k df/dtheta_k`, is necessary and not enough: a ReLU network is homogeneous
in each of its kernels. Convexity needs linearity, so the check is that the model equals its head, as a linear function
of constant features, as it is, at random theta_S of several sizes, at zero, and with all other parameters moved too.
"""

import dataclasses

import ml_dtypes
import numpy as np
from keras import tree

from keras_dal.features.inputs import num_samples
from keras_dal.features.tracing import computed_dtype, to_numpy
from keras_dal.features.variables import assign_all, is_real, values_of
from keras_dal.models import rounding
from keras_dal.models.activations import are_made

_ROOM = 64  # of the largest number of a dtype, for sums
_SIZES = (1.0, 30.0, 1e3, 1.0)  # of logits that are tried: a limit shows in large ones only
_AWAKENING = (1.0, 1.0, 1.0, 3.0, 10.0, 30.0)  # of moves, each beside the spread of a parameter


@dataclasses.dataclass(frozen=True)
class Probe:
    """One evaluation of the model at random parameters.

    Attributes:
        logits: what the head makes of the features, `(k, C)`.
        outputs: outputs of the model, `(k, C)`.
        slack: by how much its logits may differ from these.
        rounding: by how much probabilities may differ from those of its logits, near zero and as a share of them.
        reason: why the evaluation already shows that the model has no linear head, or None.
    """

    logits: np.ndarray
    outputs: np.ndarray
    slack: float
    rounding: np.ndarray
    reason: str | None = None

    def confirms(self, activation):
        if self.logits.shape != self.outputs.shape:
            return False
        return are_made(activation, self.logits, self.outputs, self.slack, self.rounding).all()


def overlapping(x):
    """Return every other sample, from the first to the last, and as many first ones.

    From three samples on the two batches are of one size: an accelerator has other kernels, which round differently,
    for another.
    """
    count = num_samples(x)
    rows = (slice(0, None, 2), slice(0, -(-count // 2))) if count > 2 else (slice(0, None), slice(0, 1))
    return tuple(tree.map_structure(lambda part, rows=rows: part[rows], x) for rows in rows)


def finite(x, features):
    """Return the samples whose features `(k, ...)` are finite, or all where none are."""
    kept = np.isfinite(features).all(axis=tuple(range(1, features.ndim)))
    return tree.map_structure(lambda part: part[kept], x) if kept.any() else x


def in_both(features, others):
    """Return the features of the samples that both of the `overlapping` batches have, as the one and the other gave."""
    shared = others[::2]
    return features[: len(shared)], shared


def check_samples_are_apart(form, features, others, again):
    """Raises if the features of a sample depend on the others in its batch.

    Args:
        form: a `Structure`.
        features: of the first of the `overlapping` batches.
        others: of the second one.
        again: a function without arguments that evaluates those of the first once more.
    """
    bounds = rounding.of_features(features)
    first, second = in_both(features, others)
    if not np.isfinite(features).all() or (np.abs(first - second) <= bounds).all():
        return  # what is not finite is refused by what follows
    if (np.abs(again() - features) <= bounds).all():  # random features are refused by what follows
        raise ValueError(
            "The features of a sample must not depend on the other samples of its batch. Call BatchNormalization "
            "without training=True inside the model, so that it uses its moving statistics in inference mode. "
            f"Received: inputs of layer {form.layer.name!r} that change when other samples follow them"
        )


def probes(form, evaluate):
    """Evaluate a model as it is and at random parameters, which are left in it.

    Args:
        form: a `Structure` whose theta_S is to be tried.
        evaluate: a function without arguments that returns features and outputs for the model as it is now.

    Yields:
        A `Probe` for each theta_S, with the features of the first evaluation, since theta_S must not change them, and
        one with all other parameters and statistics moved too. Evaluations that overflow show nothing and are left out.
    """
    generator = np.random.default_rng(0)
    features, outputs = evaluate()
    bound = rounding.of_dtype(features.dtype).logits
    lost = np.sum(~np.isfinite(features))
    if lost:
        raise ValueError(
            "The features must be finite: look for NaN in the inputs and the model's weights. Where there are no "
            "inputs yet, as in fit, random ones were tried: AlignmentMonitor(data=(x, y)) has others. Received: "
            f"{lost} values that are not, among {features.size} inputs of layer {form.layer.name!r}"
        )
    if not features.any():
        raise ValueError(
            "The features must not be all zero, as behind units that are dead: pass other samples (in fit, "
            "AlignmentMonitor(data=(x, y))), or train the model anew. Received: zeros only among "
            f"{features.size} inputs of layer {form.layer.name!r}"
        )
    if np.isfinite(form.theta()).all() and np.isfinite(outputs).all():
        yield _probe(form, features, outputs, bound * _cancelled(form, features))
    thetas = [_of_logits(form, features, generator, size) for size in _SIZES]
    for size, theta in zip((0.0, *_SIZES), (np.zeros_like(thetas[0]), *thetas), strict=True):
        form.assign(theta)
        again, outputs = evaluate()
        change = _change(features, again, evaluate)
        if size <= 1:
            yield _probe(form, features, outputs, bound, change)
        elif np.isfinite(outputs).all():
            yield _probe(form, features, outputs, bound * _cancelled(form, features), change)
    _move(form.model, generator)
    features, outputs = evaluate()
    if np.isfinite(features).all() and np.isfinite(outputs).all():
        yield _probe(form, features, outputs, bound)


def _probe(form, features, outputs, bound, reason=None):
    logits = form.head().logits(np.asarray(features, np.float64), form.theta())
    bound = max(bound, rounding.of_dtype(outputs.dtype).logits)  # an activation may be computed in a coarser dtype
    slack = bound * max(1.0, np.abs(logits).max())
    of_outputs = rounding.of_probabilities(form, outputs)
    return Probe(logits, np.asarray(outputs, np.float64), slack, of_outputs, reason)


class OutputCheck:
    """Whether outputs are what an activation makes of the logits, for every sample, with the head as it is now.

    Args:
        form: a `Structure`, with its activation.
    """

    def __init__(self, form):
        self._form, self._head, self._theta = form, form.head(), form.theta()
        self._least = 0.0 if form.activation == "linear" else 1.0  # what is small beside one shows in no probability

    def __call__(self, features, outputs, sample_weight):
        """Raise a ValueError where they are not.

        Args:
            features: `(k, m)`.
            outputs: of the model, `(k, C)`.
            sample_weight: shape `(k,)`; samples without weight are left out.
        """
        read = sample_weight > 0
        if not read.all():
            features, outputs = features[read], outputs[read]
        values, share = np.asarray(features, np.float64), rounding.of_logits(self._form, features, outputs)
        logits, rounded = self._head.logits(values, self._theta), rounding.of_probabilities(self._form, outputs)

        def follow(rows, size):
            slack = share * size[:, None]
            return are_made(self._form.activation, logits[rows], outputs[rows], slack, rounded).all(axis=1)

        near = follow(slice(None), np.abs(logits).max(axis=1, initial=self._least))
        doubtful = np.flatnonzero(~near & np.isfinite(logits).all(axis=1))
        wrong = doubtful[~follow(doubtful, self._products(values[doubtful]))] if len(doubtful) else doubtful
        if len(wrong):
            raise ValueError(
                "What follows the last layer acts on some samples only, so that the loss is not that of the last "
                "layer: leave out what masks or changes its outputs, or mask in the loss. Received: outputs of the "
                f"model that do not follow from layer {self._form.output_layer.name!r} for {len(wrong)} of "
                f"{len(features)} samples of a batch"
            )

    def _products(self, values):
        """Return the largest sum of products of each sample, `(k,)`: they may cancel in its logits."""
        return self._head.magnitudes(values, np.abs(self._theta)).max(axis=1, initial=self._least)


def defect(variables, evaluate):
    """Return what is wrong with logits as a function of variables, in words; None where they are linear.

    Random values are left in the variables.

    Args:
        variables: Keras variables.
        evaluate: a function without arguments that returns the logits for the model as it is now, `(k, C)`.
    """
    generator = np.random.default_rng(0)
    values = [to_numpy(variable) for variable in variables]
    spread = [np.std(value, dtype=np.float64) + 0.1 for value in values]
    a, b = ([s * generator.standard_normal(np.shape(v)) for s, v in zip(spread, values, strict=True)] for _ in range(2))

    def at(arrays):
        assign_all(variables, arrays)
        return evaluate()

    zero, first, second = at([0 * part for part in a]), at(a), at(b)
    both = at([one + other for one, other in zip(a, b, strict=True)])
    scale = max(np.abs(logits).max() for logits in (zero, first, second, both))
    bound = 10 * scale * rounding.of_computed(variables[0].dtype).logits
    if np.abs(both - first - second + zero).max() > bound:
        return "not linear"
    return "linear up to a constant, not linear," if np.abs(zero).max() > bound else None


def _cancelled(form, features):
    """Return by how much the products that add up to the logits are larger than they: large ones may cancel."""
    head, theta, values = form.head(), form.theta(), features.astype(np.float64)
    largest = max(1.0, np.abs(head.logits(values, theta)).max())
    return max(1.0, head.magnitudes(values, np.abs(theta)).max() / largest)


def _of_logits(form, features, generator, wanted):
    """Return a random theta_S in which each variable, alone, makes logits of the wanted size.

    An activation shows what it does at that size. Variables are scaled one by one, as the kernel of tiny features would
    not be seen beside a bias, whatever is done with it.
    """
    head = form.head()
    theta, alone = generator.standard_normal(head.num_parameters), np.zeros(head.num_parameters)
    for variable, part, place in zip(form.linear_parameters, form.split(theta), form.split(alone), strict=True):
        place[...] = part
        size = np.sqrt(np.mean(head.logits(features.astype(np.float64), alone) ** 2))
        part /= max(size / wanted, np.max(np.abs(part)) / _largest(form, variable)) if size else 1.0
        place[...] = 0.0
    return theta


def _largest(form, variable):
    """Return the largest size of a parameter whose products are still finite, of what it is kept and computed in."""
    dtypes = {str(variable.dtype), computed_dtype(form.layer.compute_dtype)}
    return min(float(ml_dtypes.finfo(dtype).max) for dtype in dtypes) / _ROOM


def _change(before, after, evaluate):
    """Return why features changed with theta_S, or None where they did not."""
    bounds = rounding.of_features(before)
    if (np.abs(after - before) <= bounds).all():
        return None
    if (np.abs(evaluate()[0] - after) > bounds).any():
        return "its inputs are random in inference mode"
    return "its parameters also change its own inputs (tied weights)"


def awaken(model, evaluate, wanted):
    """Moves a model's parameters, by more and more, until some features that were all zero are not.

    The units before a small head may be dead for a few samples by chance, as the model was drawn or trained.

    Args:
        model: the model, in which moved parameters are left, or the old ones where nothing helps.
        evaluate: a function without arguments that returns its features.
        wanted: a function of features that returns those that were all zero.
    """
    generator, values = np.random.default_rng(0), values_of(model.variables)
    for size in _AWAKENING:
        _move(model, generator, size)
        features = evaluate()
        if not np.isfinite(features).all():
            break
        if wanted(features).any():
            return
    assign_all(model.variables, values)


def _move(model, generator, size=0.1):
    """Moves all parameters and statistics: a scale of one, a mean or a branch of zero no longer hides then.

    Of what is not trained, variances stay positive, and indices what they are.
    """
    for variable in model.variables:
        if not is_real(variable):
            continue  # seeds, and tables of names
        value = to_numpy(variable)
        noise = generator.random(value.shape, np.float32)
        if not variable.trainable and value.any() and (value >= 0).all():
            if np.ptp(value) == 0 or (value != np.round(value)).any():
                variable.assign(value * (1.1 + 0.2 * noise))  # by little: a network may be deep
            continue
        noise -= 0.5  # in place: a layer may have tens of millions of them
        noise *= 2 * size * (float(np.std(value, dtype=np.float64)) + 0.1)  # squares that float32 may not hold
        variable.assign(value + noise)
