"""What the solver minimizes, as functions of logits: how far samples are from their right side, or a loss.

Arrays are NumPy's or tensors of the backend, but all of one kind. Values of NumPy are float64, because their sums
decide; gradients and Hessian products are float32, because they enter products.
"""

import numpy as np

from keras_dal._backend import arrays
from keras_dal.losses.sides import ALL


class Separation:
    """`sum_j max(0, delta - gap_ij)^2`, zero where every sample is on its right side by delta.

    Args:
        sides: of the loss, of hard labels in single precision.
        delta: the wanted margin, positive.
    """

    def __init__(self, sides, delta):
        self.sides, self._xp = sides, arrays.of(sides.targets)
        self.delta = float(np.float32(delta))

    def values(self, logits):
        return self._xp.row_square(self._short(logits))

    def gradient(self, logits):
        return self.sides.from_gaps(-2 * self._short(logits))

    def active(self, logits):
        return self._short(logits).any(axis=1)

    def hessian(self, logits, rows):
        counted = 2.0 * self._xp.sign(self._short(logits[rows], rows))

        def product(change, block):
            some = block if rows is ALL else rows[block]
            return self.sides.from_gaps(counted[block] * self.sides.gaps(change, some), some)

        return product

    def nearest(self, logits):
        """Return the nearest logits `(n, C)` with every gap at least delta."""
        return self.sides.nearest(logits, self.delta)

    def _short(self, logits, rows=ALL):
        return self.sides.pairs(self._xp.maximum(self.delta - self.sides.gaps(logits, rows), 0.0), rows)


class Anchored:
    """`sum_i weight_i criterion(f_i) + sum_i hold_i ||f_i - start_i||^2`, what a `newton_cg.NewtonCG` minimizes.

    Args:
        criterion: one of the others, on the first k rows.
        weights: of these rows, `(k,)`.
        start: logits to which anchors are held, `(n, C)`, with n at least k.
        hold: weights `(n,)` of the distances; zero where a row is no anchor.
    """

    def __init__(self, criterion, weights, start, hold):
        self.criterion, self.start, self.size, self._xp = criterion, start, len(weights), arrays.of(start)
        self.weights = self._xp.single(weights)
        self.hold = self._xp.single(hold)

    def values(self, logits):
        held = self.hold * self._xp.row_square(logits - self.start)
        return self._xp.add_to_first(held, self.weights * self.criterion.values(logits[: self.size]))

    def gradient(self, logits):
        held = (logits - self.start) * (2 * self.hold[:, None])
        return self._xp.add_to_first(held, self.weights[:, None] * self.criterion.gradient(logits[: self.size]))

    def active(self, logits):
        active = self.hold > 0
        active[: self.size] |= self.criterion.active(logits[: self.size])
        return active

    def hessian(self, logits, rows):
        """Return a function that multiplies changes of some rows' logits by the second derivative there.

        Args:
            logits: of all rows, `(n, C)`.
            rows: ascending indices, or ALL.

        Returns:
            A function of changes `(b, C)` and of the slice of `rows` that they belong to.
        """
        size = self.size if rows is ALL else int(np.searchsorted(rows, self.size))
        first = ALL if rows is ALL else rows[:size]
        inner = self.criterion.hessian(logits[: self.size], first)
        hold, weights = 2 * self.hold[rows][:, None], self.weights[first][:, None]

        def product(change, block):
            bent, last = hold[block] * change, min(block.stop, size)
            if block.start >= last:
                return bent
            some = slice(block.start, last)
            return self._xp.add_to_first(bent, weights[some] * inner(change[: last - block.start], some))

        return product


class WholeLoss:
    """One of the `losses` itself.

    Args:
        loss: a `losses.Loss`.
        targets: of the loss, `(n, C)`.
    """

    def __init__(self, loss, targets):
        self.loss, self.targets = loss, arrays.of(targets).single(targets)

    def values(self, logits):
        return self.loss.values(logits, self.targets)

    def gradient(self, logits):
        return self.loss.gradient(logits, self.targets)

    def active(self, logits):
        return np.ones(len(logits), bool)

    def hessian(self, logits, rows):
        return self.loss.hessian(logits[rows], self.targets[rows])
