"""The infimum of a convex loss over a head, enclosed from both sides.

From above by the loss of parameters, evaluated; 0 is proved by parameters with a positive smallest margin. From below
by Fenchel duality: for u orthogonal to the columns of J, `inf L = inf_theta L(J theta) - <u, J theta> >= -L*(u)`. With
`u = (p - Y) / n` and p probabilities, `-L*(u)` is the mean entropy of p. For hard labels of a cross-entropy p is sought
among the wrong classes, where its small parts are; for all else u is a gradient without its part in the columns, and
shrinks to 0, which is orthogonal too and leaves the mean of the samples' own infima, until the conjugate is finite. Our
derivation. For hard labels of a cross-entropy all that rounding may have done is counted: margins and values with
bounds of their errors, and a dual point only where an exact one is near it. Directions that count as rounding of the
features prove nothing from above: other roundings have others; from below they may not be left out.
"""

import contextlib
import dataclasses
import itertools
import time

import numpy as np
from scipy import optimize, special

from keras_dal.solvers.equal_features import least_loss
from keras_dal.solvers.exact_dual import nearby_dual, sparse_dual
from keras_dal.solvers.rounded import ROUNDING, largest_loss, smallest_margin

_GAP = 1e-7  # of the two bounds, for weights of about one, at which the search ends
_ITERATIONS = 200
SECONDS = 5.0  # after which a search ends with the bounds it has, by default
_SECTIONS, _GOLDEN = 40, 0.5 * (np.sqrt(5.0) - 1.0)  # of the interval for the share of a dual point
_SLACK = 1e-10  # relative, of bounds that were found for other weights
_ALIKE = 1e3  # ratio of weights up to which one search decides
_NEAR = 1e-2  # gradient, relative to the first one, from which a dual point is worth its price
_NEGLIGIBLE = (0.0, 1e-9, 1e-6)  # probabilities left out of the dual point where they keep it from being exact
_LAST = (1e-12, 1e-4, 1e-3, 1e-2, 0.1)  # the same, tried once the search has ended


@dataclasses.dataclass(frozen=True)
class Enclosure:
    """`lower <= inf L <= upper`, `upper` reached by `theta`; a positive `margin` proves that the infimum is 0.

    `margin` is a lower bound of the smallest one; `out_of_time` says after how many seconds the search for more ended
    early, None where it did not; `by_rounding`, that directions which count as rounding separate samples that others
    were not found to.
    """

    lower: float
    upper: float
    theta: np.ndarray
    margin: float | None
    out_of_time: float | None = None
    by_rounding: bool = False


def enclose_infimum(jacobian, loss, targets, weights, seconds=None):
    """Enclose the infimum of `sum_i w_i l(f_i, y_i) / n` over f in the column space of J.

    Args:
        jacobian: a factorized `Jacobian`.
        loss: a `losses.Loss`.
        targets: of the loss, shape `(n, C)`.
        weights: positive sample weights, shape `(n,)`.
        seconds: after which a search ends with the bounds it has; `SECONDS` by default.

    Returns:
        An `Enclosure`. Where a search for it ends by itself its bounds are 2e-7 mean weights apart at most; they may be
        far apart where it ends early, where a sparse dual point is all that was found, or where directions that count
        as rounding might reach more of the labels.
    """
    unit = 4.0 ** round(np.log2(np.mean(weights)) / 2)  # its root, by which rows are divided, is exact too
    seconds = SECONDS if seconds is None else seconds
    found = _enclosed(jacobian.in_unit(unit), loss, targets, weights / unit, seconds)
    return dataclasses.replace(found, lower=found.lower * unit, upper=found.upper * unit)


def _enclosed(jacobian, loss, targets, weights, seconds):
    if loss.quadratic:
        return _least_squares(jacobian, loss, targets, weights)
    if not loss.are_hard(targets) or np.max(weights) <= _ALIKE * np.min(weights):
        return _searched(jacobian, loss, targets, weights, seconds)
    alike = _searched(jacobian.unweighted(), loss, targets, np.ones(len(weights)), seconds)  # much better conditioned
    if alike.margin > 0:
        return alike
    found = _searched(jacobian, loss, targets, weights, seconds)
    lower = max(found.lower, min(found.upper, alike.lower * np.min(weights) * (1 - _SLACK)))
    return dataclasses.replace(found, lower=lower, by_rounding=found.by_rounding or alike.by_rounding)


def _searched(jacobian, loss, targets, weights, seconds):
    """Return an enclosure from above along the directions that count, from below along all of them."""
    counting = jacobian.counting()
    found = _along(counting, loss, targets, weights, seconds)
    is_close = found.upper - found.lower < _GAP
    if counting is jacobian or is_close or (found.margin is not None and found.margin > 0):
        return found
    beyond = _along(jacobian, loss, targets, weights, seconds)
    by_rounding = beyond.margin is not None and beyond.margin > 0
    lower = max(found.lower, min(beyond.lower, found.upper))
    ended_after = found.out_of_time or beyond.out_of_time
    return dataclasses.replace(found, lower=lower, out_of_time=ended_after, by_rounding=by_rounding)


def _along(jacobian, loss, targets, weights, seconds):
    """Return an enclosure from a search along all directions of a basis."""
    search = _Search(jacobian, loss, targets, weights, seconds)
    search.run()
    logits, errors = jacobian.evaluate(search.best)
    theta = jacobian.theta(search.best)
    upper = max(search.floor, largest_loss(loss, logits, errors, targets, weights))
    lower = min(search.lower, upper)  # up to rounding it is below; of the two the evaluated loss is to be trusted
    ended_after = seconds if search.out_of_time else None
    if not search.hard:
        return Enclosure(lower, upper, theta, None, ended_after)
    margin = smallest_margin(loss, logits, errors, targets)
    lower, upper = (0.0, 0.0) if margin > 0 else (lower, upper)
    return Enclosure(lower, upper, theta, margin, ended_after)


def _best_share(value):
    """Return where in [0, 1] a concave function, minus infinity from some share on, is largest: golden sections."""
    low, high = 0.0, 1.0
    for _ in range(_SECTIONS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if value(left) >= value(right) else (left, high)
    return low


def _least_squares(jacobian, loss, targets, weights):
    """Return the enclosure of a quadratic loss.

    The lower bound is its floor where a direction that float64 cannot tell from rounding might explain the rest.
    """
    theta = jacobian.refined(targets)
    logits, errors = jacobian.logits(theta), jacobian.head.rounding(jacobian.features, theta)
    upper = largest_loss(loss, logits, errors, targets, weights)
    left = float(jacobian.least_left(targets).sum()) if jacobian.is_complete() else 0.0
    lower = loss.of_squares(left, targets, weights)
    return Enclosure(min(lower, upper), upper, theta, None)


class _OutOfTime(Exception):
    """Ends a search that has become too long."""


class _Search:
    """Newton's method with a trust region in an orthonormal basis, ended by a margin or by the duality gap."""

    def __init__(self, jacobian, loss, targets, weights, seconds):
        self.jacobian, self.loss, self.targets, self.weights = jacobian, loss, targets, weights
        self.scale = weights[:, None] / len(weights)
        self.hard, self.sides = loss.are_hard(targets), loss.sides(targets)
        self.of_entropy = self.hard and loss.has_entropy
        self.floor = loss.floor(targets, weights)
        of_functions = least_loss(loss, jacobian.features, targets, weights) if loss.has_entropy else self.floor
        self.lower = self._first = max(self.floor, of_functions)
        self.best, self.separated = np.zeros(jacobian.size), False
        self._last = None, None
        self._tries, self._pause = 0, 0
        self.out_of_time, self._seconds, self._end = False, seconds, time.perf_counter() + seconds
        self.steepest = np.linalg.norm(self.gradient(self.best))

    def run(self):
        with contextlib.suppress(_OutOfTime, StopIteration):
            self.stop_when_decided(self.best)  # a minimum at the start would end the search without a look at it
            self._minimize()
        if self.separated:
            return
        self._end = np.inf
        if self._first > self.floor and self.value(self.best) - self._first < _GAP:
            return
        if self.of_entropy:
            self.lower = max(self.lower, self._final_bound(self._logits(self.best)))
        elif self.lower == self._first:
            self.lower = max(self.lower, self._lower_bound(self._logits(self.best)))

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
        if self._last[0] is None or not np.array_equal(self._last[0], coefficients):
            self._check_time()
            self._last = coefficients.copy(), self.jacobian.combine(coefficients)
        return self._last[1]

    def value(self, coefficients):
        return np.sum(self.scale[:, 0] * self.loss.values(self._logits(coefficients), self.targets))

    def gradient(self, coefficients):
        logits = self._logits(coefficients)
        return self.jacobian.correlate(self.scale * self.loss.gradient(logits, self.targets))

    def _check_time(self):
        if time.perf_counter() > self._end and self._last[0] is not None:
            self.out_of_time = True
            raise _OutOfTime

    def hessian_product(self, coefficients, direction):
        self._check_time()
        product = self.loss.hessian(self._logits(coefficients), self.targets)
        return self.jacobian.correlate(self.scale * product(self.jacobian.combine(direction), slice(None)))

    def stop_when_decided(self, coefficients):
        logits = self._logits(coefficients)
        self.best = coefficients
        if self.hard and np.min(self.loss.margins(logits, self.targets)) > 0:
            logits, errors = self.jacobian.evaluate(coefficients)
            self.separated = smallest_margin(self.loss, logits, errors, self.targets) > 0
        if self.separated:
            raise StopIteration
        if np.linalg.norm(self.gradient(coefficients)) > max(_NEAR * self.steepest, 1e-12):
            return
        self._pause -= 1
        if self._pause >= 0:
            return
        self._tries += 1
        self._pause = self._tries // 3  # a search that takes long is not made longer by its dual points
        self.lower = max(self.lower, self._lower_bound(logits))
        if self.value(coefficients) - self.lower < _GAP:
            raise StopIteration

    def _lower_bound(self, logits):
        """Return the value of a dual point near the gradient here, the floor where none is known."""
        return self._entropy_bound(logits) if self.of_entropy else self._conjugate_bound(logits)

    def _conjugate_bound(self, logits):
        if not self.jacobian.is_complete():
            return self.floor  # orthogonal to all columns is not known to be what is orthogonal to the basis
        slopes = self.jacobian.seen(self.loss.gradient(logits, self.targets))
        for _ in range(2):  # once more for what rounding left
            slopes = slopes - self.jacobian.combine(self.jacobian.correlate(slopes * self.weights[:, None]))
        slack = 2 * self.jacobian.basis_error * self._norm(slopes) * self._norm_at_optimum(logits)  # of the columns

        def value(share):
            return -float(np.sum(self.scale[:, 0] * self.loss.conjugate(share * slopes, self.targets)))

        whole = value(1.0)
        bound = whole if np.isfinite(whole) else value(_best_share(value))
        return max(self.floor, bound - slack - ROUNDING * (abs(bound) + np.sum(self.scale)))

    def _norm(self, rows):
        return np.sqrt(np.sum(self.scale * rows**2))

    def _norm_at_optimum(self, logits):
        """Return a bound of the norm of optimal logits; about it, that of those here, where labels give no bound."""
        growth = np.min(self.loss.growth(self.targets) * np.sqrt(self.scale[:, 0]))
        if growth > 0:
            return np.sum(self.scale[:, 0] * self.loss.values(logits, self.targets)) / growth
        return np.inf if self.out_of_time else self._norm(self.jacobian.seen(logits))

    def _entropy_bound(self, logits):
        """Return the entropy bound of an exact dual point near the probabilities here, 0 where none is known."""
        best, wrong = 0.0, self.sides.wrong(logits)
        for negligible in _NEGLIGIBLE:
            bound, complete = self._bound_without(wrong, negligible)
            best = max(best, bound)
            if complete and best > 0:
                break
        return best

    def _final_bound(self, logits):
        """Return the bound where the search has ended: pair by pair where that by class is far from the loss here."""
        if self.lower == self._first:
            return self._last_bound(logits)
        bound = max(self.lower, self._entropy_bound(logits))
        if self.out_of_time or self.value(self.best) - bound < _GAP:
            return bound
        return max(bound, self._bound_without(self.sides.wrong(logits), 0.0, by_pair=True)[0])

    def _last_bound(self, logits):
        """Return the same from more tries, pair by pair: for samples that lie on the border of what is separable.

        The tries end as the search does, after as many seconds once more, and so does a linear program after them. Its
        point is far from the minimum: a bound that may be far below it, but above 0.
        """
        wrong, end = self.sides.wrong(logits), time.perf_counter() + self._seconds
        for negligible, by_pair in itertools.product(sorted(_NEGLIGIBLE + _LAST), (False, True)):
            bound, _ = self._bound_without(wrong, negligible, by_pair)
            if bound > 0:
                return bound
            if time.perf_counter() > end:
                self.out_of_time = True
                break
        shares, part, ended_early = sparse_dual(self.jacobian, self.sides, wrong, self.weights, self._seconds)
        self.out_of_time |= ended_early
        return self._bound_of(0.5 * shares / (self.sides.most(shares) or 1.0), part)  # where an entropy is largest

    def _bound_without(self, wrong, negligible, by_pair=False):
        shares, part, complete = nearby_dual(self.jacobian, self.sides, wrong, self.weights, negligible, by_pair)
        return self._bound_of(shares, part), complete

    def _bound_of(self, shares, part):
        """Return the entropy bound of shares that differ from those of an exact dual point by a part at most."""
        shares = shares / max(1.0, self.sides.most(shares * (1 + part[:, None])))
        entropy = np.sum(self.scale * self.sides.entropy(shares))
        moved = 2 * np.sum(self.scale * special.entr(part[:, None] * shares))  # |h(x) - h(y)| <= h(|x - y|)
        return max(0.0, float(entropy * (1 - _SLACK) - moved))
