"""AlignmentMonitor: measures the alignment condition in `fit`, and drives the two phases of `Wrap`."""

import math
import warnings
from typing import Any

import keras
import numpy as np

from keras_dal import _backend
from keras_dal.features.batches import as_arguments
from keras_dal.features.inputs import input_specs
from keras_dal.losses import loss_of
from keras_dal.models.structure import find_structure
from keras_dal.training import checks, messages
from keras_dal.training.announcer import Announcer
from keras_dal.training.certificates import Certificates
from keras_dal.training.convex_phase import ConvexPhase
from keras_dal.training.frozen import FrozenState, Snapshot
from keras_dal.training.gathering import evaluated_once
from keras_dal.training.inner import innermost
from keras_dal.training.kernel_change import check_readable, some_samples
from keras_dal.training.measurement import Measurement
from keras_dal.training.remains import Remaining
from keras_dal.training.schedule import Decision, SwitchSchedule
from keras_dal.training.stage import Stage
from keras_dal.training.step_size import step_size
from keras_dal.training.train_step import StepHooks
from keras_dal.training.wrap import find_wrap


class AlignmentMonitor(Remaining, keras.callbacks.Callback):
    """Measures how far the labels are in the column space of the Jacobian, each epoch, and drives `Wrap`.

    Every epoch it adds to `logs`: `alignment` in [0, 1], `alignment_rank`, `phase` (0 while exploring, 1 after the
    switch) and `kernel_change`, the relative change of the feature kernel since the start of this `fit`; the last value
    again, or NaN, where measuring would take more than a hundredth of training. Callbacks that read them (CSVLogger,
    EarlyStopping, TensorBoard) come after it in the list.

    With `Wrap(finish="solve")` the epoch of the switch trains nothing: it reads the data once, for the batch statistics
    of the averaged weights and for features; the head is solved on these, and training ends as `EarlyStopping` ends it.
    What puts other weights back when training ends, as `EarlyStopping(restore_best_weights=True)` does, undoes that,
    and who then asks for `result` is warned. Whatever fails there is said in a warning, the weights from before are put
    back, and exploration goes on.

    Without data it measures what flows through `fit`, with no second pass: the features are then those of the training
    step, of a model that still changes while they are summed up, and an estimate. With data it measures exactly, in
    inference mode; with `finish="descend"` it also certifies what is proved at the switch: see `certificates`. With a
    plain optimizer it only measures.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, also as a list, or a dataset of such batches, measured at the end of
            every epoch; None for what flows through `fit`.
        verbose: 1 to say in a few lines what was found, frozen and solved, 0 for warnings alone.

    Attributes:
        result: the `Result` of the solved head, None before; with a warning where the model has other weights by now.
        certificates: with data, the `Certificate` at `"switch"` (where the second phase descends) and at `"end"`, made
            when it is first asked for, of the weights the model has then.

    Raises:
        ValueError: when training begins, for a model without a linear head or a loss outside the theory.
    """

    def __init__(self, data: Any = None, *, verbose: int = 1) -> None:
        super().__init__()
        self.data, self.verbose = data, verbose
        self.certificates = Certificates(None, None, "head")
        self._wrap = None
        self._forget()

    @property
    def phase(self) -> str:
        """`"explore"` or `"exploit"`; always `"explore"` with a plain optimizer."""
        return self._wrap.phase if self._wrap is not None else "explore"

    def on_train_begin(self, logs=None):
        model = self.model
        check_readable(self.data)
        self._forget()
        self._rows = as_arguments(self.data)
        self._wrap = find_wrap(model.optimizer)
        if self._wrap is None or (self._result is not None and self._result.model is not model):
            self._result = None
        self._exploit = "head" if self._wrap is None else self._wrap.exploit
        self._announcer = Announcer(self.verbose)
        self.certificates = Certificates(model, self._rows, self._exploit)
        if self._wrap is not None:
            checks.check_same_model(self._wrap, model)
            checks.check_loss_scale(model.optimizer)
            self._wrap.driver = self  # of this fit: the last one
        else:
            self._announcer.say(model, messages.only_measures)
        if self.data is not None or (model.built and input_specs(model) is not None):
            self._look_at(model)

    def _look_at(self, model):
        """Find out what there is to measure and to solve; where `fit` builds the model, at its first step."""
        samples = None if self.data is None else some_samples(self._rows[0])
        self._structure = find_structure(model, samples, self._exploit)
        self._loss = loss_of(model, self._structure.activation)
        checks.check_second_phase(self._wrap, self._structure, self._loss, self.data)
        self._measurement = Measurement(model, self._structure, self._loss, self._rows, self.params["epochs"])
        driven = self._wrap if self._wrap is not None and self._wrap.explore is not None else None
        self._hooks = StepHooks(model, self._structure.layer, self._measurement.moments, driven, self._keep)

    def _make_schedule(self):
        if self.phase == "exploit":
            return SwitchSchedule.never()  # there is nothing left to switch
        average = self._wrap.average if self._wrap.solves else 0
        return SwitchSchedule(self._wrap.explore, average, self.params["epochs"])

    def on_epoch_begin(self, epoch, logs=None):
        model = self.model
        self._announcer.say_all()
        if self._structure is None:
            model.train_function = self._looking_first(model, epoch)
        elif self._wrap is not None and innermost(self._wrap.inner_optimizer).use_ema:
            self._waiting = epoch  # SwapEMAWeights may yet put back the weights that train
        else:
            self._begin_epoch(model, epoch)

    def _begin_waiting(self):
        if self._waiting is not None:
            epoch, self._waiting = self._waiting, None
            self._begin_epoch(self.model, epoch)

    def _looking_first(self, model, epoch):
        """Return a train function that looks at the model when the first step has shown what its inputs are."""

        def function(*arguments):
            model.train_function = None  # of whoever trains the model after it was refused
            _backend.build(model, *arguments)
            self._look_at(model)
            self._begin_epoch(model, epoch)
            self._hooks.arm()
            made: Any = model.train_function
            return made(*arguments)

        return function

    def _begin_epoch(self, model, epoch):
        self._epoch = epoch
        if self._wrap is not None:
            if not self._wrap.built and model.built:  # where a step is traced it takes many times as long
                with _backend.training_scope(model):
                    self._wrap.build(model.trainable_variables)
            self._wrap.synchronize()  # here, not earlier: other callbacks restore weights in on_train_begin
            if self._began is None:
                checks.check_alone(self._wrap, self)
                self._began = epoch
                if self._wrap.solves and self._wrap.is_solved:  # in an earlier fit, whose result stays
                    self._stage, self._measured = Stage.OVER, tuple(self._measurement.unknown())
                else:
                    self._result = None
                self._schedule = self._make_schedule()  # now that the phase is known
                self._schedule.resume(epoch, self._wrap.decision)
                say = self._announcer.insist if self._stage is Stage.OVER else self._announcer.say
                say(model, messages.begins, model, self._wrap, self._schedule, epoch, self.params["epochs"])
            self._advance(model, epoch)
        looks = self._schedule.decides_after(epoch) and self.phase == "explore"
        self._measurement.begin(epoch, now=self._must_measure(epoch), once=looks)
        if self._stage is Stage.OVER:  # another callback took back that training is to stop
            model.stop_training = True
            self._logs = {**self._logs, "phase": 1.0}
            self._hooks.read_only(_backend.reading(model, self._spared.append, self._logs), self._look_at_last)
        elif self._stage is Stage.READS:
            reading = self._convex_phase.train_function(model, self._logs)
            self._hooks.read_only(reading, self._take, self._end_phase)
        else:
            self._train()

    def _train(self):
        """Let the next steps train what belongs to the phase."""
        stage = Stage.DESCENDS if self.phase == "exploit" else Stage.EXPLORES
        if stage is not self._stage:
            descends = stage is Stage.DESCENDS
            self._hooks.install(self._structure.linear_parameters if descends else None)
            self._stage, self._frozen = stage, FrozenState(self.model) if descends else None

    def _decide(self, model, epoch, alignment):
        """Explore for longer where too little of the labels lies in the column space by then."""
        self._wrap.decision = self._schedule.decide(alignment)
        if self._wrap.decision == Decision.LATEST:
            self._announcer.say_later(model, messages.explores_on, alignment, epoch, self._schedule)

    def _advance(self, model, epoch):
        """Take the step of the schedule that is due before this epoch."""
        if self.phase == "explore" and self._wrap.is_averaging and self._schedule.average_is_early(epoch):
            self._wrap.drop_average()  # of a fit that was stopped
        if self.phase == "explore" and self._schedule.average_is_due(epoch) and not self._wrap.is_averaging:
            self._wrap.begin_average()
        solves = self._wrap.solves
        if self.phase == "explore" and self._schedule.is_due(epoch):
            self._tried(self._solve_next if solves else self._descend_next, model, epoch)
        elif self.phase == "exploit" and solves and self._stage is not Stage.OVER:
            self._tried(self._solve_next, model, epoch)
        elif self.phase == "exploit" and self._is_automatic and self._measurement.report is not None:
            self._take_exact_step()

    def _tried(self, step, *arguments):
        """Take a step that fails without ending the training."""
        try:
            step(*arguments)
        except Exception as error:  # of whatever kind: hours of training are at stake
            self._explore_on(error)

    def _explore_on(self, error):
        if self._convex_phase is not None:
            self._convex_phase.undo()
        elif self._before is not None:
            self._before.restore()
            self.certificates.pop("switch", None)
        self._convex_phase, self._stage = None, Stage.WAITS
        self._schedule.postpone()
        warnings.warn(messages.goes_on(error), stacklevel=2)

    def _take_exact_step(self):
        try:
            self._wrap.set_exploit_rate(self._step_size())  # now of constant features
        except Exception as error:  # as in `_tried`
            warnings.warn(f"The proven step stays what it was. Received: {messages.described(error)}", stacklevel=2)

    def _solve_next(self, model, epoch):
        self._convex_phase = ConvexPhase(model, self._wrap, self._structure, self._loss)
        self._convex_phase.begin(model)
        self._stage = Stage.READS
        if epoch != self._began:  # a fit that begins with it has said so
            self._announcer.say(model, messages.reads, self._convex_phase, epoch, self.params["epochs"])

    def _descend_next(self, model, epoch):
        self._before = Snapshot(model, self._wrap)
        if self.data is not None:
            self._wrap.freeze_gates(self._structure)  # the certificate is of the gates that will be
            self.certificates.renew("switch")
        rate = self._step_size(needed=epoch != self._began) if self._is_automatic else None
        self._wrap.switch(model, learning_rate=rate, structure=self._structure)
        self._before = None
        switch = messages.Switch(epoch, self.params["epochs"], self._structure, self._loss, self._measurement.report)
        self._announcer.say(model, messages.descends, model, switch, self.certificates.get("switch"))

    def on_train_batch_begin(self, batch, logs=None):
        self._begin_waiting()
        if self._structure is not None:
            self._hooks.arm()

    def _keep(self, logs):
        self._logs = logs

    def _look_at_last(self):
        """Let the logs be those of the solved model; for a fit that goes on in spite of it."""
        self.model.stop_training = True
        batch = self._spared.pop()
        self._logs.update({} if "loss" in self._logs else evaluated_once(self.model, batch))

    def _take(self):
        if self._stage is Stage.READS:
            self._tried(self._convex_phase.take)
        if self._stage is Stage.READS and self._convex_phase.batches >= (self.params["steps"] or math.inf):
            self._end_phase()

    def on_test_begin(self, logs=None):
        self._validated = self._epoch
        self._end_phase()  # so that validation is of the solved model

    def _end_phase(self):
        if self._stage is Stage.READS:
            self._tried(self._end_of_reading)
        if self._stage is Stage.READS:
            phase, self._stage = self._convex_phase, Stage.SOLVED
            self._take_result(phase.result)
            phase.show(self.model, self._measurement.is_affordable(self._epoch, len(phase.train)))

    def _end_of_reading(self):
        unknown = math.inf if self.model.stop_training else 0
        self._convex_phase.end(self.params["steps"] or unknown)

    def on_epoch_end(self, epoch, logs=None):
        self._begin_waiting()  # of an epoch without steps
        self._end_phase()
        trained = self._stage in (Stage.EXPLORES, Stage.DESCENDS)
        found = self._measured_after(epoch) if trained else dict.fromkeys(self._measured, np.nan)
        if self._stage is Stage.SOLVED:
            found |= self._named_before(self._convex_phase.logs | self._measurement.moved())
            validates = self._validated in (None, epoch)  # None where there are no data for it, for all that is known
            end = self._convex_phase, self._result, epoch, self.params["epochs"], validates
            self._announcer.say_later(self.model, messages.ends, *end)
            self._convex_phase, self._stage = None, Stage.OVER
        if self._stage is Stage.OVER:
            self.model.stop_training = True
        if logs is not None:
            logs.update(found, phase=float(self.phase == "exploit"))

    def _measured_after(self, epoch):
        """Return what is measured after an epoch that trained, and decide what depends on it."""
        found = self._measurement.measure(epoch)
        if self._measurement.interval > 1 and not self._said_interval:
            self._said_interval = True
            at_switch = self._is_automatic and self._schedule.switch is not None
            how_often = self._measurement.interval, self.params["epochs"], at_switch, self._measurement.reason
            self._announcer.say_later(self.model, messages.seldom_measured, *how_often)
        if self.phase == "explore" and self._schedule.decides_after(epoch):
            self._decide(self.model, epoch, found.get("alignment", np.nan))
        self._measured = tuple(found)
        if self._frozen is not None:
            self._frozen.check()
        return found

    def _named_before(self, found):
        """Return what earlier epochs of this fit have too, so that a history has columns of one length."""
        known = {*self._logs, *self._measured}
        return {name: value for name, value in found.items() if not known or name in known}

    def on_train_end(self, logs=None):
        self._announcer.say_all()
        if self._structure is not None:  # else there was no step
            self._end_fit()
        self._forget()

    def _end_fit(self):
        self._hooks.remove()
        if self._wrap is not None and self.phase == "explore" and self._schedule.switch is not None:
            self._announcer.say(self.model, messages.ended_early, self.model, self._schedule, self._wrap)
        if self._wrap is not None and self._wrap.driver is self:
            self._wrap.driver = None  # or the model would keep the result, and its features

    @property
    def _is_automatic(self):
        return self._wrap is not None and self._wrap.has_auto_rate

    def _must_measure(self, epoch):
        """Return whether the proven step waits for what this epoch measures: at the switch, and once after it."""
        is_due = self._schedule.is_due
        at_switch = is_due(epoch + 1) and not is_due(epoch - 1)
        after_it = self.phase == "exploit" and self._measurement.report is None
        return self._is_automatic and (at_switch or after_it)

    def _step_size(self, needed=False):
        if self.data is not None:
            self.certificates.at("switch")
        certificate = self.certificates.get("switch")
        return step_size(self.model, self._structure, self._loss, self._measurement.report, certificate, needed)
