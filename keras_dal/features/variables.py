"""Values of Keras variables: kept, and put back bit for bit."""

import contextlib

from keras_dal.features.tracing import to_numpy


def is_real(variable):
    """Whether a variable holds real numbers: seeds and counters move by themselves."""
    return "float" in str(variable.dtype)


def values_of(variables):
    """Return the values of variables as arrays of their own: JAX would share its buffers, and donate them."""
    return [to_numpy(variable).copy() for variable in variables]


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
