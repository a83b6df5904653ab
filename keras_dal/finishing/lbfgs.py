"""The convex problem of a plain head whose logits do not fit into memory: one block of samples at a time has some."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from keras_dal.finishing.newton import RIDGES
from keras_dal.finishing.proof import prove
from keras_dal.finishing.stopping import Ending, Gap, MaxSteps, Progress, ending_by
from keras_dal.finishing.task import CLOSE, Task
from keras_dal.heads.array_backend import Host
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.models.regularizers import penalty_in_solve
from keras_dal.solvers.newton_cg import gap_of
from keras_dal.solvers.penalties import Quadratic
from keras_dal.solvers.whitening import Whitening

_STEPS, _MEMORY = 500, 20  # steps of L-BFGS, and how many it remembers


class LBFGSTask(Task):
    """A `Task` of a plain head, in memory of the order of its parameters and its anchors' logits.

    Minimizes by L-BFGS (Liu and Nocedal, 1989) in the coordinates of the `Whitening`: a step takes one pass over the
    samples where one of Newton's takes many. There are many steps: only a few points of the path keep their parameters.

    Args:
        data: the `HeadData`, with lazy targets.
        path, anchors, seed: as for `Task`.
    """

    method = "L-BFGS"

    def __init__(self, data, path, anchors=None, seed=0):
        super().__init__(data, path, anchors, seed)
        self._whitening = Whitening(self.still, self.samples)
        squares = sum(np.sum(np.square(logits, dtype=np.float64)) for _, logits in self._logits(data.theta))
        self.size = float(np.sqrt(squares / len(data.train)))

    def _jacobian(self, features):
        entries = Host.entries  # NumPy has as many of the logits, however much an accelerator could hold
        # no bytes, because it would copy the features
        return CachedJacobian.of_head(self.data.head, features, max_bytes=0, entries=entries)

    def unchanged(self):
        return self.at(self.data.theta, RIDGES[0], np.inf)

    def at(self, theta, ridge, gap):
        seen = _Pass(self, theta)
        for _ in seen.cotangents(check=lambda: None):  # what is proved of a point is not lost to a rule
            pass
        point = seen.point(self.still.logits(theta - self.data.theta), ridge, gap)
        return dataclasses.replace(point, validation=self._validated(theta))

    def minimize(self, ridges, tol, enough=()):
        phi, ending = None, None
        for ridge in ridges:
            is_proved = ridge == ridges[-1] and ridge > 0 and self._given_anchors is None
            goal = _Goal(CLOSE * tol, is_proved, (*enough, MaxSteps(_STEPS)))
            phi, ending = self._minimize(Quadratic(self._whitening, ridge), goal, phi)
            if ending.is_enough:
                break
        self.path.end(ending)

    def minimize_to(self, ridge, gap):
        self.penalty = penalty_in_solve(self.data.structure)
        penalty = Quadratic(self._whitening, ridge, self.penalty, self.data.theta)
        self.path.end(self._minimize(penalty, _Goal(gap, True, (MaxSteps(_STEPS),)))[1])

    def _minimize(self, penalty, goal, phi=None):
        """Return phi of the last step, which is on the path, and what ended there.

        Args:
            penalty: a `Quadratic`.
            goal: a `_Goal`.
            phi: where to start, which is on the path already; None for no change.
        """
        step = last = _Evaluation(self, np.zeros(self.data.head.num_parameters) if phi is None else phi, penalty)
        if phi is None:
            self._add(step)
        ending = self._ending_at(step, goal)
        if ending is not None:
            return step.phi, ending

        def evaluated(phi):
            nonlocal last
            last = last if np.array_equal(last.phi, phi) else _Evaluation(self, phi, penalty)
            return last.value, last.gradient

        def stepped(intermediate_result):
            nonlocal ending, step
            self.num_steps += 1
            phi = intermediate_result.x
            step = last if np.array_equal(last.phi, phi) else _Evaluation(self, phi, penalty)
            self._add(step)
            ending = self._ending_at(step, goal)
            if ending is not None:
                raise StopIteration

        options = {"maxcor": _MEMORY, "ftol": 0.0, "gtol": 0.0}
        optimize.minimize(evaluated, last.phi, jac=True, method="L-BFGS-B", callback=stepped, options=options)
        return step.phi, ending or Ending.STALLED  # SciPy ends it where no step along its direction gains anything

    def _add(self, step):
        self.path.add(dataclasses.replace(step.point, validation=self._validated(step.point.theta)))
        self.path.thin_out()

    def _ending_at(self, step, goal):
        """Return what ends at the last step, if anything; where the gap seems reached its point is as it is proved."""
        seen = Progress(step.point.loss, step.value, step.point.gap)
        ending, reached = ending_by(goal.rules, seen), Gap(goal.gap).ending(seen)
        if ending is not None and ending.is_enough:
            return ending
        if reached is None or not goal.is_proved:
            return reached or ending
        self.proof = prove(self, step.point.ridge, self._whitening, goal.gap)
        return self.proof.ending if self.proof else ending

    def _logits(self, theta):
        """Yield slices of the samples and their logits, float32."""
        for rows, block in self.samples.blocks():
            yield rows, self.samples.of_block(block, theta)


class _Goal(NamedTuple):
    """Where a minimization ends: at a gap, which is to be proved or not, or by rules, if these are earlier."""

    gap: float
    is_proved: bool
    rules: tuple[Any, ...]


class _Evaluation:
    """Value and gradient of the objective at some phi, and its `Point`, from one pass over samples."""

    def __init__(self, task, phi, penalty):
        self.phi, ridge = phi.copy(), penalty.ridge
        change = task._whitening.theta(phi)
        seen, moved = _Pass(task, task.data.theta + change), task.still.logits(change)
        slope = task.samples.pulled_back(seen.cotangents(task.path.check))
        slope += task.still.adjoint(np.float32(2 * ridge / len(moved)) * moved)
        point = seen.point(moved, ridge, np.inf)
        self.value = float(point.loss + ridge * point.moved**2 + penalty.value(phi))
        self.gradient = task._whitening.transposed(slope) + penalty.gradient(phi)
        gap = task.data.gap_above_floor(gap_of(self.gradient, ridge), self.value) if ridge else np.inf
        self.point = dataclasses.replace(point, gap=gap)


class _Pass:
    """What a pass over the samples finds out about some parameters."""

    def __init__(self, task, theta):
        self._task, self._theta = task, theta
        self._loss, self._right, self._margin = 0.0, 0, np.inf

    def cotangents(self, check):
        """Yield slopes of the mean loss in the logits of a block of samples, and its block; `check` may end it."""
        task, loss = self._task, self._task.data.loss
        for rows, block in task.samples.blocks():
            check()
            logits, targets = task.samples.of_block(block, self._theta), task.data.targets[rows]
            weights = task.data.train.weights[rows]
            self._loss += weights @ loss.values(logits, targets)
            if loss.has_sides:
                margins = loss.margins(logits, targets)
                self._right, self._margin = self._right + np.sum(margins > 0), min(self._margin, np.min(margins))
            shares = (weights / len(task.data.train))[:, None]
            yield np.asarray(shares * loss.gradient(logits, targets), np.float32), block

    def point(self, moved, ridge, gap):
        """Return the `Point`, once all of `cotangents` were taken.

        Args:
            moved: change of the logits of the anchors, `(a, C)`.
            ridge, gap: as of the `Point`.
        """
        size, has_sides = len(self._task.data.train), self._task.data.loss.has_sides
        return self._task._point_of(
            self._theta,
            ridge,
            gap,
            moved,
            loss=float(self._loss / size),
            accuracy=self._right / size if has_sides else None,
            margin=float(self._margin) if has_sides else None,
            validation=None,
        )
