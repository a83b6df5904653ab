"""The infimum of a convex loss over a head, enclosed from both sides.

From above by the loss of parameters, evaluated; 0 is proved by parameters with a positive smallest margin. From below
by Fenchel duality: for u orthogonal to the columns of J, `inf L = inf_theta L(J theta) - <u, J theta> >= -L*(u)`. With
`u = (p - Y) / n` and p probabilities, `-L*(u)` is the mean entropy of p. For hard labels p is sought among the wrong
classes, where its small parts are; for all else u is a gradient without its part in the columns, and shrinks to 0,
which is orthogonal too and leaves the mean of the samples' own infima, until the conjugate is finite. Our derivation.
"""

import contextlib
import dataclasses

import numpy as np
from scipy import optimize
from scipy.sparse.linalg import lsqr

from keras_dal.solvers.jacobian import Products

_GAP = 1e-7  # of the two bounds, at which the search ends
_ITERATIONS = 200
_WORK = 1e12  # multiplications, a minute or so, after which the search ends with the bounds it has
_OVERHEAD = 1000  # multiplications that take as long as what else is done to one logit in one product
_SECTIONS, _GOLDEN = 40, 0.5 * (np.sqrt(5.0) - 1.0)  # of the interval for the share of a dual point
_NEAR = 1e-2  # gradient, relative to the first one, from which a dual point is worth its price
_NEGLIGIBLE = (0.0, 1e-9, 1e-6)  # probabilities left out of the dual point where they keep it from being feasible


@dataclasses.dataclass(frozen=True)
class Enclosure:
    """`lower <= inf L <= upper`, `upper` reached by `theta`; a positive `margin` proves that the infimum is 0."""

    lower: float
    upper: float
    theta: np.ndarray
    margin: float | None


def enclose_infimum(jacobian, loss, targets, weights):
    """Enclose the infimum of `sum_i w_i l(f_i, y_i) / n` over f in the column space of J.

    Args:
        jacobian: a factorized `Jacobian`.
        loss: a `losses.Loss`.
        targets: of the loss, shape `(n, C)`.
        weights: positive sample weights, shape `(n,)`.

    Returns:
        An `Enclosure`; its bounds lie within 1e-7 of each other unless the search ended early.
    """
    if loss.quadratic:
        theta = jacobian.refined(targets)
        value = np.mean(weights * loss.values(jacobian.logits(theta), targets))
        return Enclosure(value, value, theta, None)
    search = _Search(jacobian, loss, targets, weights)
    search.run()
    theta = jacobian.theta(search.best)
    logits = jacobian.logits(theta)
    upper = max(search.floor, float(np.mean(weights * loss.values(logits, targets))))
    lower = min(search.lower, upper)  # up to rounding it is below; of the two the evaluated loss is to be trusted
    if not search.hard:
        return Enclosure(lower, upper, theta, None)
    margin = float(np.min(loss.margins(logits, targets)))
    return Enclosure(0.0 if margin > 0 else lower, 0.0 if margin > 0 else upper, theta, margin)


def _best_share(value):
    """Return where in [0, 1] a concave function, minus infinity from some share on, is largest: golden sections."""
    low, high = 0.0, 1.0
    for _ in range(_SECTIONS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if value(left) >= value(right) else (left, high)
    return low


class _OutOfWork(Exception):
    """Ends a search that has become too long."""


class _Search:
    """Newton's method with a trust region in an orthonormal basis, ended by a margin or by the duality gap."""

    def __init__(self, jacobian, loss, targets, weights):
        self.jacobian, self.loss, self.targets, self.weights = jacobian, loss, targets, weights
        self.scale = weights[:, None] / len(weights)
        self.hard, self.dual = loss.are_hard(targets), loss.separation_dual(targets)
        self.floor = float(np.sum(self.scale[:, 0] * loss.infimum(targets)))
        self.lower, self.best, self.separated = self.floor, np.zeros(jacobian.size), False
        self._seen = None, None
        self.products_left = _WORK / (targets.size * (2 * jacobian.size / jacobian.copies + _OVERHEAD))
        self.steepest = np.linalg.norm(self.gradient(self.best))

    def run(self):
        with contextlib.suppress(_OutOfWork, StopIteration):
            self.stop_when_decided(self.best)  # a minimum at the start would end the search without a look at it
            self._minimize()
        if self.lower == self.floor and not self.separated:
            self.products_left = np.inf
            self.lower = self._lower_bound(self._logits(self.best))

    def _minimize(self):
        options = {"initial_trust_radius": 10.0, "max_trust_radius": 1e6, "gtol": 1e-14, "maxiter": _ITERATIONS}
        optimize.minimize(
            self.value,
            self.best,
            jac=self.gradient,
            hessp=self.hessian_product,
            method="trust-ncg",
            callback=self.stop_when_decided,
            options=options,
        )

    def _logits(self, coefficients):
        """Return the logits; those of the last point are asked for again and again."""
        if self._seen[0] is None or not np.array_equal(self._seen[0], coefficients):
            self._seen = coefficients.copy(), self.jacobian.combine(coefficients)
        return self._seen[1]

    def value(self, coefficients):
        return np.sum(self.scale[:, 0] * self.loss.values(self._logits(coefficients), self.targets))

    def gradient(self, coefficients):
        logits = self._logits(coefficients)
        return self.jacobian.correlate(self.scale * self.loss.gradient(logits, self.targets))

    def _spend(self):
        self.products_left -= 1
        if self.products_left < 0:
            raise _OutOfWork

    def hessian_product(self, coefficients, direction):
        self._spend()
        product = self.loss.hessian(self._logits(coefficients), self.targets)
        return self.jacobian.correlate(self.scale * product(self.jacobian.combine(direction), slice(None)))

    def stop_when_decided(self, coefficients):
        self.best, logits = coefficients, self._logits(coefficients)
        self.separated = self.hard and np.min(self.loss.margins(logits, self.targets)) > 0
        if self.separated:
            raise StopIteration
        if np.linalg.norm(self.gradient(coefficients)) > max(_NEAR * self.steepest, 1e-12):
            return
        self.lower = max(self.lower, self._lower_bound(logits))
        if self.value(coefficients) - self.lower < _GAP:
            raise StopIteration

    def _lower_bound(self, logits):
        """Return the value of the dual point nearest to the gradient here, the floor where none is found."""
        return self._entropy_bound(logits) if self.hard else self._conjugate_bound(logits)

    def _conjugate_bound(self, logits):
        slopes = self.jacobian.seen(self.loss.gradient(logits, self.targets))
        for _ in range(2):  # once more for what rounding left
            self._spend()
            slopes = slopes - self.jacobian.project(slopes)

        def value(share):
            return -float(np.sum(self.scale[:, 0] * self.loss.conjugate(share * slopes, self.targets)))

        whole = value(1.0)
        return max(self.floor, whole if np.isfinite(whole) else value(_best_share(value)))

    def _entropy_bound(self, logits):
        """Return the mean entropy of the probabilities nearest to those here, 0 where none are found."""
        wrong = self.dual.wrong(logits)
        for negligible in _NEGLIGIBLE:
            kept = self.dual.pairs & (wrong > negligible)
            mass = np.zeros_like(wrong)
            mass[kept] = self._orthogonal((self.weights[:, None] * wrong)[kept], kept)
            if mass.any() and mass.min() >= 0:
                shares = mass / self.weights[:, None]
                shares /= max(1.0, self.dual.most(shares))
                return float(np.sum(self.scale * self.dual.entropy(shares)))
        return 0.0

    def _orthogonal(self, mass, kept):
        """Return the mass on the kept pairs without its part in their column space."""

        def matvec(coefficients):
            self._spend()
            return self.dual.gaps(self.jacobian.combine(coefficients))[kept]

        def rmatvec(cotangent):
            full = np.zeros(kept.shape)
            full[kept] = cotangent
            return self.jacobian.correlate(self.dual.gaps_adjoint(full))

        operator = Products((len(mass), self.jacobian.size), matvec, rmatvec)
        inside = lsqr(operator, mass, atol=1e-15, btol=1e-15, conlim=0, iter_lim=300)[0]
        return mass - operator.matvec(inside)
