"""What the solver minimizes, as functions of logits: how far samples are from their right side, or a loss."""

import numpy as np
from scipy import special


class Separation:
    """`sum_j max(0, delta - gap_ij)^2`, zero where every sample is on its right side by delta.

    The gaps are `f_y - f_j` for every wrong class j (softmax) or `t_j f_j` for every output (sigmoid).

    Args:
        targets: Y_l of the loss, `(n, C)`.
        delta: the wanted margin, positive.
        exclusive: whether one class is right per sample (softmax).
    """

    def __init__(self, targets, delta, exclusive):
        self.targets = np.asarray(targets, np.float32)
        self.delta, self.exclusive = np.float32(delta), exclusive
        self.right = self.targets == 1.0

    def values(self, logits):
        return np.sum(np.square(self._short(logits), dtype=np.float64), axis=1)

    def gradient(self, logits):
        return self._from_pairs(-2 * self._short(logits), slice(None))

    def active(self, logits):
        return self._short(logits).any(axis=1)

    def curvature(self, logits, rows):
        counted = self._short(logits)[rows] > 0
        return lambda change: self._from_pairs(2 * counted * self.gaps(change, rows), rows)

    def nearest(self, logits):
        """Return the nearest logits `(n, C)` with every gap at least delta."""
        if not self.exclusive:
            return self.targets * np.maximum(self.targets * logits, self.delta)
        right = logits[self.right][:, None]
        others = np.sort(np.where(self.right, -np.inf, logits + self.delta), axis=1)[:, :0:-1]
        # the right class rises to the mean of itself and of the others that it must push down, the highest first
        raised = np.cumsum(np.hstack([right, others]), axis=1) / np.arange(1, logits.shape[1] + 1)
        pushed = np.sum(others > raised[:, :-1], axis=1, keepdims=True)
        raised = np.take_along_axis(raised, pushed, axis=1)
        return np.where(self.right, raised, np.minimum(logits, raised - self.delta))

    def gaps(self, logits, rows=slice(None)):
        if not self.exclusive:
            return self.targets[rows] * logits
        return logits[self.right[rows]][:, None] - logits

    def _short(self, logits):
        short = np.maximum(0, self.delta - self.gaps(logits))
        if self.exclusive:
            short[self.right] = 0
        return short

    def _from_pairs(self, pairs, rows):
        """Return the transpose of `gaps` applied to one value per pair of sample and class."""
        if not self.exclusive:
            return self.targets[rows] * pairs
        out = -pairs
        out[self.right[rows]] += pairs.sum(axis=1)
        return out


class Anchored:
    """`sum_i weight_i criterion(f_i) + sum_i hold_i ||f_i - start_i||^2`, what a `solver.Problem` minimizes.

    Args:
        criterion: one of the others, on the first k rows.
        weights: of these rows, `(k,)`.
        start: logits to which anchors are held, `(n, C)`, with n at least k.
        hold: weights `(n,)` of the distances; zero where a row is no anchor. None for no anchors.
    """

    def __init__(self, criterion, weights, start, hold=None):
        self.criterion, self.start, self.size = criterion, start, len(weights)
        self.weights = np.asarray(weights, np.float64)
        self.hold = np.zeros(len(start)) if hold is None else np.asarray(hold, np.float64)

    def values(self, logits):
        values = self.hold * np.sum(np.square(logits - self.start, dtype=np.float64), axis=1)
        values[: self.size] += self.weights * self.criterion.values(logits[: self.size])
        return values

    def gradient(self, logits):
        gradient = 2 * self.hold[:, None] * (logits - self.start)
        gradient[: self.size] += self.weights[:, None] * self.criterion.gradient(logits[: self.size])
        return gradient

    def active(self, logits):
        active = self.hold > 0
        active[: self.size] |= self.criterion.active(logits[: self.size])
        return active

    def curvature(self, logits, rows):
        rows = np.arange(len(logits))[rows]
        first = rows[: np.searchsorted(rows, self.size)]
        inner = self.criterion.curvature(logits[: self.size], first)
        hold, weights = 2 * self.hold[rows, None], self.weights[first, None]

        def product(change):
            bent = hold * change
            bent[: len(first)] += weights * inner(change[: len(first)])
            return bent

        return product


class WholeLoss:
    """One of the `losses` itself.

    Args:
        loss: a `losses.Loss`.
        targets: its Y_l, `(n, C)`.
    """

    def __init__(self, loss, targets):
        self.loss, self.targets = loss, targets

    def values(self, logits):
        return self.loss.values(logits.astype(np.float64), self.targets)

    def gradient(self, logits):
        return self.loss.gradient(logits, self.targets)

    def active(self, logits):
        return np.ones(len(logits), bool)

    def curvature(self, logits, rows):
        logits, outputs = logits[rows], logits.shape[1]
        if self.loss.activation == "linear":
            return lambda change: change * (2.0 / outputs)
        if self.loss.activation == "sigmoid":
            p = special.expit(logits)
            return lambda change: p * (1 - p) * change / outputs
        p = special.softmax(logits, axis=1)
        return lambda change: p * (change - np.sum(p * change, axis=1, keepdims=True))
