"""Newton's method for a convex loss over a head on cached features, with exact line searches."""

import dataclasses
import functools

import numpy as np
from scipy import optimize
from scipy.sparse.linalg import LinearOperator, cg

INEXACT = 0.2  # residual of a Newton system, relative to the gradient
_LENGTH = 1e-2  # relative precision of a step's length
_CONJUGATE_GRADIENTS = 100  # at most, for one Newton step, at that residual; more at a smaller one


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Where a Newton step ended.

    Attributes:
        phi: whitened parameters, float64 `(P,)`.
        logits: of all rows, float32 `(n, C)`.
        objective: loss plus ridge.
        gap: upper bound of how far the objective is above its minimum; infinite without a ridge.
    """

    phi: np.ndarray
    logits: np.ndarray
    objective: float
    gap: float


class Problem:
    """`objective(f) + ridge ||phi||^2` with `f = start + J T phi`.

    Args:
        jacobian: a `CachedJacobian` or `StackedJacobian` of n rows.
        whitening: a `Whitening`, the map T.
        objective: an `objectives.Anchored` on n rows; its `start`, float32, is where `phi = 0`.
        ridge: weight of the squared distance, not negative.
        inexact: residual of a Newton system, relative to the gradient.
        watch: called without arguments between products; what it raises ends the solver.
    """

    def __init__(self, jacobian, whitening, objective, ridge, inexact=INEXACT, watch=lambda: None):
        self.jacobian, self.whitening, self.objective = jacobian, whitening, objective
        self.start, self.ridge, self.inexact, self.watch = objective.start, ridge, inexact, watch

    def value(self, phi, logits):
        return float(np.sum(self.objective.values(logits)) + self.ridge * (phi @ phi))

    def steps(self, phi=None):
        """Yield a `Step` for the start, then one after each Newton step, without end.

        Args:
            phi: where to start, zero by default.
        """
        phi = np.zeros(self.jacobian.num_parameters) if phi is None else phi
        logits = self.start + self.jacobian.logits(self.whitening.theta(phi)) if phi.any() else self.start
        while True:
            active = np.flatnonzero(self.objective.active(logits))
            if len(active) >= 0.9 * len(logits):
                active = np.arange(len(logits))
            seen = self.jacobian.restricted(active) if len(active) < len(logits) else self.jacobian
            gradient = self._pulled_back(seen, self.objective.gradient(logits)[active]) + 2 * self.ridge * phi
            gap = float(gradient @ gradient) / (4 * self.ridge) if self.ridge else np.inf
            yield Step(phi, logits, self.value(phi, logits), gap)
            direction = self._newton_direction(seen, self.objective.curvature(logits, active), gradient)
            change = self.jacobian.logits(self.whitening.theta(direction))
            length = self._line_search(phi, direction, logits, change, gradient @ direction)
            phi, logits = phi + length * direction, logits + np.float32(length) * change

    def _pulled_back(self, jacobian, cotangent):
        return self.whitening.transposed(jacobian.adjoint(cotangent))

    def _newton_direction(self, seen, curve, gradient):
        def product(direction):
            self.watch()
            bent = seen.normal(self.whitening.theta(direction), curve)
            return self.whitening.transposed(bent) + 2 * self.ridge * direction

        shape = (self.jacobian.num_parameters,) * 2
        hessian = LinearOperator(shape, matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
        limit = int(_CONJUGATE_GRADIENTS * np.log(self.inexact) / np.log(INEXACT))
        return cg(hessian, -gradient, rtol=self.inexact, maxiter=limit)[0]

    def _line_search(self, phi, direction, logits, change, start):
        """Return the minimizing step length: logits are linear in it, so no product with J is needed."""

        @functools.cache
        def slope(length):
            if not length:
                return start
            cotangent = self.objective.gradient(logits + np.float32(length) * change)
            bend = np.einsum("ij,ij->", cotangent, change, dtype=np.float64)
            return bend + 2 * self.ridge * (phi + length * direction) @ direction

        if not start < 0:
            return 0.0
        far = 1.0
        if abs(slope(far)) <= INEXACT * -start:
            return far
        while slope(far) < 0 and far < 1e6:
            far *= 2
        return optimize.root_scalar(slope, bracket=(0.0, far), rtol=_LENGTH).root if far < 1e6 else far
