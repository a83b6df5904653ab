"""What a summand of a head does with fixed features: matrix products in float32, on an array library of choice."""

from typing import Any

import numpy as np

from keras_dal._backend import arrays


class Part:
    """One summand of a head, with the `shape` of its matrix of parameters and the one it is `working` with."""

    def __init__(self, on, shape):
        self.on, self.shape, self.working = on, shape, shape

    def prepare(self, features) -> tuple:
        """Return inputs and gates, arrays with a row for each sample, or None for no gates."""
        raise NotImplementedError

    def apply(self, inputs, gates, weight) -> Any:
        """Return the logits."""
        raise NotImplementedError

    def transposed(self, inputs, gates, cotangent) -> Any:
        """Return the transpose of `apply`, as a function of the weight."""
        raise NotImplementedError

    def factor(self, weight):
        """Return the matrix of parameters as `apply` takes it."""
        return self.on.array(weight)

    def flat(self, total):
        """Return a sum of what `transposed` returned, in the order of theta."""
        return arrays.of(total).reshape(total, (-1,))


class WithGates(Part):
    """Standardized features with a one, and gates; the bias is the last row of W, as the heads lay out their theta."""

    def __init__(self, head, on, outputs):
        features, gates = head.gate_kernel.shape
        super().__init__(on, (features + 1, gates * outputs))
        self.head, self.width = head, features + 1 + gates  # of what is computed once for a sample

    def prepare(self, features):
        features = np.asarray(features, np.float32)
        inputs = with_ones(self.head.standardize(features))
        return self.on.array(inputs), self.on.array(self.head.gates(features))


def with_ones(inputs):
    """Return inputs with a column of ones after theirs, `(n, m + 1)`."""
    return np.concatenate([inputs, np.ones((len(inputs), 1), inputs.dtype)], axis=1)
