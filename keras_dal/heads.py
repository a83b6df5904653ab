"""Heads as functions of cached features: linear in the flat parameter vector, in plain NumPy.

A head has `shapes` (of its linear parameters, in the order of `Structure.linear_parameters`), `num_parameters`,
`num_outputs` and two maps that are transposes of each other in the parameters: `logits` and `adjoint`.
"""

import math

import numpy as np


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

    def logits(self, features, theta):
        kernel, *bias = self.split(theta.astype(features.dtype, copy=False))
        return features @ kernel + (bias[0] if bias else 0)

    def adjoint(self, features, cotangent):
        kernel = features.T @ cotangent
        return self.join([kernel, cotangent.sum(axis=0)] if self.use_bias else [kernel], features.dtype)


class GatedHead(Head):
    """`f(z) = ((u W + w) * sigmoid(sharpness (u R + r))) V + c` with `u = (z - mean) / scale`, linear in `(W, w, c)`.

    Row (i, j) of its Jacobian is `(V_j * g_i) kron (u_i, 1)`: columns by the gates `g_i`, not by the features alone.
    """

    def __init__(self, mean, scale, gate_kernel, gate_bias, sharpness, output_kernel, use_bias):
        self.mean, self.scale = mean, scale
        self.gate_kernel, self.gate_bias, self.sharpness = gate_kernel, gate_bias, sharpness
        self.output_kernel = output_kernel
        self.use_bias = use_bias
        units, self.num_outputs = output_kernel.shape
        self.shapes = (gate_kernel.shape, (units,)) + (((self.num_outputs,),) if use_bias else ())

    def standardize(self, features):
        return ((features - self.mean) / self.scale).astype(features.dtype, copy=False)

    def gates(self, features):
        """Return g, shape `(k, H)`, the same for every theta."""
        preactivation = self.standardize(features) @ self.gate_kernel.astype(features.dtype) + self.gate_bias
        with np.errstate(over="ignore"):  # what overflows is a gate of zero; SciPy's expit takes ten times as long
            return 1 / (1 + np.exp((-self.sharpness * preactivation).astype(features.dtype, copy=False)))

    def logits(self, features, theta):
        kernel, bias, *output_bias = self.split(theta.astype(features.dtype, copy=False))
        hidden = (self.standardize(features) @ kernel + bias) * self.gates(features)
        return hidden @ self.output_kernel.astype(features.dtype) + (output_bias[0] if output_bias else 0)

    def adjoint(self, features, cotangent):
        hidden = (cotangent @ self.output_kernel.T.astype(features.dtype)) * self.gates(features)
        parts = [self.standardize(features).T @ hidden, hidden.sum(axis=0)]
        return self.join(parts + ([cotangent.sum(axis=0)] if self.use_bias else []), features.dtype)


class SumHead(Head):
    """The sum of several heads on the same features: a gated branch beside a dense head."""

    def __init__(self, parts):
        self.parts = tuple(parts)
        self.num_outputs = self.parts[0].num_outputs
        self.shapes = sum((part.shapes for part in self.parts), ())
        self._ends = np.cumsum([part.num_parameters for part in self.parts])[:-1]

    def logits(self, features, theta):
        thetas = np.split(theta, self._ends)
        return sum(part.logits(features, each) for part, each in zip(self.parts, thetas, strict=True))

    def adjoint(self, features, cotangent):
        return np.concatenate([part.adjoint(features, cotangent) for part in self.parts])
