"""What rounding may do on the way from features to outputs, by the dtypes that these are computed in."""

from typing import NamedTuple

import numpy as np

from keras_dal.features.tracing import computed_dtype


class Rounding(NamedTuple):
    """What rounding may do to numbers of a dtype.

    Attributes:
        logits: of size one. Float32 leaves room for GPUs, which multiply in TF32.
        feature: beside the largest of a sample.
        near_zero, share: to probabilities, near zero and as a share of them.
    """

    logits: float
    feature: float
    near_zero: float
    share: float


_OF = {
    "float64": Rounding(1e-9, 1e-11, 1e-9, 1e-9),
    "float32": Rounding(1e-3, 1e-5, 3e-7, 1e-5),
    "float16": Rounding(1e-2, 1e-2, 4e-3, 4e-3),
    "bfloat16": Rounding(6e-2, 6e-2, 3e-2, 3e-2),
}
_NONE = Rounding(0.0, 0.0, 0.0, 0.0)  # of integers


def of_dtype(dtype):
    """Return the `Rounding` of a dtype, none of one that is not a float."""
    return _OF.get(str(dtype), _NONE)


def of_computed(dtype):
    """Return that of what a layer or variable of a dtype computes in."""
    return of_dtype(computed_dtype(dtype))


def of_features(features):
    """Return what rounding may do to each feature, `(m,)`: a large one does not hide what becomes of the others."""
    size, rounding = np.abs(features).max(axis=0).astype(np.float64), of_dtype(features.dtype)
    return rounding.logits * size + rounding.feature * size.max()


def of_probabilities(form, outputs):
    """Return what rounding may do to probabilities that arrive in a dtype, or in a finer one than their layer has."""
    both = of_dtype(outputs.dtype), of_computed(form.output_layer.compute_dtype)
    return np.max([(each.near_zero, each.share) for each in both], axis=0)


def of_logits(form, features, outputs):
    """Return the most that rounding may do on the way from features to outputs; some arrive in a finer dtype."""
    layers = (of_computed(layer.compute_dtype) for layer in (form.layer, form.output_layer))
    return max(each.logits for each in (of_dtype(features.dtype), of_dtype(outputs.dtype), *layers))
