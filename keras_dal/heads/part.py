"""What a summand of a head does with features: matrix products, on an array library of choice."""

from typing import Any

import numpy as np

from keras_dal._backend import arrays


class Part:
    """One summand of a head.

    Args:
        on: an `array_backend`, whose dtype products have.
        shape: of its matrix of parameters; it may be `working` with another one.
        num_outputs: C.

    Attributes:
        width: numbers that are computed once for a sample, of inputs and gates.
        copies: outputs for which the factor of the gates in a row of the Jacobian is the same; 0 without gates.
    """

    width: int
    copies = 0

    def __init__(self, on, shape, num_outputs):
        self.on, self.shape, self.working, self.num_outputs = on, shape, shape, num_outputs

    @property
    def num_parameters(self):
        return self.shape[0] * self.shape[1]

    def prepare(self, features) -> tuple:
        """Return inputs and gates, arrays with a row for each sample, or None for no gates."""
        raise NotImplementedError

    def apply(self, inputs, gates, weight) -> Any:
        """Return the logits."""
        raise NotImplementedError

    def magnitudes(self, inputs, gates, weight) -> Any:
        """Return the logits with every product in their sums replaced by its magnitude, for a weight without signs."""
        return self.apply(np.abs(inputs), gates, weight)

    def transposed(self, inputs, gates, cotangent) -> Any:
        """Return the transpose of `apply`, as a function of the weight."""
        raise NotImplementedError

    def gate_squares(self, gates) -> Any:
        """Return the sum of the squares of the factor of the gates over the samples, 0 without gates."""
        return 0.0

    def factor(self, weight):
        """Return the matrix of parameters as `apply` takes it."""
        return self.on.array(weight)

    def in_order(self, total):
        """Return a sum of what `transposed` returned, in the order of theta."""
        return total


class WithGates(Part):
    """Standardized features with a one, and gates; the bias is the last row of W, as the heads lay out their theta.

    A row of its Jacobian is the product of inputs and of a factor of the gates, which is the same for `copies` outputs.
    """

    def __init__(self, head, on, outputs):
        features, gates = head.gate_kernel.shape
        super().__init__(on, (features + 1, gates * outputs), head.num_outputs)
        self.head, self.width = head, features + 1 + gates

    def prepare(self, features):
        size, num_inputs = len(features), self.shape[0]
        inputs = np.ones((size, num_inputs), self.on.dtype)
        gates = np.empty((size, self.width - num_inputs), self.on.dtype)
        for rows in arrays.slices(size):  # standardizing takes float64
            block = np.asarray(features[rows], self.on.dtype)
            inputs[rows, :-1], gates[rows] = self.head.standardize(block), self.head.gates(block)
        return self.on.array(inputs), self.on.array(gates)

    def gate_moments(self, gates) -> Any:
        """Return the sum of the outer products of the factor over the samples."""
        raise NotImplementedError

    def gate_squares(self, gates) -> Any:
        raise NotImplementedError

    def gate_rows(self, gates, signs) -> Any:
        """Return rows whose outer products have the mean of these, for random signs `(k, C)`."""
        raise NotImplementedError
