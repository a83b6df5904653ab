"""Which widths a curve has: those given, or doubled ones up to a share of the samples, as far as memory goes."""

import itertools

import numpy as np

from keras_dal.solvers.nested_columns import CHUNK

_SMALL = 1_000  # samples up to which the default widths go on until there are as many columns
_SHARE = 8  # of the samples, as columns, where the default widths end otherwise
_COLUMNS = 4_096  # the same, whatever the number of samples: n p^2 products are made
_LOGITS = 16  # arrays of the size of the logits, labels among them, that a fit and a descent hold
_THETAS = 32  # the same of that of the coefficients: L-BFGS keeps ten steps and the changes of its slope


def check_widths(widths):
    """Raise a ValueError unless these are ascending numbers of gates, or None."""
    given = (0,) if widths is None else tuple(widths) if np.iterable(widths) else ()
    whole = all(isinstance(width, (int, np.integer)) and width >= 0 for width in given)
    if not given or not whole or any(after <= before for before, after in itertools.pairwise(given)):
        raise ValueError(f"widths must be ascending integers, not negative. Received: widths={widths!r}")


def num_columns(width, num_features):
    """Return how many columns a head with so many gates has for each output."""
    return (width + 1) * (num_features + 1)


def num_bytes(width, num_samples, num_features, num_outputs):
    """Return the memory of columns, their Gram matrix and its two factors, what they are made of, and of the labels.

    Args:
        width: number of gates.
        num_samples, num_features, num_outputs: n, m and C.
    """
    columns = num_columns(width, num_features)
    made_of = width + 4 * (num_features + 1) + 5 * min(CHUNK, columns)
    of_outputs = num_outputs * (_LOGITS * num_samples + _THETAS * columns)
    return 8 * (columns * (num_samples + 3 * columns) + num_samples * made_of + of_outputs)


def affordable(widths, num_samples, num_features, num_outputs, max_bytes):
    """Return the widths as a tuple, the default ones for None.

    Args:
        widths: as `width_curve` takes them.
        num_samples, num_features, num_outputs: n, m and C.
        max_bytes: memory for the columns of the last of them.

    Raises:
        MemoryError: they need more.
    """
    sizes = num_samples, num_features, num_outputs
    given = tuple(int(width) for width in widths or _default(*sizes, max_bytes))
    needed = num_bytes(given[-1], *sizes)
    if needed > max_bytes:
        columns, fewer = (f"columns of {given[-1]:,} gates", "fewer gates or ") if given[-1] else ("features", "fewer ")
        raise MemoryError(
            f"The {columns} need {needed:,} bytes, with what is computed of them. Raise max_bytes, or pass {fewer}"
            f"samples. Received: max_bytes={max_bytes:,}, {num_samples:,} samples of {num_features:,} features and "
            f"{num_outputs:,} outputs"
        )
    return given


def _default(n, num_features, num_outputs, max_bytes):
    most = min(n if n <= _SMALL else n / _SHARE, _COLUMNS)
    widths = [0]
    while num_columns(widths[-1], num_features) < most:
        wider = max(1, 2 * widths[-1])
        too_many = n > _SMALL and num_columns(wider, num_features) > most
        if too_many or num_bytes(wider, n, num_features, num_outputs) > max_bytes:
            break
        widths.append(wider)
    return tuple(widths)
