"""Which variables of an optimizer are in a file, where an earlier state of the package saved it."""

import numpy as np

_FIRST = 3  # of its own that it always had: steps, step size, and a number for each variable that is trained


def order_in(store, own, inner):
    """Return the variables that a file holds, in its order, or None where that is not known.

    At first no weights were averaged, and a linear variable had the number 1, which is `Progress.SWITCHED`.

    Args:
        store: arrays by their places as strings, as Keras saves those of an optimizer.
        own: the variables of the `Wrap` itself.
        inner: those of the optimizer inside.
    """
    early = [*own[:_FIRST], *inner]
    if len(store.keys()) == len(own) + len(inner):
        return [*own, *inner]
    if len(store.keys()) != len(early):
        return None
    shapes = [np.shape(store[str(place)]) for place in range(len(early))]
    return early if shapes == [tuple(variable.shape) for variable in early] else None
