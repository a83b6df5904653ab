"""What is solved for a head on cached features, whatever solves it, and what comes of it."""

from typing import Any

import numpy as np

from keras_dal.features.samples import some_rows
from keras_dal.finishing.history import Point
from keras_dal.finishing.stopping import Progress, ending_by

CLOSE = 1e-2  # of a tolerance, as a gap at which a minimum counts as reached
ANCHORS = 10_000  # of the training samples, where no anchors are given


class Task:
    """A head, the samples it is to fit, and the path that its parameters take.

    Args:
        data: the `HeadData`, which outlasts the task.
        path: the `Path` that sees every step.
        anchors: features of samples to be left alone, `(a, m)`, or None for training samples in their place.
        seed: of the latter, where some are taken.

    Attributes:
        method: what solves it.
        samples, still: J_S of the training samples, and of those on which the change of the logits is measured.
        anchors: rows of the latter, of the training samples or behind them.
        size: root mean square of the logits of a sample before any change.
        proof: the `Proof` of the last point of the path, None where there is none.
        penalty: L2 factors `(P,)` of what is minimized beside the loss, None for none.
        num_steps: how many the minimization took that ended last, for all its weights of the change.
        spared: which samples a separation leaves on their wrong side, `(n,)`.
        is_copy: whether the head is that of a copy of the model that was given.
    """

    method: str
    size: Any

    def __init__(self, data, path, anchors=None, seed=0):
        self.data, self.path, self._given_anchors, self._seed = data, path, anchors, seed
        self.samples: Any = None
        self.samples = self.still = self._jacobian(data.train.features)
        if anchors is not None:
            self.anchors = len(data.train) + np.arange(len(anchors))
            self.still = self._jacobian(anchors)
        else:
            self.anchors = some_rows(len(data.train), ANCHORS, seed)
            if len(self.anchors) < len(data.train):
                self.still = self.samples.restricted(self.anchors)
        self._of_validation = None if data.validation is None else self._jacobian(data.validation.features)
        self.proof: Any = None
        self.penalty: Any = None
        self.num_steps, self.is_copy = 0, False
        self.spared = np.zeros(len(data.train), bool)

    def _jacobian(self, features) -> Any:
        """Return J_S of some features, for the samples first."""
        raise NotImplementedError

    def _point_of(self, theta, ridge, gap, moved, **seen):
        """Return the point at parameters.

        Args:
            theta, ridge, gap: of the `Point`, as are all other fields that are `seen` there.
            moved: change of the logits of the anchors, `(a, C)`.
        """
        moved = float(np.sqrt(np.mean(np.sum(np.square(moved, dtype=np.float64), axis=1))))
        return Point(seconds=self.path.elapsed(), ridge=ridge, moved=moved, gap=gap, theta=theta, **seen)

    def _validated(self, theta):
        """Return the value on the validation data, None without them."""
        if self._of_validation is None:
            return None
        total, loss = 0.0, self.data.loss
        for rows, block in self._of_validation.blocks():
            logits, targets = self._of_validation.of_block(block, theta), self.data.validation_targets[rows]
            margins = loss.margins(logits, targets)
            total += np.sum(loss.values(logits, targets) if margins is None else margins > 0)
        return float(total / len(self._of_validation))

    def unchanged(self):
        """Return the point at which every path begins."""
        raise NotImplementedError

    def is_done(self, enough):
        """Return whether the loss is enough, as for `minimize`, before any change; then the path is this point."""
        point = self.unchanged()
        ending = ending_by(enough, Progress(point.loss, point.loss, point.gap))
        if ending is not None:
            self.path.add(point)
            self.path.end(ending)
        return ending is not None

    def separate(self):
        """Walk to the first point where every sample that is not left is right; return whether there is one."""
        raise NotImplementedError

    def at(self, theta, ridge, gap):
        """Return the point at parameters that no step of the solver came to."""
        raise NotImplementedError

    def minimize(self, ridges, tol, enough=()):
        """Minimize the loss itself, for falling weights of the change, until little is left.

        Args:
            ridges: the weights, in the unit of the loss.
            tol: a loss, of which the gap at which a minimum counts as reached is `CLOSE`.
            enough: rules of `stopping` that end it for all weights, as `Tolerance` does.
        """
        raise NotImplementedError

    def minimize_to(self, ridge, gap):
        """Minimize the loss plus `ridge` times the change plus the L2 penalty, to within a proved `gap`."""
        raise NotImplementedError
