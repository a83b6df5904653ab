"""How precise features are: what is decided of them, a rank say, must not rest on their rounding."""

import ml_dtypes
import numpy as np

from keras_dal import _keras
from keras_dal._backend import arrays
from keras_dal.features.tracing import HALVES, computed_dtype


def eps_of(dtype):
    """Return the spacing of floating-point numbers at one, for a dtype."""
    return float(ml_dtypes.finfo(dtype).eps)


def eps_of_features(structure, batches):
    """Return the spacing at one of the coarsest numbers that features went through.

    That is of what they are kept in or of what the head takes; and of half precision, where a layer of the model
    computes in it and every feature is such a number: a head in float32 then only casts them.

    Args:
        structure: a `Structure`.
        batches: an iterable of features `(k, m)`, at least one.
    """
    halves, coarsest = halves_in(structure.model), []
    for features in batches:
        coarsest.append(features.dtype)
        halves = [dtype for dtype in halves if _are_of(features, dtype)]
        if not halves:
            break
    return coarsest_eps(structure, [*coarsest, *halves])


def halves_in(model):
    """Return in which dtypes of half precision layers of a model compute."""
    used = {layer.compute_dtype for layer in _keras.sublayers(model)}
    return [dtype for dtype in HALVES if dtype in used]


def coarsest_eps(structure, dtypes):
    """Return the spacing at one of the coarsest of dtypes that features are numbers of, and of what the head takes."""
    return max(map(eps_of, [computed_dtype(structure.layer.compute_dtype), *dtypes]))


def blocks_of(features):
    """Return features block by block, which may be larger than memory."""
    return (features[rows] for rows in arrays.slices(len(features)))


def _are_of(features, dtype):
    with np.errstate(over="ignore"):
        return bool(np.all(features == features.astype(np.dtype(dtype)).astype(features.dtype)))
