"""The convex problem of a head whose logits are all in memory, and its minimum, by Newton's method."""

import functools

import numpy as np

from keras_dal._backend import arrays
from keras_dal._backend.threads import threads_for
from keras_dal.finishing.proof import prove
from keras_dal.finishing.stopping import Gap, MaxSteps, Progress, Stall, ending_by
from keras_dal.finishing.task import CLOSE, Task
from keras_dal.heads.array_backend import Host
from keras_dal.heads.cached_jacobian import CachedJacobian, StackedJacobian
from keras_dal.models.regularizers import penalty_in_solve
from keras_dal.solvers.newton_cg import INEXACT, NewtonCG
from keras_dal.solvers.objectives import Anchored, WholeLoss
from keras_dal.solvers.penalties import Quadratic
from keras_dal.solvers.whitening import Whitening

RIDGES = (10.0 ** -np.arange(1, 9)).tolist()  # weights of the change, from gentle to nearly free
FEW_RIDGES = RIDGES[1::3]  # where the end is known to be the least loss, and the path is there to stop on
STEPS = 24  # Newton steps for one weight, at most
_COPIES = 10  # of the logits, that a solver has at a time: targets, slopes, probabilities and changes among them


def has_room(num_rows, num_outputs, max_bytes):
    """Return whether all that a `NewtonTask` has of the size of its logits fits into so many bytes."""
    return _COPIES * 4 * num_rows * num_outputs <= max_bytes


def with_few_threads(method):
    """Let a method of a `NewtonTask` have as many threads of BLAS as its products gain from."""

    @functools.wraps(method)
    def limited(self, *arguments):
        moments = (self.data.structure.num_features + 1) ** 2 // 4  # a quarter: they are made once, not in every step
        with threads_for(2 * Host.block * max(self.data.head.num_parameters, moments)):
            return method(self, *arguments)

    return limited


class NewtonTask(Task):
    """A `Task` whose logits are all in memory, by Newton's method.

    Args:
        data, path, anchors, seed: as for `Task`.
    """

    method = "Newton's method"

    def __init__(self, data, path, anchors=None, seed=0):
        super().__init__(data, path, anchors, seed)
        self.jacobian = self.samples if anchors is None else StackedJacobian([self.samples, self.still])
        self.start = self.jacobian.logits(self._where.single(data.theta))

    def _jacobian(self, features):
        on = None if self.samples is None else self.samples.on  # all of them in one place
        return CachedJacobian.of_head(self.data.head, features, self.data.max_bytes, on)

    @functools.cached_property
    def _where(self):
        """The arrays of the solver: tensors where an accelerator computes, has room, and the loss can follow."""
        fits = has_room(len(self.jacobian), self.data.structure.num_outputs, self.data.max_bytes)
        follows = fits and self.data.loss.tensors
        return self.samples.on.xp if follows else arrays.NUMPY

    @functools.cached_property
    def _targets_there(self):
        return self._where.single(self.data.targets)

    def _whole_loss(self):
        return WholeLoss(self.data.loss, self._targets_there)

    @functools.cached_property
    def size(self):
        """Root mean square of the logits of a sample before any change."""
        squares = self._where.row_square(self.start[: len(self.data.train)])
        return float(np.sqrt(np.mean(self._where.numpy(squares))))

    def with_head(self, structure):
        """Return the same task for the head of a copy of the model, on the same features."""
        task = type(self)(self.data.of_other_head(structure), self.path, self._given_anchors, self._seed)
        task.is_copy = True
        return task

    @functools.cached_property
    def whitening(self):
        """The coordinates phi, made when they are needed first."""
        return Whitening(self.still, self.samples)

    def _margins(self, logits):
        return self.data.loss.margins(logits[: len(self.data.train)], self.data.targets)

    @property
    def _even_weights(self):
        """Sample weights of mean one: which samples are separated, and how, is no question of their unit."""
        return self.data.train.weights / self.data.mean_weight

    @with_few_threads
    def minimize(self, ridges, tol, enough=()):
        self.num_steps, phi, problem, ending = 0, None, None, None
        for ridge in ridges:
            problem = self._problem(self._whole_loss(), ridge, weights=self.data.train.weights)
            step, _, ending = self._minimize(problem, CLOSE * tol, enough, phi)
            if ending.is_enough:
                break
            phi = step.phi
        self.path.end(ending)
        if not ending.is_enough and problem.ridge and self.jacobian is self.samples and self.data.head.is_plain:
            self._prove(problem, CLOSE * tol)

    @with_few_threads
    def minimize_to(self, ridge, gap):
        self.num_steps, self.penalty = 0, penalty_in_solve(self.data.structure)
        problem = self._problem(self._whole_loss(), ridge, weights=self.data.train.weights)
        self.path.end(self._minimize(problem, gap)[2])
        self._prove(problem, gap)

    def _prove(self, problem, gap):
        """Prove that the last point is within `gap` of the minimum, where need be after steps in float64.

        Args:
            problem: a `NewtonCG`, for which the path has noted what float32 came to: these steps may be stopped.
            gap: the wanted one.
        """
        self.proof = prove(self, problem.ridge, problem.whitening, gap, functools.partial(self._step_at, problem))
        self.path.settle(self.proof)

    def _step_at(self, problem, theta, gradient):
        self.num_steps += 1
        return problem.whitening.exact_theta(problem.step_at(self._logits(theta), gradient))

    def _logits(self, theta):
        """Return the logits of all rows; what is lost of them is small beside their change."""
        return self.start + self.jacobian.logits(self._where.single(theta - self.data.theta))

    def at(self, theta, ridge, gap):
        """Return the point at parameters that no step of the solver came to."""
        return self._point(theta, self._logits(theta), ridge, gap)

    def _minimize(self, problem, gap, enough=(), phi=None):
        """Return the step and point where a loss is enough, or nearly the least, and what ended it there.

        Args:
            problem: a `NewtonCG`.
            gap: at which a minimum counts as reached, and a decrease as none.
            enough: as in `minimize`.
            phi: where to start.
        """
        rules = *enough, Gap(gap), Stall(gap), MaxSteps(STEPS)
        walk, ending = self._walk(problem, phi), None
        while ending is None:
            step, point = next(walk)
            ending = ending_by(rules, Progress(point.loss, step.objective, step.gap))
        return step, point, ending

    def _problem(self, objective, ridge, inexact=INEXACT, part=None, weights=None):
        """Return `mean_i objective_i + ridge (mean squared change on the anchors + ||phi||^2)`, over one part or all.

        The second term is nearly the first where the anchors reach, holds still what they do not reach, and makes the
        problem strongly convex.
        """
        hold = np.zeros(len(self.jacobian))
        hold[self.anchors] = ridge / len(self.anchors)
        weights = self._even_weights if weights is None else weights
        anchored = Anchored(objective, weights / len(self.data.train), self.start, hold)
        if part is None:
            jacobian, whitening = self.jacobian, self.whitening
        else:
            jacobian = self.jacobian.part(part)
            whitening = Whitening(self.still.part(part), self.samples.part(part))
        penalty = Quadratic(whitening, ridge, self.penalty, self.data.theta)
        return NewtonCG(jacobian, whitening, anchored, penalty, inexact, self.path.check)

    def unchanged(self):
        return self._point(self.data.theta, self.start, RIDGES[0], np.inf)

    def _walk(self, problem, phi):
        """Yield each step of a problem with its point on the path, without end."""
        before = phi
        for count, step in enumerate(problem.steps(phi)):
            self.num_steps += count > 0 and step.phi is not before
            change = self._change(problem, step.phi)
            theta = self.data.theta + np.pad(change, (len(self.data.theta) - len(change), 0))  # the last part's, or all
            gap = self.data.gap_above_floor(step.gap, step.objective) if problem.ridge else step.gap
            point = self._point(theta, step.logits, problem.ridge, gap)
            if step.phi is not before:  # a step that is not taken is no point
                self.path.add(point)
            before = step.phi
            yield step, point

    def _change(self, problem, phi):
        """Return the change of the parameters, in float64 where a penalty is stiff."""
        if self.penalty is None:
            return self._where.numpy(problem.whitening.theta(phi))
        return problem.whitening.exact_theta(self._where.numpy(phi).astype(np.float64))

    def _point(self, theta, all_logits, ridge, gap, violation=None):
        xp, logits = arrays.of(all_logits), all_logits[: len(self.data.train)]
        targets = self.data.targets if xp is arrays.NUMPY else self._targets_there
        values, margins = self.data.loss.values(logits, targets), self.data.loss.margins(logits, targets)
        margins = None if margins is None else xp.numpy(margins)
        start = self.start if xp is self._where else self._where.numpy(self.start)
        return self._point_of(
            theta,
            ridge,
            gap,
            xp.numpy(xp.rows(all_logits, self.anchors) - xp.rows(start, self.anchors)),
            loss=float(np.mean(self.data.train.weights * xp.numpy(values))),
            accuracy=None if margins is None else float(np.mean(margins > 0)),
            margin=None if margins is None else float(np.min(margins)),
            validation=self._validated(theta),
            violation=violation,
        )
