"""Heads as functions of cached features: linear in the flat parameter vector.

A head has `shapes` (of its linear parameters, in the order of `Structure.linear_parameters`), `num_parameters`,
`num_outputs` and two maps that are transposes of each other in the parameters: `logits` and `adjoint`.
"""

import math
from typing import Any

import numpy as np

from keras_dal._backend.arrays import EPS
from keras_dal.heads.array_backend import Host
from keras_dal.heads.cached_jacobian import CachedJacobian

_ENTRIES = 2**22  # hidden values in float64 that exist at a time


class Head:
    """What `f(z) = sum_k theta_k df(z)/dtheta_k` looks like from outside."""

    shapes: tuple[tuple[int, ...], ...]
    num_outputs: int
    use_bias: bool  # whether the last parameters are one constant for each output
    mixture: Any = None  # the `MixtureHead` in it
    is_plain = False  # whether the logits are the features times a kernel: what is certified then is so in float64

    @property
    def num_parameters(self):
        return sum(math.prod(shape) for shape in self.shapes)

    def logits(self, features, theta):
        """Return f, shape `(k, C)`, for features `(k, m)` and a flat theta `(num_parameters,)`, in float64."""
        return self._exact(features).logits(theta)

    def adjoint(self, features, cotangent):
        """Return `J' vec(cotangent)`, shape `(num_parameters,)`, for features `(k, m)` and a cotangent `(k, C)`."""
        return self._exact(features).adjoint(cotangent)

    def magnitudes(self, features, theta):
        """Return the logits with every product in their sums replaced by its magnitude, for a theta without signs."""
        return self._exact(features).magnitudes(theta)

    def products(self, on) -> list:
        """Return the `part.Part` of each summand, which multiplies features on an `array_backend`."""
        raise NotImplementedError

    def kronecker_factor(self, features) -> np.ndarray | None:
        """Return A, shape `(k, P / C)`, where the Jacobian is `A kron I_C`; None where outputs share no such factor."""

    def spectral_norm_bound(self, features, weights, shift_invariant=False) -> float:
        """Return an upper bound of sigma_max(J_S), from matrices of the order of m + 1 and the number of gates only.

        Iterative estimates of sigma_max are lower bounds and would not do.

        Args:
            features: `(n, m)`.
            weights: of the samples, `(n,)`; rows are multiplied by their roots.
            shift_invariant: whether constants per sample are removed from the logits.
        """
        raise NotImplementedError

    def rounding(self, features, theta):
        """Return a bound `(n, C)` of the errors float64 makes in `logits`, with gates and inputs taken as computed."""
        num_terms = 8 + sum(sum(shape) for shape in self.shapes)  # of the longest sum, at most
        return EPS * num_terms * self.magnitudes(features, np.abs(theta))

    def _exact(self, features):
        parts = self.products(Host(np.float64))  # made anew: their products write into memory that no thread may share
        return CachedJacobian(parts, features, entries=_ENTRIES)
