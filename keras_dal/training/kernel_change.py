"""How far the representation has moved, measured on a few training samples."""

from typing import Any

import keras
from keras import tree

from keras_dal.features.tracing import inference, tap, to_numpy
from keras_dal.solvers.least_squares import kernel_change

NUM_PROBES = 64  # samples: enough for the kernel's main directions, one small batch to evaluate


class KernelChange:
    r"""Relative change \( \|Z_t Z_t^\top - Z_0 Z_0^\top\|_F / \|Z_0 Z_0^\top\|_F \) of the kernel, in inference mode.

    The weights of the start are kept until the first call, which brings the samples.

    Args:
        structure: the `Structure` of the model, which says what the features Z are.
    """

    def __init__(self, structure):
        self._structure = structure
        self._initial_weights: Any = [to_numpy(variable).copy() for variable in structure.model.variables]
        self._initial_features: Any = None

    def measure(self, x):
        """Return the change since the start on samples `(k, ...)`, the same in every call."""
        if self._initial_features is None:
            self._initial_features, self._initial_weights = self._features_at_start(x), None
        return kernel_change(to_numpy(self._structure.feature_function(x)), self._initial_features)

    def _features_at_start(self, x):
        model = self._structure.model
        mapping = list(zip(model.variables, self._initial_weights, strict=True))
        with tap(self._structure.layer) as calls, keras.StatelessScope(state_mapping=mapping):
            inference(model, x)
        return to_numpy(calls[-1])


def check_readable(data):
    """Raise a ValueError for data that can be read only once."""
    if data is not None and hasattr(data, "__next__"):
        raise ValueError(
            "The data of the monitor are read after every epoch, and an iterator can be read once: pass arrays (x, y) "
            f"or a dataset. Received: data of type {type(data).__name__}"
        )


def first_samples(data):
    """Return the first few inputs of `(x, y)` arrays or of a dataset of such batches."""
    x = data[0] if isinstance(data, (tuple, list)) else next(iter(data))[0]
    return tree.map_structure(lambda part: part[:NUM_PROBES], x)
