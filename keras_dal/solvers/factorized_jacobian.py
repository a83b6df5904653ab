"""J_S by its singular value decomposition: column space, least squares and ranks, by the rule of `columns`."""

import copy
import functools

import numpy as np
from scipy import linalg

from keras_dal._backend.arrays import EPS
from keras_dal.features.columns import rank_tolerance, sizes_of_columns
from keras_dal.heads.norms import column_norms, nonzero, sigma_max_bound
from keras_dal.solvers.exact_dual import exact_rank, residues_modulo
from keras_dal.solvers.jacobian_base import Jacobian
from keras_dal.solvers.label_squares import safe_mean
from keras_dal.solvers.least_squares import share_error


class FactorizedJacobian(Jacobian):
    """With orthonormal vectors that span the weighted columns, and the two maps that they make.

    The matrix has `rows` rows for each sample and is repeated for `copies` outputs; `rows copies = C`. Its columns are
    centred where the head has a bias, which undoes that, and divided by `sizes_of_columns`.

    Attributes:
        size: number of basis coefficients: all directions that float64 can tell from rounding.
        centred: the centred matrix, `(n, rows, p)`, every entry with a relative error of one rounding.
    """

    copies: int

    def __init__(self, head, features, weights, shift_invariant, eps):
        super().__init__(head, features, weights, shift_invariant, eps)
        matrix = self.matrix(features)
        weighted = self._weighted(matrix)
        self.sigma_max, before = sigma_max_bound(weighted), column_norms(weighted)
        width = matrix.shape[2]
        self._num_biases = matrix.shape[1] * head.use_bias
        self._shift, free = np.zeros(matrix.shape[1:]), width - self._num_biases
        if self._num_biases:
            self._shift[:, :free] = safe_mean(matrix[:, :, :free], weights)
        self.centred = matrix - self._shift
        weighted = self._weighted(self.centred)
        self._scale = nonzero(sizes_of_columns(before, column_norms(weighted), eps))
        left, self.values, right = linalg.svd(
            weighted / self._scale, full_matrices=False, lapack_driver="gesdd", check_finite=False
        )
        self.tolerance, finest = (rank_tolerance(len(weighted), width, each) for each in (eps, EPS))
        kept = int(np.sum(self.values > finest * self.values[0]))
        self._counted = int(np.sum(self.values > self.tolerance * self.values[0]))
        self._left, self._right = left[:, :kept], right[:kept]
        self.size = kept * self.copies
        self.rank = min(self.full_rank, self._counted * (self.copies - (self.copies > 1) * shift_invariant))
        self.method = f"{self.method}, singular values above {self.tolerance:.1e} of the largest"

    def unweighted(self):
        """Return the same for samples of equal weight."""
        return type(self)(self.head, self.features, np.ones(len(self.features)), self.shift_invariant, self.eps)

    def in_unit(self, unit):
        """Return the same for sample weights divided by a unit, with no other factorization."""
        other, root = copy.copy(self), np.sqrt(unit)
        other.roots, other._scale, other.sigma_max = self.roots / root, self._scale / root, self.sigma_max / root
        return other

    def counting(self):
        """Return the same with the directions of the basis that count, which rounding of the features does not make."""
        if self._counted == len(self._right):
            return self
        other = copy.copy(self)
        other._left, other._right = self._left[:, : self._counted], self._right[: self._counted]
        other.size = self._counted * self.copies
        return other

    def matrix(self, features):
        """Return the matrix `(n, rows, p)` on these features, every entry as float64 computes it."""
        raise NotImplementedError

    @property
    def num_directions(self) -> int:
        """Columns of J_S, without those that only repeat others for a constant per sample."""
        raise NotImplementedError

    def rows(self, matrix, samples, outputs):
        """Return the rows of J_S, in these directions, of pairs of a sample and an output, from a `matrix`."""
        raise NotImplementedError

    def _weighted(self, matrix):
        """Return the rows as the loss sees them, `(n rows, p)`."""
        return (matrix * self.roots[:, :, None]).reshape(-1, matrix.shape[2])

    def combine(self, coefficients):
        """Return the logits `(n, C)`, up to constants per row for softmax, of basis coefficients `(r,)`."""
        logits = self._left @ coefficients.reshape(-1, self.copies)
        return self.seen(logits.reshape(len(self.roots), -1)) / self.roots

    def correlate(self, cotangent):
        """Return the transpose of `combine` applied to a cotangent `(n, C)`, shape `(r,)`."""
        return (self._left.T @ self.seen(cotangent / self.roots).reshape(-1, self.copies)).ravel()

    def _scaled(self, coefficients):
        kept = self._right.T @ (coefficients.reshape(-1, self.copies) / self.values[: len(self._right), None])
        return kept / self._scale[:, None]

    def theta(self, coefficients):
        """Return the theta `(P,)` with these logits."""
        theta = self._scaled(coefficients)
        if self._num_biases:
            theta[-self._num_biases :] -= self._shift @ theta
        return theta.ravel()

    def evaluate(self, coefficients):
        """Return the logits `(n, C)`, up to constants per row for softmax, and a bound of their rounding errors.

        They are those of a theta in real numbers: where offsets are large, float64 may not hold one as good.
        """
        theta = self._scaled(coefficients)
        logits, size = self.centred @ theta, self.magnitude @ np.abs(theta)
        error = EPS * (len(theta) + 4) * size
        return logits.reshape(len(self.roots), -1), error.reshape(len(self.roots), -1)

    @property
    def magnitude(self):
        """What the error of each entry of the columns is relative to: products were rounded before they are centred."""
        size = np.abs(self.centred)
        return size if self.head.is_plain else size + np.abs(self._shift)

    @property
    def basis_error(self):
        """A bound, with room, of how far the orthonormal vectors are from the span of the columns."""
        if not len(self._right):
            return 0.0  # nothing is reached, and exactly so
        smallest = self.values[len(self._right) - 1] / self.values[0]
        sizes = column_norms((self.magnitude * self.roots[:, :, None]).reshape(-1, self.centred.shape[2]))
        varying = self.centred.any(axis=(0, 1))
        rounded = max(1.0, np.max(sizes[varying] / self._scale[varying], initial=0.0))
        return 10 * sum(self._left.shape) * EPS * rounded / smallest

    def share_error(self, share):
        """Return about how far rounding may have moved a residual share of the columns that count."""
        return share_error(share, self.values, self._counted)

    @functools.cached_property
    def exact_rank(self):
        """Rank of the matrix as the loss sees it in exact arithmetic, None where that takes too long."""
        n, rows, width = self.centred.shape

        def residues(prime):
            found = residues_modulo(self.matrix(self.features).reshape(n * rows, width), prime)
            return self._seen_modulo(found.reshape(n, rows, width), prime).reshape(n * rows, width)

        return exact_rank(residues, n * rows, width)

    def _seen_modulo(self, residues, prime):
        """Return what the loss sees of the residues `(n, rows, p)`, in another unit."""
        return residues

    def is_complete(self):
        """Whether the columns that were left out of the basis depend on the others exactly, not up to rounding."""
        varying = np.count_nonzero(self.centred.any(axis=(0, 1)))
        return len(self._right) in (len(self._left), varying) or len(self._right) == self.exact_rank

    def _counting(self, targets):
        coefficients = self.correlate(targets * self.roots**2)
        coefficients[self._counted * self.copies :] = 0.0
        return coefficients

    def left_of(self, targets, counting=True):
        """Return what the columns that count, or all, do not reach; an offset, which a bias does, costs no digits."""
        centred = self.without_means(targets)
        reached = self._counting(centred) if counting else self.correlate(centred * self.roots**2)
        return centred - self.combine(reached)

    def least_left(self, targets):
        """Return a lower bound of the squares, `(C,)`, that directions leave which float64 can tell from rounding."""
        both = self.left_of(targets, counting=False), self.without_means(targets)
        left, total = (np.sum((self.roots * self.seen(each)) ** 2, axis=0) for each in both)
        size = total if self.copies > 1 else total.sum()  # outputs that share their columns do not mix
        summed = 1 - EPS * (len(targets) + 8)  # what a sum may have lost or won
        return np.maximum(0.0, summed * np.sqrt(left) - self.basis_error * np.sqrt(size)) ** 2

    def without_means(self, targets):
        """Return targets without their means, where a bias reaches these."""
        return targets - safe_mean(targets, self.roots.ravel() ** 2) * self.head.use_bias

    def solve(self, targets):
        theta = self.theta(self._counting(targets))
        if self._counted == self.centred.shape[2]:
            return theta
        return (self._row_space @ (self._row_space.T @ theta.reshape(-1, self.copies))).ravel()

    @functools.cached_property
    def _row_space(self):
        """Orthonormal columns that span the rows of the matrix as it is: no scaling of columns changes a least norm."""
        rows = self._scale[:, None] * self._right[: self._counted].T
        if self._num_biases:
            rows += self._shift.T @ rows[-self._num_biases :]
        return np.linalg.qr(rows)[0]


class KroneckerJacobian(FactorizedJacobian):
    """`A kron I_C`, with `A = [Z, 1]` for a plain head: one factorization serves all outputs."""

    method = "SVD of what all outputs share, with columns of norm one"

    @property
    def copies(self):
        return self.head.num_outputs

    def matrix(self, features):
        return self.head.kronecker_factor(features)[:, None, :]

    @property
    def num_directions(self):
        return self.centred.shape[2] * (self.copies - self.shift_invariant)

    def rows(self, matrix, samples, outputs):
        rows = np.zeros((len(samples), self.copies, matrix.shape[2]), matrix.dtype)
        rows[np.arange(len(samples)), outputs] = matrix[samples, 0]
        return rows[:, : self.copies - self.shift_invariant].reshape(len(samples), -1)


class DenseJacobian(FactorizedJacobian):
    """The matrix itself, for heads whose outputs share no small factor."""

    copies = 1
    method = "SVD of J_S with columns of norm one"

    @property
    def num_directions(self):
        return self.centred.shape[2]

    def rows(self, matrix, samples, outputs):
        return matrix[samples, outputs]

    def matrix(self, features):
        units = np.eye(self.head.num_outputs)
        return np.array([[self.head.adjoint(z[None], unit[None]) for unit in units] for z in features])

    def _seen_modulo(self, residues, prime):
        if not self.shift_invariant:
            return residues
        return (residues * self.head.num_outputs - residues.sum(axis=1, keepdims=True)) % prime

    def _weighted(self, matrix):
        return super()._weighted(self.seen(matrix))
