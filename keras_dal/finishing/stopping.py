"""How a path ends, and the rules that end a minimization, or a path before its end.

A rule has one method, `ending`, which returns an `Ending` or None for what it sees: the `Path`, if it is a rule of one,
or the `Progress` of a minimization, at the start and after every step. It changes nothing of what it sees. A path also
asks between the products of one step: a rule must count points, and not how often it was asked.
"""

import enum
from typing import NamedTuple

import numpy as np


class Ending(enum.StrEnum):
    """What ended a path; each value reads as the end of "it was ended by".

    Attributes:
        SEPARATED: "separation", every sample is on its right side, but those of `Result.left`.
        TOLERANCE: "the tolerance", a loss was minimized, until it was at most `tol` above `Result.floor`.
        CERTIFIED: "the certified gap", a loss was minimized, until it was proved to be as near its minimum as wanted.
        GAP: "the wanted gap, in float32", the same where no proof is known.
        STALLED: "a step that gained nothing", a loss was minimized, until a step gained nothing.
        MAX_STEPS: "the number of steps", a loss was minimized, until the steps were used up.
        EXHAUSTED: "the end of the path", everything was tried.
        TIME: "the time limit", `time_limit` was over.
        PATIENCE: "patience", `patience` points had no better value on the validation data.
        INTERRUPT: "an interrupt", Ctrl-C.
        NOT_FINITE: "numbers that are not finite", a loss that is NaN or infinite.
        CHOSEN: "your choice", `Result.choose` took another point than the path came to.
    """

    SEPARATED = "separation"
    TOLERANCE = "the tolerance"
    CERTIFIED = "the certified gap"
    GAP = "the wanted gap, in float32"
    STALLED = "a step that gained nothing"
    MAX_STEPS = "the number of steps"
    EXHAUSTED = "the end of the path"
    TIME = "the time limit"
    PATIENCE = "patience"
    INTERRUPT = "an interrupt"
    NOT_FINITE = "numbers that are not finite"
    CHOSEN = "your choice"

    @property
    def is_of_a_minimum(self):
        """Whether the last point is what a minimization came to."""
        return self in (Ending.TOLERANCE, Ending.CERTIFIED, Ending.GAP, Ending.STALLED, Ending.MAX_STEPS)

    @property
    def is_what_was_wanted(self):
        """Whether the last point is as near the minimum as wanted."""
        return self in (Ending.TOLERANCE, Ending.CERTIFIED, Ending.GAP)

    @property
    def is_enough(self):
        """Whether no more is wanted than the last point, which is why no smaller weight of the change is tried."""
        return self == Ending.TOLERANCE

    @property
    def is_an_arrival(self):
        """Whether the last point is what a path was to reach, as near as it could."""
        return self.is_of_a_minimum or self == Ending.SEPARATED


class Stopped(Exception):
    """Ends a path before its end.

    Args:
        ending: an `Ending`.
    """

    def __init__(self, ending):
        super().__init__(str(ending))
        self.ending = ending


def ending_by(rules, seen):
    """Return the `Ending` of the first rule that has one for what it sees, None where none has."""
    return next((ending for rule in rules if (ending := rule.ending(seen)) is not None), None)


class TimeLimit:
    """Ends a path after so many seconds."""

    def __init__(self, seconds):
        self._seconds = seconds

    def ending(self, path):
        return Ending.TIME if path.elapsed() > self._seconds else None


class Patience:
    """Ends a path after so many points without a better validation value, counted anew in every stage.

    A stage that takes few steps can be left out: see `Path.begin`.
    """

    def __init__(self, points):
        self._points = points

    def ending(self, path):
        values = path.validation_of_stage()
        without = len(values) - 1 - int(np.argmax(values or [0]))
        return Ending.PATIENCE if without >= self._points else None


class Progress(NamedTuple):
    """What the rules of a minimization see of the point that it is at.

    Attributes:
        loss: mean training loss.
        objective: what is minimized, the loss and all that is added to it.
        gap: upper bound of how far that is above its minimum, as the solver sees it.
    """

    loss: float
    objective: float
    gap: float


class Tolerance:
    """Ends a minimization at a loss that is so little above its floor."""

    def __init__(self, tol, floor):
        self._tol, self._floor = tol, floor

    def ending(self, at):
        return Ending.TOLERANCE if at.loss - self._floor <= self._tol else None


class Gap:
    """Ends a minimization where what is minimized is as near its minimum as wanted.

    Args:
        gap: the wanted one, as the solver sees it.
    """

    def __init__(self, gap):
        self._gap = gap

    def ending(self, at):
        return Ending.GAP if at.gap <= self._gap else None  # nor where it is not a number


class Stall:
    """Ends a minimization where a step lowers what is minimized by less than so much."""

    def __init__(self, gain):
        self._gain, self._before = gain, np.inf

    def ending(self, at):
        gained, self._before = self._before - at.objective, at.objective
        return Ending.STALLED if gained < self._gain else None


class MaxSteps:
    """Ends a minimization after so many steps from where it starts."""

    def __init__(self, steps):
        self._left = steps + 1  # it sees the start, too

    def ending(self, at):
        self._left -= 1
        return Ending.MAX_STEPS if self._left <= 0 else None
