"""What a head does with samples, in float64: logits, quality, and the scale that brings a loss."""

from typing import NamedTuple

import numpy as np

from keras_dal._backend import arrays
from keras_dal.solvers import rounded

_BINS = 15  # of confidence, for the calibration error (Guo et al., 2017)
_BLOCK = 2048  # samples whose logits are computed at a time


class Quality(NamedTuple):
    """How good a model is on validation data.

    Attributes:
        loss: mean loss; for the cross-entropies this is the negative log-likelihood, of smoothed labels where the loss
            smooths them.
        accuracy: share of right predictions, None for a loss of numbers; where labels are soft, those of a most
            probable class.
        ece: expected calibration error over 15 bins of confidence, None for a loss without probabilities.
    """

    loss: float
    accuracy: float | None
    ece: float | None


def least_scale(loss_at, tol):
    """Return the least power of two, from 1 on, with loss at most tol: it exists because every margin is positive.

    Other factors would be rounded when they multiply weights, and what is said at a scale would be of other weights.
    """
    scale = 1.0
    while loss_at(scale) > tol:
        scale *= 2
    return scale


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


class FittedHead:
    """A head with its parameters on the samples it was solved for, in float64.

    Args:
        head: a `heads.Head`.
        loss: a `losses.Loss`.
        features: `(n, m)`.
        targets: of the loss.
        theta: the parameters, `(P,)`.
        weights: of the samples, `(n,)`.
        max_bytes: up to which logits are kept.
    """

    def __init__(self, head, loss, features, targets, theta, weights, max_bytes):
        self._head, self._loss, self._theta = head, loss, theta
        self._features, self._targets, self._weights = features, targets, weights
        self._logits = Logits(head, features, theta, max_bytes)

    def mean_loss(self, scale=1.0):
        """Return the mean loss with the head times a factor."""
        return self._mean(lambda block, targets: self._loss.values(scale * block, targets))

    def mean_curvature(self):
        """Return the mean second derivative of the loss in a logit."""
        return self._mean(self._loss.mean_curvature)

    def mean_slope(self):
        """Return the mean derivative of the loss in each logit, `(C,)`."""
        terms = (self._weights[rows] @ self._loss.gradient(block, self._targets[rows]) for rows, block in self._logits)
        return sum(terms) / len(self._features)

    def _mean(self, function):
        """Return the weighted mean of a function of logits and targets."""
        terms = (self._weights[rows] @ function(block, self._targets[rows]) for rows, block in self._logits)
        return float(sum(terms)) / len(self._features)

    def margins(self):
        """Return the margins `(n,)`, None for a loss without sides."""
        if not self._loss.has_sides:
            return None
        return np.concatenate([self._loss.margins(block, self._targets[rows]) for rows, block in self._logits])

    def least_margin(self):
        """Return a lower bound of the smallest margin, rounding counted."""
        return min(
            rounded.smallest_margin(self._loss, block, self._errors(rows), self._targets[rows])
            for rows, block in self._logits
        )

    def largest_loss(self, scale):
        """Return an upper bound of the mean loss with the head times a factor, rounding counted."""
        total = 0.0
        for rows, block in self._logits:
            samples = self._targets[rows], self._weights[rows]
            total += len(block) * rounded.largest_loss(self._loss, scale * block, scale * self._errors(rows), *samples)
        return total / len(self._features)

    def _errors(self, rows):
        return self._head.rounding(np.asarray(self._features[rows], np.float64), self._theta)


def logits_of(head, features, theta):
    """Return all of them, `(n, C)`."""
    return np.concatenate([block for _, block in Logits(head, features, theta, max_bytes=0)])


def quality(logits, targets, loss, scale=1.0):
    """Return the `Quality` of the head whose `Logits` these are, times a factor."""
    total, right, off, count, size = 0.0, 0, np.zeros(_BINS), 0, 0
    for rows, block in logits:
        block, some = scale * block, targets[rows]
        size, total = size + len(block), total + np.sum(loss.values(block, some))
        if not loss.has_sides:
            continue
        right += np.sum(loss.margins(block, some) > 0)
        known = loss.confidence(block, some)
        if known is not None:
            confidence, is_right = known
            bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
            off, count = off + np.bincount(bins, is_right - confidence, _BINS), count + len(confidence)
    accuracy = float(right / size) if loss.has_sides else None
    return Quality(float(total / size), accuracy, float(np.sum(np.abs(off)) / count) if count else None)
