"""J_S by products only, for heads too large to factorize."""

import functools

import numpy as np
from scipy.sparse.linalg import lsqr

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.solvers.jacobian_base import Jacobian, Products
from keras_dal.solvers.label_squares import safe_mean
from keras_dal.solvers.min_norm_interpolation import Interpolation
from keras_dal.solvers.whitening import Whitening

_ITERATIONS, _RESTARTS = 150, 12
_LSQR = f"LSQR, at most {_RESTARTS} times {_ITERATIONS} iterations"
_CLOSE = 3e-5  # residual over targets at which LSQR need not go on
_GAIN = 0.9  # a restart that leaves more of the residual than this ends the search


class IterativeJacobian(Jacobian):
    """Products only: a solution whose residual bounds the alignment from below; no rank is decided.

    It comes from LSQR in whitened coordinates and float32, which starts again from the residual as float64 sees it. A
    mixture with as many parameters for each output as there are samples is interpolated instead, in the same way.
    """

    factorized = False

    def __init__(self, head, features, weights, shift_invariant, eps, max_bytes=MAX_BYTES):
        super().__init__(head, features, weights, shift_invariant, eps)
        self.sigma_max = head.spectral_norm_bound(features, weights, shift_invariant)
        self._products = CachedJacobian.of_head(head, features.astype(np.float32), max_bytes)
        self._interpolation = self._factorized(max_bytes)
        self.method = "a Cholesky factorization in float32, refined" if self._interpolation else _LSQR

    def _factorized(self, max_bytes):
        """Return the `Interpolation` of all samples, None where there is none."""
        mixture = self.head.mixture
        if mixture is None or mixture.num_parameters < len(self.features) * mixture.num_outputs:
            return None
        part = self._products.part(0)
        interpolation = Interpolation(part, part, max_bytes)
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
        shift = safe_mean(targets, self.roots.ravel() ** 2) * self.head.use_bias  # beside which all else looks reached
        targets = targets - shift
        unit = np.max(np.abs(targets), initial=0.0) or 1.0  # float32 holds no targets of any size
        targets = targets / unit
        theta, residual = np.zeros(self.head.num_parameters), targets
        for _ in range(_RESTARTS):
            step = theta + self.solve(residual)
            before, left = self.norm(residual), targets - self.logits(step)
            if self.norm(left) < before:
                theta, residual = step, left
            if self.norm(residual) <= _CLOSE * self.norm(targets):
                break
            if self.norm(residual) > _GAIN * before:
                if self._interpolation is None:
                    break
                self._interpolation = None  # what is left, of samples that are nearly equal say, is for LSQR
                self.method += f", then {_LSQR}"
        theta = unit * theta
        if self.head.use_bias:
            theta[-self.head.num_outputs :] += shift
        return theta
