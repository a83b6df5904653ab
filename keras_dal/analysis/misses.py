"""Labels that a fit misses although little of all labels is left: larger or heavier ones hide them."""

import numpy as np

from keras_dal._backend import arrays
from keras_dal._backend.arrays import MAX_BYTES, SPREAD

_OF_NEARLY_ALL, _FEWEST = 0.05, 0.01  # of what all but so many labels deviate by
_OF_HALF = 1e-3  # of what half of them do: ten times as much as a residual share of 1e-8 leaves in the mean


def misses_some(labels, fitted, noise, use_bias):
    """Return whether some label is missed by more than rounding explains and labels of its output allow.

    Args:
        labels: as the loss sees them, `(n, C)`.
        fitted: what stands for them, `(n, C)`.
        noise: by how much rounding may have moved labels that are reached, less what it may hide, `(n, C)`, or zero.
        use_bias: whether a constant of each output is free.
    """
    return are_missed(labels, fitted, noise, allowances(labels, middles(labels, use_bias)))


def any_missed(head, loss, rows, theta, eps, max_bytes):
    """Return the same for what theta reaches, by more than rounding of features and labels.

    What evaluating it in float64 may hide counts as missed.

    Args:
        head: a `heads.Head`.
        loss: a `losses.Loss`.
        rows: an iterable of features, targets and weights, batch by batch.
        theta: what is to reach them, `(P,)`.
        eps: spacing at one of the numbers that the features were computed in.
        max_bytes: memory for labels, of some outputs at a time.
    """
    known = [
        (middle := middles(labels, head.use_bias), allowances(labels, middle))
        for labels in _labels_by_output(loss, rows, max_bytes)
    ]
    offset, allowed = (np.concatenate(parts) for parts in zip(*known, strict=True))
    theta = theta - np.pad(offset, (len(theta) - len(offset), 0))  # of the bias, which comes last
    for features, targets, _ in rows:
        features, matrix = features.astype(np.float64), loss.label_matrix(targets)
        labels, size = loss.seen(loss.seen(matrix) - offset), head.magnitudes(features, np.abs(theta)) + np.abs(matrix)
        noise = eps * size - head.rounding(features, theta)
        noise += _largest(noise) * loss.shift_invariant  # of what is centred, too
        if are_missed(labels, loss.seen(head.logits(features, theta)), noise, allowed):
            return True
    return False


def _labels_by_output(loss, rows, max_bytes):
    """Yield all labels as the loss sees them, `(n, k)`, of some outputs at a time, where quantiles make copies."""
    shapes = [targets.shape for _, targets, _ in rows]
    at_once = max(1, int(min(max_bytes, MAX_BYTES)) // (32 * sum(n for n, _ in shapes)))
    for some in arrays.slices(shapes[0][1], at_once):
        yield np.concatenate([loss.seen(loss.label_matrix(targets))[:, some] for _, targets, _ in rows])


def _largest(noise):
    """Return of each row `(k, C)` the entry that is furthest from zero."""
    return np.take_along_axis(noise, np.argmax(np.abs(noise), axis=1, keepdims=True), axis=1)


def are_missed(labels, fitted, noise, allowed):
    """Return the same of some labels `(k, C)`, for the `allowances` of all."""
    return bool(np.any(np.abs(labels - fitted) > noise + allowed))


def middles(labels, use_bias):
    """Return what labels `(n, C)` of each output deviate from, `(C,)`: their median, where a bias makes it free."""
    return np.median(labels, axis=0) * use_bias


def allowances(labels, middle):
    """Return by how much a label of each output may be off, `(C,)`, for labels `(n, C)` and their `middles`.

    That is a twentieth of what all but one in a hundred of them deviate by, those aside that do not, and at most a
    thousandth of what half of them do: more than even noise of a residual share of 1e-8 comes to. Weights count for
    nothing here, and one large label does not change what is small beside the others. An output whose labels are all
    equal is reached whatever is computed.
    """
    return np.array([_allowance(*column) for column in zip(labels.T, middle, strict=True)])


def _allowance(labels, middle):
    rounding, deviations = SPREAD * np.max(np.abs(labels)), np.abs(labels - middle)
    varying = deviations[deviations > rounding]
    if not len(varying):
        return np.inf
    nearly_all, half = np.quantile(varying, (_FEWEST, 0.5), method="lower")
    return rounding + min(_OF_NEARLY_ALL * nearly_all, _OF_HALF * half)
