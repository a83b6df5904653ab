"""What is left of a fit when it is over: a result and certificates, which can be copied and pickled."""

import warnings
from typing import Any

from keras_dal.finishing.result import Result, is_written
from keras_dal.training import messages
from keras_dal.training.certificates import Certificates
from keras_dal.training.frozen import checksum
from keras_dal.training.schedule import SwitchSchedule
from keras_dal.training.stage import Stage
from keras_dal.training.wrap import find_wrap

_OF_A_FIT = (
    "_announcer",
    "_before",
    "_began",
    "_convex_phase",
    "_epoch",
    "_frozen",
    "_hooks",
    "_loss",
    "_measurement",
    "_rows",
    "_structure",
    "_validated",
    "_waiting",
)


class Remaining:
    """What a monitor keeps, apart from what belongs to the fit that runs: hooks, metrics and compiled functions."""

    model: Any
    certificates: Certificates
    _result: Result | None = None
    _solved: int | None = None
    _wrap: Any
    _stage: Stage
    _schedule: SwitchSchedule
    _spared: list[Any]
    _logs: dict[str, Any]
    _measured: tuple[str, ...]

    @property
    def result(self) -> Result | None:
        if self._result is not None and not self._is_as_solved(self._result):
            warnings.warn(messages.other_weights(self.model), stacklevel=2)
        return self._result

    def _is_as_solved(self, result):
        return checksum(result.model, result.structure) == self._solved and is_written(result)

    def _take_result(self, result):
        self._result, self._solved = result, checksum(result.model, result.structure)

    def _forget(self):
        """Leaves what belongs to a fit as it is before one."""
        vars(self).update(_before_a_fit())

    def __getstate__(self):
        return {**vars(self), **_before_a_fit(), "_wrap": None}

    def __setstate__(self, state):
        vars(self).update(state)
        self._wrap = find_wrap(getattr(self.model, "optimizer", None))  # that of the model, which was copied with it


def _before_a_fit():
    """Return what belongs to a fit, by name."""
    begun = {"_stage": Stage.BEGINS, "_schedule": SwitchSchedule.never(), "_said_interval": False}
    return {**dict.fromkeys(_OF_A_FIT), **begun, "_spared": [], "_logs": {}, "_measured": ()}
