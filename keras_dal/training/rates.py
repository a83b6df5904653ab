"""The learning rate of each phase, as other callbacks read and set it."""

from keras.optimizers.schedules import LearningRateSchedule

from keras_dal import _keras
from keras_dal.features.tracing import to_numpy
from keras_dal.output.warning import warn


class Rates:
    """What a `Wrap` has for a learning rate: the inner optimizer's, and after the switch the one that was asked for.

    Args:
        optimizer: the `Wrap`.
        progress: its `PhaseProgress`.
    """

    def __init__(self, optimizer, progress):
        self._optimizer, self._progress = optimizer, progress
        self._said = False

    @property
    def are_proven(self):
        """Whether the steps after the switch are those of plain gradient descent with 1/beta."""
        return self._asked_for == "auto"

    @property
    def _asked_for(self):
        return self._optimizer.exploit_learning_rate

    @property
    def _is_inner(self):
        return not self._progress.exploits or self._asked_for is None

    def begin(self):
        """Let the second phase begin: its schedule counts from here, and what was set in an earlier one is over."""
        self._said = False
        _keras.step_count(self._optimizer).assign(0)
        if isinstance(self._asked_for, float):
            self.take(self._asked_for)

    def take(self, rate):
        """Let this be the step size from here on."""
        _keras.rate_variable(self._optimizer).assign(rate)

    def get(self):
        """Return the learning rate now, a number, a variable or a tensor."""
        return self._optimizer.inner_optimizer.learning_rate if self._is_inner else self.after_switch()

    def set(self, value):
        """Set it, for callbacks."""
        if self._is_inner:
            self._optimizer.inner_optimizer.learning_rate = value
        elif self.are_proven or isinstance(self._asked_for, LearningRateSchedule):
            self._keep(value)
        else:
            self.take(value)

    def _keep(self, value):
        """Warn, once, instead of an exception, which would end a training that has come so far."""
        if self._said or value == float(to_numpy(self.after_switch())):
            return
        self._said = True
        own = "the one for which convergence is proved" if self.are_proven else "that of its schedule"
        warn(
            f"After the switch the step size is {own}, and a callback that sets another is not heard: give "
            f"exploit_learning_rate a float for rates of your own. Received: learning_rate={value}"
        )

    def after_switch(self):
        """Return that of the second phase, where one was asked for."""
        if isinstance(self._asked_for, LearningRateSchedule):
            return self._asked_for(_keras.step_count(self._optimizer))
        return _keras.rate_variable(self._optimizer)
