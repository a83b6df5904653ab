"""Whether the moving statistics of batch normalization have left where they began, as after a training of few steps."""

import warnings

import numpy as np
from keras import tree

from keras_dal import _keras
from keras_dal.features.batches import are_arrays
from keras_dal.features.tracing import recorded_calls, to_numpy

_START = 0.05  # share of where they began, from which moving statistics may mislead
_SHIFT, _SPREAD = 0.1, 0.5  # of means in variances, and of variances in logarithms: what one batch explains is less
_ROWS = 256  # samples that are looked at


def warn_of_statistics(model, x, advice):
    """Warn where batch statistics still hold much of where they began, and are not those of the data.

    Either alone is no fault: statistics may have been loaded, and other data may have others.

    Args:
        model: a built Keras model.
        x: arrays of inputs, of which a few are looked at, from the first to the last, or a dataset of batches.
        advice: what to do, for the message.
    """
    steps = _steps(model)
    young = [layer for layer in _keras.sublayers(model) if _is_normalization(layer) and layer.momentum**steps > _START]
    if not steps or not young:
        return
    calls, _ = recorded_calls(model, _some(x))
    for call in calls:
        if any(call.layer is layer for layer in young) and _differ(call.layer, to_numpy(call.inputs)):
            share = call.layer.momentum**steps
            warnings.warn(
                f"Batch statistics have not settled: {share:.0%} of them is where they began, and features that are "
                f"computed with them mislead. {advice}, lower the momentum, or train for longer. Received: layer "
                f"{call.layer.name!r} with momentum={call.layer.momentum} after {steps} steps",
                stacklevel=3,
            )
            return


def _steps(model):
    """Return the number of steps that the model's optimizer has taken, 0 where that is not known."""
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    return 0 if iterations is None else int(to_numpy(iterations))


def _is_normalization(layer):
    names = ("momentum", "axis", "moving_mean", "moving_variance")
    return layer.built and layer.trainable and all(hasattr(layer, name) for name in names)


def _some(x):
    """Return a few inputs: of arrays from all over them, of a dataset its first batch."""
    if not are_arrays(x):
        batch = next(iter(x))
        return batch[0] if isinstance(batch, (tuple, list)) else batch
    step = max(1, len(tree.flatten(x)[0]) // _ROWS)
    return tree.map_structure(lambda part: np.asarray(part)[::step][:_ROWS], x)


def _differ(layer, inputs):
    """Return whether the statistics of a layer are not those of its inputs."""
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    rows = np.moveaxis(np.asarray(inputs, np.float64), axis, -1).reshape(-1, inputs.shape[axis])
    variance = rows.var(axis=0) + layer.epsilon
    shift = np.mean((rows.mean(axis=0) - to_numpy(layer.moving_mean)) ** 2 / variance)
    spread = np.median(np.abs(np.log((to_numpy(layer.moving_variance) + layer.epsilon) / variance)))
    return shift > _SHIFT or spread > _SPREAD
