"""Fits on nested sets of columns: those of a wider head contain those of a narrower one. NumPy and SciPy.

One Gram matrix serves all widths: it grows by the products of the new columns with all others, and the pivoted Cholesky
factor of its leading part solves for that width. That is a quarter of the work of a QR factorization made orthogonal
twice. A Gram matrix squares the condition number, so that it needs columns from features in float32 or coarser: what
counts by the rule of `features.columns` then has a square that float64 tells from rounding, sixtyfold. What is left of
the labels is evaluated, not inferred, and refined: corrected semi-normal equations. The factor also makes the columns
orthonormal, which is what a few steps towards the minimum of another loss need.

Source: Bjorck, "Stability analysis of the method of semi-normal equations for linear least squares problems", 1987.
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg, optimize

from keras_dal._backend import arrays
from keras_dal._backend.arrays import EPS
from keras_dal.features.columns import rank_tolerance, sizes_of_columns
from keras_dal.heads.norms import column_norms, nonzero
from keras_dal.solvers.label_squares import safe_mean

(_PSTRF,) = linalg.get_lapack_funcs(("pstrf",), dtype=np.float64)  # Cholesky with pivots
_REFINEMENTS = 3  # each gains at least a digit, most of them more
_ROOM = 2.0  # for the rounding of the factor
CHUNK = 256  # columns of which copies exist at a time
_STEPS = 20  # of L-BFGS, each two products with all columns


@dataclasses.dataclass(frozen=True)
class Solution:
    """Least squares at a numerical rank.

    Attributes:
        rank: number of singular values that count, the constant included.
        logits: `(n, C)`, those of the coefficients.
        errors: a bound of the rounding errors in them, `(n, C)`.
        residual: weighted sums of squares of what the evaluated coefficients leave of the targets, `(C,)`.
        least: a lower bound of their sum for all coefficients, 0 where directions were left out as rounding.
        noise: by how much columns and targets that were rounded to the precision may differ, `(n, C)`.
    """

    rank: int
    logits: np.ndarray
    errors: np.ndarray
    residual: np.ndarray
    least: float
    noise: np.ndarray


class Descended(NamedTuple):
    """Logits `(n, C)` with a bound of their errors, and what they are made of: `(p, C)` and a constant `(C,)`."""

    logits: np.ndarray
    errors: np.ndarray
    theta: np.ndarray
    constant: np.ndarray


class NestedColumns:
    """Columns that are appended block by block, scaled to norm one, and the Gram matrix of all of them.

    Args:
        most: number of columns there may be.
        weights: positive sample weights `(n,)`.
        constant: whether a column of ones belongs to them; the others are then centred, and it is not kept.
        eps: spacing at one of the numbers that the columns are computed from, that of float32 or more.
    """

    def __init__(self, most, weights, constant, eps):
        self._weights, self._roots = weights, np.sqrt(weights)[:, None]
        self._constant, self._eps = constant, eps
        self._columns = np.empty((len(weights), most), order="F")  # pages that are never written cost nothing
        self._gram = np.empty((most, most), order="F")
        self._shift = np.zeros(most)  # what was subtracted from products, which had been rounded before
        self.size = 0
        self._kept: Any = ()  # columns that count, in the order of their factor
        self._triangle: Any = None

    def append(self, block, products=False):
        """Add columns `(n, k)`; entries that are `products` are rounded."""
        for some in arrays.slices(block.shape[1], CHUNK):  # a copy of all would take as much as all columns
            self._append(block[:, some], products)

    def _append(self, block, products):
        start, stop = self.size, self.size + block.shape[1]
        shift = safe_mean(block, self._weights) if self._constant else np.zeros(block.shape[1])
        before = column_norms(block * self._roots)
        block = (block - shift) * self._roots
        norms = nonzero(sizes_of_columns(before, column_norms(block), self._eps))
        self._shift[start:stop] = np.abs(shift) / norms * products
        new = self._columns[:, start:stop]
        np.divide(block, norms, out=new)
        self._gram[:stop, start:stop] = self._columns[:, :stop].T @ new
        self.size = stop

    def solve(self, targets):
        """Return the `Solution` for targets `(n, C)` on the columns that there are."""
        columns, gram = self._columns[:, : self.size], self._gram[: self.size, : self.size]
        rank = self._count(gram)
        factor, order, reached, _ = _PSTRF(gram, tol=-1.0)
        rank = min(rank, int(reached))
        kept, triangle = order[:rank] - 1, (factor[:rank, :rank], False)
        self._kept, self._triangle = kept, triangle[0]
        means = safe_mean(targets, self._weights) * self._constant
        right = self._roots * (targets - means)
        theta, residual = np.zeros((self.size, targets.shape[1])), right
        for _ in range(_REFINEMENTS if rank else 0):
            step = np.zeros_like(theta)
            step[kept] = linalg.cho_solve(triangle, (columns.T @ residual)[kept], check_finite=False)
            left = right - columns @ (theta + step)
            if np.sum(left**2) >= np.sum(residual**2):
                break
            theta, residual = theta + step, left
        size = self._magnitudes(theta)
        errors, least = EPS * ((self.size + 8) * size + np.abs(right)), 0.0
        if rank == np.count_nonzero(np.diagonal(gram)):
            correlation = (columns.T @ residual)[kept]  # what of the residual the columns still reach, by Pythagoras
            reached = np.sum(linalg.solve_triangular(triangle[0], correlation, trans=1, check_finite=False) ** 2)
            reached += np.sum((self._roots[:, 0] @ residual) ** 2) / np.sum(self._weights) * self._constant
            least = max(0.0, linalg.norm(residual) - linalg.norm(errors)) ** 2 - _ROOM * reached
        return Solution(
            rank=rank + self._constant,
            logits=self._logits(theta, means),
            errors=errors / self._roots + EPS * np.abs(means),
            residual=np.sum(residual**2, axis=0),
            least=max(0.0, float(least)),
            noise=self._eps * (size / self._roots + np.abs(targets)),
        )

    def descend(self, loss, targets, before=None):
        """Return the `Descended` of a few steps of L-BFGS for a loss, in orthonormal coordinates; after `solve`.

        Args:
            loss: a `losses.Loss`.
            targets: of the loss, `(n, C)`.
            before: what it returned for fewer columns, from which it goes on.
        """
        outputs, total = targets.shape[1], np.sum(self._weights)
        ends, size = _UntilSeparated(loss, targets), total**0.5  # the stopping rules are of weights of mean one

        def parts(flat):
            coordinates, constant = np.split(flat.reshape(-1, outputs), [len(self._kept)])
            theta = np.zeros((self.size, outputs))
            theta[self._kept] = linalg.solve_triangular(self._triangle, coordinates, check_finite=False)
            return theta * size, constant.sum(axis=0)

        def objective(flat):
            ends.logits = logits = self._logits(*parts(flat))
            slopes = self._roots * loss.gradient(logits, targets) / size
            inner = (self._columns[:, : self.size].T @ slopes)[self._kept]
            slope = linalg.solve_triangular(self._triangle, inner, trans=1, check_finite=False)
            constant = (self._roots * slopes).sum(axis=0, keepdims=True)[: self._constant] / size
            return self._weights @ loss.values(logits, targets) / total, np.concatenate([slope, constant]).ravel()

        start = np.zeros((len(self._kept) + self._constant, outputs))
        if before is not None:
            theta = np.zeros((self.size, outputs))
            theta[: len(before.theta)] = before.theta
            start[: len(self._kept)] = np.triu(self._triangle) @ theta[self._kept] / size
            start[len(self._kept) :] = before.constant
        ends.flat = start.ravel()
        with contextlib.suppress(StopIteration):
            options = {"maxiter": _STEPS}
            optimize.minimize(objective, ends.flat, jac=True, method="L-BFGS-B", callback=ends, options=options)
        theta, constant = parts(ends.flat)
        errors = EPS * ((self.size + 8) * self._magnitudes(theta) / self._roots + np.abs(constant))
        return Descended(self._logits(theta, constant), errors, theta, constant)

    def _logits(self, theta, constant):
        return self._columns[:, : self.size] @ theta / self._roots + constant

    def _count(self, gram):
        """Return how many singular values count, without that of the constant, which is 1."""
        squares = linalg.eigvalsh(gram, lower=False, check_finite=False)
        tolerance = rank_tolerance(len(self._weights), self.size + self._constant, self._eps)
        return int(np.sum(squares > tolerance**2 * max(squares[-1], float(self._constant), EPS)))

    def _magnitudes(self, theta):
        """Return `columns @ theta` with every product replaced by its magnitude, `(n, C)`."""
        total = np.zeros((len(self._weights), theta.shape[1]))
        for some in arrays.slices(self.size, CHUNK):
            total += np.abs(self._columns[:, some]) @ np.abs(theta[some])
        return total + self._roots * (self._shift[: self.size] @ np.abs(theta))


class _UntilSeparated:
    """Keeps the point of each step, and ends the descent where every sample is on its right side."""

    def __init__(self, loss, targets):
        self._loss, self._targets, self._hard = loss, targets, loss.are_hard(targets)
        self.flat: Any = None
        self.logits: Any = None

    def __call__(self, flat):
        self.flat = flat.copy()
        if self._hard and np.min(self._loss.margins(self.logits, self._targets)) > 0:
            raise StopIteration
