"""What a head does with samples, in float64: logits, quality, and the scale that brings a loss."""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from keras_dal._backend import arrays

_BINS = 15  # of confidence, for the calibration error (Guo et al., 2017)
_BLOCK = 2048  # samples whose logits are computed at a time


class Quality(NamedTuple):
    """How good a model is on validation data.

    Attributes:
        loss: mean loss; for the cross-entropies this is the negative log-likelihood.
        accuracy: share of right predictions, None for the squared error; where labels are soft, those of a most
            probable class.
        ece: expected calibration error over 15 bins of confidence, None for the squared error.
    """

    loss: float
    accuracy: float | None
    ece: float | None


def least_scale(loss_at, tol):
    """Return the least scale, from 1 on, with loss at most tol: it exists because every margin is positive."""
    if loss_at(1.0) <= tol:
        return 1.0

    def excess(scale):  # over a loss a thousandth smaller than tol, which the root's precision cannot miss
        return np.log(max(loss_at(scale), 1e-2 * tol) / tol) + 1e-3

    far = 2.0
    while excess(far) > 0:
        far *= 2
    return float(optimize.root_scalar(excess, bracket=(far / 2, far), rtol=1e-6).root)


class Logits:
    """Logits in float64, by slices of the samples; kept up to so many bytes, else computed in every pass."""

    def __init__(self, head, features, theta, max_bytes):
        self._head, self._features, self._theta = head, features, theta
        self._kept = list(self._blocks()) if 8 * len(features) * head.num_outputs <= max_bytes else None

    def __iter__(self):
        return iter(self._kept or self._blocks())

    def _blocks(self):
        for rows in arrays.slices(len(self._features), _BLOCK):
            yield rows, self._head.logits(np.asarray(self._features[rows], np.float64), self._theta)


def logits_of(head, features, theta):
    """Return all of them, `(n, C)`."""
    return np.concatenate([block for _, block in Logits(head, features, theta, max_bytes=0)])


def quality(logits, targets, loss):
    """Return the `Quality` of logits `(n, C)`."""
    value, margins = float(np.mean(loss.values(logits, targets))), loss.margins(logits, targets)
    if margins is None:
        return Quality(value, None, None)
    confidence, right = loss.confidence(logits, targets)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    ece = np.sum(np.abs(np.bincount(bins, right - confidence, _BINS))) / len(confidence)
    return Quality(value, float(np.mean(margins > 0)), float(ece))
