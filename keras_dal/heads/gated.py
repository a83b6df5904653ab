"""Gated units before a linear layer."""

import numpy as np

from keras_dal._backend import arrays
from keras_dal.heads.base import Head
from keras_dal.heads.dense import DensePart
from keras_dal.heads.norms import SAFETY, sigma_max_bound_of_gram
from keras_dal.heads.part import WithGates


class Gates(Head):
    """Gates `g = sigmoid(sharpness (u R + r))` of standardized features `u = (z - mean) / scale`."""

    def __init__(self, mean, scale, gate_kernel, gate_bias, sharpness):
        self.mean, self.scale = mean, scale
        self.gate_kernel, self.gate_bias, self.sharpness = gate_kernel, gate_bias, sharpness

    def standardize(self, features):
        return ((features - self.mean) / self.scale).astype(features.dtype, copy=False)

    def gates(self, features):
        """Return g, of shape `(k, number of gates)`, the same for every theta."""
        gates = self.standardize(features) @ self.gate_kernel.astype(features.dtype)  # and all else in its place
        gates += self.gate_bias.astype(features.dtype)
        gates *= -self.sharpness
        with np.errstate(over="ignore"):  # what overflows is a gate of zero; SciPy's expit takes ten times as long
            np.exp(gates, out=gates)
        gates += 1
        return np.reciprocal(gates, out=gates)

    def _moments(self, features, weights):
        """Return `G' D G` with `D_ii = w_i (|u_i|^2 + 1)`, of the order of the number of gates."""
        moments = 0.0
        for rows in arrays.slices(len(features)):
            block = features[rows]
            gates = self.gates(block)
            squares = weights[rows] * (1.0 + np.sum(self.standardize(block) ** 2, axis=1))
            moments = moments + gates.T @ (gates * squares[:, None])
        return moments


class GatedHead(Gates):
    """`f(z) = ((u W + w) * g) V + c` with H units and gates, linear in `(W, w, c)`.

    Row (i, j) of its Jacobian is `(V_j * g_i) kron (u_i, 1)`: columns by the gates `g_i`, not by the features alone.
    """

    def __init__(self, mean, scale, gate_kernel, gate_bias, sharpness, output_kernel, use_bias):
        super().__init__(mean, scale, gate_kernel, gate_bias, sharpness)
        self.output_kernel = output_kernel
        self.use_bias = use_bias
        units, self.num_outputs = output_kernel.shape
        self.shapes = (gate_kernel.shape, (units,)) + (((self.num_outputs,),) if use_bias else ())

    def products(self, on):
        return [GatedPart(self, on)] + ([DensePart(0, self.num_outputs, True, on)] if self.use_bias else [])

    def spectral_norm_bound(self, features, weights, shift_invariant=False):
        """By Schur's product theorem: `sigma_max(A o B) <= max_i A_ii sigma_max(B)` for positive semidefinite A and B.

        `J J'` is the entrywise product of the Gram matrices of `(u_i, 1)` and of `V_j * g_i`; scaled to `A_ii = 1` this
        leaves the largest eigenvalue of `(V V') o (G' D G)`.
        """
        output = self.output_kernel - self.output_kernel.mean(axis=1, keepdims=True) * shift_invariant
        moments = (output @ output.T) * self._moments(features, weights)
        return np.hypot(
            sigma_max_bound_of_gram(moments, len(features)), np.sqrt(weights.sum()) * SAFETY * self.use_bias
        )


class GatedPart(WithGates):
    """`((inputs W) * gates) V`."""

    copies = 1

    def __init__(self, head, on):
        super().__init__(head, on, outputs=1)
        self.output, self.back = on.array(head.output_kernel), on.array(head.output_kernel.T)

    def apply(self, inputs, gates, weight):
        return self.on.matmul(self.on.gated_matmul(inputs, weight, gates), self.output)

    def magnitudes(self, inputs, gates, weight):
        return self.on.matmul(self.on.gated_matmul(np.abs(inputs), weight, gates), np.abs(self.output))

    def transposed(self, inputs, gates, cotangent):
        return self.on.transposed_matmul(inputs, self.on.gated_matmul(cotangent, self.back, gates))

    def gate_moments(self, gates):
        """Return the sum of `(g g') * (V V')` over the samples."""
        output = self.head.output_kernel
        return self.on.numpy(self.on.transposed_matmul(gates, gates)) * (output @ output.T)

    def gate_squares(self, gates):
        """Return the diagonal of that."""
        return self.on.squares(gates) * np.sum(np.square(self.head.output_kernel, dtype=np.float64), axis=1)

    def gate_rows(self, gates, signs):
        """Return rows `g * (V signs)` whose outer products have this mean, for random signs `(k, C)`."""
        return np.array(self.on.numpy(self.on.gated_matmul(self.on.array(signs), self.back, gates)))
