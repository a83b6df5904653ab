"""The Jacobian J_S of a head on cached features: its column space, least-squares solutions and spectral norm.

Rows are what the loss sees: scaled by the square roots of the sample weights and, for softmax, with the mean over the
outputs removed, because a constant per sample changes neither the loss nor a prediction. Plain NumPy and SciPy.
"""

import functools

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, lsqr

from keras_dal import heads
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.solvers.kfac_preconditioner import Whitening
from keras_dal.solvers.min_norm_interpolation import Interpolation

_ITERATIONS, _RESTARTS = 150, 6
_LSQR = f"LSQR, at most {_RESTARTS} times {_ITERATIONS} iterations"
_CLOSE = 3e-5  # residual over targets at which LSQR need not go on
_GAIN = 0.9  # a restart that leaves more of the residual than this ends the search
_BLOCK = 4096  # samples whose gates exist at a time in float64
_SAFETY = 1 + 1e-10  # the rounding of an eigenvalue routine, generously: an upper bound must stay one


def jacobian(head, features, weights=None, centered=False, max_bytes=2**28):
    """Return J_S as the cheapest object that still decides ranks exactly, where memory allows one.

    Args:
        head: a `heads.Head` with P parameters and C outputs.
        features: float64 array of shape `(n, m)`.
        weights: positive sample weights `(n,)`; ones by default.
        centered: whether constants per row are removed (softmax).
        max_bytes: largest matrix whose singular values are computed; beyond it the result is iterative.

    Returns:
        A `Jacobian`.
    """
    shared = head.columns(features[:1]) is not None
    size = 8 * len(features) * head.num_parameters * (1 / head.num_outputs if shared else head.num_outputs)
    if size > max_bytes and not isinstance(head, heads.DenseHead):
        kind = IterativeJacobian
    else:
        kind = KroneckerJacobian if shared else DenseJacobian
    return kind(head, features, np.ones(len(features)) if weights is None else weights, centered)


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
        tolerance: singular values up to it count as zero, None where none was computed.
        sigma_max: largest singular value, or an upper bound of it.
        method: how rank and sigma_max were obtained.
    """

    factorized = True
    rank: int | None = None
    tolerance: float | None = None
    sigma_max: float
    method: str

    def __init__(self, head, features, weights, centered):
        self.head, self.features, self.centered = head, features, centered
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

    def refined(self, targets):
        """Return `solve(targets)` after one step of iterative refinement, where that removes rounding.

        With columns that are nearly dependent theta is large and the step can add more rounding than it removes.
        """
        theta = self.solve(targets)
        step = self.solve(targets - self.logits(theta))
        return min(theta, theta + step, key=lambda each: np.linalg.norm(self.seen(targets - self.logits(each))))


class _FactorizedJacobian(Jacobian):
    """With `size` orthonormal vectors that span the weighted columns, and the two maps that they make."""

    left: np.ndarray
    right: np.ndarray
    values: np.ndarray
    copies = 1  # of every basis vector, one for each output

    def _factorize(self, matrix, method):
        left, values, right = linalg.svd(matrix, full_matrices=False, lapack_driver="gesdd", check_finite=False)
        self.tolerance = max(self.shape) * np.finfo(np.float64).eps * values[0]
        kept = int(np.sum(values > self.tolerance))
        self.left, self.values, self.right = left[:, :kept], values[:kept], right[:kept]
        self.size, self.sigma_max = kept * self.copies, values[0] * _SAFETY
        self.rank = self.size - kept * (self.copies > 1) * self.centered
        self.method = f"{method}, singular values above {self.tolerance:.1e}"

    def combine(self, coefficients):
        """Return the logits `(n, C)`, up to constants per row for softmax, of basis coefficients `(r,)`."""
        raise NotImplementedError

    def correlate(self, cotangent):
        """Return the transpose of `combine` applied to a cotangent `(n, C)`, shape `(r,)`."""
        raise NotImplementedError

    def theta(self, coefficients):
        """Return the theta `(P,)` with these logits."""
        raise NotImplementedError

    def project(self, targets):
        return self.combine(self.correlate(targets * self.roots**2))

    def solve(self, targets):
        return self.theta(self.correlate(targets * self.roots**2))


class KroneckerJacobian(_FactorizedJacobian):
    """`A kron I_C`, with `A = [Z, 1]` for a plain head: one factorization serves all outputs."""

    def __init__(self, head, features, weights, centered):
        super().__init__(head, features, weights, centered)
        self.copies = head.num_outputs
        self._factorize(head.columns(features) * self.roots, "SVD of what all outputs share")

    def combine(self, coefficients):
        return self.seen(self.left @ coefficients.reshape(-1, self.head.num_outputs)) / self.roots

    def correlate(self, cotangent):
        return (self.left.T @ self.seen(cotangent / self.roots)).ravel()

    def theta(self, coefficients):
        rows = coefficients.reshape(-1, self.head.num_outputs) / self.values[:, None]
        return (self.right.T @ rows).ravel()


class DenseJacobian(_FactorizedJacobian):
    """The matrix itself, for heads whose outputs share no small factor."""

    def __init__(self, head, features, weights, centered):
        super().__init__(head, features, weights, centered)
        units = np.eye(head.num_outputs) - centered / head.num_outputs
        rows = [head.adjoint(z[None], unit[None]) for z in features for unit in units]
        self._factorize(
            np.repeat(self.roots, head.num_outputs, axis=0) * np.array(rows),
            "SVD of J_S",
        )

    def combine(self, coefficients):
        return (self.left @ coefficients).reshape(-1, self.head.num_outputs) / self.roots

    def correlate(self, cotangent):
        return self.left.T @ (cotangent / self.roots).ravel()

    def theta(self, coefficients):
        return self.right.T @ (coefficients / self.values)


class IterativeJacobian(Jacobian):
    """Products only: a solution whose residual bounds the alignment from below; no rank is decided.

    It comes from LSQR in whitened coordinates and float32, which starts again from the residual as float64 sees it. A
    mixture with as many parameters for each output as there are samples is interpolated instead, in the same way.
    """

    factorized = False

    def __init__(self, head, features, weights, centered):
        super().__init__(head, features, weights, centered)
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


def spectral_norm_bound(head, features, weights, centered=False):
    """Return an upper bound of sigma_max(J_S), exact for a plain head, from matrices of the order of m + 1 and H only.

    For gated units `J J'` is the entrywise product of the Gram matrices of `(u_i, 1)` and of `V_j * g_i`. By Schur's
    product theorem `sigma_max(A o B) <= max_i A_ii sigma_max(B)` for positive semidefinite A and B; scaled to
    `A_ii = 1` this leaves the largest eigenvalue of `(V V') o (G' D G)`, of order H, with `D_ii = |u_i|^2 + 1`. A
    mixture has the same without `V V'`.
    Iterative estimates of sigma_max are lower bounds and would not do.
    """
    if isinstance(head, heads.SumHead):
        return np.sqrt(sum(spectral_norm_bound(part, features, weights, centered) ** 2 for part in head.parts))
    if isinstance(head, heads.DenseHead):
        columns = head.columns(features)
        return _root_of_largest_eigenvalue(columns.T @ (columns * weights[:, None]))
    if not isinstance(head, (heads.GatedHead, heads.MixtureHead)):
        raise TypeError(f"The head must be plain, gated or a sum of those. Received: head={head!r}")
    moments = 0.0
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        gates = head.gates(block)
        squares = weights[start : start + _BLOCK] * (1.0 + np.sum(head.standardize(block) ** 2, axis=1))
        moments = moments + gates.T @ (gates * squares[:, None])
    if isinstance(head, heads.MixtureHead):
        return _root_of_largest_eigenvalue(moments)
    output = head.output_kernel - head.output_kernel.mean(axis=1, keepdims=True) * centered
    largest = _root_of_largest_eigenvalue((output @ output.T) * moments)
    return np.hypot(largest, np.sqrt(weights.sum()) * _SAFETY * head.use_bias)


def _root_of_largest_eigenvalue(gram):
    last = len(gram) - 1
    return np.sqrt(linalg.eigvalsh(gram, subset_by_index=(last, last))[0]) * _SAFETY
