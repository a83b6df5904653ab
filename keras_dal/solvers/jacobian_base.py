"""What the Jacobian J_S of a head on cached features offers, however it is computed.

Rows are what the loss sees: scaled by the square roots of the sample weights and, for softmax, with the mean over the
outputs removed, because a constant per sample changes neither the loss nor a prediction.
"""

import numpy as np
from scipy.sparse.linalg import LinearOperator

from keras_dal._backend import arrays


class Products(LinearOperator):
    """A real matrix given by two functions, the products with it and with its transpose."""

    def __init__(self, shape, forward, backward):
        super().__init__(np.float64, shape)
        self._forward, self._backward = forward, backward

    def _matvec(self, x):
        return self._forward(x.ravel())

    def _rmatvec(self, x):
        return self._backward(x.ravel())


class Jacobian:
    """J_S, of shape `(nC, P)`.

    Attributes:
        factorized: whether the column space is known, not only products with J_S.
        rank: numerical rank, None where it was not decided.
        full_rank: the rank at which every labelling is aligned, nC, or n(C - 1) with constants removed.
        tolerance: singular values, of columns of norm one, up to this share of the largest count as zero; None where
            none was computed.
        values: singular values of the columns of norm one, descending; None where none were computed.
        sigma_max: largest singular value, or an upper bound of it.
        shift_invariant: whether constants per sample are removed, as `Loss.shift_invariant` says.
        eps: spacing at one of the numbers that the features were computed in.
        method: how rank and sigma_max were obtained.
    """

    factorized = True
    rank: int | None = None
    tolerance: float | None = None
    values: np.ndarray | None = None
    sigma_max: float
    method: str

    def __init__(self, head, features, weights, shift_invariant, eps):
        self.head, self.features, self.shift_invariant, self.eps = head, features, shift_invariant, eps
        self.roots = np.sqrt(weights)[:, None]
        self.shape = (len(features) * head.num_outputs, head.num_parameters)
        self.full_rank = len(features) * (head.num_outputs - shift_invariant)

    def seen(self, rows):
        """Return rows `(n, C)` as the loss sees them: without constants for softmax."""
        return arrays.seen(rows, self.shift_invariant)

    def logits(self, theta):
        """Return the head's logits `(n, C)` in float64."""
        return self.head.logits(self.features, theta)

    def solve(self, targets):
        """Return a theta `(P,)` that minimizes the weighted `||J theta - targets||`, of least norm where exact."""
        raise NotImplementedError

    def is_complete(self):
        """Whether the column space is known to have no other directions."""
        return False

    def left_of(self, targets, counting=True):
        """Return what the columns that count, or all, do not reach, where it is factorized."""
        raise NotImplementedError

    def least_left(self, targets) -> np.ndarray:
        """Return a lower bound of the squares, `(C,)`, that no direction reaches, where it is factorized."""
        raise NotImplementedError

    def share_error(self, share):
        """Return about how far rounding may have moved a residual share; one of evaluated coefficients, not at all."""
        return 0.0

    def refined(self, targets):
        """Return `solve(targets)` after one step of iterative refinement, where that removes rounding.

        With columns that are nearly dependent theta is large and the step can add more rounding than it removes.
        """
        theta = self.solve(targets)
        step = self.solve(targets - self.logits(theta))
        return min(theta, theta + step, key=lambda each: self.norm(targets - self.logits(each)))

    def norm(self, rows):
        """Return the norm of rows `(n, C)` as the loss sees them."""
        return np.linalg.norm(self.seen(rows) * self.roots)
