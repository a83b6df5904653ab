"""The way from a trained head to its optimum: what holds at every step of it, and when to stop."""

import dataclasses
import time

import keras
import numpy as np

SEPARATED, REACHED, CERTIFIED = "separation", "the tolerance", "the certified gap"
STALLED, EXHAUSTED = "a step that gained nothing", "the end of the path"


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One point of a path, at the scale the logits had before.

    Attributes:
        seconds: since the solver started.
        ridge: weight of the change; 0 where samples are moved by interpolation.
        loss: mean training loss.
        accuracy: share of the training samples on their right side, None for the squared error.
        margin: smallest margin over the training samples, None for the squared error.
        moved: root mean square change of an anchor's logits.
        gap: upper bound of how far loss or violation, plus `ridge` times the change, is above its minimum; of a
            gradient in float32.
        validation: accuracy on the validation data (loss, for the squared error), None without them.
        theta: theta_S, float64 `(P,)`.
    """

    seconds: float
    ridge: float
    loss: float
    accuracy: float | None
    margin: float | None
    moved: float
    gap: float
    validation: float | None
    theta: np.ndarray = dataclasses.field(repr=False)

    @property
    def separated(self):
        """Whether every training sample is on its right side."""
        return self.margin is not None and self.margin > 0


class Stopped(Exception):
    """Ends a path before its end; the argument says why."""


class Path:
    """Points in the order of the solver's steps, shown as they come.

    Args:
        patience: points without a better validation value after which the path ends, or None.
        time_limit: seconds after which it ends, or None.
        verbose: whether a line is shown.
    """

    def __init__(self, patience=None, time_limit=None, verbose=True):
        self.patience, self.time_limit = patience, time_limit
        self.points, self.stopped_by, self._cut_short = [], EXHAUSTED, False
        self._started, self._bar = time.perf_counter(), keras.utils.Progbar(None) if verbose else None

    def cut_short(self, reason):
        """Note what ended the path before its end."""
        self.stopped_by, self._cut_short = reason, True

    def restart(self):
        """Forget the points of another head."""
        self.points = []

    def elapsed(self):
        return time.perf_counter() - self._started

    def add(self, point):
        """Append a point and show it.

        Raises:
            Stopped: patience or time are used up.
        """
        self.points.append(point)
        if self._bar:
            names = ("loss", "margin", "accuracy", "moved", "gap", "validation")
            values = [(name, getattr(point, name)) for name in names if getattr(point, name) is not None]
            self._bar.stateful_metrics = {name for name, _ in values}
            self._bar.update(len(self.points), values=values)
        if self.time_limit is not None and point.seconds > self.time_limit:
            raise Stopped("the time limit")
        if self.patience is not None and len(self.points) - 1 - self._best_validated() >= self.patience:
            raise Stopped("patience")

    def best(self):
        """Return the last point, or the best on validation data where the path was stopped before its end."""
        if not self._cut_short or self.points[0].validation is None:
            return self.points[-1]
        return self.points[self._best_validated()]

    def _best_validated(self):
        values = [point.validation for point in self.points]
        sign = 1 if self.points[0].accuracy is not None else -1
        return int(np.argmax([sign * value for value in values]))
