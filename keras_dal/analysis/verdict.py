"""Aligned, separable or not: each with its proof, and undecided where there is none.

A theta_S whose smallest margin is positive after all rounding is counted proves that labels are separable; for a cross-
entropy a dual point that an exact one is near proves that they are not. Where the infimum is attained, as for the
squared error and for smoothed labels, there are only aligned and not aligned; labels that are mixed otherwise are not
aligned where a dual point shows it, and undecided else.
"""

import abc
import dataclasses
import enum
from typing import Any

import numpy as np

from keras_dal.analysis.assumptions import NO_SCALE, NO_SCALE_OF_MIXED
from keras_dal.output.tables import apart, at_least

ALIGNED = 1e-8  # largest residual share that still counts as aligned; the share itself is always reported
ABOVE = 1e-7  # by which a dual point must exceed the least loss of any model to prove something, for weights of one
_NEITHER = "a solver that found neither a separating head nor a bound above zero"
_BY_ROUNDING = "a solver that found a separating head only along directions that count as rounding of the features"


class Verdict(enum.StrEnum):
    """What a verdict says; a string for whoever reads it."""

    ALIGNED = "aligned"
    SEPARABLE = "separable"
    NOT_SEPARABLE = "not separable"
    NOT_ALIGNED = "not aligned"
    UNDECIDED = "undecided"

    __repr__ = str.__repr__


@dataclasses.dataclass(frozen=True)
class Finding:
    """A `Verdict`, and how it was decided."""

    verdict: Verdict
    decided_by: str


_OF_MIXED_LABELS = Finding(Verdict.UNDECIDED, f"nothing: {NO_SCALE_OF_MIXED}")


class Evidence(abc.ABC):
    """What is known of a head and its labels; what takes long is looked for only where a verdict needs it.

    Attributes:
        scale: the `common_scale` of the labels: infinite if they are hard, None if there is none.
        share: what is left of them, as `decisive_share` returns it.
    """

    scale: Any
    share: float

    def finding(self):
        """Return the `Finding` that this proves."""
        if self.scale is not None and self.share <= ALIGNED and self.reaches_all():
            return Finding(Verdict.ALIGNED, self.of_aligned())
        if self.scale is None or np.isinf(self.scale):
            return self.by_infimum()
        if reason := self.exclusion():
            return Finding(Verdict.NOT_ALIGNED, reason)
        return self.unproved()

    def unproved(self):
        """Return that nothing is proved, and whether some labels may hide behind others."""
        hidden = f"a residual share of {self.share:.1e} of all labels together, which may hide that some are missed"
        return Finding(Verdict.UNDECIDED, hidden if self.share <= ALIGNED else self.of_undecided())

    @abc.abstractmethod
    def reaches_all(self):
        """Return whether, where little is left of all labels, none is missed that others outweigh."""

    def of_aligned(self):
        """Return what shows that labels are aligned."""
        return f"a residual share of {self.share:.1e}, at most {ALIGNED:.0e}"

    def by_infimum(self):
        """Return the `Finding` for hard or mixed labels that are not known to be aligned."""
        return _OF_MIXED_LABELS if self.scale is None else self.unproved()

    def exclusion(self) -> str | None:
        """Return what shows that no parameters attain the infimum, None where nothing does."""
        return None

    @abc.abstractmethod
    def of_undecided(self) -> str:
        """Return what was found where much is left and nothing is proved."""


def by_bounds(found, scale, jac, floor, weight, used=1.0):
    """Return the `Finding` for hard or mixed labels whose infimum is enclosed.

    Args:
        found: the `Enclosure`.
        scale: the `common_scale` of the labels.
        jac: the `Jacobian`.
        floor: least loss of any model.
        weight: mean weight of the samples.
        used: share of all samples that they are, for means over these.
    """
    if scale is None:
        if found.lower > floor + ABOVE * weight:
            least, most = apart(used * found.lower, used * floor, 6)
            return Finding(Verdict.NOT_ALIGNED, f"a dual point: no parameters have a loss below {least}, above {most}")
        return Finding(Verdict.UNDECIDED, f"{NO_SCALE}; the least loss of any model is {used * floor:.6g}")
    if found.margin is not None and found.margin > 0:
        least = at_least(found.margin, 3, "e")
        return Finding(Verdict.SEPARABLE, f"parameters with a smallest margin of at least {least}, rounding counted")
    if found.lower > floor:
        least = at_least(used * found.lower, 4, "e")
        return Finding(Verdict.NOT_SEPARABLE, f"a dual point: no parameters have a loss below {least}")
    return Finding(Verdict.UNDECIDED, _of_search(found) if jac.factorized else too_large(jac))


def _of_search(found):
    reason = _BY_ROUNDING if found.by_rounding else _NEITHER
    return reason if found.out_of_time is None else f"{reason} within {found.out_of_time:g} seconds"


def too_large(jac):
    """Return why only least squares decide where a `Jacobian` is not factorized."""
    return f"least squares alone, because the head is too large to factorize ({jac.method})"


def below_one(alignment, verdict):
    """Return an alignment as it is to be printed, by a lower bound: it is one only where labels are aligned."""
    return alignment if verdict == Verdict.ALIGNED else min(alignment, np.nextafter(1.0, 0.0))


def decisive_share(loss, residual, squares):
    """Return the residual share that decides: of classes together, of outputs in units of their own the largest.

    Args:
        loss: a `losses.Loss`.
        residual: squares of what is left of each output, `(C,)`.
        squares: the `LabelSquares`.
    """
    return float(squares.share_per_class(residual).max() if loss.quadratic else squares.share(residual.sum()))
