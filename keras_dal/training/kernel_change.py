"""How far the representation has moved, measured on a few training samples."""

import keras
import numpy as np
from keras import ops, tree

from keras_dal.features.tracing import inference, tap
from keras_dal.solvers.least_squares import kernel_change

NUM_PROBES = 64  # samples: enough for the kernel's main directions, one small batch to evaluate


class KernelChange:
    r"""Relative change \( \|Z_t Z_t^\top - Z_0 Z_0^\top\|_F / \|Z_0 Z_0^\top\|_F \) of the kernel, in inference mode.

    The weights of the start are kept until the first call, which brings the samples.

    Args:
        model: the model.
        layer: its head layer, whose inputs are the features Z.
    """

    def __init__(self, model, layer):
        self._model, self._layer = model, layer
        self._initial_weights = self._weights()
        self._initial_features = None

    def measure(self, x):
        """Return the change since the start on samples `(k, ...)`, the same in every call."""
        if self._initial_features is None:
            self._initial_features = self._features(self._initial_weights, x)
            self._initial_weights = None
        return kernel_change(self._features(self._weights(), x), self._initial_features)

    def _weights(self):
        return [np.array(ops.convert_to_numpy(variable)) for variable in self._model.variables]

    def _features(self, weights, x):
        mapping = list(zip(self._model.variables, weights, strict=True))
        with tap(self._layer) as calls, keras.StatelessScope(state_mapping=mapping):
            inference(self._model, x)
        return ops.convert_to_numpy(calls[-1])


def first_samples(data):
    """Return the first few inputs of `(x, y)` arrays or of a dataset of such batches."""
    x = data[0] if isinstance(data, (tuple, list)) else next(iter(data))[0]
    return tree.map_structure(lambda part: part[:NUM_PROBES], x)
