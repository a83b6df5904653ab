"""The rate of gradient descent on theta_S: what is minimized, how curved it is, and points to compare with."""

import dataclasses
from typing import Any

import numpy as np
from scipy import linalg

from keras_dal.models.regularizers import l2_of
from keras_dal.solvers import rounded
from keras_dal.solvers.duality import Enclosure, enclose_infimum

_SCALES = np.geomspace(1e-2, 1e3, 81)  # with the ends and 1 among every second, fourth, eighth or sixteenth
_ENTRIES = 2e7  # of logits that are evaluated along one ray, if every sixteenth scale is enough
_TINY = float(np.finfo(np.float64).tiny)
_LARGEST = 1e150  # whose square float64 holds


def smoothness(loss, num_outputs, sigma_max, num_samples, penalty):
    """Return an upper bound of the second derivative in any direction of unit length, None where there is none.

    Args:
        loss: a `losses.Loss`.
        num_outputs: C.
        sigma_max: of the Jacobian, whose rows have the roots of the sample weights.
        num_samples: n, for the mean.
        penalty: L2 factors, a number or an array.
    """
    curvature = loss.curvature(num_outputs)
    if curvature is None or sigma_max > _LARGEST:
        return None
    of_loss = max(curvature * sigma_max**2 / num_samples, _TINY if sigma_max > 0 else 0.0)  # a square may be lost
    return float(of_loss + 2 * np.max(penalty))


class Objective:
    """`F(theta) = sum_i w_i l(f_i(theta), y_i) / n + sum_k penalty_k theta_k^2`.

    Args:
        jacobian: a `Jacobian`, for the logits.
        loss: a `losses.Loss`.
        targets: of the loss, shape `(n, C)`.
        weights: sample weights, shape `(n,)`.
        penalty: L2 factors, a number or an array `(P,)`.
    """

    def __init__(self, jacobian, loss, targets, weights, penalty: Any):
        self.jacobian, self.loss, self.targets, self.weights = jacobian, loss, targets, weights
        self.penalty, self.hard = penalty, loss.are_hard(targets)
        self.floor = loss.floor(targets, weights)

    def loss_of(self, logits):
        return float(np.mean(self.weights * self.loss.values(logits, self.targets)))

    def penalty_of(self, theta):
        with np.errstate(over="ignore", invalid="ignore"):  # parameters for features in small units
            return l2_of(self.penalty, theta)

    def evaluate(self, theta):
        """Return the logits `(n, C)` and a bound of their rounding errors."""
        return self.jacobian.logits(theta), self.jacobian.head.rounding(self.jacobian.features, theta)

    def loss_at(self, theta):
        """Return the loss; of parameters that have diverged it may be no number."""
        with np.errstate(invalid="ignore"):
            return self.loss_of(self.jacobian.logits(theta))

    def smallest_margin(self, logits, errors):
        """Return a lower bound of the smallest margin; None where margins prove nothing, as for soft labels."""
        return rounded.smallest_margin(self.loss, logits, errors, self.targets) if self.hard else None

    def largest_loss(self, logits, errors):
        return rounded.largest_loss(self.loss, logits, errors, self.targets, self.weights)

    def infimum(self, candidates, seconds=None):
        """Return an `Enclosure` of the infimum of the loss, from parameters at hand or else by a search.

        Args:
            candidates: parameters that may be witnesses, each `(P,)`.
            seconds: after which the search ends with what it has, as for `enclose_infimum`.
        """
        best: Any = None
        for theta in [each for each in candidates if np.isfinite(each).all()] or candidates:
            logits, errors = self.evaluate(theta)
            value, margin = self.largest_loss(logits, errors), self._counting_margin(logits, errors)
            if margin is not None and margin > 0:
                return Enclosure(0.0, 0.0, theta, margin)
            if best is None or value < best.upper:
                best = Enclosure(self.floor, max(self.floor, value), theta, margin)
        if not self.jacobian.factorized:
            return best
        found = enclose_infimum(self.jacobian, self.loss, self.targets, self.weights, seconds)
        if found.upper <= best.upper:
            return found
        ended = {"out_of_time": found.out_of_time, "by_rounding": found.by_rounding}
        return dataclasses.replace(best, lower=min(found.lower, best.upper), **ended)

    def _counting_margin(self, logits, errors):
        """Return the smallest margin, of logits and of their part along directions that count; None as above."""
        margin, jac = self.smallest_margin(logits, errors), self.jacobian
        if margin is None or margin <= 0 or not jac.factorized or jac.counting() is jac:
            return margin
        return min(margin, rounded.smallest_margin(self.loss, *self.evaluate(jac.solve(logits)), self.targets))

    def smoothness(self):
        """Return the `smoothness` of the whole, None where there is no bound."""
        samples, outputs = self.targets.shape
        return smoothness(self.loss, outputs, self.jacobian.sigma_max, samples, self.penalty)

    def comparisons(self, theta, witnesses):
        """Return pairs (objective at w, squared distance of w from theta) for points w on rays and segments.

        The points lie on the rays from 0 and from theta along every witness, and on the lines from theta to it. Kept
        are those that no other point beats in both numbers.
        """
        start = self.evaluate(theta)
        pairs = [(self.largest_loss(*start) + self.penalty_of(theta), 0.0)]
        nowhere = tuple(0.0 * each for each in start)
        for witness in witnesses:
            reached = logits, errors = self.evaluate(witness)
            margin = self.smallest_margin(logits, errors)
            scale = 1.0 / margin if margin and margin > 0 else 1.0
            away = logits - start[0], errors + start[1]
            pairs += self._along(theta, 0.0 * theta, nowhere, scale * witness, tuple(scale * each for each in reached))
            pairs += self._along(theta, theta, start, scale * witness, tuple(scale * each for each in reached))
            pairs += self._along(theta, theta, start, witness - theta, away)
        return _undominated(pairs)

    @property
    def _every(self):
        """Which of the scales are looked at: fewer of more logits, which loosens the bound a little."""
        return next((step for step in (1, 2, 4, 8) if self.targets.size * len(_SCALES) / step <= _ENTRIES), 16)

    def _along(self, theta, base, at_base, direction, change):
        """Yield pairs on a ray; `at_base` and `change` are logits and bounds of their errors."""
        for s in _SCALES[:: self._every]:
            point = base + s * direction
            logits, errors = (start + s * step for start, step in zip(at_base, change, strict=True))
            value = self.largest_loss(logits, errors) + self.penalty_of(point)
            far = float(linalg.norm(point - theta))
            if np.isfinite(value) and np.isfinite(far * far):
                yield value, far * far


def _undominated(pairs):
    kept, least = [], np.inf
    for value, far in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        if value < least:
            kept.append((value, far))
            least = value
    return tuple(kept)
