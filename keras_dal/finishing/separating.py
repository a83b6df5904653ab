"""How a head comes to put every sample on its right side: along a path of weights, or by interpolation."""

import itertools

import numpy as np

from keras_dal._backend import arrays
from keras_dal.features.samples import some_rows
from keras_dal.finishing.contradictions import Moves
from keras_dal.finishing.newton import RIDGES, STEPS, NewtonTask, with_few_threads
from keras_dal.finishing.stopping import Ending, Tolerance
from keras_dal.finishing.task import CLOSE
from keras_dal.heads.array_backend import is_out_of_memory
from keras_dal.output.warning import warn
from keras_dal.solvers.min_norm_interpolation import Interpolation
from keras_dal.solvers.newton_cg import INEXACT
from keras_dal.solvers.objectives import Separation

_SOLVED = 0.3  # certified gap, relative to the objective, at which a smaller weight is tried
_PRECISE = 1e-3  # residual of Newton systems at the least weight, where a few samples are left
_STALLED = 0.15  # decrease of the objective in one step, relative to it, at which the same is done
_TRIED = 0.02  # both, where a head alone is tried at the least weight before gates are added
_STUCK = 0.5  # share of the violation that stays when the weight falls tenfold: what is left will not go
_DELTA = 0.1  # wanted margin, relative to the root mean square of the logits' gaps
_INTERPOLATED = 0.02  # the same where samples are moved by interpolation
_HELD = 2_000  # anchors that are held while samples are moved, at most, and as many as are moved if none are given
_ROUNDS = 12  # of interpolation: two to four are usual
_GENTLE, _NEARLY = 1e-2, 1e-2  # weight of the change and tolerance with which the loss is minimized before


class SeparableTask(NewtonTask):
    """A `NewtonTask` whose samples, where they have right sides, can be put on them."""

    def separate(self):
        found = (self.data.structure.place == "beside" and self.interpolate()) or self._follow_weights()
        self.path.end(Ending.SEPARATED if found else Ending.EXHAUSTED)
        return found

    @with_few_threads
    def _follow_weights(self):
        objective, _ = self._separation(self._where.numpy(self.start), _DELTA, self._targets_there)
        phi, left = None, np.inf
        for ridge in RIDGES:
            step, point = self._follow(objective, ridge, phi)
            if point.separated:
                return True
            phi, before = step.phi, left
            left = self._violation(objective, step.logits)
            if ridge != RIDGES[-1] and left > _STUCK * before and self.data.structure.place is None:
                return self._follow(objective, RIDGES[-1], phi, _TRIED)[1].separated
        return False

    def _separation(self, logits, margin, targets):
        """Return the criterion for a share of the size of all differences of logits, and their mean square."""
        gaps = self.data.loss.sides(self.data.targets).gaps(logits[: len(self.data.train)])
        square = float(np.mean(np.square(gaps, dtype=np.float64))) or 1.0
        sides = self.data.loss.sides(arrays.of(targets).single(targets))
        return Separation(sides, margin * square**0.5), square

    def _follow(self, objective, ridge, phi, precision=_PRECISE):
        """Return the step and the point at which the next weight is tried.

        The first weight is solved for; the others are followed by one step each, because what they change is little;
        at the least weight, where a few samples may be left, what can be had is had: small steps come between large
        ones there, as samples take turns.

        Args:
            objective: the criterion.
            ridge: the weight.
            phi: where to start.
            precision: at the least weight: residual of Newton systems, and decrease in one step that is none.
        """
        first, last = ridge == RIDGES[0], ridge == RIDGES[-1]
        problem = self._problem(objective, ridge, precision if last else INEXACT)
        value, enough, stalled = np.inf, precision if last else _STALLED, 0
        step = point = None
        for step, point in itertools.islice(self._walk(problem, phi), STEPS + 1):  # the start, too
            if point.separated:
                break
            if step.phi is phi:
                continue  # where the larger weight ended
            stalled = stalled + 1 if value - step.objective <= enough * step.objective else 0
            if not (first or last) or stalled > last or step.gap <= _SOLVED * step.objective:
                break
            value = step.objective
        return step, point

    def interpolate(self):
        """Finish the head beside the mixture, then move what is wrong by the least change of the mixture.

        Returns:
            Whether every sample is on its right side, but for those that are left, which `self.spared` tells.
        """
        if np.min(self._margins(self._where.numpy(self.start))) > 0:
            self.path.add(self.unchanged())
            return True
        found, point = self._interpolated(self._even_weights)
        if found and self.spared.any() and np.ptp(self.data.train.weights):  # light samples began far on a wrong side
            spared = self.spared
            again, _ = self._interpolated(np.ones(len(spared)))
            if not again or np.sum(self.spared) >= np.sum(spared):
                self.spared = spared
                self.path.add(point)
        return found

    def _interpolated(self, weights):
        """Return whether samples were separated, after the head was finished with these weights, and the last point."""
        point, logits = self._head_finished(weights)
        solver = Interpolation(self.samples.part(0), self.still.part(0), self.data.max_bytes)
        reason = f"{_ROUNDS} rounds left some"
        try:
            for moved, reached in self._rounds(solver, point.theta, logits):
                self.path.add(moved)
                point, logits = moved, reached
        except Exception as error:  # backends have errors of their own where memory is out
            if not (isinstance(error, np.linalg.LinAlgError) or is_out_of_memory(error)):
                raise
            reason = str(error).rstrip(".") or type(error).__name__
        if np.any((self._margins(logits) <= 0) & ~self.spared):
            warn(
                "Interpolation did not separate the samples, and Newton's method goes on, which can take long "
                "(time_limit of converge ends it). Where gates were added for fewer samples, use "
                f"add_gated_head(num_samples={len(self.data.train)}). Received: {reason}; {len(solver.chosen)} samples "
                f"moved or held, training accuracy {point.accuracy}"
            )
            return False, point
        return True, point

    def _head_finished(self, weights):
        """Finish the head beside the mixture, with a small change, unless more is wrong then than without a head.

        Args:
            weights: of the samples, of mean one.

        Returns:
            Its point and the logits of all rows.
        """
        enough = Tolerance(_NEARLY * self.data.mean_weight, self.data.floor)
        step = point = None
        for ridge in [ridge for ridge in RIDGES if ridge <= _GENTLE]:
            finished = self._problem(self._whole_loss(), ridge, part=1, weights=weights)
            step, point, _ = self._minimize(finished, CLOSE * _NEARLY, [enough], step and step.phi)
            if point.loss <= self.data.loss_of_nothing:
                break
        return point, self._where.numpy(step.logits)

    def _rounds(self, solver, theta, logits):
        """Yield the point after each round of interpolation, and the logits of all rows there.

        Args:
            solver: an `Interpolation`.
            theta: where it begins, `(P,)`.
            logits: of all rows there.
        """
        begins, size = (theta, logits), len(self.data.train)
        start = logits[:size]
        criterion, gaps = self._separation(start, _INTERPOLATED, self.data.targets)
        short = np.sum(self._margins(start) < criterion.delta)
        most = min(_HELD, short) if self.jacobian is self.samples else _HELD
        held = self.still.part(0).restricted(some_rows(len(self.still), most, self._seed))
        moves = Moves(solver, held, criterion, self._margins, start, gaps, self._num_free)
        self.spared = moves.spared
        for _ in range(_ROUNDS):
            if moves.are_made(logits[:size]):
                return
            while (change := moves.change(logits[:size])) is None:
                theta, logits = begins
            theta = theta + np.pad(change, (0, len(theta) - len(change)))
            logits = self.jacobian.logits(theta)
            yield self._point(theta, logits, 0.0, np.inf, self._violation(criterion, logits)), logits

    @property
    def _num_free(self):
        """Independent columns of the mixture for each output, at most."""
        head, train = self.data.head, self.data.train
        gates = head.mixture.num_parameters // (head.num_outputs * (self.data.structure.num_features + 1))
        return gates * (train.num_independent(self.data.structure) + 1)

    def _violation(self, criterion, logits):
        values = arrays.of(logits).numpy(criterion.values(logits[: len(self.data.train)]))
        return float(self._even_weights @ values) / len(self.data.train)
