"""How many samples a plain head can have aligned at once."""

import numpy as np

from keras_dal.analysis.verdict import ALIGNED, decisive_share
from keras_dal.solvers.least_squares import StreamedQR


def samples_fitted(features, labels, loss, use_bias, eps, seed):
    """Return the largest number of samples, the first of a random order, whose labels are in the column space.

    What is left of them counts as a share of all labels: it grows with the samples, so a bisection finds the number.

    Args:
        features: `(n, m)`.
        labels: Y_l as the loss sees them, `(n, C)`.
        loss: a `losses.Loss`.
        use_bias: whether the head has one.
        eps: spacing of floating-point numbers at one where the features were computed.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(features))

    def projected(count):
        rows = order[:count]
        qr = StreamedQR(features.shape[1], labels.shape[1], use_bias)
        qr.update(features[rows], labels[rows])
        return qr.project(eps)

    squares = projected(len(order)).squares

    def are_fitted(count):
        return decisive_share(loss, projected(count).residual, squares) <= ALIGNED

    fitted, beyond = 0, len(order) + 1
    while beyond - fitted > 1:
        middle = (fitted + beyond) // 2
        fitted, beyond = (middle, beyond) if are_fitted(middle) else (fitted, middle)
    return fitted
