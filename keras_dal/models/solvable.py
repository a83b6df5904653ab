"""Which heads are refused before they are trained or solved for, and which are warned of."""

import keras
import numpy as np

from keras_dal import _keras
from keras_dal.features.tracing import HALVES
from keras_dal.models.regularizers import l2_factors
from keras_dal.output.warning import warn


def check_trained(untrained):
    """Raise a ValueError where some of the linear parameters are not trained."""
    if untrained:
        raise ValueError(
            "The linear parameters must be trainable when training begins. Set trainable=True on their layer, and on "
            "the model, before the first step. Received: untrained linear parameters "
            f"{[variable.path for variable in untrained]}"
        )


def check_solvable(structure):
    """Raise a ValueError if linear parameters are not finite, frozen in part or bounded, or count in no loss."""
    theta = structure.theta()
    if not np.isfinite(theta).all():
        raise ValueError(
            "The last layer must be finite: the training has diverged, go back to earlier weights. Received: "
            f"{np.sum(~np.isfinite(theta))} parameters that are NaN or infinite"
        )
    weight = _keras.loss_weight(structure.model)
    if not 0 < weight < np.inf:
        raise ValueError(
            "The last layer is solved for a loss that counts: compile with positive loss_weights, or without. "
            f"Received: loss_weights={weight:g}"
        )
    frozen = [variable.path for variable in structure.linear_parameters if not variable.trainable]
    if 0 < len(frozen) < len(structure.linear_parameters):  # all of them, as in a model that only predicts, may be
        raise ValueError(
            "All of the last layer is solved for: set trainable=True on it, or leave it as it is. Received: "
            f"frozen {', '.join(frozen)}"
        )
    bound = [variable.path for variable in structure.linear_parameters if variable.constraint is not None]
    if bound:
        raise ValueError(
            "The last layer is solved for without constraints: leave kernel_constraint and bias_constraint out. "
            f"Received: constraints on {bound}"
        )
    around = [
        layer for layer in _keras.sublayers(structure.model) if isinstance(layer, keras.layers.SpectralNormalization)
    ]
    if kept := [layer.name for layer in around if layer.layer in (structure.layer, structure.output_layer)]:
        raise ValueError(
            "The last layer is solved for without a bound of its norm, to which training would bring it back: leave "
            f"SpectralNormalization out around it. Received: layer {kept[0]!r}"
        )


def warn_of_precision(structure):
    """Warn where a model rounds its logits to half precision, in which what is said of the head need not hold."""
    dtype = structure.output_layer.compute_dtype
    if dtype in HALVES:
        warn(
            f"The logits are computed in {dtype}, whose rounding can undo small margins: the result speaks of the head "
            "in float64. Give the last layer dtype='float32', as Keras advises for mixed precision. Received: layer "
            f"{structure.output_layer.name!r}"
        )


def warn_of_what_is_not_solved(structure, knows_penalties=True):
    """Warn of what training minimizes and a solver of the last layer does not.

    Args:
        structure: the `Structure` of the model.
        knows_penalties: whether the solver minimizes L2 penalties, so that others are to be told; where it leaves out
            all of them, its result says so.
    """
    adding = _adding(structure)
    left_out = {
        "compute_loss of the model's own": _keras.has_own_compute_loss(structure.model),
        f"add_loss of {', '.join(adding)}": bool(adding),
        "activity regularizer of the last layer": structure.output_layer.activity_regularizer is not None,
        "regularizer of the last layer": knows_penalties and _is_left_out(structure),
    }
    if any(left_out.values()):
        what = " and the ".join(what for what, is_there in left_out.items() if is_there)
        warn(
            f"The last layer is solved for the compiled loss alone, without what the {what} adds to it: with "
            f"Wrap(finish='descend') it is trained with all of it. Received: model {structure.model.name!r}"
        )


def _adding(structure):
    """Return the names of the layers that add losses and hold the last one: what others add does not depend on it."""
    model, last = structure.model, structure.output_layer
    around = [each for each in _keras.sublayers(model) if each is last or last in _keras.sublayers(each)]
    return [layer.name for layer in (model, *around) if layer.name in structure.adds_losses]


def _is_left_out(structure):
    """Return whether a head has a penalty that its solve does not know: beside a loss, only L2 is."""
    variables = structure.linear_parameters
    is_l2 = l2_factors(variables) is not None and structure.is_plain
    return not is_l2 and any(variable.regularizer is not None for variable in variables)
