"""What is to stand still while only the linear parameters are trained, whether it did, and what there was before."""

import zlib

import numpy as np

from keras_dal.features.tracing import to_numpy


class FrozenState:
    """The state of a model, batch statistics above all, at the moment of the switch.

    A `train_step` of the user's own that calls layers one by one may still move it.

    Args:
        model: the model.
    """

    def __init__(self, model):
        self._state = [(v, to_numpy(v).copy()) for v in model.non_trainable_variables if _is_real(v)]

    def moved(self):
        """Return the paths of the variables that are no longer what they were."""
        return [v.path for v, value in self._state if not np.array_equal(to_numpy(v), value, equal_nan=True)]


class Snapshot:
    """The weights and the state of a model, to go back to."""

    def __init__(self, model):
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        self._values = [(variable, to_numpy(variable).copy()) for variable in variables]

    def restore(self):
        for variable, value in self._values:
            variable.assign(value)


def checksum(model, structure):
    """Return a number that changes with the weights of a model before its linear parameters, and with its state."""
    linear = {id(variable) for variable in structure.linear_parameters}
    total = 0
    for variable in model.weights:
        if id(variable) not in linear and _is_real(variable):
            total = zlib.crc32(np.ascontiguousarray(to_numpy(variable)).tobytes(), total)
    return total


def _is_real(variable):
    return "float" in str(variable.dtype)  # seeds and counters move by themselves
