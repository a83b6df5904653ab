"""The way from a trained head to its optimum: what holds at every step of it."""

import dataclasses
import time

import numpy as np

from keras_dal.finishing.stopping import Ending, Stopped, ending_by
from keras_dal.output.tables import NOT_PLAIN


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One point of a path, at the scale the logits had before.

    Attributes:
        seconds: since the solver started.
        ridge: weight of the change; 0 where samples are moved by interpolation.
        loss: mean training loss.
        accuracy: share of the training samples on their right side, None for a loss of numbers.
        margin: smallest margin over the training samples, None for a loss of numbers.
        moved: root mean square change of an anchor's logits; for the squared error, at the end of `fit` and in
            `finish`, since the mean error was taken out.
        gap: upper bound of how far loss or violation, plus `ridge` times the change, is above its minimum; from a
            gradient in float32, or in float64 where the solve of a plain head ended; infinite where none is known, as
            between rounds of interpolation.
        validation: accuracy on the validation data (loss, for the squared error), None without them.
        theta: theta_S, float64 `(P,)`; of the head alone, where a branch beside it was added later. None where it was
            let go of: L-BFGS keeps that of the first, the last and the best point.
        violation: weighted mean of what margins fall short of the wanted one, squared and summed over the gaps, after a
            round of interpolation; None elsewhere.
    """

    seconds: float
    ridge: float
    loss: float
    accuracy: float | None
    margin: float | None
    moved: float
    gap: float
    validation: float | None
    theta: np.ndarray | None = dataclasses.field(repr=False, metadata=NOT_PLAIN)
    violation: float | None = None

    @property
    def separated(self) -> bool:
        """Whether every training sample is on its right side."""
        return self.margin is not None and self.margin > 0

    @property
    def fit(self) -> tuple[float, float]:
        """What orders points by their training samples, the better the larger."""
        return (self.accuracy or 0.0, -self.loss)


class Path:
    """Points in the order of the solver's steps; it alone writes them, and what ended it.

    Args:
        rules: what may end it before its end, as `stopping.TimeLimit`.
        on_point: what is called with the number of each point, from 0, and the point, and then once more, with
            refined=True, where another came in its place; None for nothing.

    Attributes:
        points: a tuple of the points so far.
        stopped_by: the `Ending`.
    """

    def __init__(self, rules=(), on_point=None):
        self._rules, self._on_point = tuple(rules), on_point
        self._points, self.stopped_by = [], Ending.EXHAUSTED
        self._arrived = self._cut_short = False
        self._first, self._patient = 0, True
        self._started = time.perf_counter()

    @property
    def points(self):
        return tuple(self._points)

    def end(self, ending):
        """Note what the path came to."""
        self.stopped_by, self._arrived = ending, ending.is_an_arrival

    def settle(self, proof):
        """Note what a `Proof` says of the minimum that the path came to, or None, where there is none."""
        if proof is not None:
            self.end(proof.ending)
        elif self.stopped_by == Ending.GAP:
            self.end(Ending.STALLED)  # float64 sees a larger gap than float32 did, or the model cannot hold this

    def cut_short(self, ending):
        """Note what ended the path before its end."""
        self.stopped_by, self._cut_short = ending, True

    def begin(self, patient=True):
        """Begin another stage, for which patience counts anew, or not at all."""
        self._first, self._patient = len(self._points), patient

    def elapsed(self):
        return time.perf_counter() - self._started

    def check(self):
        """Raise `Stopped` if a rule says so."""
        ending = ending_by(self._rules, self)
        if ending is not None:
            raise Stopped(ending)

    def add(self, point):
        """Append a point.

        Raises:
            Stopped: a rule says so, or numbers are not finite; then the point is not appended.
        """
        if not np.isfinite(point.loss):
            raise Stopped(Ending.NOT_FINITE)
        self._points.append(point)
        self._show()
        self.check()

    def ensure_one(self, first):
        """Append the point that a function returns, which no rule sees, where there is none."""
        if not self._points:
            self._points.append(first())

    def replace_last(self, point, shown=True):
        """Put a point in place of the last one, which it is but for its rounding, and show it if it is to be."""
        self._points[-1] = point
        if shown:
            self._show(refined=True)

    def thin_out(self):
        """Let go of theta of all points but the first, the last and what may be the `best`."""
        having = [point for point in self._points if point.theta is not None]
        kept = [having[0], having[-1], max(having, key=lambda point: point.fit)]
        if having[0].validation is not None:
            kept.append(having[int(np.argmax(_validation_of(having)))])
        for index, point in enumerate(self._points):
            if point.theta is not None and not any(point is each for each in kept):
                self._points[index] = dataclasses.replace(point, theta=None)

    def _show(self, refined=False):
        if self._on_point is not None:
            self._on_point(len(self._points) - 1, self._points[-1], refined=refined)

    def validation_of_stage(self):
        """Return the validation values of this stage, the better the larger; none where patience does not count."""
        return _validation_of(self._points[self._first :]) if self._patient else []

    def best(self):
        """Return the last point if it is what the path was to reach, or else the best one.

        That is the best on validation data, where the path was cut short and there are any, and otherwise the one with
        the most training samples on their right side, or the least loss. A separation is what was to be reached even
        where it leaves some samples: a head that was tried before may have more of them right at a much larger loss.
        """
        if self._arrived:
            return self._points[-1]
        having = [point for point in self._points if point.theta is not None]
        if self._cut_short and having[0].validation is not None:
            return having[int(np.argmax(_validation_of(having)))]
        return having[-1] if having[-1].separated else max(having, key=lambda point: point.fit)


def _validation_of(points):
    """Return the validation values of points, the better the larger."""
    return [-point.validation if point.accuracy is None else point.validation for point in points]
