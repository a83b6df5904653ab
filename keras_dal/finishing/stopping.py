"""How a path ends, and the rules that end one before its end."""

import enum

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


class TimeLimit:
    """Ends a path after so many seconds."""

    def __init__(self, seconds):
        self._seconds = seconds

    def check(self, path):
        if path.elapsed() > self._seconds:
            raise Stopped(Ending.TIME)


class Patience:
    """Ends a path after so many points without a better validation value, counted anew in every stage.

    A stage that takes few steps can be left out: see `Path.begin`.
    """

    def __init__(self, points):
        self._points = points

    def check(self, path):
        values = path.validation_of_stage()
        if len(values) - 1 - int(np.argmax(values or [0])) >= self._points:
            raise Stopped(Ending.PATIENCE)
