"""The learning rate of each phase, as other callbacks read and set it."""

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_dal import _keras
from keras_dal._backend.warning import warn
from keras_dal.features.tracing import to_numpy


class PhaseRates:
    """What `Wrap` has for a learning rate: the inner optimizer's, and after the switch the one that was asked for."""

    inner_optimizer: Any
    exploit_learning_rate: Any
    _linear_indices: tuple[int, ...] | None
    _said_rate = False

    @property
    def has_auto_rate(self) -> bool:
        """Whether the steps after the switch are those of plain gradient descent with 1/beta."""
        return self.exploit_learning_rate == "auto"

    @property
    def learning_rate(self) -> Any:
        if self._linear_indices is None or self.exploit_learning_rate is None:
            return self.inner_optimizer.learning_rate
        return self._current_exploit_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if self._linear_indices is None or self.exploit_learning_rate is None:
            self.inner_optimizer.learning_rate = value
        elif self.has_auto_rate or isinstance(self.exploit_learning_rate, LearningRateSchedule):
            self._keep(value)
        else:
            _keras.rate_variable(self).assign(value)

    def _keep(self, value):
        """Warn, once, instead of an exception, which would end a training that has come so far."""
        if self._said_rate or value == float(to_numpy(self._current_exploit_learning_rate())):
            return
        self._said_rate = True
        own = "the one for which convergence is proved" if self.has_auto_rate else "that of its schedule"
        warn(
            f"After the switch the step size is {own}, and a callback that sets another is not heard: give "
            f"exploit_learning_rate a float for rates of your own. Received: learning_rate={value}"
        )

    def set_exploit_rate(self, rate: float) -> None:
        """Let this be the step size from here on."""
        _keras.rate_variable(self).assign(rate)

    def _current_exploit_learning_rate(self):
        if isinstance(self.exploit_learning_rate, LearningRateSchedule):
            return self.exploit_learning_rate(_keras.step_count(self))
        return _keras.rate_variable(self)


def unscaled(optimizer, grads):
    """Return gradients without the scale that an optimizer gave the loss.

    Where they are not finite a dynamic scale is halved, as Keras does it, and they are zeros.
    """
    scale = optimizer.scale_loss(1.0)
    grads = [None if g is None else g / ops.cast(scale, g.dtype) for g in grads]
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return grads
    finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads if g is not None]))
    dynamic = optimizer.dynamic_scale.value
    optimizer.dynamic_scale.assign(ops.where(finite, dynamic, dynamic / 2))
    return [None if g is None else ops.where(finite, g, ops.zeros_like(g)) for g in grads]
