"""The scale that an optimizer gives the loss in half precision, taken off its gradients again."""

import keras
from keras import ops


def unscaled(optimizer, grads):
    """Return gradients without the scale that an optimizer gave the loss.

    Where they are not finite a dynamic scale is halved, as Keras does it, and they are zeros.
    """
    scale = optimizer.scale_loss(1.0)
    grads = [None if g is None else g / ops.cast(scale, g.dtype) for g in grads]
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return grads
    finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads if g is not None]))
    dynamic = optimizer.dynamic_scale.value
    optimizer.dynamic_scale.assign(ops.where(finite, dynamic, dynamic / 2))
    return [None if g is None else ops.where(finite, g, ops.zeros_like(g)) for g in grads]
