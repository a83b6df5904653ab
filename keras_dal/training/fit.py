"""One call of `fit`: what is measured in it, which phase it is in, and how the convex phase ends it."""

import contextlib
import math
from typing import Any

import numpy as np

from keras_dal import _backend, _keras
from keras_dal._backend.warning import warn
from keras_dal.features.settled import warn_of_statistics
from keras_dal.features.variables import values_of
from keras_dal.losses import loss_of
from keras_dal.models.structure import find_structure
from keras_dal.training import checks, messages
from keras_dal.training.convex_phase import ConvexPhase, Incomplete
from keras_dal.training.descent import Descent
from keras_dal.training.frozen import FrozenState
from keras_dal.training.gathering import evaluated_once
from keras_dal.training.inner import innermost
from keras_dal.training.kernel_change import some_samples
from keras_dal.training.measurement import measurement_of
from keras_dal.training.schedule import Decision, SwitchSchedule
from keras_dal.training.stage import Stage
from keras_dal.training.statistics import UnknownStatistics, statistics_of
from keras_dal.training.train_step import StepHooks


class Fit:
    """What `AlignmentMonitor` does in one fit, whose moments it passes on.

    Args:
        model: the model that is trained.
        wrap: the `Wrap` inside its optimizer, or None where it has none.
        data: arguments of `alignment` after the model, or None for what flows through `fit`.
        params: of the fit, as Keras gives them to callbacks: `epochs` and `steps`.
        outcome: the `Outcome` that the result of the convex phase goes to.
        certificates: the `Certificates` of this fit.
        announcer: an `Announcer`.

    Raises:
        ValueError: a model without a linear head, or a loss outside the theory.
    """

    def __init__(self, model, wrap, data, params, outcome, certificates, announcer):
        self._model, self._wrap, self._data, self.params = model, wrap, data, params
        self._outcome, self._certificates, self._announcer = outcome, certificates, announcer
        self._stage, self._schedule = Stage.BEGINS, SwitchSchedule.never()
        self._logs: dict[str, Any] = {}  # of the last step
        self._measured: tuple[str, ...] = ()  # names
        self._steps = self._longest = 0  # calls of the train function: of this epoch, and at most of one that trained
        self._spared: list[Any] = []  # batches of a fit that has nothing left to do
        self._said_interval = False
        self._began: int | None = None  # the first epoch
        self._epoch: int | None = None
        self._waiting: int | None = None  # an epoch whose first step is waited for
        self._validated: int | None = None  # the epoch that was validated last
        self._structure: Any = None  # with all that follows from it, where `fit` builds the model at its first step
        self._convex_phase: Any = None
        self._descent: Any = None
        self._frozen: Any = None
        self._unknown: Any = None  # statistics of layers of the user's own
        self._statistics: Any = None  # those of batch normalization, before the first step of this fit that trained
        if wrap is not None:
            checks.check_same_model(wrap, model)
            checks.check_loss_scale(model.optimizer)
            wrap.driver = self  # the last one that is made
        else:
            announcer.say(messages.only_measures)
        if data is None:
            checks.check_inputs(model)
        if data is not None or model.built:
            self._look_at_model()

    def _look_at_model(self):
        """Find out what there is to measure and to solve; where `fit` builds the model, at its first step."""
        model, wrap = self._model, self._wrap
        samples = None if self._data is None else some_samples(self._data[0])
        self._structure = find_structure(model, samples, "head" if wrap is None else wrap.exploit)
        self._loss = loss_of(model, self._structure.activation)
        checks.check_second_phase(wrap, self._structure, self._loss, self._data)
        measured = model, self._structure, self._loss, self._data, self._epochs
        self._measurement = measurement_of(*measured)
        has_data = self._data is not None
        self._descent = Descent(model, wrap, self._structure, self._loss, self._certificates, has_data)
        driven = wrap if wrap is not None and wrap.explore is not None else None
        self._hooks = StepHooks(model, self._structure.layer, self._measurement.moments, driven, self._keep)

    @property
    def _epochs(self):
        return self.params["epochs"]

    @property
    def _explores(self):
        return self._wrap is None or self._wrap.phase == "explore"

    def _make_schedule(self):
        if not self._explores:
            return SwitchSchedule.never()  # there is nothing left to switch
        average = self._wrap.average if self._wrap.solves else 0
        return SwitchSchedule(self._wrap.explore, average, self._epochs)

    def begin_epoch(self, epoch):
        """Prepare the steps of an epoch."""
        self._announcer.say_all()
        if self._structure is None:
            self._model.train_function = self._looking_first(epoch)
        elif self._wrap is not None and innermost(self._wrap.inner_optimizer).use_ema:
            self._waiting = epoch  # SwapEMAWeights may yet put back the weights that train
        else:
            self._begin(epoch)

    def _begin_waiting(self):
        if self._waiting is not None:
            epoch, self._waiting = self._waiting, None
            self._begin(epoch)

    def _looking_first(self, epoch):
        """Return a train function that looks at the model when the first step has shown what its inputs are."""
        model = self._model

        def function(*arguments):
            model.train_function = None  # of whoever trains the model after it was refused
            _backend.build(model, *arguments)
            self._look_at_model()
            self._begin(epoch)
            self._hooks.arm()
            made: Any = model.train_function
            return made(*arguments)

        return function

    def _begin(self, epoch):
        model, self._epoch, self._steps = self._model, epoch, 0
        if self._wrap is not None:
            if not model.optimizer.built and model.built:  # where a step is traced it takes many times as long
                with _backend.training_scope(model):
                    model.optimizer.build(model.trainable_variables)
            self._wrap.synchronize()  # here, not earlier: other callbacks restore weights in on_train_begin
            if self._began is None:
                self._began = epoch
                self._begin_first(epoch)
            self._advance(epoch)
        looks = self._schedule.decides_after(epoch) and self._explores
        self._measurement.begin(epoch, now=self._must_measure(epoch), once=looks)
        if self._stage is Stage.OVER:  # another callback took back that training is to stop
            model.stop_training = True
            self._logs = {**self._logs, "phase": 1.0}
            self._hooks.read_only(_backend.reading(model, self._spared.append, self._logs), self._look_at_last)
        elif self._stage is Stage.READS:
            self._hooks.read_only(self._convex_phase.train_function(self._logs), self._take, self._end_phase)
        else:
            self._train()

    def _begin_first(self, epoch):
        """Find out where in the two phases the first epoch of this fit is, now that its optimizer is known."""
        wrap = self._wrap
        checks.check_alone(wrap, self)
        self._unknown = UnknownStatistics(self._model)
        if wrap.solves and wrap.is_solved:  # in an earlier fit, whose result stays
            self._stage, self._measured = Stage.OVER, tuple(self._measurement.unknown())
        else:
            self._outcome.forget()
        self._schedule = self._make_schedule()
        self._schedule.resume(epoch, wrap.decision)
        say = self._announcer.insist if self._stage is Stage.OVER else self._announcer.say
        say(messages.begins, self._model, wrap, self._schedule, epoch, self._epochs)
        is_to_come = self._stage is not Stage.OVER and (self._schedule.switch is not None or not self._explores)
        if wrap.solves and is_to_come and _keras.has_own_train_step(self._model):
            self._announcer.say(messages.own_train_step)

    def _train(self):
        """Let the next steps train what belongs to the phase."""
        if self._statistics is None:
            self._statistics = values_of(statistics_of(self._model))
        stage = Stage.DESCENDS if not self._explores else Stage.EXPLORES
        if stage is not self._stage:
            descends = stage is Stage.DESCENDS
            self._hooks.install(self._structure.linear_parameters if descends else None)
            self._stage, self._frozen = stage, FrozenState(self._model) if descends else None

    def _decide(self, epoch, alignment):
        """Explore for longer where too little of the labels lies in the column space by then."""
        self._wrap.decision = self._schedule.decide(alignment)
        if self._wrap.decision == Decision.LATEST:
            self._announcer.say_later(messages.explores_on, alignment, epoch, self._schedule)

    def _advance(self, epoch):
        """Take the step of the schedule that is due before this epoch."""
        if self._explores and self._wrap.is_averaging and self._schedule.average_is_early(epoch):
            self._wrap.drop_average()  # of a fit that was stopped
        if self._explores and self._schedule.average_is_due(epoch) and not self._wrap.is_averaging:
            self._wrap.begin_average()
        solves = self._wrap.solves
        if self._explores and self._schedule.is_due(epoch):
            self._tried(self._solve_next if solves else self._descend_next, epoch)
        elif not self._explores and solves and self._stage is not Stage.OVER:
            self._tried(self._solve_next, epoch)
        elif not self._explores and self._is_automatic and self._measurement.report is not None:
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
        is_short, was_told = isinstance(error, Incomplete), self._schedule.has_tried_again
        if is_short and not self._model.stop_training and self._schedule.tries_again_after(self._epoch):
            warn(messages.reads_again(error))
            return
        self._schedule.postpone()
        if self._epoch + 1 < self._epochs:
            self._wrap.drop_average()  # a later one begins when it is due
        if not (is_short and was_told) or self._model.stop_training:
            warn(messages.goes_on(error))

    def _solve_next(self, epoch):
        self._convex_phase = ConvexPhase(self._wrap, self._structure, self._loss)
        if self._wrap.has_average:
            self._unknown.warn()
        elif (few := self._measurement.samples()) is not None:
            with contextlib.suppress(Exception):  # advice alone: the head is solved all the same
                warn_of_statistics(self._model, few, few, "Leave average as it is, and the end of fit renews them")
        self._convex_phase.begin(self._statistics)
        self._stage = Stage.READS
        if epoch != self._began:  # a fit that begins with it has said so
            self._announcer.say(messages.reads, self._convex_phase, epoch, self._epochs)

    def _descend_next(self, epoch):
        report = self._measurement.report
        self._descent.begin(report, needed=epoch != self._began)
        found = report, self._descent.certificate
        self._announcer.say(messages.descends, epoch, self._epochs, self._structure, self._loss, *found)

    def begin_step(self):
        """Let the next step be one of this fit."""
        self._begin_waiting()
        if self._structure is not None:
            self._hooks.arm()

    def _keep(self, logs):
        self._logs, self._steps = logs, self._steps + 1

    def _look_at_last(self):
        """Let the logs be those of the solved model; for a fit that goes on in spite of it."""
        self._model.stop_training = True
        batch = self._spared.pop()
        self._logs.update({} if "loss" in self._logs else evaluated_once(self._model, batch))

    def _take(self):
        if self._stage is Stage.READS:
            self._tried(self._convex_phase.take)
        if self._stage is Stage.READS and self._convex_phase.batches >= (self.params.get("steps") or math.inf):
            self._end_phase()

    def begin_validation(self):
        """Let validation see the model as this epoch leaves it."""
        self._validated = self._epoch
        self._end_phase()

    def _end_phase(self):
        if self._stage is Stage.READS:
            self._tried(self._end_of_reading)
        if self._stage is Stage.READS:
            phase, self._stage = self._convex_phase, Stage.SOLVED
            self._outcome.take(phase.result)
            phase.show(self._measurement.is_affordable(self._epoch, len(phase.train)))

    def _end_of_reading(self):
        most = (self._longest - 1) * self._model.steps_per_execution + 1  # batches of an epoch, at least
        runs_out = 2 * self._convex_phase.batches < most  # as what Keras has left of an exhausted generator
        unknown = math.inf if self._model.stop_training else most if runs_out else 0
        self._convex_phase.end(self.params.get("steps") or unknown)

    def end_epoch(self, epoch):
        """Return what is logged of an epoch, by name."""
        self._begin_waiting()  # of an epoch without steps
        self._end_phase()
        trained = self._stage in (Stage.EXPLORES, Stage.DESCENDS)
        found = self._measured_after(epoch) if trained else dict.fromkeys(self._measured, np.nan)
        if self._stage is Stage.SOLVED:
            found |= self._named_before(self._convex_phase.logs | self._measurement.moved())
            validates = self._validated in (None, epoch)  # None where there are no data for it, for all that is known
            end = self._convex_phase, self._outcome.result, epoch, self._epochs, validates
            self._announcer.say_later(messages.ends, *end)
            self._convex_phase, self._stage = None, Stage.OVER
        if self._stage is Stage.OVER:
            self._model.stop_training = True
        return {**found, "phase": float(not self._explores)}

    def _measured_after(self, epoch):
        """Return what is measured after an epoch that trained, and decide what depends on it."""
        found, self._longest = self._measurement.measure(epoch), max(self._longest, self._steps)
        if self._measurement.interval > 1 and not self._said_interval:
            self._said_interval = True
            at_switch = self._is_automatic and self._schedule.switch is not None
            how_often = self._measurement.interval, self._epochs, at_switch, self._measurement.reason
            self._announcer.say_later(messages.seldom_measured, *how_often)
        if self._explores and self._schedule.decides_after(epoch):
            self._decide(epoch, found.get("alignment", np.nan))
        self._measured = tuple(found)
        if self._frozen is not None:
            self._frozen.check()
        return found

    def _named_before(self, found):
        """Return what earlier epochs of this fit have too, so that a history has columns of one length."""
        known = {*self._logs, *self._measured}
        return {name: value for name, value in found.items() if not known or name in known}

    def end(self):
        """Leave the model and its optimizer as a fit without callbacks does."""
        self._announcer.say_all()
        if self._structure is None:
            return  # there was no step
        self._hooks.remove()
        if self._wrap is not None and self._explores and self._schedule.switch is not None:
            self._announcer.say(messages.ended_early, self._model, self._schedule, self._wrap)
        if self._wrap is not None and self._wrap.driver is self:
            self._wrap.driver = None  # or the model would keep the result, and its features
        if self._stage is Stage.OVER and self._outcome.was_replaced:
            warn(messages.other_weights(self._model))

    @property
    def _is_automatic(self):
        return self._wrap is not None and self._wrap.has_auto_rate

    def _must_measure(self, epoch):
        """Return whether the proven step waits for what this epoch measures: at the switch, and once after it."""
        is_due = self._schedule.is_due
        at_switch = is_due(epoch + 1) and not is_due(epoch - 1)
        after_it = not self._explores and self._measurement.report is None
        return self._is_automatic and (at_switch or after_it)
