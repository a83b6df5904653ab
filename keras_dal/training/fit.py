"""One call of `fit`: when it looks at its model, what is measured in it, and what its epochs log."""

from typing import Any

import numpy as np

from keras_dal import _backend
from keras_dal.losses import loss_of
from keras_dal.models.find_structure import find_structure
from keras_dal.models.understood import check_targets
from keras_dal.output.warning import described, warn
from keras_dal.training import checks, messages
from keras_dal.training.descent import Descent
from keras_dal.training.inner import innermost, parameters_of
from keras_dal.training.kernel_change import some_samples
from keras_dal.training.logs import ALIGNMENT, as_phase
from keras_dal.training.measurement import measurement_of
from keras_dal.training.phases import OnePhase, TwoPhases
from keras_dal.training.state import state_of
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
        max_bytes: as in `AlignmentMonitor`.

    Raises:
        ValueError: a model without a linear head, a loss outside the theory, or labels in `data` that it does not take.
    """

    def __init__(self, model, wrap, data, params, outcome, certificates, announcer, max_bytes):
        self._model, self._wrap, self._data, self.params = model, wrap, data, params
        self._outcome, self._certificates, self._announcer = outcome, certificates, announcer
        self._max_bytes = max_bytes
        self._logs: dict[str, Any] = {}  # of the last step that trained
        self._steps = 0  # calls of the train function in this epoch
        self._measured: tuple[str, ...] = ()  # names
        self._said_interval = False
        self._waiting: int | None = None  # an epoch whose first step is waited for
        self._epoch: int | None = None
        self._validated: int | None = None  # the epoch that was validated last
        self._phases: Any = None  # with all that a look at the model finds
        if wrap is not None:
            checks.check_same_model(wrap, model)
            checks.check_loss_scale(model.optimizer)
            state_of(wrap).driver.fit = self  # the last one that is made
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
        structure = find_structure(model, samples, parameters_of(wrap))
        loss = loss_of(model, structure.activation, num_outputs=structure.num_outputs)
        if self._data is not None:
            check_targets(loss, self._data, structure.num_outputs)
        checks.check_second_phase(wrap, structure, loss, self._data)
        self._measurement = measurement_of(structure, loss, self._data, self.params["epochs"], self._max_bytes)
        driver = state_of(wrap).driver if wrap is not None and wrap.explore is not None else None
        self._hooks = StepHooks(model, structure.layer, self._measurement.moments, driver, self._keep)
        if wrap is None:
            self._phases = OnePhase(self._hooks)
            return
        descent = Descent(wrap, structure, loss, self._certificates, self._data is not None)
        of_fit = self._measurement, self._hooks, descent, self._outcome, self._announcer, self.params
        self._phases = TwoPhases(wrap, structure, loss, *of_fit, self._max_bytes)

    def begin_epoch(self, epoch):
        """Prepare the steps of an epoch."""
        self._announcer.say_all()
        if self._wrap is not None and self._epoch is None:
            checks.check_alone(self._wrap, self)
        if self._phases is None:
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
            _build(model, arguments)
            self._look_at_model()
            self._begin(epoch)
            self._hooks.arm()
            made: Any = model.train_function
            return made(*arguments)

        return function

    def _begin(self, epoch):
        phases, is_first = self._phases, self._epoch is None
        self._epoch, self._steps = epoch, 0
        phases.begin(epoch)
        if phases.is_over and is_first:  # since an earlier fit
            self._measured = tuple(self._measurement.unknown())
        self._measurement.begin(epoch, now=phases.waits_for(epoch), once=phases.looks_after(epoch))
        phases.arrange(self._logs)

    def begin_step(self):
        """Let the next step be one of this fit."""
        self._begin_waiting()
        if self._phases is not None:
            self._hooks.arm()

    def _keep(self, logs):
        self._logs, self._steps = logs, self._steps + 1

    def begin_validation(self):
        """Let validation see the model as this epoch leaves it."""
        self._validated = self._epoch
        if self._phases is not None:
            self._phases.end_reading()

    def end_epoch(self, epoch):
        """Return what is logged of an epoch, by name."""
        self._begin_waiting()  # of an epoch without steps
        if self._phases is None:
            return as_phase(self._wrap is None or self._wrap.phase == "explore")
        return self._found(epoch) | as_phase(self._phases.explored)

    def _found(self, epoch):
        phases = self._phases
        phases.end_reading()
        found = self._measured_after(epoch) if phases.trains else dict.fromkeys(self._measured, np.nan)
        if phases.solved is not None:
            found |= self._named_before(phases.solved.logs | self._measurement.moved())
        phases.end_epoch(epoch, self._validated in (None, epoch))  # None where there are no data, for all that is known
        return found

    def _measured_after(self, epoch):
        """Return what is measured after an epoch that trained."""
        found = self._measurement.measure(epoch)
        if self._measurement.interval > 1 and not self._said_interval:
            self._said_interval = True
            how_often = self._measurement.interval, self.params["epochs"], self._phases.asks_at_switch
            self._announcer.say_later(messages.seldom_measured, *how_often, self._measurement.reason)
        self._phases.take_measured(epoch, found.get(ALIGNMENT, np.nan), self._steps)
        self._measured = tuple(found)
        return found

    def _named_before(self, found):
        """Return what earlier epochs of this fit have too, so that a history has columns of one length."""
        known = {*self._logs, *self._measured}
        return {name: value for name, value in found.items() if not known or name in known}

    def drop(self):
        """Let go of what was read, where there will be no end."""
        if self._phases is not None:
            self._phases.drop()

    def end(self):
        """Leave the model and its optimizer as a fit without callbacks does."""
        self._announcer.say_all()
        if self._wrap is not None and state_of(self._wrap).driver.fit is self:
            state_of(self._wrap).driver.fit = None
        if self._phases is None:  # there was no step
            self._model.train_function = None
            return
        self._hooks.remove()
        self._phases.end()

    def check_weights(self):
        """Warn where a callback put other weights in the place of those that were solved, when all callbacks ended."""
        if self._phases is not None and self._phases.is_over and self._outcome.was_replaced:
            warn(messages.put_back(self._model))


def _build(model, arguments):
    """Build a model for the first batch of a fit, which is what its `call` takes unless its steps prepare inputs."""
    try:
        _backend.build(model, *arguments)
    except Exception as error:
        raise ValueError(
            "The model is not built, and cannot be from what fit brings. Call it once before fit, on a few inputs as "
            f"its train_step hands them to it: model(few). Received: model {model.name!r}, {described(error)}"
        ) from error
