"""Labels that a fit misses although little of all labels is left: larger or heavier ones hide them."""

import numpy as np

from keras_dal._backend.arrays import SPREAD

_MISSED, _FEWEST = 1e-2, 0.01  # of what all but so many labels deviate by


def misses_some(labels, fitted, noise, use_bias):
    """Return whether some label is missed by more than rounding explains and labels of its output allow.

    That is a hundredth of what all but one in a hundred of them differ from their median by, those aside that equal it.
    Weights count for nothing here, and one large label does not change what is small beside the others.

    Args:
        labels: as the loss sees them, `(n, C)`.
        fitted: what stands for them, `(n, C)`.
        noise: by how much rounding may have moved either, `(n, C)`, or zero.
        use_bias: whether a constant of each output is free.
    """
    rounding = SPREAD * np.max(np.abs(labels), axis=0)
    deviations = np.abs(labels - np.median(labels, axis=0) * use_bias)
    typical = [_typical(column, least) for column, least in zip(deviations.T, rounding, strict=True)]
    return bool(np.any(np.abs(labels - fitted) > noise + rounding + _MISSED * np.array(typical)))


def _typical(deviations, rounding):
    varying = deviations[deviations > rounding]
    return np.quantile(varying, _FEWEST, method="lower") if len(varying) else 0.0
