"""The parameters of a head: one after another in a flat theta, or apart."""

import math
from typing import Any

import numpy as np

from keras_dal._backend import arrays


def join(parts, dtype: Any = np.float64):
    """Return arrays as a flat theta of this dtype, or tensors in their own."""
    xp = arrays.of(parts[0])
    parts = [np.asarray(part, dtype) for part in parts] if xp is arrays.NUMPY else parts
    return xp.concatenate([xp.reshape(part, (-1,)) for part in parts])


def split(theta, like):
    """Return a flat theta, an array or a tensor, as views of it with the shapes of `like`, one after another."""
    xp, start, parts = arrays.of(theta), 0, []
    for each in like:
        stop = start + math.prod(each.shape)
        parts.append(xp.reshape(theta[start:stop], each.shape))
        start = stop
    return parts
