"""What is proved of the point at which a minimization ends, for every way to get there."""

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_dal.finishing.stopping import Ending
from keras_dal.solvers.gap import Bound, ProximalLoss

_GAIN = 0.5  # a step that leaves more of the gap than this is the last one: what is left is rounding
_ROUNDING = 1e-12  # of a decrease in float64


class Proof(NamedTuple):
    """What is known of the point that a minimization ended at.

    Attributes:
        wanted: the gap that was asked for, which the point is within.
        holds: whether that is proved, and not only what the solver saw in float32.
        gradient_steps: accelerated ones to that gap, at most; None where nothing is known.
        num_steps: those that were taken.
    """

    wanted: float
    holds: bool
    gradient_steps: int | None
    num_steps: int

    @property
    def ending(self):
        """How a path ends at this point."""
        return Ending.CERTIFIED if self.holds else Ending.GAP


def prove(task, ridge, whitening, gap, step_at=None):
    """Put the last point of a path on parameters as the model will have them, and say how near the minimum it is.

    The gap is computed in float64; it is that of the solver, and proves nothing, where the head is not plain. Whatever
    stops the steps in float64 goes on to the caller, and what they came to is the last point.

    Args:
        task: a `Task`.
        ridge: weight of the change.
        whitening: the `Whitening` in whose coordinates the change is measured.
        gap: the wanted one, positive.
        step_at: function of theta and of the gradient in phi there, float64, that returns a change of theta: it takes
            a plain head on from where float32 sees no gap. None for a point that stays where it is.

    Returns:
        A `Proof`, or None where the point is not within it.
    """
    point, data = task.path.points[-1], task.data
    theta = data.structure.rounded(point.theta)
    if not np.isfinite(theta).all():  # in the dtype of the model
        return None
    bound, refined, objective = Bound(point.gap, 0.0, np.zeros(0)), theta, None
    try:
        if data.head.is_plain:
            samples = data.train.features, data.targets, data.train.weights
            change = data.theta, task.anchors, ridge, whitening
            objective = ProximalLoss(data.head, data.loss, *samples, *change, task.penalty)
            for better in refinements(objective.bound, theta, gap, step_at, data.structure.rounded):
                bound, refined = better
    finally:
        if np.array_equal(refined, point.theta):
            task.path.replace_last(dataclasses.replace(point, ridge=ridge, gap=bound.gap), shown=False)
        else:
            task.path.replace_last(task.at(refined, ridge, bound.gap), shown=refined is not theta)
    if not bound.gap <= gap:  # nor where it is not a number
        return None
    steps = objective and objective.gradient_steps(bound.decrease + bound.gap, gap)
    return Proof(gap, objective is not None, steps, task.num_steps)


def refinements(bounded, theta, gap, step_at, rounded):
    """Yield theta with its `Bound`, then what Newton steps in float64 better in it, until its gap is the wanted one."""
    bound, gains = bounded(theta), step_at is not None
    yield bound, theta
    while gains and gap < bound.gap < np.inf:
        further = rounded(theta + step_at(theta, bound.gradient))
        if not np.isfinite(further).all():
            break
        closer = bounded(further)
        is_taken = closer.gap < bound.gap and not _rises(bound, closer, gap)
        gains = is_taken and closer.gap < _GAIN * bound.gap
        if is_taken:
            theta, bound = further, closer
            yield bound, theta


def _rises(bound, closer, gap):
    """Return whether a step raises what is minimized: far from the minimum its gradient may be smaller all the same."""
    rise = bound.decrease - closer.decrease
    return closer.gap > gap and rise > _ROUNDING * abs(bound.decrease)
