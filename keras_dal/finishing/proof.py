"""What is proved of the point at which a minimization ends, for every way to get there."""

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_dal.finishing.stopping import Ending
from keras_dal.solvers.gap import gap_and_decrease, gradient_steps


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


def prove(task, ridge, whitening, gap):
    """Put the last point of a path on parameters as the model will have them, and end the path if it is near enough.

    The gap is computed in float64; it is that of the solver, and proves nothing, where the head is not plain.

    Args:
        task: a `Task` or `BlockwiseTask`.
        ridge: weight of the change.
        whitening: the `Whitening` in whose coordinates the change is measured.
        gap: the wanted one, positive.

    Returns:
        A `Proof`, or None where the point is not within it.
    """
    point, data = task.path.points[-1], task.data
    head, loss, train, theta = data.head, data.loss, data.train, data.structure.rounded(point.theta)
    if not np.isfinite(theta).all():  # in the dtype of the model
        return None
    problem, proved, decrease = (task.anchors, ridge, whitening), point.gap, 0.0
    if head.is_plain:
        samples = train.features, loss, data.targets, train.weights
        proved, decrease = gap_and_decrease(head, *samples, theta, data.theta, *problem, task.penalty)
    task.path.points[-1] = dataclasses.replace(point, theta=theta, gap=proved)
    if not proved <= gap:  # nor where it is not a number
        return None
    task.path.end(Ending.CERTIFIED if head.is_plain else Ending.GAP)
    curvature, steps = loss.curvature(head.num_outputs), None
    if head.is_plain and curvature is not None and task.penalty is None:  # beside which the bound says nothing useful
        samples = train.features, head.use_bias, curvature, train.weights
        steps = gradient_steps(*samples, *problem, decrease + proved, gap)
    return Proof(gap, head.is_plain, steps, task.num_steps)
