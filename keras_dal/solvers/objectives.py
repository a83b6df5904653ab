"""What the solver minimizes, as functions of logits: how far samples are from their right side, or a loss.

Values are float64, because their sums decide; gradients and curvatures are float32, because they enter products.
"""

import numpy as np


class Separation:
    """`sum_j max(0, delta - gap_ij)^2`, zero where every sample is on its right side by delta.

    The gaps are `f_y - f_j` for every wrong class j, or `t_j f_j` for every output where each has a side of its own.

    Args:
        targets: of hard labels, from the loss, `(n, C)`.
        delta: the wanted margin, positive.
        exclusive: whether one class is right per sample, as a loss says.
    """

    def __init__(self, targets, delta, exclusive):
        self.targets = np.asarray(targets, np.float32)
        self.delta, self.exclusive = np.float32(delta), exclusive
        self._labels = np.argmax(self.targets, axis=1)[:, None]

    def values(self, logits):
        short = self._short(logits)
        return np.einsum("ij,ij->i", short, short, dtype=np.float64)

    def gradient(self, logits):
        return self._from_pairs(-2 * self._short(logits), slice(None))

    def active(self, logits):
        return self._short(logits).any(axis=1)

    def curvature(self, logits, rows):
        counted = (self._short(logits[rows], rows) > 0) * np.float32(2)
        return lambda change, block: self._from_pairs(counted[block] * self.gaps(change, rows[block]), rows[block])

    def nearest(self, logits):
        """Return the nearest logits `(n, C)` with every gap at least delta."""
        if not self.exclusive:
            return self.targets * np.maximum(self.targets * logits, self.delta)
        right = np.take_along_axis(logits, self._labels, axis=1)
        others = logits + self.delta
        np.put_along_axis(others, self._labels, -np.inf, axis=1)
        others = np.sort(others, axis=1)[:, :0:-1]
        # the right class rises to the mean of itself and of the others that it must push down, the highest first
        raised = np.cumsum(np.hstack([right, others]), axis=1) / np.arange(1, logits.shape[1] + 1)
        pushed = np.sum(others > raised[:, :-1], axis=1, keepdims=True)
        raised = np.take_along_axis(raised, pushed, axis=1)
        nearest = np.minimum(logits, raised - self.delta)
        np.put_along_axis(nearest, self._labels, raised, axis=1)
        return nearest

    def gaps(self, logits, rows=slice(None)):
        if not self.exclusive:
            return self.targets[rows] * logits
        return np.take_along_axis(logits, self._labels[rows], axis=1) - logits

    def _short(self, logits, rows=slice(None)):
        short = self.delta - self.gaps(logits, rows)
        np.maximum(short, 0, out=short)
        if self.exclusive:
            np.put_along_axis(short, self._labels[rows], 0, axis=1)
        return short

    def _from_pairs(self, pairs, rows):
        """Return the transpose of `gaps` applied to one value per pair of sample and class, 0 for the right class."""
        if not self.exclusive:
            return self.targets[rows] * pairs
        right = pairs.sum(axis=1, keepdims=True)
        np.negative(pairs, out=pairs)
        np.put_along_axis(pairs, self._labels[rows], right, axis=1)
        return pairs


class Anchored:
    """`sum_i weight_i criterion(f_i) + sum_i hold_i ||f_i - start_i||^2`, what a `newton_cg.Problem` minimizes.

    Args:
        criterion: one of the others, on the first k rows.
        weights: of these rows, `(k,)`.
        start: logits to which anchors are held, `(n, C)`, with n at least k.
        hold: weights `(n,)` of the distances; zero where a row is no anchor. None for no anchors.
    """

    def __init__(self, criterion, weights, start, hold=None):
        self.criterion, self.start, self.size = criterion, start, len(weights)
        self.weights = np.asarray(weights, np.float32)
        self.hold = np.zeros(len(start), np.float32) if hold is None else np.asarray(hold, np.float32)

    def values(self, logits):
        values = self.hold * np.sum(np.square(logits - self.start, dtype=np.float64), axis=1)
        values[: self.size] += self.weights * self.criterion.values(logits[: self.size])
        return values

    def gradient(self, logits):
        gradient = logits - self.start
        gradient *= 2 * self.hold[:, None]
        gradient[: self.size] += self.weights[:, None] * self.criterion.gradient(logits[: self.size])
        return gradient

    def active(self, logits):
        active = self.hold > 0
        active[: self.size] |= self.criterion.active(logits[: self.size])
        return active

    def curvature(self, logits, rows):
        """Return a function that multiplies changes of some rows' logits by the second derivative there.

        Args:
            logits: of all rows, `(n, C)`.
            rows: indices `(k,)` in ascending order.

        Returns:
            A function of changes `(b, C)` and of the slice of `rows` that they belong to.
        """
        size = int(np.searchsorted(rows, self.size))
        inner = self.criterion.curvature(logits[: self.size], rows[:size])
        hold, weights = 2 * self.hold[rows, None], self.weights[rows[:size], None]

        def product(change, block):
            bent = hold[block] * change
            first = slice(block.start, min(block.stop, size))
            if first.start < first.stop:
                count = first.stop - first.start
                bent[:count] += weights[first] * inner(change[:count], first)
            return bent

        return product


class WholeLoss:
    """One of the `losses` itself.

    Args:
        loss: a `losses.Loss`.
        targets: of the loss, `(n, C)`.
    """

    def __init__(self, loss, targets):
        self.loss, self.targets = loss, np.asarray(targets, np.float32)

    def values(self, logits):
        return self.loss.values(logits, self.targets)

    def gradient(self, logits):
        return self.loss.gradient(logits, self.targets)

    def active(self, logits):
        return np.ones(len(logits), bool)

    def curvature(self, logits, rows):
        return self.loss.hessian(logits[rows], self.targets[rows])
