"""How far an optimizer has come: what `Wrap` keeps in its variables, one number for each variable that it trains."""

import enum
from typing import Any

import numpy as np

from keras_dal import _keras
from keras_dal._backend.warning import warn
from keras_dal.features.tracing import to_numpy
from keras_dal.training.inner import innermost
from keras_dal.training.schedule import Decision
from keras_dal.training.train_step import is_hooked


class Progress(enum.IntEnum):
    """Of linear variables: from one to the next by `switch` and `mark_solved`, back by `restart`. Others stay at 0."""

    EXPLORING = 0
    SWITCHED = 1
    SOLVED = 2
    RENEWED = 3  # solved, with batch statistics made anew


class Progressing:
    """What `Wrap` knows of its progress: saved and restored with the optimizer's variables."""

    built: bool
    explore: Any
    add_variable: Any
    inner_optimizer: Any
    settle_averages: Any
    drop_average: Any
    _model: Any = None  # a weak reference, once it has been switched
    _progress_of_variables: Any
    _decision: Any = None  # of explore="auto"
    _first_epoch: Any = None  # that this optimizer trained, with explore="auto"
    _is_at_rest = False  # solved, and no step has been traced since
    _has_left = False  # where it was solved
    _linear_indices: tuple[int, ...] | None = None  # where that is not EXPLORING: a traced step cannot read it

    @property
    def phase(self) -> str:
        """`"explore"` or `"exploit"`; saved and restored with the optimizer's variables."""
        return "explore" if self._linear_indices is None else "exploit"

    @property
    def progress(self) -> Any:
        """The `Progress`, once `synchronize` has read the optimizer's variables."""
        exploits = self._linear_indices is not None
        return Progress(int(np.max(to_numpy(self._progress_of_variables)))) if exploits else Progress.EXPLORING

    @property
    def is_solved(self) -> bool:
        """Whether the linear parameters were solved for since the switch."""
        return self.progress >= Progress.SOLVED

    @property
    def has_renewed_statistics(self) -> bool:
        """Whether the head is solved, for batch statistics that were made anew."""
        return self.progress == Progress.RENEWED

    def check_is_of(self, structure: Any) -> None:
        """Raise a ValueError where, in the second phase, the linear parameters are those of another model."""
        if set(self._linear_indices or ()) != {_keras.index_of(self, v) for v in structure.linear_parameters}:
            raise ValueError(
                "The optimizer was switched for another model, and what it averages are the weights of all that it "
                "trains: give each model a Wrap of its own. Received: the second phase of other variables than "
                f"{[variable.path for variable in structure.linear_parameters]}"
            )

    def mark_solved(self, renewed: bool) -> None:
        """Let the second phase be over with the weights there are, which averages of the inner optimizer become.

        Args:
            renewed: whether batch statistics were made anew; saved with the optimizer's variables, as all of it.
        """
        self.settle_averages()
        self.drop_average()
        progress = Progress.RENEWED if renewed else Progress.SOLVED
        before = to_numpy(self._progress_of_variables)
        self._progress_of_variables.assign(np.where(before, progress, Progress.EXPLORING).astype("int32"))
        self._is_at_rest, self._has_left = True, False
        self._trace_anew()

    def leave_solution(self) -> None:
        """Say, once, that steps move the linear parameters that were solved for."""
        if self._is_at_rest:
            self._is_at_rest, self._has_left = False, True
            warn(
                "The last layer was solved, and steps move it from there: what was proved is no longer so of the "
                "model. To train everything on, call restart() of the Wrap, or compile with a new optimizer. Received: "
                "a step in the second phase"
            )

    def synchronize(self) -> None:
        """Reads the phase from the optimizer's variables, after they were restored from outside."""
        if self.built:
            before, linear = self._linear_indices, np.flatnonzero(to_numpy(self._progress_of_variables))
            self._linear_indices = tuple(linear.tolist()) or None
            self._is_at_rest = self.is_solved and not self._has_left
            if self._linear_indices != before:
                self._trace_anew()

    def _trace_anew(self):
        """Let the model that was switched make its train function anew: the old one is that of the other phase."""
        model = self._model and self._model()
        if model is not None and model.train_function is not None and not is_hooked(model.train_function):
            model.train_function = None

    def _add_schedule(self):
        if isinstance(self.explore, str):
            options = {"shape": (), "dtype": "int32", "aggregation": "only_first_replica"}
            self._decision = self.add_variable(**options, name="decision")
            self._first_epoch = self.add_variable(**options, name="first_epoch")

    @property
    def decision(self) -> Decision:
        """What `explore="auto"` has decided."""
        return Decision.NONE if self._decision is None else Decision(int(to_numpy(self._decision)))

    @decision.setter
    def decision(self, value: Decision) -> None:
        if self._decision is not None:
            self._decision.assign(value)

    @property
    def has_trained(self) -> bool:
        """Whether the inner optimizer has taken a step."""
        return int(to_numpy(innermost(self.inner_optimizer).iterations)) > 0

    def began_with(self, epoch: int) -> int:
        """Return the epoch from which shares of the epochs count, for a fit that begins with this one.

        With `"auto"` that is the first one that the optimizer trained, and otherwise 0.
        """
        if self._first_epoch is None:
            return 0
        if not self.has_trained:
            self._decision.assign(Decision.NONE)
            self._first_epoch.assign(epoch)
        elif int(to_numpy(self._first_epoch)) > epoch:  # of an earlier fit
            self._first_epoch.assign(0)
        return int(to_numpy(self._first_epoch))
