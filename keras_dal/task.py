"""The convex problem of one head on cached features, and the two ways to solve it."""

import numpy as np

from keras_dal.criteria import Anchored, Separation, WholeLoss
from keras_dal.path import Point
from keras_dal.products import CachedJacobian, StackedJacobian
from keras_dal.solver import INEXACT, Problem, Step
from keras_dal.whitening import Whitening

RIDGES = 10.0 ** -np.arange(1, 9)  # weights of the change, from gentle to nearly free
_STEPS = 25  # Newton steps for one weight
_SOLVED = 0.3  # certified gap, relative to the objective, at which a smaller weight is tried
_PRECISE = 1e-3  # residual of Newton systems at the least weight, where a few samples are left
_STALLED = 0.15  # decrease of the objective in one step, relative to it, at which the same is done
_STUCK = 0.5  # share of the violation that stays when the weight falls tenfold: what is left will not go
_ANCHORS = 10_000  # of the training samples, where no anchors are given
_DELTA = 0.1  # wanted margin, relative to the root mean square of the logits' gaps


class Task:
    """A head, the samples it is to fit and the anchors it is to leave alone.

    Args:
        structure: the `Structure` of the model.
        loss: a `losses.Loss`.
        train: `CachedFeatures` of the samples.
        anchors: features of the anchors, `(a, m)`, or None for training samples in their place.
        validation: `CachedFeatures`, or None.
        path: the `Path` that sees every step.
        max_bytes: as in `CachedJacobian`.
    """

    def __init__(self, structure, loss, train, anchors, validation, path, max_bytes):
        self._arguments = (loss, train, anchors, validation, path, max_bytes)
        self.structure, self.loss, self.train, self.validation, self.path = structure, loss, train, validation, path
        self.head, self.theta = structure.head(), structure.theta()
        self.targets = loss.targets(train.labels, structure.num_outputs)
        self.jacobian = CachedJacobian(self.head, train.features, max_bytes)
        self.start = self.jacobian.logits(self.theta)
        if anchors is None:
            self.anchors = _some(len(train))
            still = self.jacobian.restricted(self.anchors) if len(self.anchors) < len(train) else self.jacobian
        else:
            self.anchors = len(train) + np.arange(len(anchors))
            still = CachedJacobian(self.head, anchors, max_bytes)
            self.jacobian = StackedJacobian([self.jacobian, still])
            self.start = np.concatenate([self.start, still.logits(self.theta)])
        self.whitening = Whitening(still)
        if validation is not None:
            self.seen = CachedJacobian(self.head, validation.features, max_bytes)
            self.seen_targets = loss.targets(validation.labels, structure.num_outputs)

    def with_head(self, structure):
        """Return the same task for another head on the same features."""
        return Task(structure, *self._arguments)

    def separate(self):
        """Walk to the first point where every sample is on its right side; return whether there is one."""
        objective = self._separation()
        phi, left = None, np.inf
        for ridge in RIDGES:
            step, point = self._follow(objective, ridge, phi)
            if point.separated:
                return True
            phi, before = step.phi, left
            left = float(self.train.weights @ objective.values(step.logits[: len(self.train)])) / len(self.train)
            if left > _STUCK * before and not self.structure.gated_layers:
                break
        return False

    def _separation(self):
        exclusive = self.loss.activation == "softmax"
        gaps = Separation(self.targets, 1.0, exclusive).gaps(self.start[: len(self.train)])
        delta = _DELTA * float(np.sqrt(np.mean(np.square(gaps, dtype=np.float64)))) or 1.0
        return Separation(self.targets, delta, exclusive)

    def _follow(self, objective, ridge, phi):
        """Return the step and the point at which the next weight is tried.

        The first weight is solved for; the others are followed by one step each, because what they change is little;
        at the least weight, where a few samples may be left, what can be had is had.
        """
        first, last = ridge == RIDGES[0], ridge == RIDGES[-1]
        problem = self._problem(objective, ridge, _PRECISE if last else INEXACT)
        value, enough = np.inf, _PRECISE if last else _STALLED
        step = point = None
        for step, point in self._walk(problem, phi):
            if point.separated:
                break
            if step.phi is phi:
                continue  # where the larger weight ended
            stalled = value - step.objective <= enough * step.objective
            if not (first or last) or stalled or step.gap <= _SOLVED * step.objective:
                break
            value = step.objective
        return step, point

    def minimize(self, ridges, tol):
        """Minimize the loss itself, for falling weights of the change, until it is at most tol."""
        phi = None
        for ridge in ridges:
            problem, before = self._problem(WholeLoss(self.loss, self.targets), ridge), np.inf
            for step, point in self._walk(problem, phi):
                if point.loss <= tol:
                    return
                if step.gap <= 1e-2 * tol or before - step.objective < 1e-2 * tol:
                    break
                before = step.objective
            phi = step.phi

    def _problem(self, objective, ridge, inexact=INEXACT):
        """Return `mean_i objective_i + ridge (mean squared change on the anchors + ||phi||^2)`.

        The second term is nearly the first where the anchors reach, holds still what they do not reach, and makes the
        problem strongly convex.
        """
        hold = np.zeros(len(self.start))
        hold[self.anchors] = ridge / len(self.anchors)
        anchored = Anchored(objective, self.train.weights / len(self.train), self.start, hold)
        return Problem(self.jacobian, self.whitening, anchored, ridge, inexact)

    def unchanged(self):
        """Return the point at which every path begins."""
        zero = np.zeros(self.jacobian.num_parameters)
        return self._point(Step(zero, self.start, np.nan, np.inf, np.nan), RIDGES[0])

    def _walk(self, problem, phi):
        """Yield each step of a problem with its point on the path."""
        for step, _ in zip(problem.steps(phi), range(_STEPS), strict=False):
            point = self._point(step, problem.ridge)
            if phi is None or step.phi is not phi:
                self.path.add(point)
            yield step, point

    def _point(self, step, ridge):
        logits = step.logits[: len(self.train)].astype(np.float64)
        margins = self.loss.margins(logits, self.targets)
        moved = step.logits[self.anchors] - self.start[self.anchors]
        theta = self.theta + self.whitening.theta(step.phi)
        return Point(
            seconds=self.path.elapsed(),
            ridge=ridge,
            loss=float(np.mean(self.train.weights * self.loss.values(logits, self.targets))),
            accuracy=None if margins is None else float(np.mean(margins > 0)),
            margin=None if margins is None else float(np.min(margins)),
            moved=float(np.sqrt(np.mean(np.sum(moved**2, axis=1)))),
            gap=step.gap,
            validation=None if self.validation is None else self._validated(theta),
            theta=theta,
        )

    def _validated(self, theta):
        logits = self.seen.logits(theta).astype(np.float64)
        margins = self.loss.margins(logits, self.seen_targets)
        return float(np.mean(self.loss.values(logits, self.seen_targets) if margins is None else margins > 0))


def _some(size):
    return np.sort(np.random.default_rng(0).permutation(size)[:_ANCHORS])
