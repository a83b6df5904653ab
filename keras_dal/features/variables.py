"""Values of Keras variables: kept, compared, and put back bit for bit."""

import contextlib
import math
import zlib

import numpy as np

from keras_dal.features.tracing import to_numpy


def is_real(variable):
    """Whether a variable holds real numbers: seeds and counters move by themselves."""
    return "float" in str(variable.dtype)


def values_of(variables):
    """Return the values of variables as arrays of their own: JAX would share its buffers, and donate them."""
    return [to_numpy(variable).copy() for variable in variables]


def num_entries(variables):
    """Return how many numbers variables hold."""
    return sum(math.prod(variable.shape) for variable in variables)


def are_equal(values, others):
    """Return whether arrays are the same ones, NaN counted as equal to itself."""
    return all(np.array_equal(one, other, equal_nan=True) for one, other in zip(values, others, strict=True))


def checksum(variables):
    """Return a number that changes with the values of those of some variables that hold real numbers."""
    total = 0
    for variable in variables:
        if is_real(variable):
            total = zlib.crc32(np.ascontiguousarray(to_numpy(variable)).tobytes(), total)
    return total


class Kept:
    """The values at some moment of those of some variables that hold real numbers.

    Args:
        named: pairs of a name and a variable.
    """

    def __init__(self, named):
        self._named = [(name, variable) for name, variable in named if is_real(variable)]
        self._values = values_of(variable for _, variable in self._named)

    def moved(self):
        """Return the names of the variables that have other values now."""
        pairs = zip(self._named, self._values, strict=True)
        return [name for (name, variable), value in pairs if not are_equal([to_numpy(variable)], [value])]


def assign_all(variables, values):
    """Assign values to variables: to all of them, even when it is interrupted."""
    for index, (variable, value) in enumerate(zip(variables, values, strict=True)):
        try:
            variable.assign(value)
        except KeyboardInterrupt:
            assign_all(variables[index:], values[index:])
            raise


@contextlib.contextmanager
def restored(variables):
    """Lets variables change inside the context; afterwards they have the bits they had before, on an exception too."""
    before = values_of(variables)
    try:
        yield
    finally:
        assign_all(variables, before)
