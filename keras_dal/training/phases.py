"""What the steps of a fit are for: exploration, then the convex phase, and what is done where that fails."""

import contextlib
import math
from typing import Any

from keras_dal import _backend, _keras
from keras_dal.features.settled import warn_of_statistics
from keras_dal.features.variables import values_of
from keras_dal.output.warning import warn
from keras_dal.training import messages
from keras_dal.training.convex_phase import ConvexPhase, Incomplete
from keras_dal.training.frozen import FrozenState
from keras_dal.training.gathering import evaluated_once
from keras_dal.training.logs import as_phase
from keras_dal.training.schedule import SwitchSchedule
from keras_dal.training.stage import Stage
from keras_dal.training.state import state_of
from keras_dal.training.statistics import UnknownStatistics, statistics_of


class OnePhase:
    """What `TwoPhases` is where the optimizer is no `Wrap`, and every step trains everything; says what both are asked.

    Args:
        hooks: the `StepHooks` of the fit.
    """

    trains, solved, is_over, asks_at_switch, explored = True, None, False, False, True

    def __init__(self, hooks):
        self._hooks: Any = hooks

    def begin(self, epoch):
        """Take the step of the schedule that is due before an epoch."""

    def arrange(self, logs):
        """Let the steps of the epoch do what they are for.

        Args:
            logs: of the last step that trained.
        """
        if self._hooks is not None:
            self._hooks.install(None)
            self._hooks = None

    def looks_after(self, epoch):
        """Return whether the alignment at the end of an epoch says when to switch."""
        return False

    def waits_for(self, epoch):
        """Return whether the proven step waits for what an epoch measures."""
        return False

    def take_measured(self, epoch, alignment, steps):
        """Decide what depends on what an epoch that trained measured.

        Args:
            epoch: its number.
            alignment: nan where it is not known.
            steps: calls of the train function.
        """

    def end_reading(self):
        """Solve for the head where the data have been read, before validation or at the end of the epoch."""

    def end_epoch(self, epoch, validates):
        """End an epoch.

        Args:
            epoch: its number.
            validates: whether its model was validated, or no model of this fit is.
        """

    def drop(self):
        """Let go of what was read, as after an exception; what was averaged is the optimizer's."""

    def end(self):
        """Say what a fit that is over has not come to."""


class TwoPhases(OnePhase):
    """The phases of a `Wrap`, epoch by epoch.

    Args:
        wrap: the `Wrap` inside the model's optimizer.
        structure: the `Structure` of the model.
        loss: the `losses.Loss` it is compiled with.
        measurement: the `Measurement` of the fit.
        hooks: its `StepHooks`.
        descent: its `Descent`.
        outcome: the `Outcome` that the result of the convex phase goes to.
        announcer: an `Announcer`.
        params: of the fit, as Keras gives them to callbacks: `epochs` and `steps`.
        max_bytes: as in `AlignmentMonitor`.

    Attributes:
        solved: the `ConvexPhase` whose head was solved in this epoch, until that ends, or None.
    """

    def __init__(self, wrap, structure, loss, measurement, hooks, descent, outcome, announcer, params, max_bytes):
        super().__init__(hooks)
        self._model, self._wrap, self._structure, self._loss = structure.model, wrap, structure, loss
        self._state = state_of(wrap)
        self._measurement, self._descent = measurement, descent
        self._outcome, self._announcer, self._params = outcome, announcer, params
        self._max_bytes = max_bytes
        self._stage, self._schedule = Stage.BEGINS, SwitchSchedule.never()
        self._began: int | None = None  # the first epoch
        self._epoch: int | None = None
        self._was_stopped = False  # in the epoch before, by another callback
        self._longest = 0  # calls of the train function, at most, of an epoch that trained
        self._convex_phase: Any = None
        self._frozen: Any = None
        self._unknown: Any = None  # statistics of layers of the user's own
        self._has_trained = False
        self._spared: list[Any] = []  # batches of a fit that has nothing left to do
        self._last: dict[str, Any] = {}  # its logs: of what the head was solved on, or of one batch

    @property
    def trains(self):
        """Whether the steps of this epoch train."""
        return self._stage in (Stage.EXPLORES, Stage.DESCENDS)

    @property
    def is_over(self):
        """Whether nothing is left to do."""
        return self._stage is Stage.OVER

    @property
    def explored(self):
        """Whether the steps of this epoch explored; its end may find another phase, of a callback that switches."""
        return self._stage is Stage.EXPLORES if self.trains else self._explores

    @property
    def solved(self):
        return self._convex_phase if self._stage is Stage.SOLVED else None

    @property
    def asks_at_switch(self):
        """Whether the alignment is measured at the switch whatever that costs."""
        return self._state.rates.are_proven and self._schedule.switch is not None

    @property
    def _explores(self):
        return self._wrap.phase == "explore"

    @property
    def _epochs(self):
        return self._params["epochs"]

    @property
    def _expected(self):
        """Batches of an epoch, or None where that is not known."""
        return self._params.get("steps")

    def begin(self, epoch):
        model, self._epoch = self._model, epoch
        if not model.optimizer.built and model.built:  # where a step is traced it takes many times as long
            with _backend.training_scope(model):
                model.optimizer.build(model.trainable_variables)
        self._wrap.synchronize()  # here, not earlier: other callbacks restore weights in on_train_begin
        if self._began is None:
            self._began = epoch
            self._begin_first(epoch)
        self._advance(epoch)

    def _begin_first(self, epoch):
        """Find out where in the two phases the first epoch of this fit is, now that its optimizer is known."""
        wrap = self._wrap
        self._unknown = UnknownStatistics(self._model)
        if self._state.solves and self._state.progress.is_solved:  # in an earlier fit, whose result stays
            self._stage = Stage.OVER
        else:
            self._outcome.forget()
        if self._explores:
            average = wrap.average if self._state.solves else 0
            self._schedule = SwitchSchedule(wrap.explore, average, self._epochs, self._state.began_with(epoch))
        elif self._state.solves and not self.is_over:  # which may fail, and need another average
            self._schedule = SwitchSchedule.begun(wrap.average, self._epochs, self._state.began_with(epoch), epoch)
        self._state.auto.value = self._schedule.resume(epoch, self._state.auto.value)
        if self._explores and self._schedule.is_due(epoch) and not self._state.has_trained:
            warn(messages.trains_nothing(wrap, epoch, self._epochs))
        descends_at_once = epoch == 0 and wrap.explore is not None and not self._explores and not self._state.solves
        is_forgotten = self.is_over or descends_at_once  # perhaps, as where folds share an optimizer
        say = self._announcer.insist if is_forgotten else self._announcer.say
        say(messages.begins, self._model, wrap, self._schedule, epoch, self._epochs)
        is_to_come = not self.is_over and (self._schedule.switch is not None or not self._explores)
        if self._state.solves and is_to_come and _keras.has_own_train_step(self._model):
            self._announcer.say(messages.own_train_step)
        if self._state.solves and is_to_come and self._explores and not self._structure.nonlinear_parameters:
            self._announcer.say(messages.has_nothing_to_explore)

    def _advance(self, epoch):
        """Take the step of the schedule that is due before this epoch."""
        if self._explores and self._wrap.is_averaging and (self._was_stopped or self._schedule.average_is_early(epoch)):
            self._wrap.drop_average()  # of a fit that was stopped, or was to be
        self._was_stopped = False
        if self._explores and self._schedule.average_is_due(epoch) and not self._wrap.is_averaging:
            self._wrap.begin_average()
        solves = self._state.solves
        if self._explores and self._schedule.is_due(epoch):
            self._tried(self._solve_next if solves else self._descend_next, epoch)
        elif not self._explores and solves and not self.is_over:
            self._tried(self._solve_next, epoch)
        elif not self._explores and self._state.rates.are_proven and self._measurement.report is not None:
            self._descent.take_exact_step(self._measurement.report)

    def _tried(self, step, *arguments):
        """Take a step that fails without ending the training."""
        try:
            step(*arguments)
        except Exception as error:  # of whatever kind: hours of training are at stake
            self._explore_on(error)

    def _explore_on(self, error):
        (self._convex_phase or self._descent).undo()
        self._convex_phase, self._stage = None, Stage.WAITS
        if self._model.stop_training:  # `finish`, or a later fit, takes what was averaged
            self._schedule.postpone()
            self._was_stopped = True
            warn((messages.stops if isinstance(error, Incomplete) else messages.ends_unsolved)(error), error)
            return
        self._state.progress.explore_again()  # where the fit began in the second phase, too
        if isinstance(error, Incomplete) and self._schedule.tries_again_after(self._epoch):
            warn(messages.reads_again(error), error)
            return
        self._schedule.postpone()
        if self._epoch + 1 < self._epochs:
            self._wrap.drop_average()  # a later one begins when it is due
        warn(messages.goes_on(error), error)

    def _solve_next(self, epoch):
        self._convex_phase = ConvexPhase(self._wrap, self._structure, self._loss, self._max_bytes)
        if self._state.has_average:
            self._unknown.warn()
        else:
            self._warn_of_statistics("average as it is")
        is_said = epoch == self._began and not (self._explores and epoch == self._schedule.switch)  # as the fit began
        self._convex_phase.begin(self._state.statistics_before)
        self._stage = Stage.READS
        if not is_said:
            self._announcer.say(messages.reads, self._convex_phase, epoch, self._epochs)

    def _warn_of_statistics(self, way):
        """Warn where those that nothing renews have not settled; with the way to have them renewed."""
        if (few := self._measurement.samples()) is not None:
            with contextlib.suppress(Exception):  # advice alone: the second phase begins all the same
                warn_of_statistics(self._model, few, f"Leave {way}, and the end of fit renews them")

    def _descend_next(self, epoch):
        report = self._measurement.report
        self._warn_of_statistics("finish and exploit_learning_rate as they are")
        self._descent.begin(report, needed=epoch != self._began)
        found = report, self._descent.certificate
        self._announcer.say(messages.descends, epoch, self._epochs, self._structure, self._loss, *found)

    def arrange(self, logs):
        if self.is_over:  # and another callback took back that training is to stop
            self._model.stop_training = True
            self._last = logs | self._last | as_phase(explores=False)
            reading = _backend.reading(self._model, self._spared.append, self._last)
            self._hooks.read_only(reading, self._look_at_last, *2 * (self._spared.clear,))
        elif self._stage is Stage.READS:
            reading = self._convex_phase.train_function(logs)
            self._hooks.read_only(reading, self._take, self._convex_phase.forget, self.drop, self.end_reading)
        else:
            self._train()

    def _train(self):
        """Let the next steps train what belongs to the phase."""
        if not self._has_trained:
            self._has_trained, self._state.statistics_before = True, values_of(statistics_of(self._model))
        stage = Stage.EXPLORES if self._explores else Stage.DESCENDS
        if stage is not self._stage:
            descends = stage is Stage.DESCENDS
            self._hooks.install(self._structure.linear_parameters if descends else None)
            self._stage, self._frozen = stage, FrozenState(self._model) if descends else None

    def _look_at_last(self):
        """Let the logs be those of the solved model; for a fit that goes on in spite of it."""
        self._model.stop_training = True
        batch = self._spared[-1]
        self._spared.clear()
        self._last.update({} if "loss" in self._last else evaluated_once(self._model, batch))

    def _take(self):
        if self._stage is Stage.READS:
            self._tried(self._convex_phase.take)
        if self._stage is Stage.READS and self._convex_phase.batches >= (self._expected or math.inf):
            self.end_reading()

    def drop(self):
        if self._stage is Stage.READS:
            self._convex_phase.drop()
            self._convex_phase, self._stage = None, Stage.WAITS

    def end_reading(self):
        if self._stage is Stage.READS:
            self._tried(self._solve)
        if self._stage is Stage.READS:
            phase, self._stage = self._convex_phase, Stage.SOLVED
            self._outcome.take(phase.result)
            phase.show(self._measurement.is_affordable(self._epoch, len(phase.train)))

    def _solve(self):
        most = (self._longest - 1) * self._model.steps_per_execution + 1  # batches of an epoch, at least
        runs_out = 2 * self._convex_phase.batches < most  # as what Keras has left of an exhausted generator
        is_in_doubt = runs_out or self._model.stop_training  # which may have come in the midst of the epoch
        unknown = (most if self._longest else math.inf) if is_in_doubt else 0
        longest = self._longest * self._model.steps_per_execution or math.inf  # batches, at most
        self._convex_phase.end(min(self._expected, longest) if self._expected else unknown)

    def looks_after(self, epoch):
        return self._schedule.decides_after(epoch) and self._explores

    def waits_for(self, epoch):
        is_due = self._schedule.is_due
        at_switch = is_due(epoch + 1) and not is_due(epoch - 1)
        after_it = not self._explores and self._measurement.report is None
        return self._state.rates.are_proven and (at_switch or after_it)

    def take_measured(self, epoch, alignment, steps):
        self._longest = max(self._longest, steps)
        if self.looks_after(epoch):
            switch = self._schedule.switch
            self._state.auto.value = self._schedule.decide(alignment)
            if self._schedule.switch != switch:  # too little of the labels lies in the column space by then
                self._announcer.say_later(messages.explores_on, alignment, epoch, self._schedule)
        if self._frozen is not None:
            self._frozen.check()

    def end_epoch(self, epoch, validates):
        if self.solved is not None:
            ended = self._convex_phase, self._outcome.result, epoch, self._epochs, validates
            self._announcer.say_later(messages.ends, *ended)
            self._last = self._convex_phase.shown
            self._convex_phase, self._stage = None, Stage.OVER
        if self.is_over:
            self._model.stop_training = True

    def end(self):
        if self._explores and self._schedule.switch is not None:
            self._announcer.say(messages.ended_early, self._model, self._schedule, self._wrap)
        if self._state.was_switched_alone:
            self._announcer.say(messages.solves_nothing, self._structure)
