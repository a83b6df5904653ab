"""Whether the moving statistics of batch normalization have left where they began, as after a training of few steps."""

from typing import Any

import numpy as np
from keras import ops

from keras_dal import _backend, _keras
from keras_dal.features.inputs import num_samples, spread
from keras_dal.features.moving_statistics import at_first, moving_of, with_statistics
from keras_dal.features.tracing import inference, recorded, takes_training, to_numpy
from keras_dal.features.variables import are_equal
from keras_dal.output.warning import warn

_START = 0.05  # share of where they began, from which moving statistics may mislead
_SHIFT, _SPREAD = 0.1, 0.5  # of means in variances, and of variances in logarithms: what one batch explains is less
_ADVICE = "Take the model as it was before this call, and renew them, keras_dal.finish(model, x, y, statistics_from=x)"
_FEW, _MOST = 32, 64  # samples that are looked at: of fewer a mean says too little


def warn_of_statistics(model, inputs, advice=_ADVICE):
    """Warn where batch statistics still hold much of where they began, and are not those of the data.

    Either alone is no fault: statistics may have been loaded, and other data may have others.

    Args:
        model: a built Keras model.
        inputs: arrays, of which a few are looked at, from the first to the last.
        advice: what to do, for the message; by default what is right for a call that solves a trained model.
    """
    steps = _steps(model)
    known = [layer for layer, _ in with_statistics(model) if _is_normalization(layer)]
    moved = known if takes_training(model) else [layer for layer in known if _has_moved(layer)]
    young = [layer for layer in moved if layer.momentum**steps > _START]
    if not steps or not young:
        return
    few = spread(inputs, _MOST)
    if num_samples(few) < _FEW:
        return
    for layer, (mean, squares) in zip(young, _moments(model, young, few), strict=True):
        if mean is not None and _differ(layer, mean, squares - mean**2):
            warn(
                f"Batch statistics have not settled: {layer.momentum**steps:.0%} of them is where they began, and "
                f"features that are computed with them mislead. {advice}, lower the momentum, or train for longer. "
                f"Received: layer {layer.name!r} with momentum={layer.momentum} after {steps} steps"
            )
            return


def _steps(model):
    """Return the number of steps since statistics began to move, 0 where it is not known or they were renewed.

    An optimizer that renews them says so by an attribute `has_renewed_statistics`, as `Wrap` does.
    """
    optimizers = list(_keras.optimizers(getattr(model, "optimizer", None)))
    if not optimizers or any(getattr(each, "has_renewed_statistics", False) for each in optimizers):
        return 0
    return int(to_numpy(_keras.step_count(optimizers[-1])))  # not `iterations`: those of accumulation move them, too


def _is_normalization(layer):
    """Return whether it is known of which moments of its inputs a layer keeps statistics, as training moves them."""
    names = ("axis", "epsilon", "moving_mean", "moving_variance")
    return layer.built and layer.trainable and all(hasattr(layer, name) for name in names)


def _has_moved(layer):
    statistics = moving_of(layer)
    return not are_equal(map(to_numpy, statistics), map(at_first, statistics))


def _moments(model, layers, x):
    """Return mean and mean square of what each layer normalizes, over all its calls; None where it is not called."""

    def moments(x):
        seen = {id(layer): [] for layer in layers}
        with recorded(layers, lambda call: seen[id(call.layer)].append(_of_channels(call.layer, call.inputs))):
            inference(model, x)
        return [seen[id(layer)] for layer in layers]

    for calls in _backend.compiled(moments, model)(x):
        arrays = np.array([[to_numpy(part) for part in call] for call in calls], np.float64)
        yield tuple(arrays.mean(axis=0)) if calls else (None, None)


def _of_channels(layer, inputs):
    values: Any = ops.cast(inputs, "float32")
    axes = [axis for axis in range(len(values.shape)) if axis != layer.axis % len(values.shape)]
    return ops.mean(values, axes), ops.mean(ops.square(values), axes)


def _differ(layer, mean, variance):
    """Return whether the statistics of a layer are not those of its inputs, of each channel."""
    variance = np.maximum(variance, 0.0) + layer.epsilon
    shift = np.mean((mean - to_numpy(layer.moving_mean)) ** 2 / variance)
    spread = np.median(np.abs(np.log((to_numpy(layer.moving_variance) + layer.epsilon) / variance)))
    return shift > _SHIFT or spread > _SPREAD
