"""What least squares on the labels decide, and a search for a separating head or a dual point where they do not."""

import dataclasses
import functools
from typing import Any

import numpy as np

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.analysis.misses import any_missed
from keras_dal.analysis.verdict import (
    ALIGNED,
    Evidence,
    Finding,
    Verdict,
    by_bounds,
    decisive_share,
    too_large,
)
from keras_dal.losses import common_scale
from keras_dal.output.tables import at_least
from keras_dal.solvers import duality
from keras_dal.solvers.jacobian import jacobian
from keras_dal.solvers.label_squares import centred_total
from keras_dal.solvers.rounded import smallest_margin

_ARRAYS = 16  # of the size of features, or logits, in float64 that a solver of separability may need


def announced(num_samples, num_parameters, seconds):
    """Return in a line what is about to be decided, and how long a solver may take, if there is one."""
    if seconds is None:
        return f"measuring what {num_parameters:,} parameters can do for {num_samples:,} samples"
    limit = f"each solver has {seconds:g} seconds" if np.isfinite(seconds) else "solvers have no time limit"
    return f"deciding what {num_parameters:,} parameters can do for {num_samples:,} samples; {limit}"


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """What least squares on the labels found.

    Attributes:
        theta: their solution `(P,)`, the first candidate for a witness.
        share: its residual share, as `decisive_share` returns it.
        least: the share that all directions leave that float64 can tell from rounding.
        eps: spacing at one of the numbers that the features were computed in.
        complete: whether it is known that there are no other directions.
        jac: the `Jacobian`, where there is one already.
    """

    theta: np.ndarray
    share: float
    least: float
    eps: float
    complete: bool = False
    jac: Any = None


class Search(Evidence):
    """Least squares on the labels of a head, and what a solver finds where they do not decide.

    Args:
        head: a `heads.Head`.
        loss: a `losses.Loss`.
        rows: an iterable of features, targets and weights, batch by batch.
        fit: the `LeastSquares`.
        seconds: of a solver, which is run where least squares are no witness; None for none.
        used: share of all samples, for means over them, that `rows` are.
        max_bytes: memory for a solver.
    """

    def __init__(self, head, loss, rows, fit, seconds, used=1.0, max_bytes=MAX_BYTES):
        self._head, self._loss, self._rows, self._fit = head, loss, rows, fit
        self._seconds, self._used, self._max_bytes = seconds, used, max_bytes
        self.scale = common_scale(np.concatenate([loss.scales(targets) for _, targets, _ in rows if len(targets)]))
        self.share = fit.share

    @functools.cached_property
    def _margin(self):
        """The smallest margin at the solution of least squares."""
        return min(
            self._smallest_margin(features.astype(np.float64), targets)
            for features, targets, _ in self._rows
            if len(features)
        )

    def _smallest_margin(self, features, targets):
        logits, errors = self._head.logits(features, self._fit.theta), self._head.rounding(features, self._fit.theta)
        return smallest_margin(self._loss, logits, errors, targets)

    def reaches_all(self):
        if np.isinf(self.scale):
            return self._margin > 0
        fit = self._fit
        return not any_missed(self._head, self._loss, self._rows, fit.theta, fit.eps, self._max_bytes)

    def exclusion(self):
        if self.share <= ALIGNED:
            return None
        jac, least, complete = self._fit.jac, self._fit.least, self._fit.complete
        if jac is None and self._seconds is not None and not complete and self._num_bytes <= self._max_bytes:
            jac, least = self._factorized()
        complete = complete or (jac is not None and jac.is_complete())
        return None if least <= ALIGNED or not complete else self._of_least_squares("least squares")

    def of_undecided(self):
        jac = self._fit.jac
        if jac is not None and not jac.factorized:
            return self._of_least_squares(f"{jac.method}, which bounds the alignment from below")
        return self._of_least_squares("least squares, where what counts as rounding may reach the labels")

    def _of_least_squares(self, reason):
        return f"{reason}, with a residual share of {self.share:.1e}"

    def _factorized(self):
        """Return the `Jacobian` on all rows and a lower bound of the share it leaves."""
        head, loss, (features, targets, weights) = self._head, self._loss, joined_rows(self._rows)
        jac, matrix = jacobian(head, features, weights, loss.shift_invariant), loss.label_matrix(targets)
        squares = centred_total(loss.seen(matrix), weights, head.use_bias)
        return jac, decisive_share(loss, jac.least_left(matrix), squares)

    def by_infimum(self):
        if self.scale is not None and self._margin > 0:
            reason = f"least squares, with a smallest margin of {at_least(self._margin, 2, 'e')}"
            return Finding(Verdict.SEPARABLE, self._of_least_squares(reason))
        if self._seconds is not None:
            return self._solved()
        reason = self._of_least_squares("least squares, which do not separate the samples")
        return super().by_infimum() if self.scale is None else Finding(Verdict.UNDECIDED, reason)

    def _solved(self):
        if (size := self._num_bytes) > (max_bytes := self._max_bytes):
            reason = f"least squares alone, because a solver may need {size:,} bytes, above {max_bytes=:,}"
            return Finding(Verdict.UNDECIDED, reason)
        loss, jac, (features, targets, weights) = self._loss, self._fit.jac, joined_rows(self._rows)
        if jac is None:
            jac = jacobian(self._head, features, weights, loss.shift_invariant, eps=self._fit.eps)
        if not jac.factorized:
            return Finding(Verdict.UNDECIDED, too_large(jac))
        found = duality.enclose_infimum(jac, loss, targets, weights, seconds=self._seconds)
        return by_bounds(found, self.scale, jac, loss.floor(targets, weights), np.mean(weights), self._used)

    @property
    def _num_bytes(self):
        """About how much memory a solver needs: what is large is the features of all samples, or their logits."""
        sizes = [(features.size, targets.size) for features, targets, _ in self._rows]
        return _ARRAYS * 8 * int(np.max(np.sum(sizes, axis=0)))


def joined_rows(rows):
    """Return features, targets and weights of all batches, in float64."""
    return (np.concatenate(parts).astype(np.float64) for parts in zip(*rows, strict=True))
