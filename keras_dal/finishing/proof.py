"""What is proved of the point at which a minimization ends, for every way to get there."""

import dataclasses

from keras_dal.finishing.stopping import Ending
from keras_dal.solvers.gap import gap_and_decrease, gradient_steps


def prove(task, ridge, whitening, gap):
    """Put the last point of a path on parameters as the model will have them, and end the path if it is near enough.

    The gap is computed in float64; it is that of the solver, and proves nothing, where the head is not plain.

    Args:
        task: a `Task` or `BlockwiseTask`; its `proved`, `wanted` and `gradient_steps` are set where the path ends.
        ridge: weight of the change.
        whitening: the `Whitening` in whose coordinates the change is measured.
        gap: the wanted one, positive.

    Returns:
        Whether the point is within it.
    """
    point, head, loss, train = task.path.points[-1], task.head, task.loss, task.train
    theta = task.structure.rounded(point.theta)
    problem, proved, decrease = (task.anchors, ridge, whitening), point.gap, 0.0
    if head.is_plain:
        data = train.features, loss, task.targets, train.weights
        proved, decrease = gap_and_decrease(head, *data, theta, task.theta, *problem)
    task.path.points[-1] = dataclasses.replace(point, theta=theta, gap=proved)
    if not proved <= gap:  # nor where it is not a number
        return False
    task.proved = head.is_plain
    task.path.end(Ending.CERTIFIED if task.proved else Ending.GAP)
    task.wanted, curvature = gap, loss.curvature(head.num_outputs)
    if head.is_plain and curvature is not None:
        data = train.features, head.use_bias, curvature, train.weights
        task.gradient_steps = gradient_steps(*data, *problem, decrease + proved, gap)
    return True
