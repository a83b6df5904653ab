"""How far the representation has moved, measured on a few training samples."""

from typing import Any

import numpy as np
from scipy import linalg

from keras_dal.features.batches import first_inputs
from keras_dal.features.inputs import spread
from keras_dal.features.tracing import to_numpy
from keras_dal.features.variables import assign_all, restored, values_of

NUM_PROBES = 64  # samples, at most: enough for the kernel's main directions, one small batch to evaluate


class KernelChange:
    r"""Relative change \( \|Z_t Z_t^\top - Z_0 Z_0^\top\|_F / \|Z_0 Z_0^\top\|_F \) of the kernel, in inference mode.

    The weights of the start are kept until the first call, which brings the samples.

    Args:
        structure: the `Structure` of the model, which says what the features Z are.
    """

    def __init__(self, structure):
        self._structure = structure
        self._initial_weights: Any = values_of(structure.model.variables)
        self._initial_features: Any = None

    def measure(self, x):
        """Return the change since the start on samples `(k, ...)`, the same in every call."""
        if self._initial_features is None:
            self._initial_features, self._initial_weights = self._features_at_start(x), None
        return kernel_change(self._features(x), self._initial_features)

    def _features_at_start(self, x):
        variables = self._structure.model.variables
        with restored(variables):
            assign_all(variables, self._initial_weights)
            return self._features(x).copy()

    def _features(self, x):
        return to_numpy(self._structure.feature_function(x)[0])


def kernel_change(features_now, features_start):
    r"""Return the relative change \( \|Z_t Z_t^\top - Z_0 Z_0^\top\|_F / \|Z_0 Z_0^\top\|_F \).

    With D = Z_t - Z_0 and S = Z_t + Z_0 the difference is (D S' + S D') / 2, so that small changes do not cancel; its
    norm is found from m x m matrices where there are more samples than features.

    Args:
        features_now: Z_t, shape `(k, m)`.
        features_start: Z_0, shape `(k, m)`.
    """
    now, start = np.asarray(features_now, np.float64), np.asarray(features_start, np.float64)
    if now.shape != start.shape:
        raise ValueError(
            "The features must be those of the same samples and layer. "
            f"Received: features of shapes {now.shape} and {start.shape}"
        )
    scale = max(np.max(np.abs(now), initial=0.0), np.max(np.abs(start), initial=0.0)) or 1.0
    now, start = now / scale, start / scale  # whose fourth powers float64 holds
    difference, total = now - start, now + start
    if len(now) <= now.shape[1]:
        # not by BLAS, whose threads go on spinning for a while and slow down the next training steps
        half = np.einsum("im,jm->ij", difference, total) / 2
        changed, before = linalg.norm(half + half.T), linalg.norm(np.einsum("im,jm->ij", start, start))
    else:
        mixed = total.T @ difference
        square = (np.sum((difference.T @ difference) * (total.T @ total)) + np.sum(mixed * mixed.T)) / 2
        changed, before = np.sqrt(max(square, 0.0)), linalg.norm(start.T @ start)
    if before == 0:
        return 0.0 if not difference.any() else np.inf
    return float(changed / before)


def some_samples(x):
    """Return a few inputs of the data of the monitor, which a look at them does not use up.

    Of arrays they are spread over all rows, which may be sorted; of a dataset they are the first.
    """
    inputs = first_inputs(x, "data")
    if inputs is None:
        raise ValueError(f"There are no samples. Pass at least one. Received: an empty {type(x).__name__}")
    return spread(inputs, NUM_PROBES)
