"""How far an optimizer has come: one number for each variable that it trains, in a variable of its own."""

import enum
import weakref
from typing import Any

import numpy as np
from keras import ops

from keras_dal import _backend, _keras
from keras_dal.features.tracing import to_numpy
from keras_dal.output.warning import warn
from keras_dal.training.schedule import Decision
from keras_dal.training.train_step import is_hooked

_UNKNOWN = -1  # for the first epoch


class Progress(enum.IntEnum):
    """Of linear variables: each leads to the next, and `restart` back to the first. Others stay at 0."""

    EXPLORING = 0
    SWITCHED = 1
    SOLVED = 2
    RENEWED = 3  # solved, with batch statistics made anew


class PhaseProgress:
    """The phase of an optimizer: saved and restored with its variables.

    Args:
        optimizer: the `Wrap`.

    Attributes:
        linear_indices: of the variables that are trained, None while all are: a traced step cannot read the variable.
    """

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self._numbers: Any = None
        self._model: Any = None  # a weak reference
        self._is_at_rest = False  # solved, and no step has been traced since
        self._has_left = False  # where it was solved
        self.linear_indices: tuple[int, ...] | None = None

    def build(self, count):
        """Make the variable, for so many that are trained."""
        options = {"shape": (count,), "dtype": "int32", "aggregation": "only_first_replica"}
        self._numbers = self._optimizer.add_variable(**options, name="progress_of_variables")

    @property
    def exploits(self):
        return self.linear_indices is not None

    @property
    def is_solved(self):
        """Whether the linear parameters were solved for since the switch."""
        return self._reached() >= Progress.SOLVED

    @property
    def has_renewed_statistics(self):
        """Whether the head is solved, for batch statistics that were made anew."""
        return self._reached() == Progress.RENEWED

    def _reached(self):
        return Progress(int(np.max(to_numpy(self._numbers)))) if self.exploits else Progress.EXPLORING

    def in_step(self):
        """Return a tensor that is 0 while exploring, whenever a step was traced."""
        return ops.max(self._numbers.value)

    def is_linear(self, variable):
        """Return whether a variable is one of those that are trained in the second phase."""
        return _keras.index_of(self._optimizer, variable) in (self.linear_indices or ())

    def check_is_of(self, structure):
        """Raise a ValueError where, in the second phase, the linear parameters are those of another model."""
        if set(self.linear_indices or ()) != {_keras.index_of(self._optimizer, v) for v in structure.linear_parameters}:
            raise ValueError(
                "The optimizer was switched for another model, and what it averages are the weights of all that it "
                "trains: give each model a Wrap of its own. Received: the second phase of other variables than "
                f"{[variable.path for variable in structure.linear_parameters]}"
            )

    def switch(self, indices):
        """Let the second phase begin, of the variables with these indices."""
        is_linear = np.isin(np.arange(len(_keras.optimized(self._optimizer))), indices)
        self._assign(np.where(is_linear, Progress.SWITCHED, Progress.EXPLORING))

    def explore_again(self):
        """Let the first phase begin again."""
        if self.exploits:
            self._assign(np.zeros(self._numbers.shape))

    def _assign(self, numbers):
        self._numbers.assign(numbers.astype("int32"))
        self.read()

    def mark_solved(self, renewed):
        """Let the second phase be over; `renewed` says whether batch statistics were made anew."""
        progress = Progress.RENEWED if renewed else Progress.SOLVED
        before = to_numpy(self._numbers)
        self._numbers.assign(np.where(before, progress, Progress.EXPLORING).astype("int32"))
        self._is_at_rest, self._has_left = True, False
        self._trace_anew()

    def leave_solution(self):
        """Say, once, that steps move the linear parameters that were solved for."""
        if self._is_at_rest:
            self._is_at_rest, self._has_left = False, True
            warn(
                "The last layer was solved, and steps move it from there: what was proved is no longer so of the "
                "model. To train everything on, call restart() of the Wrap, or compile with a new optimizer. Received: "
                "a step in the second phase"
            )

    def read(self):
        """Read the phase from the variable, after it was restored from outside."""
        before, linear = self.linear_indices, np.flatnonzero(to_numpy(self._numbers))
        self.linear_indices = tuple(linear.tolist()) or None
        self._is_at_rest = self.is_solved and not self._has_left
        if self.linear_indices != before:
            self._trace_anew()

    @property
    def model(self):
        """The model that is trained, None where that is not known."""
        return self._model and self._model()

    @model.setter
    def model(self, model):
        self._model = weakref.ref(model)

    def note_model(self):
        """Find the model whose step this is, which the second phase traces anew; part of the training step."""
        if self.model is None and (model := _keras.model_in_step(self._optimizer)) is not None:
            self.model = model

    def _trace_anew(self):
        """Let the model make its train function anew: the old one is that of the other phase."""
        model = self.model
        if model is not None and model.train_function is not None and not is_hooked(model.train_function):
            _backend.make_train_function(model)


class AutoDecision:
    """What `explore="auto"` keeps from one fit to the next, in variables of an optimizer.

    Args:
        optimizer: the `Wrap`.
    """

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self._decision: Any = None
        self._first_epoch: Any = None  # that the optimizer trained

    def build(self):
        if isinstance(self._optimizer.explore, str):
            options = {"shape": (), "dtype": "int32", "aggregation": "only_first_replica"}
            self._decision = self._optimizer.add_variable(**options, name="decision")
            self._first_epoch = self._optimizer.add_variable(**options, name="first_epoch")

    @property
    def value(self):
        """The `Decision`."""
        return Decision.NONE if self._decision is None else Decision(int(to_numpy(self._decision)))

    @value.setter
    def value(self, value):
        if self._decision is not None:
            self._decision.assign(value)

    def forget(self):
        """Let nothing be decided, and the next fit be the first."""
        if self._first_epoch is not None:
            self._decision.assign(Decision.NONE)
            self._first_epoch.assign(_UNKNOWN)

    def began_with(self, epoch, has_trained):
        """Return the epoch from which shares of the epochs count, for a fit that begins with this one.

        With `"auto"` that is the first one that the optimizer trained, or trains since `forget`, and otherwise 0.
        """
        if self._first_epoch is None:
            return 0
        if not has_trained:
            self.forget()
        first = int(to_numpy(self._first_epoch))
        if first == _UNKNOWN or first > epoch:  # of an earlier fit
            self._first_epoch.assign(epoch if first == _UNKNOWN else 0)
        return int(to_numpy(self._first_epoch))
