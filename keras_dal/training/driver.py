"""Who has promised to switch an optimizer in time."""

import weakref
from typing import Any

from keras_dal import _keras
from keras_dal.features.tracing import replaced
from keras_dal.training.inner import path_to


class Driver:
    """Without one, steps of a `Wrap` are refused: nothing would ever switch it.

    Args:
        optimizer: the `Wrap`.
        progress: its `PhaseProgress`.
    """

    def __init__(self, optimizer, progress):
        self._optimizer, self._progress = optimizer, progress
        self._fit: Any = None  # a weak reference: what a fit holds would outlive it
        self.is_there = optimizer.explore is None

    @property
    def fit(self):
        """The `Fit` that drives it, or did so last."""
        return self._fit and self._fit()

    @fit.setter
    def fit(self, fit):
        self._fit = None if fit is None else weakref.ref(fit)

    def at_work(self):
        """Return a context: while it is open, whoever opened it promises to switch in time."""
        return replaced(self, "is_there", True)

    def check(self, model):
        """Raise a RuntimeError where a model is trained with the optimizer, and nobody has promised."""
        is_used = any(each is self._optimizer for each in _keras.optimizers(model.optimizer))
        if is_used and not self.is_there:
            raise self.error()

    def error(self):
        """Return what is wrong with a step that nobody drives, as a RuntimeError."""
        if self._progress.exploits:
            return RuntimeError(
                "This optimizer is in its second phase, which AlignmentMonitor keeps constant: add keras_dal."
                f"AlignmentMonitor() to the callbacks of fit, or train everything again: compile the model with a new "
                f"optimizer, or call {self._how_to_restart()} and keep the monitor. Received: phase='exploit'"
            )
        return RuntimeError(
            "Nothing would ever switch this optimizer to its second phase. Add keras_dal.AlignmentMonitor() to "
            "the callbacks of fit, or, in a loop of your own, use Wrap(..., explore=None) and end with keras_dal."
            f"finish. Received: explore={self._optimizer.explore!r}"
        )

    def _how_to_restart(self):
        model = self._progress.model  # unknown to an optimizer that was loaded after the switch
        either = "" if model is not None else " (of the Wrap, which may be inside a loss scale)"
        return f"{path_to(self._optimizer, model)}.restart(){either}"
