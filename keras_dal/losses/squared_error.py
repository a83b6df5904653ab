"""The squared error."""

import keras
import numpy as np
from keras import ops

from keras_dal._backend import arrays
from keras_dal._backend.arrays import SPREAD
from keras_dal.losses.base import Loss, checked_matrix, register, rows_in_step

_LARGEST = 1e120  # of labels, whose squares are summed up and divided by one another
_SPREAD_OF_FLOAT32 = 4 * float(np.finfo(np.float32).eps)  # as `SPREAD`, of labels that float32 holds
_SMALLEST = 1e-150  # of the labels of one output beside others in this batch, whose squares must not be zero


@register
class SquaredError(Loss):
    """`mean_j (f_j - y_j)^2`, the average over outputs as in `keras.losses.MeanSquaredError`; targets are the y."""

    name = "squared error"
    activation = "linear"
    keras_losses = (keras.losses.MeanSquaredError,)
    quadratic = True
    tensors = True

    def targets(self, y, num_outputs):
        targets = checked_matrix(y, num_outputs)
        largest = np.max(np.abs(targets), axis=0)
        least = np.where(largest < np.max(largest), _SMALLEST, 1 / _LARGEST)
        wrong = (largest > _LARGEST) | ((largest > 0) & (largest < least))
        if wrong.any():
            raise ValueError(
                "The squares of the labels must be numbers that float64 can hold: give them in another unit. "
                f"Received: labels of output {np.argmax(wrong)} up to {largest[wrong][0]:.3g}"
            )
        return targets

    def step_targets(self, y, num_outputs):
        y = rows_in_step(y, num_outputs)
        return y, ops.all(ops.isfinite(y), axis=1)

    def values(self, logits, targets):
        return arrays.of(logits).row_total((logits - targets) ** 2) / targets.shape[1]

    def gradient(self, logits, targets):
        return (logits - targets) * (2.0 / targets.shape[1])

    def hessian(self, logits, targets):
        return lambda change, block: change * (2.0 / targets.shape[1])

    def curvature(self, num_outputs):
        return 2.0 / num_outputs

    def infimum(self, targets):
        return np.zeros(len(targets))

    def unit(self, targets, weights):
        """Return the mean sample weight times the variance of the labels, or times 1 where that is only rounding."""
        variance, size = (float(np.mean(each)) for each in moments(targets, weights))
        in_float32 = all(_are_in_float32(targets[rows]) for rows in arrays.slices(len(weights)))
        spread = _SPREAD_OF_FLOAT32 if in_float32 else SPREAD
        return super().unit(targets, weights) * (variance if variance > spread**2 * size else 1.0)

    def scales(self, targets):
        return np.ones(len(targets))

    def conjugate(self, slopes, targets):
        return np.sum(slopes * targets + 0.25 * targets.shape[1] * slopes**2, axis=1)


def moments(targets, weights):
    """Return variance and mean square of the labels of each output, `(C,)` each, for targets as `Loss.unit` takes."""
    shares, first = weights / np.sum(weights), targets[:1]  # distances to it are zero where labels are constant
    sums = np.zeros((3, first.shape[1]))
    for rows in arrays.slices(len(weights)):
        some, share = targets[rows], shares[rows]
        sums += share @ (some - first), share @ (some - first) ** 2, share @ some**2
    return np.maximum(sums[1] - sums[0] ** 2, 0.0), sums[2]


def _are_in_float32(targets):
    with np.errstate(over="ignore"):
        return np.array_equal(targets, targets.astype(np.float32))
