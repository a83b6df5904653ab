"""The convex problem of a plain head whose logits do not fit into memory: one block of samples at a time has some."""

import dataclasses

import numpy as np
from scipy import optimize

from keras_dal.features.samples import some_rows
from keras_dal.finishing.history import Point
from keras_dal.finishing.newton import ANCHORS
from keras_dal.finishing.proof import prove
from keras_dal.finishing.stopping import Ending, Gap, MaxSteps, Progress, ending_by
from keras_dal.finishing.task import Task
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
        path: the `Path` that sees every step.
    """

    method = "L-BFGS"

    def __init__(self, data, path):
        super().__init__(data, path)
        entries = Host.entries  # NumPy has as many of the logits, however much an accelerator could hold
        # no bytes, because it would copy the features
        self._samples = CachedJacobian.of_head(data.head, data.train.features, max_bytes=0, entries=entries)
        self.anchors = some_rows(len(data.train), ANCHORS)
        self._still = self._samples.restricted(self.anchors)
        self._whitening = Whitening(self._still, self._samples)
        squares = sum(np.sum(np.square(logits, dtype=np.float64)) for _, logits in self._logits(data.theta))
        self.size = float(np.sqrt(squares / len(data.train)))

    def unchanged(self):
        distance = Quadratic(self._whitening, 1.0)
        return _Evaluation(self, np.zeros(self.data.head.num_parameters), distance).point

    def at(self, theta, ridge, gap):
        seen = _Pass(self, theta)
        for _ in seen.cotangents(check=lambda: None):  # what is proved of a point is not lost to a rule
            pass
        return seen.point(self._still.logits(theta - self.data.theta), ridge, gap)

    def minimize_to(self, ridge, gap):
        self.penalty = penalty_in_solve(self.data.structure)
        penalty = Quadratic(self._whitening, ridge, self.penalty, self.data.theta)
        self.path.end(self._minimize(penalty, gap))

    def _minimize(self, penalty, gap):
        """Return what ended the steps, the last of which is on the path."""
        last, rules = _Evaluation(self, np.zeros(self.data.head.num_parameters), penalty), [MaxSteps(_STEPS)]
        ending = self._ending_at(last, rules, gap)
        if ending is not None:
            return ending

        def evaluated(phi):
            nonlocal last
            last = last if np.array_equal(last.phi, phi) else _Evaluation(self, phi, penalty)
            return last.value, last.gradient

        def stepped(intermediate_result):
            nonlocal ending
            self.num_steps += 1
            step = last if np.array_equal(last.phi, intermediate_result.x) else None
            step = step or _Evaluation(self, intermediate_result.x, penalty)
            ending = self._ending_at(step, rules, gap)
            if ending is not None:
                raise StopIteration

        options = {"maxcor": _MEMORY, "ftol": 0.0, "gtol": 0.0}
        optimize.minimize(evaluated, last.phi, jac=True, method="L-BFGS-B", callback=stepped, options=options)
        return ending or Ending.STALLED  # SciPy ends it where no step along its direction gains anything

    def _ending_at(self, step, rules, gap):
        """Put a step on the path, as it is proved to be where the gap seems reached; return what ends there, if any."""
        self.path.add(step.point)
        self.path.thin_out()
        seen = Progress(step.point.loss, step.value, step.point.gap)
        ending = ending_by(rules, seen)
        if Gap(gap).ending(seen):
            self.proof = prove(self, step.point.ridge, self._whitening, gap)
        return self.proof.ending if self.proof else ending

    def _logits(self, theta):
        """Yield slices of the samples and their logits, float32."""
        for rows, block in self._samples.blocks():
            yield rows, self._samples.of_block(block, theta)


class _Evaluation:
    """Value and gradient of the objective at some phi, and its `Point`, from one pass over samples."""

    def __init__(self, task, phi, penalty):
        self.phi, ridge = phi.copy(), penalty.ridge
        change = task._whitening.theta(phi)
        seen, moved = _Pass(task, task.data.theta + change), task._still.logits(change)
        slope = task._samples.pulled_back(seen.cotangents(task.path.check))
        slope += task._still.adjoint(np.float32(2 * ridge / len(moved)) * moved)
        point = seen.point(moved, ridge, np.inf)
        self.value = float(point.loss + ridge * point.moved**2 + penalty.value(phi))
        self.gradient = task._whitening.transposed(slope) + penalty.gradient(phi)
        gap = task.data.gap_above_floor(gap_of(self.gradient, ridge), self.value)
        self.point = dataclasses.replace(point, gap=gap)


class _Pass:
    """What a pass over the samples finds out about some parameters."""

    def __init__(self, task, theta):
        self._task, self._theta = task, theta
        self._loss, self._right, self._margin = 0.0, 0, np.inf

    def cotangents(self, check):
        """Yield slopes of the mean loss in the logits of a block of samples, and its block; `check` may end it."""
        task, loss = self._task, self._task.data.loss
        for rows, block in task._samples.blocks():
            check()
            logits, targets = task._samples.of_block(block, self._theta), task.data.targets[rows]
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
        return Point(
            seconds=self._task.path.elapsed(),
            ridge=ridge,
            loss=float(self._loss / size),
            accuracy=self._right / size if has_sides else None,
            margin=float(self._margin) if has_sides else None,
            moved=float(np.sqrt(np.mean(np.sum(np.square(moved, dtype=np.float64), axis=1)))),
            gap=gap,
            validation=None,
            theta=self._theta,
        )
