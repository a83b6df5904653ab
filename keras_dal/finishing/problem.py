"""The convex problem of one head on cached features, and the three ways to solve it."""

import functools
import warnings

import numpy as np

from keras_dal.finishing.contradictions import Moves
from keras_dal.finishing.history import Point
from keras_dal.finishing.proof import prove
from keras_dal.finishing.stopping import Ending
from keras_dal.heads.cached_jacobian import CachedJacobian, StackedJacobian
from keras_dal.solvers.min_norm_interpolation import Interpolation
from keras_dal.solvers.newton_cg import INEXACT, Problem
from keras_dal.solvers.objectives import Anchored, Separation, WholeLoss
from keras_dal.solvers.whitening import Whitening

RIDGES = (10.0 ** -np.arange(1, 9)).tolist()  # weights of the change, from gentle to nearly free
FEW_RIDGES = RIDGES[1::3]  # where the end is known to be the least loss, and the path is there to stop on
_STEPS = 25  # Newton steps for one weight
_SOLVED = 0.3  # certified gap, relative to the objective, at which a smaller weight is tried
_PRECISE = 1e-3  # residual of Newton systems at the least weight, where a few samples are left
_STALLED = 0.15  # decrease of the objective in one step, relative to it, at which the same is done
_STUCK = 0.5  # share of the violation that stays when the weight falls tenfold: what is left will not go
ANCHORS = 10_000  # of the training samples, where no anchors are given
_DELTA = 0.1  # wanted margin, relative to the root mean square of the logits' gaps
_INTERPOLATED = 0.02  # the same where samples are moved by interpolation
_HELD = 2_000  # anchors that are held while samples are moved, at most, and as many as are moved if none are given
_ROUNDS = 12  # of interpolation: two to four are usual
_GENTLE, _NEARLY = 1e-2, 1e-2  # weight of the change and tolerance with which the loss is minimized before


class Task:
    """A head, the samples it is to fit and the anchors it is to leave alone.

    Gates that still move are frozen, and those of a branch that computes nothing yet are first adapted to the features.

    Args:
        structure: the `Structure` of the model.
        loss: a `losses.Loss`.
        train: `CachedFeatures` of the samples.
        anchors: features of the anchors, `(a, m)`, or None for training samples in their place.
        validation: `CachedFeatures`, or None.
        path: the `Path` that sees every step.
        max_bytes: as in `CachedJacobian`.

    Attributes:
        floor: least training loss of any model, the mean entropy of soft labels, 0 for hard ones.
        proved: whether the last point of the path is proved to be near the minimum.
        wanted: the gap that was asked for and proved, None before.
        gradient_steps: accelerated ones to that, at most; None where nothing is known.
    """

    method = "Newton's method"

    def __init__(self, structure, loss, train, anchors, validation, path, max_bytes):
        self._arguments = (loss, train, anchors, validation, path, max_bytes)
        self.structure, self.loss, self.train, self.validation, self.path = structure, loss, train, validation, path
        self.targets = loss.targets(train.labels, structure.num_outputs)
        unseen = validation is None
        self.seen_targets = None if unseen else loss.targets(validation.labels, structure.num_outputs)
        self.floor = loss.floor(self.targets, train.weights)
        for layer in structure.gated_layers:
            if layer is structure.output_layer and layer.is_zero:
                layer.adapt(train.features)
            layer.freeze_gates()  # learned gates would move with the kernel that is solved for
        self.head, self.theta = structure.head(), structure.theta()
        self.max_bytes, self.proved = max_bytes, False
        self.wanted = self.gradient_steps = None
        self.left = np.zeros(len(train), bool)  # on their wrong side, as `interpolate` may find
        self.samples = self.jacobian = CachedJacobian(self.head, train.features, max_bytes)
        self.start = self.samples.logits(self.theta)
        if anchors is None:
            self.anchors = some_rows(len(train), ANCHORS)
            still = self.samples.restricted(self.anchors) if len(self.anchors) < len(train) else self.samples
        else:
            self.anchors = len(train) + np.arange(len(anchors))
            still = CachedJacobian(self.head, anchors, max_bytes)
            self.jacobian = StackedJacobian([self.samples, still])
            self.start = np.concatenate([self.start, still.logits(self.theta)])
        self._still = still
        self.seen = None if unseen else CachedJacobian(self.head, validation.features, max_bytes)

    @functools.cached_property
    def size(self):
        """Root mean square of the logits of a sample before any change."""
        return float(np.sqrt(np.mean(np.sum(np.square(self.start[: len(self.train)], dtype=np.float64), axis=1))))

    def with_head(self, structure):
        """Return the same task for another head on the same features."""
        return Task(structure, *self._arguments)

    @functools.cached_property
    def whitening(self):
        """The coordinates phi, made when they are needed first."""
        return Whitening(self._still, self.samples)

    @functools.cached_property
    def is_separable(self):
        """Whether samples have right sides on which the loss goes to 0: labels that are hard, of classes."""
        return self.loss.are_hard(self.targets)

    @property
    def can_interpolate(self):
        """Whether the head is a mixture beside another head."""
        return self.head.mixture not in (None, self.head)

    def interpolate(self):
        """Finish the head beside the mixture, then move what is wrong by the least change of the mixture.

        Returns:
            Whether every sample is on its right side, but for those that are left, which `self.left` tells.
        """
        if np.min(self._margins(self.start)) > 0:
            self.path.add(self.unchanged())
            return True
        finished = self._problem(WholeLoss(self.loss, self.targets), _GENTLE, part=1)
        step, point, _ = self._minimize(finished, _NEARLY, unit=self.mean_weight)
        solver = Interpolation(self.samples.part(0), self._still.part(0), self.max_bytes)
        reason = f"{_ROUNDS} rounds left some"
        logits = step.logits
        try:
            for moved, reached in self._rounds(solver, point.theta, logits):
                self.path.add(moved)
                point, logits = moved, reached
        except (np.linalg.LinAlgError, MemoryError) as error:
            reason = str(error).rstrip(".") or type(error).__name__
        if np.any((self._margins(logits) <= 0) & ~self.left):
            warnings.warn(
                "Interpolation did not separate the samples, and Newton's method goes on, which can take long: "
                f"time_limit ends it. Received: {reason}; {len(solver.chosen)} samples moved or held, training "
                f"accuracy {point.accuracy}",
                stacklevel=4,
            )
            return False
        return True

    def _rounds(self, solver, theta, logits):
        """Yield the point after each round of interpolation, and the logits of all rows there.

        Args:
            solver: an `Interpolation`.
            theta: where it begins, `(P,)`.
            logits: of all rows there.
        """
        begins, size = (theta, logits), len(self.train)
        start = logits[:size]
        criterion, gaps = self._separation(start, _INTERPOLATED)
        short = np.sum(self._margins(start) < criterion.delta)
        most = min(_HELD, short) if self.jacobian is self.samples else _HELD
        held = self._still.part(0).restricted(some_rows(len(self._still), most))
        moves = Moves(solver, held, criterion, self._margins, start, gaps)
        self.left = moves.left
        for _ in range(_ROUNDS):
            if moves.are_made(logits[:size]):
                return
            while (change := moves.change(logits[:size])) is None:
                theta, logits = begins
            theta = theta + np.pad(change, (0, len(theta) - len(change)))
            logits = self.jacobian.logits(theta)
            yield self._point(theta, logits, 0.0, np.inf, self._violation(criterion, logits)), logits

    def _margins(self, logits):
        return self.loss.margins(logits[: len(self.train)], self.targets)

    def _violation(self, criterion, logits):
        return float(self._even_weights @ criterion.values(logits[: len(self.train)])) / len(self.train)

    @property
    def mean_weight(self):
        """Mean of the sample weights, the unit of the loss."""
        return float(np.mean(self.train.weights))

    @property
    def _even_weights(self):
        """Sample weights of mean one: which samples are separated, and how, is no question of their unit."""
        return self.train.weights / self.mean_weight

    def separate(self):
        """Walk to the first point where every sample that is not left is right; return whether there is one."""
        self.path.end(Ending.SEPARATED)
        if (self.can_interpolate and self.interpolate()) or self._follow_weights():
            return True
        self.path.end(Ending.EXHAUSTED)
        return False

    def _follow_weights(self):
        objective, _ = self._separation(self.start, _DELTA)
        phi, left = None, np.inf
        for ridge in RIDGES:
            step, point = self._follow(objective, ridge, phi)
            if point.separated:
                return True
            phi, before = step.phi, left
            left = self._violation(objective, step.logits)
            if left > _STUCK * before and not self.structure.gated_layers:
                break
        return False

    def _separation(self, logits, margin):
        """Return the criterion for a share of the size of all differences of logits, and their mean square."""
        exclusive = self.loss.exclusive
        gaps = Separation(self.targets, 1.0, exclusive).gaps(logits[: len(self.train)])
        square = float(np.mean(np.square(gaps, dtype=np.float64))) or 1.0
        return Separation(self.targets, margin * square**0.5, exclusive), square

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
        """Minimize the loss itself, for falling weights of the change, until it is at most tol above its floor.

        Args:
            ridges: the weights, in the unit of the loss.
            tol: the same.
        """
        phi = problem = ending = None
        for ridge in ridges:
            problem = self._problem(WholeLoss(self.loss, self.targets), ridge, weights=self.train.weights)
            step, _, ending = self._minimize(problem, tol, phi)
            self.path.end(ending)
            if ending == Ending.TOLERANCE:
                return
            phi = step.phi
        provable = ending == Ending.GAP and self.jacobian is self.samples and self.head.is_plain
        if provable and not prove(self, problem.ridge, problem.whitening, 1e-2 * tol):
            self.path.end(Ending.STALLED)  # float64 sees a larger gap than float32 did

    def minimize_to(self, ridge, gap):
        """Minimize the loss plus `ridge` times the change, until it is proved to be within `gap` of the minimum."""
        problem = self._problem(WholeLoss(self.loss, self.targets), ridge, weights=self.train.weights)
        self.path.end(Ending.MAX_STEPS)
        for step, _ in self._walk(problem, None):
            if step.gap <= gap and prove(self, problem.ridge, problem.whitening, gap):
                return

    def _minimize(self, problem, tol, phi=None, unit=1.0):
        """Return the step and point where the loss is nearly its floor, or nearly the least, and what ended it there.

        Args:
            problem: a `Problem`.
            tol: loss above its floor, in the problem's unit.
            phi: where to start.
            unit: of a point's loss, in the problem's.
        """
        step, point, before = None, None, np.inf
        for step, point in self._walk(problem, phi):
            if point.loss - self.floor <= tol * unit:
                return step, point, Ending.TOLERANCE
            if step.gap <= 1e-2 * tol:
                return step, point, Ending.GAP
            if before - step.objective < 1e-2 * tol:
                return step, point, Ending.STALLED
            before = step.objective
        return step, point, Ending.MAX_STEPS

    def _problem(self, objective, ridge, inexact=INEXACT, part=None, weights=None):
        """Return `mean_i objective_i + ridge (mean squared change on the anchors + ||phi||^2)`, over one part or all.

        The second term is nearly the first where the anchors reach, holds still what they do not reach, and makes the
        problem strongly convex.
        """
        hold = np.zeros(len(self.start))
        hold[self.anchors] = ridge / len(self.anchors)
        weights = self._even_weights if weights is None else weights
        anchored = Anchored(objective, weights / len(self.train), self.start, hold)
        if part is None:
            jacobian, whitening = self.jacobian, self.whitening
        else:
            jacobian = self.jacobian.part(part)
            whitening = Whitening(self._still.part(part), self.samples.part(part))
        return Problem(jacobian, whitening, anchored, ridge, inexact, self.path.check)

    def is_done(self, tol):
        """Return whether the loss is at most tol above its floor before any change; then the path is this point."""
        point = self.unchanged()
        done = point.loss - self.floor <= tol
        if done:
            self.path.add(point)
            self.path.end(Ending.TOLERANCE)
        return done

    def unchanged(self):
        """Return the point at which every path begins."""
        return self._point(self.theta, self.start, RIDGES[0], np.inf)

    def _walk(self, problem, phi):
        """Yield each step of a problem with its point on the path."""
        for _, step in zip(range(_STEPS), problem.steps(phi), strict=False):  # in this order no step is wasted
            change = problem.whitening.theta(step.phi)
            theta = self.theta + np.pad(change, (len(self.theta) - len(change), 0))  # the last part's, or all
            point = self._point(theta, step.logits, problem.ridge, step.gap)
            if phi is None or step.phi is not phi:
                self.path.add(point)
            yield step, point

    def _point(self, theta, all_logits, ridge, gap, violation=None):
        logits = all_logits[: len(self.train)]
        margins = self.loss.margins(logits, self.targets)
        moved = all_logits[self.anchors] - self.start[self.anchors]
        return Point(
            seconds=self.path.elapsed(),
            ridge=ridge,
            loss=float(np.mean(self.train.weights * self.loss.values(logits, self.targets))),
            accuracy=None if margins is None else float(np.mean(margins > 0)),
            margin=None if margins is None else float(np.min(margins)),
            moved=float(np.sqrt(np.mean(np.sum(moved**2, axis=1)))),
            gap=gap,
            validation=None if self.validation is None else self._validated(theta),
            theta=theta,
            violation=violation,
        )

    def _validated(self, theta):
        logits = self.seen.logits(theta)
        margins = self.loss.margins(logits, self.seen_targets)
        return float(np.mean(self.loss.values(logits, self.seen_targets) if margins is None else margins > 0))


def some_rows(size, most):
    """Return indices of random samples, `most` at most, in ascending order."""
    return np.sort(np.random.default_rng(0).permutation(size)[:most])
