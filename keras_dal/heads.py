"""Heads as functions of cached features: linear in the flat parameter vector, in plain NumPy.

A head has `shapes` (of its linear parameters, in the order of `Structure.linear_parameters`), `num_parameters`,
`num_outputs` and two maps that are transposes of each other in the parameters: `logits` and `adjoint`.
"""

import math

import numpy as np

_ENTRIES = 2**22  # values of a mixture's maps that exist at a time


class Head:
    """What `f(z) = sum_k theta_k df(z)/dtheta_k` looks like from outside."""

    shapes: tuple[tuple[int, ...], ...]
    num_outputs: int

    @property
    def num_parameters(self):
        return sum(math.prod(shape) for shape in self.shapes)

    def logits(self, features, theta):
        """Return f, shape `(k, C)`, for features `(k, m)` and a flat theta `(num_parameters,)`, in features' dtype."""
        raise NotImplementedError

    def adjoint(self, features, cotangent):
        """Return `J' vec(cotangent)`, shape `(num_parameters,)`, for features `(k, m)` and a cotangent `(k, C)`."""
        raise NotImplementedError

    def columns(self, features) -> np.ndarray | None:
        """Return A, shape `(k, P / C)`, where the Jacobian is `A kron I_C`; None where outputs share no such factor."""

    def split(self, theta):
        """Return the views of a flat theta that have this head's `shapes`."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(theta, ends[:-1]), self.shapes, strict=True)]

    @staticmethod
    def join(arrays, dtype=np.float64):
        """Return the flat theta of a list of arrays."""
        return np.concatenate([np.asarray(array, dtype).ravel() for array in arrays])


class DenseHead(Head):
    """`f(z) = z K + b`, whose Jacobian is `[Z, 1] kron I_C`."""

    def __init__(self, num_features, num_outputs, use_bias=True):
        self.num_outputs = num_outputs
        self.use_bias = use_bias
        self.shapes = ((num_features, num_outputs),) + (((num_outputs,),) if use_bias else ())

    def columns(self, features):
        return np.column_stack([features, np.ones(len(features))]) if self.use_bias else features

    def logits(self, features, theta):
        kernel, *bias = self.split(theta.astype(features.dtype, copy=False))
        return features @ kernel + (bias[0] if bias else 0)

    def adjoint(self, features, cotangent):
        kernel = features.T @ cotangent
        return self.join([kernel, cotangent.sum(axis=0)] if self.use_bias else [kernel], features.dtype)


class _Gates(Head):
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


class GatedHead(_Gates):
    """`f(z) = ((u W + w) * g) V + c` with H units and gates, linear in `(W, w, c)`.

    Row (i, j) of its Jacobian is `(V_j * g_i) kron (u_i, 1)`: columns by the gates `g_i`, not by the features alone.
    """

    def __init__(self, mean, scale, gate_kernel, gate_bias, sharpness, output_kernel, use_bias):
        super().__init__(mean, scale, gate_kernel, gate_bias, sharpness)
        self.output_kernel = output_kernel
        self.use_bias = use_bias
        units, self.num_outputs = output_kernel.shape
        self.shapes = (gate_kernel.shape, (units,)) + (((self.num_outputs,),) if use_bias else ())

    def logits(self, features, theta):
        kernel, bias, *output_bias = self.split(theta.astype(features.dtype, copy=False))
        hidden = (self.standardize(features) @ kernel + bias) * self.gates(features)
        return hidden @ self.output_kernel.astype(features.dtype) + (output_bias[0] if output_bias else 0)

    def adjoint(self, features, cotangent):
        hidden = (cotangent @ self.output_kernel.T.astype(features.dtype)) * self.gates(features)
        parts = [self.standardize(features).T @ hidden, hidden.sum(axis=0)]
        return self.join(parts + ([cotangent.sum(axis=0)] if self.use_bias else []), features.dtype)


class MixtureHead(_Gates):
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


class SumHead(Head):
    """The sum of several heads on the same features: a gated branch beside a dense head."""

    def __init__(self, parts):
        self.parts = tuple(parts)
        self.num_outputs = self.parts[0].num_outputs
        self.shapes = sum((part.shapes for part in self.parts), ())
        self._ends = np.cumsum([part.num_parameters for part in self.parts])[:-1]

    def columns(self, features):
        columns = [part.columns(features) for part in self.parts]
        return None if any(each is None for each in columns) else np.hstack(columns)

    def logits(self, features, theta):
        thetas = np.split(theta, self._ends)
        return sum(part.logits(features, each) for part, each in zip(self.parts, thetas, strict=True))

    def adjoint(self, features, cotangent):
        return np.concatenate([part.adjoint(features, cotangent) for part in self.parts])
