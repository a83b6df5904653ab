"""What the package does with a `Wrap`, and knows of it: users see of it what is documented there."""

from typing import Any

from keras_dal import _keras
from keras_dal.features.tracing import to_numpy
from keras_dal.models.solvable import check_trained
from keras_dal.training.averages import Averages
from keras_dal.training.driver import Driver
from keras_dal.training.inner import innermost
from keras_dal.training.progress import AutoDecision, PhaseProgress
from keras_dal.training.rates import Rates


class State:
    """The parts of a `Wrap`, and what moves several of them.

    Args:
        optimizer: the `Wrap`.

    Attributes:
        progress: its `PhaseProgress`.
        auto: its `AutoDecision`.
        averages: its `Averages`.
        rates: its `Rates`.
        driver: its `Driver`.
        statistics_before: values of `statistics_of` the model, from before the first step of the last `fit` that
            trained; None where there was none.
    """

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.progress = PhaseProgress(optimizer)
        self.auto = AutoDecision(optimizer)
        self.averages = Averages(optimizer)
        self.rates = Rates(optimizer, self.progress)
        self.driver = Driver(optimizer, self.progress)
        self.statistics_before: Any = None

    @property
    def solves(self):
        """Whether `AlignmentMonitor` solves for the linear parameters, instead of stepping towards them."""
        return self._optimizer.finish == "solve" and self._optimizer.explore is not None

    @property
    def was_switched_alone(self):
        """Whether somebody called `switch`, and nobody has solved since what would be solved in a loop of one's own."""
        waits = self._optimizer.explore is None and self._optimizer.finish == "solve"
        return waits and self.progress.exploits and not self.progress.is_solved

    @property
    def has_trained(self):
        """Whether the inner optimizer has taken a step."""
        return int(to_numpy(innermost(self._optimizer.inner_optimizer).iterations)) > 0

    @property
    def has_average(self):
        """Whether there is an average whose batch statistics are still to be found.

        Of averages of the inner optimizer that is known once the linear parameters are solved for.
        """
        is_known = self.averages.steps is None and self.progress.is_solved
        return self.averages.are_there and not is_known

    def began_with(self, epoch):
        """As `AutoDecision.began_with`."""
        return self.auto.began_with(epoch, self.has_trained)

    def switch(self, model, structure):
        """Let the average be the weights, and freeze everything but the linear parameters."""
        if not self._optimizer.built:
            self._optimizer.build(model.trainable_variables)
        self.progress.model = model
        check_trained([v for v in structure.linear_parameters if not self.was_built_for(v)])
        self.averages.adopt()
        self.freeze_gates(structure)
        self.rates.begin()
        self.progress.switch([_keras.index_of(self._optimizer, v) for v in structure.linear_parameters])
        self.averages.settle(but=self.progress.linear_indices)

    def mark_solved(self, renewed):
        """Let the second phase be over with the weights there are, which averages of the inner optimizer become.

        Args:
            renewed: whether batch statistics were made anew; saved with the optimizer's variables, as all of it.
        """
        self.averages.settle()
        self.averages.drop()
        self.progress.mark_solved(renewed)

    def was_built_for(self, variable):
        """Return whether a variable is one of those that the optimizer trains."""
        return _keras.index_of(self._optimizer, variable) is not None

    def freeze_gates(self, structure):
        """Fix learned gates where they are, plus noise, which has the same seed on every replica."""
        for layer in structure.gated_layers:
            layer.freeze_gates(noise=self._optimizer.noise, seed=0)


def state_of(wrap):
    """Return the `State` of a `Wrap`."""
    return wrap._state
