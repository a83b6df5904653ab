"""The softmax cross-entropy."""

import numpy as np
from scipy import special

from keras_dal.losses.base import Loss, integers, matrix


class SoftmaxCrossEntropy(Loss):
    """`logsumexp(f) - f_y`, as in `keras.losses.(Sparse)CategoricalCrossentropy`."""

    name = "softmax cross-entropy"
    activation = "softmax"

    def targets(self, y, num_outputs):
        y = np.asarray(y)
        if y.size and (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1 < num_outputs)):
            labels = integers(y.reshape(-1), num_outputs)
            return np.eye(num_outputs)[labels]
        y = matrix(y, num_outputs)
        if not (np.isin(y, (0.0, 1.0)).all() and (y.sum(axis=1) == 1.0).all()):
            wrong = y[~((np.isin(y, (0.0, 1.0)).all(axis=1)) & (y.sum(axis=1) == 1.0))][0]
            raise ValueError(
                "Softmax cross-entropy needs integer or one-hot labels: with smoothed or mixed labels its minimum is "
                f"not 0 and the guarantee does not hold. Pass hard labels. Received: a row y={wrong}"
            )
        return y

    def curvature(self, num_outputs):
        return 0.5

    def values(self, logits, targets):
        below = logits - np.max(logits, axis=1, keepdims=True)  # at most 0, so that float32 loses nothing small
        total = np.sum(np.exp(below), axis=1, dtype=np.float64)
        return np.log(total) - np.sum(below * targets, axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return special.softmax(logits, axis=1) - targets

    def margins(self, logits, targets):
        right = np.sum(logits * targets, axis=1)
        return right - np.max(np.where(targets == 1.0, -np.inf, logits), axis=1)

    def at_margin(self, margin, num_outputs):
        return np.logaddexp(0.0, np.log(num_outputs - 1.0) - margin)
