"""The sigmoid cross-entropy."""

import numpy as np
from scipy import special

from keras_dal.losses.base import Loss, matrix


class SigmoidCrossEntropy(Loss):
    """`mean_j log(1 + exp(-t_j f_j))` with `t = 2 y - 1`, as in `keras.losses.BinaryCrossentropy`."""

    name = "sigmoid cross-entropy"
    activation = "sigmoid"

    def targets(self, y, num_outputs):
        y = matrix(y, num_outputs)
        if not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(
                "Sigmoid cross-entropy needs labels 0 or 1: with others its minimum is not 0 and the guarantee does "
                f"not hold. Pass hard labels. Received: y with the value {y[~np.isin(y, (0.0, 1.0))][0]}"
            )
        return 2.0 * y - 1.0

    def curvature(self, num_outputs):
        return 0.25 / num_outputs

    def values(self, logits, targets):
        return np.mean(np.logaddexp(0.0, -targets * logits), axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return -targets * special.expit(-targets * logits) / targets.shape[1]

    def margins(self, logits, targets):
        return np.min(targets * logits, axis=1)

    def at_margin(self, margin, num_outputs):
        return np.logaddexp(0.0, -margin)
