"""Labels that a fit misses although little of all labels is left: larger or heavier ones hide them."""

import numpy as np

from keras_dal._backend.arrays import SPREAD

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
