"""How precise features are: what is decided of them, a rank say, must not rest on their rounding."""

import ml_dtypes
import numpy as np

from keras_dal import _keras
from keras_dal.features.tracing import HALVES, computed_dtype

_BLOCK = 4096  # samples that are looked at together


def precision(dtype):
    """Return the spacing of floating-point numbers at one, for a dtype."""
    return float(ml_dtypes.finfo(dtype).eps)


def spacing_of(structure, batches):
    """Return the spacing at one of the coarsest numbers that features went through.

    That is of what they are kept in or of what the head takes; and of half precision, where a layer of the model
    computes in it and every feature is such a number: a head in float32 then only casts them.

    Args:
        structure: a `Structure`.
        batches: an iterable of features `(k, m)`, at least one.
    """
    used = {layer.compute_dtype for layer in _keras.sublayers(structure.model)}
    halves = [dtype for dtype in HALVES if dtype in used]
    spacing = precision(computed_dtype(structure.layer.compute_dtype))
    for features in batches:
        spacing = max(spacing, precision(features.dtype))
        halves = [dtype for dtype in halves if _are_of(features, dtype)]
        if not halves:
            return spacing
    return max([spacing, *map(precision, halves)])


def blocks_of(features):
    """Yield features block by block, which may be larger than memory."""
    yield from (features[start : start + _BLOCK] for start in range(0, len(features), _BLOCK))


def _are_of(features, dtype):
    with np.errstate(over="ignore"):
        return bool(np.all(features == features.astype(np.dtype(dtype)).astype(features.dtype)))
