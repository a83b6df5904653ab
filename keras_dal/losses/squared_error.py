"""The squared error."""

import numpy as np

from keras_dal.losses.base import Loss, matrix


class SquaredError(Loss):
    """`mean_j (f_j - y_j)^2`, the average over outputs as in `keras.losses.MeanSquaredError`."""

    name = "squared error"
    activation = "linear"

    def targets(self, y, num_outputs):
        return matrix(y, num_outputs)

    def curvature(self, num_outputs):
        return 2.0 / num_outputs

    def values(self, logits, targets):
        return np.mean((logits - targets) ** 2, axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return (logits - targets) * (2.0 / targets.shape[1])

    def margins(self, logits, targets):
        return None

    def at_margin(self, margin, num_outputs):
        return None
