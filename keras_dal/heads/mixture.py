"""Linear maps mixed by gates."""

import numpy as np

from keras_dal._backend import arrays
from keras_dal.heads.gated import Gates
from keras_dal.heads.norms import sigma_max_bound_of_gram
from keras_dal.heads.part import WithGates


class MixtureHead(Gates):
    """`f(z) = sum_k g_k (u W_k + w_k)`, linear maps mixed by K gates that all outputs share.

    Its Jacobian is `A kron I_C` with rows `g_i kron (u_i, 1)` of A, and `A A' = (G G') o (U U' + 1)`.
    """

    use_bias = False

    def __init__(self, mean, scale, gate_kernel, gate_bias, sharpness, num_outputs):
        super().__init__(mean, scale, gate_kernel, gate_bias, sharpness)
        self.num_outputs = num_outputs
        features, gates = gate_kernel.shape
        self.shapes = ((features, gates, num_outputs), (gates, num_outputs))

    @property
    def mixture(self):
        return self

    def first(self, count):
        """Return the mixture of the first gates."""
        kernel, bias = self.gate_kernel[:, :count], self.gate_bias[:count]
        return MixtureHead(self.mean, self.scale, kernel, bias, self.sharpness, self.num_outputs)

    def products(self, on):
        return [MixturePart(self, on)]

    def kronecker_factor(self, features):
        inputs, gates = self.standardize(features), self.gates(features)
        return np.hstack([(inputs[:, :, None] * gates[:, None, :]).reshape(len(features), -1), gates])

    def spectral_norm_bound(self, features, weights, shift_invariant=False):
        """As of `GatedHead`, without a linear map after the gates."""
        return sigma_max_bound_of_gram(self._moments(features, weights), len(features))


class MixturePart(WithGates):
    """`sum_k gates_k (inputs W_k)`, W_k beside one another.

    The sum over inputs and gates is made over the more numerous of both first, so that little is left of each sample.
    """

    def __init__(self, head, on):
        super().__init__(head, on, outputs=head.num_outputs)
        self.copies, (features, gates) = head.num_outputs, head.gate_kernel.shape
        self._gates_first = gates > features
        if self._gates_first:
            self.working = (gates, (features + 1) * self.copies)

    def factor(self, weight):
        return self.on.array(self._exchanged(weight) if self._gates_first else weight)

    def in_order(self, total):
        return self._exchanged(total) if self._gates_first else total

    def _exchanged(self, matrix):
        """Return `(b, a C)` for a matrix `(a, b C)`."""
        xp, rows = arrays.of(matrix), matrix.shape[0]
        return xp.reshape(xp.swapaxes(xp.reshape(matrix, (rows, -1, self.copies)), 0, 1), (-1, rows * self.copies))

    def _ordered(self, inputs, gates):
        return (gates, inputs) if self._gates_first else (inputs, gates)

    def apply(self, inputs, gates, weight):
        first, second = self._ordered(inputs, gates)
        return self.on.mixed_matmul(first, weight, second)

    def transposed(self, inputs, gates, cotangent):
        first, second = self._ordered(inputs, gates)
        return self.on.transposed_matmul(first, self.on.outer(second, cotangent))

    def gate_moments(self, gates):
        """Return the sum of `g g'` over the samples."""
        return self.on.numpy(self.on.transposed_matmul(gates, gates))

    def gate_squares(self, gates):
        """Return the diagonal of that."""
        return self.on.squares(gates)

    def gate_rows(self, gates, signs):
        """Return the gates themselves."""
        return np.array(self.on.numpy(gates))
