"""Newton's method for a convex loss over a head on cached features, with exact line searches.

Where the objective's start is a tensor everything stays on its device, but for numbers that decide what comes next.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_dal._backend import arrays
from keras_dal.solvers.conjugate_gradients import conjugate_gradients
from keras_dal.solvers.line_search import minimizing_length
from keras_dal.solvers.objectives import ALL

INEXACT = 0.2  # residual of a Newton system, relative to the gradient
_ROUNDING = 1e-6  # of the objective in float32: a step that seems to raise it by less may still lower it
_FARTHEST = 1e20  # a change of the logits that float32 still has room for
_CONJUGATE_GRADIENTS = 100  # at most, for one Newton step, at that residual; more at a smaller one


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Where a Newton step ended.

    Attributes:
        phi: whitened parameters, `(P,)`, float64 or a tensor.
        logits: of all rows, float32 `(n, C)`, of the same kind.
        objective: loss plus penalty.
        gap: upper bound of how far the objective is above its minimum; infinite without a ridge.
    """

    phi: Any
    logits: Any
    objective: float
    gap: float


def gap_of(gradient, ridge):
    """Return an upper bound of how far a convex objective is above its minimum.

    Args:
        gradient: of all of it, in the coordinates whose squared distance the ridge weights, `(P,)`.
        ridge: that weight; without one, the objective need not have a minimum.
    """
    return float(arrays.of(gradient).dot(gradient, gradient)) / (4 * ridge) if ridge else np.inf


class NewtonCG:
    """`objective(f) + penalty(phi)` with `f = start + J T phi`.

    Args:
        jacobian: a `CachedJacobian` or `StackedJacobian` of n rows.
        whitening: a `Whitening`, the map T.
        objective: an `objectives.Anchored` on n rows; its `start`, float32, is where `phi = 0`.
        penalty: a `penalties.Quadratic` in the coordinates of the whitening.
        inexact: residual of a Newton system, relative to the gradient.
        watch: called without arguments between products; what it raises ends the solver.
    """

    def __init__(self, jacobian, whitening, objective, penalty, inexact=INEXACT, watch=lambda: None):
        self.jacobian, self.whitening, self.objective, self.penalty = jacobian, whitening, objective, penalty
        self.start, self.ridge, self.inexact, self.watch = objective.start, penalty.ridge, inexact, watch
        self._xp = arrays.of(self.start)

    def value(self, phi, logits):
        values = self._xp.numpy(self.objective.values(logits))
        return float(np.sum(values, dtype=np.float64) + self.penalty.value(phi))

    def steps(self, phi=None):
        """Yield a `Step` for the start, then one after each Newton step, without end.

        A step that raises the objective is not taken: phi is the same object then.

        Args:
            phi: where to start, zero by default.
        """
        logits = self.start if phi is None else self.start + self.jacobian.logits(self.whitening.theta(phi))
        phi = self._xp.zeros(self.jacobian.num_parameters) if phi is None else phi
        value = self.value(phi, logits)
        while True:
            active = self._active(logits)
            restricted = self.jacobian if active is ALL else self.jacobian.restricted(active)
            slopes = self.objective.gradient(logits)[active]
            gradient = self._pulled_back(restricted, slopes) + self.penalty.gradient(phi)
            yield Step(phi, logits, value, gap_of(gradient, self.ridge))
            direction, slope = self._descent(restricted, self.objective.hessian(logits, active), gradient)
            change = self.jacobian.logits(self.whitening.theta(direction))
            length = self._line_search(phi, direction, logits, change, slope)
            further = phi + length * direction, logits + change * length
            reached = self.value(*further)
            if not reached > value + _ROUNDING * abs(value):  # a number that is none goes on, for the caller to see
                (phi, logits), value = further, reached

    def step_at(self, logits, gradient):
        """Return the Newton step at some logits for a gradient that is known better than float32 knows it.

        Args:
            logits: `(n, C)`, of the kind of `Step.logits`.
            gradient: `(P,)` of NumPy, float64; numbers as small as its own may have no float32.

        Returns:
            A change of phi, `(P,)` of NumPy, float64.
        """
        size = np.linalg.norm(gradient) or 1.0
        towards = gradient / size if self._xp is arrays.NUMPY else self._xp.single(gradient / size)
        step = self._newton_direction(self.jacobian, self.objective.hessian(logits, ALL), towards)
        return size * self._xp.numpy(step).astype(np.float64)

    def _active(self, logits):
        """Return ascending indices of the rows that count, or ALL; tensors of each new shape would compile anew."""
        if self._xp is not arrays.NUMPY:
            return ALL
        rows = np.flatnonzero(self.objective.active(logits))
        return rows if len(rows) < 0.9 * len(logits) else ALL

    def _pulled_back(self, jacobian, cotangent):
        return self.whitening.transposed(jacobian.adjoint(cotangent))

    def _descent(self, restricted, curve, gradient):
        """Return a direction and the slope along it: Newton's, or the steepest where curvature is lost in rounding."""
        dot = self._xp.dot
        direction = self._newton_direction(restricted, curve, gradient)
        with np.errstate(over="ignore", invalid="ignore"):
            slope, square = dot(gradient, direction), dot(direction, direction)
            if slope < 0 and square < _FARTHEST**2:
                return direction, slope
            size = dot(gradient, gradient) ** 0.5 or 1.0
            return gradient / -size, -size

    def _newton_direction(self, restricted, curve, gradient):
        def product(direction):
            self.watch()
            bent = restricted.normal(self.whitening.theta(direction), curve)
            return self.whitening.transposed(bent) + self.penalty.product(direction)

        limit = int(_CONJUGATE_GRADIENTS * np.log(self.inexact) / np.log(INEXACT))
        return conjugate_gradients(product, -gradient, self.inexact, limit, self.penalty.preconditioner)

    def _line_search(self, phi, direction, logits, change, start):
        """Return the length of the step: logits are linear in it, so no product with J is needed."""
        slope_there = self._xp.dot(self.penalty.gradient(phi), direction)
        bend = self._xp.dot(self.penalty.product(direction), direction)

        def slope(length):
            of_logits = self._xp.dot(self.objective.gradient(logits + change * length), change)
            return of_logits + slope_there + length * bend

        return minimizing_length(slope, float(start))
