"""Linear maps mixed by gates."""

import numpy as np

from keras_dal.heads.gated import Gates

_ENTRIES = 2**22  # values of a mixture's maps that exist at a time


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

    def columns(self, features):
        inputs, gates = self.standardize(features), self.gates(features)
        return np.hstack([(inputs[:, :, None] * gates[:, None, :]).reshape(len(features), -1), gates])

    def logits(self, features, theta):
        kernel, bias = self.split(theta.astype(features.dtype, copy=False))
        matrix = self._exchanged(kernel).reshape(-1, self._width)
        logits = np.empty((len(features), self.num_outputs), features.dtype)
        for rows, gates, first, second in self._blocks(features):
            maps = (first @ matrix).reshape(*second.shape, self.num_outputs)
            logits[rows] = np.matmul(second[:, None, :], maps)[:, 0] + gates @ bias
        return logits

    def adjoint(self, features, cotangent):
        matrix = np.zeros((max(self.shapes[0][:2]), self._width), features.dtype)
        bias = np.zeros(self.shapes[1], features.dtype)
        for rows, gates, first, second in self._blocks(features):
            matrix += first.T @ (second[:, :, None] * cotangent[rows, None, :]).reshape(len(first), -1)
            bias += gates.T @ cotangent[rows]
        kernel = self._exchanged(matrix.reshape(len(matrix), -1, self.num_outputs))
        return self.join([kernel, bias], features.dtype)

    @property
    def _gates_first(self):
        """Whether the sum over gates is made first: over the more numerous, so that little is left of each sample."""
        features, gates, _ = self.shapes[0]
        return gates > features

    @property
    def _width(self):
        return min(self.shapes[0][:2]) * self.num_outputs

    def _exchanged(self, kernel):
        return kernel.swapaxes(0, 1) if self._gates_first else kernel

    def _blocks(self, features):
        """Yield slices of the samples with their gates, and inputs and gates in the order of the sums."""
        step = max(1, _ENTRIES // self._width)
        for start in range(0, len(features), step):
            rows = slice(start, start + step)
            inputs, gates = self.standardize(features[rows]), self.gates(features[rows])
            yield rows, gates, *((gates, inputs) if self._gates_first else (inputs, gates))
