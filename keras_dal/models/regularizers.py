"""What the regularizers of a head add to its loss: as L2 factors, or else only as a value."""

import keras
import numpy as np
from keras import ops

from keras_dal import _keras
from keras_dal.features.tracing import to_numpy
from keras_dal.heads.parameters import join, split


def l2_factors(variables):
    """Return the L2 factor of every entry of Keras variables, flat, or None where the penalty is not L2.

    Raises nothing: a penalty that has no curvature bound leaves a model trainable, only without a rate.
    """
    factors = []
    for variable in variables:
        regularizer = variable.regularizer
        squares = type(regularizer) in (keras.regularizers.L2, keras.regularizers.L1L2)
        if (regularizer is not None and not squares) or getattr(regularizer, "l1", 0.0) or variable.constraint:
            return None
        factors.append(np.full(variable.shape, float(getattr(regularizer, "l2", 0.0))))
    return join(factors)


def l2_of(factors, theta):
    """Return the L2 penalty on theta_S, of entries that have one alone: others may be infinite."""
    squares = np.where(factors, theta, 0.0) ** 2
    return float(np.sum(factors * squares))


def penalty_at(variables, factors, theta):
    """Return what the regularizers of Keras variables add to the loss at theta_S.

    Args:
        variables: the linear parameters.
        factors: from `l2_factors`; None where they must be asked.
        theta: theta_S, `(P,)`.
    """
    if factors is not None:
        return l2_of(factors, theta)
    parts = zip(variables, split(theta, variables), strict=True)
    tensors = [(v, ops.convert_to_tensor(part.astype("float32"))) for v, part in parts if v.regularizer]
    return float(sum(to_numpy(v.regularizer(tensor)).item() for v, tensor in tensors))


def penalty_in_solve(structure):
    """Return the L2 factors of a plain head beside a loss that is not weighted, `(P,)`, None where it has none."""
    factors = l2_factors(structure.linear_parameters) if structure.is_plain else None
    if factors is None or not factors.any():
        return None
    return factors / _keras.loss_weight(structure.model)
