"""Labels, weights and numbers of samples, checked."""

import math
from typing import Any

import numpy as np

from keras_dal._backend.arrays import MAX_BYTES

_TINY = np.finfo(np.float64).tiny / np.finfo(np.float64).eps  # of a mean weight: shares of less lose digits


def checked_weight(weight, size):
    """Return weights as float64 `(size,)`, ones for None; raises a ValueError where they cannot be weights."""
    if weight is None:
        return np.ones(size)
    weight = np.asarray(weight, np.float64).reshape(-1)
    if len(weight) != size or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(
            "Sample weights must be finite and not negative, one per sample. "
            f"Received: {len(weight)} weights for {size} samples, the smallest {weight.min(initial=np.inf)}"
        )
    with np.errstate(over="ignore"):
        total = np.sum(weight)
    if not np.isfinite(total) or 0 < total < len(weight) * _TINY:
        raise ValueError(
            "Sample weights must have a sum that float64 holds: divide them by a number, the largest say. "
            f"Received: {len(weight)} weights, the largest {weight.max()}"
        )
    return weight


def joined(parts) -> Any:
    """Return the arrays of all batches as one, None where there are none."""
    return None if parts[0] is None else np.concatenate(parts)


def positive(weights):
    """Return which of the weights `(n,)` are positive, and those, scaled so that sums over n keep their mean.

    Raises:
        ValueError: none is.
    """
    kept = weights > 0
    if not kept.any():
        raise ValueError("At least one sample must have a positive weight. Received: sample_weight of zeros only")
    return kept, weights[kept] * kept.mean()


def check_labels(labels, x):
    """Raise a ValueError where data x came without labels."""
    if labels is None:
        raise ValueError(
            "Labels are needed: pass y, or a dataset of (x, y). "
            f"Received: data of type {type(x).__name__} without labels"
        )


def check_count(name, count):
    """Raise a ValueError unless this is a positive integer."""
    if not (isinstance(count, (int, np.integer)) and not isinstance(count, bool) and count > 0):
        raise ValueError(f"{name} must be a positive integer. Received: {name}={count!r}")


def some_rows(size, most, seed=0):
    """Return indices of random samples, `most` at most, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(size)[:most])


def check_bytes(name, value):
    """Raise a ValueError unless this is a number of bytes."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or not value >= 0:
        raise ValueError(f"{name} must be a number of bytes, not negative. Received: {name}={value!r}")


def check_fits(num_samples, widths, max_bytes, instead=None):
    """Raise a MemoryError where a float64 array with so many rows of one of these widths is larger than the limit.

    Args:
        num_samples: how many rows.
        widths: numbers of features and of outputs.
        max_bytes: the limit.
        instead: what would do without logits in memory, where these alone count; None where features count, too.
    """
    needed = 8 * num_samples * (widths[1] if instead else max(widths))
    if needed > max_bytes:
        what = "Logits are needed in memory," if instead else "Features and logits are needed in memory,"
        raise MemoryError(
            f"{what} several arrays of {needed:,} bytes. Take fewer samples,{f' {instead},' if instead else ''} or "
            f"raise max_bytes= where the function has it. Received: at least {num_samples:,} samples of "
            f"{widths[0]:,} features and {widths[1]:,} outputs, max_bytes={max_bytes:,}"
        )


def kept_bytes(max_bytes):
    """Return the limit of what is done without beyond it: infinity says only that nothing is to be refused."""
    return MAX_BYTES if np.isinf(max_bytes) else max_bytes


def check_seed(seed):
    """Raise a ValueError unless generators of NumPy take this as their seed."""
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be an integer that is not negative. Received: {seed=}")


def seconds_of(time_limit):
    """Return a time limit in seconds, infinity for None; raises a ValueError unless it is positive."""
    if time_limit is None:
        return math.inf
    check_positive("time_limit", time_limit)
    return time_limit


def check_positive(name, value):
    """Raise a ValueError unless this is a positive number."""
    if not isinstance(value, (int, float, np.number)) or not value > 0:
        raise ValueError(f"{name} must be a positive number. Received: {name}={value!r}")
