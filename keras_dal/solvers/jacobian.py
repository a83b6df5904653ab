"""The Jacobian J_S of a head on cached features: its column space, least-squares solutions and spectral norm.

Rows are what the loss sees: scaled by the square roots of the sample weights and, for softmax, with the mean over the
outputs removed, because a constant per sample changes neither the loss nor a prediction. Ranks are decided by the rule
of `least_squares`. Plain NumPy and SciPy.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, lsqr

from keras_dal import heads
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.solvers.exact_dual import exact_rank, residues_modulo
from keras_dal.solvers.head_bounds import spectral_norm_bound
from keras_dal.solvers.kfac_preconditioner import Whitening
from keras_dal.solvers.least_squares import (
    column_norms,
    largest_singular_value,
    nonzero,
    rank_tolerance,
    safe_mean,
)
from keras_dal.solvers.min_norm_interpolation import Interpolation

_ITERATIONS, _RESTARTS = 150, 6
_LSQR = f"LSQR, at most {_RESTARTS} times {_ITERATIONS} iterations"
_CLOSE = 3e-5  # residual over targets at which LSQR need not go on
_GAIN = 0.9  # a restart that leaves more of the residual than this ends the search
_EPS = float(np.finfo(np.float64).eps)


def jacobian(head, features, weights=None, centered=False, max_bytes=2**28, precision=_EPS):
    """Return J_S as the cheapest object that still decides ranks exactly, where memory allows one.

    Args:
        head: a `heads.Head` with P parameters and C outputs.
        features: float64 array of shape `(n, m)`.
        weights: positive sample weights `(n,)`; ones by default.
        centered: whether constants per row are removed (softmax).
        max_bytes: largest matrix whose singular values are computed; beyond it the result is iterative.
        precision: spacing at one of the numbers that the features were computed in.

    Returns:
        A `Jacobian`.
    """
    shared = head.columns(features[:1]) is not None
    size = 8 * len(features) * head.num_parameters * (1 / head.num_outputs if shared else head.num_outputs)
    if size > max_bytes and not isinstance(head, heads.DenseHead):
        kind = IterativeJacobian
    else:
        kind = KroneckerJacobian if shared else DenseJacobian
    return kind(head, features, np.ones(len(features)) if weights is None else weights, centered, precision)


class Products(LinearOperator):
    """A real matrix given by two functions, the products with it and with its transpose."""

    def __init__(self, shape, forward, backward):
        super().__init__(np.float64, shape)
        self._forward, self._backward = forward, backward

    def _matvec(self, x):
        return self._forward(x.ravel())

    def _rmatvec(self, x):
        return self._backward(x.ravel())


class Spectrum(NamedTuple):
    """Rank, singular values of columns of norm one, and the largest one of the columns as they are or a bound of it."""

    rank: int | None
    singular_values: np.ndarray | None
    sigma_max: float


class Jacobian:
    """J_S, of shape `(nC, P)`.

    Attributes:
        factorized: whether the column space is known, not only products with J_S.
        rank: numerical rank, None where it was not decided.
        full_rank: the rank at which every labelling is aligned, nC, or n(C - 1) with constants removed.
        tolerance: singular values, of columns of norm one, up to this share of the largest count as zero; None where
            none was computed.
        sigma_max: largest singular value, or an upper bound of it.
        method: how rank and sigma_max were obtained.
    """

    factorized = True
    rank: int | None = None
    tolerance: float | None = None
    sigma_max: float
    method: str

    def __init__(self, head, features, weights, centered, precision):
        self.head, self.features, self.centered, self._precision = head, features, centered, precision
        self.roots = np.sqrt(weights)[:, None]
        self.shape = (len(features) * head.num_outputs, head.num_parameters)
        self.full_rank = len(features) * (head.num_outputs - centered)

    def seen(self, rows):
        """Return rows `(n, C)` as the loss sees them: without constants for softmax."""
        return rows - rows.mean(axis=1, keepdims=True) if self.centered else rows

    def logits(self, theta):
        """Return the head's logits `(n, C)` in float64."""
        return self.head.logits(self.features, theta)

    def solve(self, targets):
        """Return a theta `(P,)` that minimizes the weighted `||J theta - targets||`, of least norm where exact."""
        raise NotImplementedError

    def project(self, targets):
        """Return what of the targets `(n, C)` lies in the column space, up to constants per row for softmax."""
        return self.logits(self.solve(targets))

    def with_constants(self):
        """Return the `Spectrum` of J_S as it is, constants per sample included."""
        return Spectrum(None, None, spectral_norm_bound(self.head, self.features, self.roots.ravel() ** 2))

    def refined(self, targets):
        """Return `solve(targets)` after one step of iterative refinement, where that removes rounding.

        With columns that are nearly dependent theta is large and the step can add more rounding than it removes.
        """
        theta = self.solve(targets)
        step = self.solve(targets - self.logits(theta))
        return min(theta, theta + step, key=lambda each: np.linalg.norm(self.seen(targets - self.logits(each))))


class FactorizedJacobian(Jacobian):
    """With orthonormal vectors that span the weighted columns, and the two maps that they make.

    The matrix has `rows` rows for each sample and is repeated for `copies` outputs; `rows copies = C`. Its columns are
    centred where the head has a bias, which undoes that, and scaled to norm one.

    Attributes:
        size: number of basis coefficients: all directions that float64 can tell from rounding.
        columns: the centred matrix, `(n, rows, p)`, every entry with a relative error of one rounding.
        values: singular values of the scaled columns, descending.
    """

    copies: int

    def __init__(self, head, features, weights, centered, precision):
        super().__init__(head, features, weights, centered, precision)
        matrix = self.matrix(features)
        self.sigma_max = largest_singular_value(self._weighted(matrix))
        width = matrix.shape[2]
        self._num_biases = matrix.shape[1] * _ends_with_bias(head)
        self._shift, free = np.zeros(matrix.shape[1:]), width - self._num_biases
        if self._num_biases:
            self._shift[:, :free] = safe_mean(matrix[:, :, :free], weights)
        self.columns = matrix - self._shift
        weighted = self._weighted(self.columns)
        self._scale = nonzero(column_norms(weighted))
        left, self.values, right = linalg.svd(
            weighted / self._scale, full_matrices=False, lapack_driver="gesdd", check_finite=False
        )
        self.tolerance, finest = (rank_tolerance(len(weighted), width, each) for each in (precision, _EPS))
        kept = int(np.sum(self.values > finest * self.values[0]))
        self._counted = int(np.sum(self.values > self.tolerance * self.values[0]))
        self._left, self._right = left[:, :kept], right[:kept]
        self.size = kept * self.copies
        self.rank = self._counted * (self.copies - (self.copies > 1) * centered)
        self.method = f"{self.method}, singular values above {self.tolerance:.1e} of the largest"

    def unweighted(self):
        """Return the same for samples of equal weight."""
        return type(self)(self.head, self.features, np.ones(len(self.features)), self.centered, self._precision)

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
        logits, size = self.columns @ theta, np.abs(self.columns) @ np.abs(theta)
        error = _EPS * (len(theta) + 4) * size
        return logits.reshape(len(self.roots), -1), error.reshape(len(self.roots), -1)

    @property
    def basis_error(self):
        """A bound, with room, of how far the orthonormal vectors are from the span of the columns."""
        smallest = self.values[len(self._right) - 1] / self.values[0]
        return 10 * sum(self._left.shape) * _EPS / smallest

    def is_complete(self):
        """Whether the columns that were left out of the basis depend on the others exactly, not up to rounding."""
        rows = self.columns.shape[0] * self.columns.shape[1]
        if len(self._right) in (rows, np.count_nonzero(self.columns.any(axis=(0, 1)))):
            return True
        width = self.columns.shape[2]

        def residues(prime):
            return residues_modulo(self.matrix(self.features).reshape(rows, width), prime)

        return exact_rank(residues, rows, width) == len(self._right)

    def _counting(self, targets):
        coefficients = self.correlate(targets * self.roots**2)
        coefficients[self._counted * self.copies :] = 0.0
        return coefficients

    def project(self, targets):
        return self.combine(self._counting(targets))

    def solve(self, targets):
        theta = self.theta(self._counting(targets))
        if self._counted == self.columns.shape[2]:
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
        return self.head.columns(features)[:, None, :]

    @property
    def num_directions(self):
        return self.columns.shape[2] * (self.copies - self.centered)

    def rows(self, matrix, samples, outputs):
        rows = np.zeros((len(samples), self.copies, matrix.shape[2]), matrix.dtype)
        rows[np.arange(len(samples)), outputs] = matrix[samples, 0]
        return rows[:, : self.copies - self.centered].reshape(len(samples), -1)

    def with_constants(self):
        return Spectrum(self._counted * self.copies, self.values, self.sigma_max)


class DenseJacobian(FactorizedJacobian):
    """The matrix itself, for heads whose outputs share no small factor."""

    copies = 1
    method = "SVD of J_S with columns of norm one"

    @property
    def num_directions(self):
        return self.columns.shape[2]

    def rows(self, matrix, samples, outputs):
        return matrix[samples, outputs]

    def matrix(self, features):
        units = np.eye(self.head.num_outputs)
        return np.array([[self.head.adjoint(z[None], unit[None]) for unit in units] for z in features])

    def _weighted(self, matrix):
        return super()._weighted(matrix - matrix.mean(axis=1, keepdims=True) * self.centered)

    def with_constants(self):
        if not self.centered:
            return Spectrum(self.rank, self.values, self.sigma_max)
        weighted = super()._weighted(self.columns)
        values = np.linalg.svd(weighted / nonzero(column_norms(weighted)), compute_uv=False)
        rank = int(np.sum(values > self.tolerance * values[0]))
        return Spectrum(rank, values, largest_singular_value(super()._weighted(self.columns + self._shift)))


class IterativeJacobian(Jacobian):
    """Products only: a solution whose residual bounds the alignment from below; no rank is decided.

    It comes from LSQR in whitened coordinates and float32, which starts again from the residual as float64 sees it. A
    mixture with as many parameters for each output as there are samples is interpolated instead, in the same way.
    """

    factorized = False

    def __init__(self, head, features, weights, centered, precision):
        super().__init__(head, features, weights, centered, precision)
        self.sigma_max = spectral_norm_bound(head, features, weights, centered)
        self._products = CachedJacobian(head, features.astype(np.float32))
        self._interpolation = self._factorized()
        self.method = "a Cholesky factorization in float32, refined" if self._interpolation else _LSQR

    def _factorized(self):
        """Return the `Interpolation` of all samples, None where there is none."""
        mixture = getattr(self.head, "parts", [self.head])[0]
        if not isinstance(mixture, heads.MixtureHead):
            return None
        if mixture.num_parameters < len(self.features) * mixture.num_outputs:
            return None
        part = self._products.part(0)
        interpolation = Interpolation(part, part)
        try:
            interpolation.extend(np.arange(len(self.features)))
        except np.linalg.LinAlgError:
            return None
        return interpolation

    def solve(self, targets):
        if self._interpolation:
            change = self._interpolation.change(targets)[0].astype(np.float64)
            return np.pad(change, (0, self.head.num_parameters - len(change)))
        return self._least_squares(targets)

    @functools.cached_property
    def _whitening(self):
        return Whitening(self._products)

    def _least_squares(self, targets):
        def matvec(phi):
            return (self.seen(self._products.logits(self._whitening.theta(phi))) * self.roots).ravel()

        def rmatvec(cotangent):
            rows = self.seen(cotangent.reshape(targets.shape) * self.roots)
            return self._whitening.transposed(self._products.adjoint(rows))

        operator = Products(self.shape, matvec, rmatvec)
        right = (self.seen(targets) * self.roots).ravel()
        phi = lsqr(operator, right, atol=1e-6, btol=_CLOSE, conlim=0, iter_lim=_ITERATIONS)[0]
        return self._whitening.theta(phi).astype(np.float64)

    def refined(self, targets):
        def size(rows):
            return np.linalg.norm(self.seen(rows) * self.roots)

        theta, residual = np.zeros(self.head.num_parameters), targets
        for _ in range(2 * _RESTARTS):
            step = theta + self.solve(residual)
            before, left = size(residual), targets - self.logits(step)
            if size(left) < before:
                theta, residual = step, left
            if size(residual) <= _CLOSE * size(targets):
                break
            if size(residual) > _GAIN * before:
                if self._interpolation is None:
                    break
                self._interpolation = None  # what is left, of samples that are nearly equal say, is for LSQR
                self.method += f", then {_LSQR}"
        return theta


def _ends_with_bias(head):
    """Whether the last parameters are one constant for each output."""
    return _ends_with_bias(head.parts[-1]) if isinstance(head, heads.SumHead) else head.use_bias
