"""Where float32 matrix products are made: by NumPy, or by the Keras backend where it has an accelerator."""

import math
from typing import Any

import numpy as np
from keras import ops
from scipy import linalg

from keras_dal import _backend

_BLOCK = 1024  # rows of a Gram matrix that are made at a time


def fastest():
    """Return the arithmetic of the accelerator that Keras uses, or else of the host."""
    return Accelerator() if _backend.has_accelerator() else Host()


class Host:
    """NumPy, whose matrix products write into memory that is used again: fresh pages cost as much as the product."""

    def __init__(self):
        self._buffer = np.empty(0, np.float32)

    def array(self, values) -> Any:
        return np.asarray(values, np.float32)

    def numpy(self, array):
        return array

    def take(self, array, rows):
        return array[rows]

    def reshape(self, array, shape):
        return array.reshape(shape)

    def swapped(self, array, shape):
        """Return an array of this shape with its last two axes exchanged."""
        return array.reshape(shape).swapaxes(-1, -2)

    def matmul(self, left, right):
        return left @ right

    def transposed_matmul(self, left, right):
        """Return `left' right`."""
        return left.T @ right

    def gated_matmul(self, left, right, gates):
        """Return `(left right) * gates`, valid until the next call."""
        product = self._product(left, right)
        product *= gates
        return product

    def mixed_matmul(self, left, right, gates):
        """Return `sum_k gates_k (left right_k)` for the K matrices side by side in `right`."""
        maps = self._product(left, right)
        return np.matmul(gates[:, None, :], maps.reshape(*gates.shape, -1))[:, 0]

    def outer(self, gates, rows):
        """Return `gates_k rows` side by side, valid until the next call."""
        product = self._scratch((*gates.shape, rows.shape[1]))
        np.multiply(gates[:, :, None], rows[:, None, :], out=product)
        return product.reshape(len(gates), -1)

    def gram(self, inputs, gates, jitter):
        """Return `(gates gates') * (inputs inputs')` with its diagonal times `1 + jitter`, zero above its blocks."""
        result = np.zeros((len(gates), len(gates)), np.float32)
        for start in range(0, len(gates), _BLOCK):
            stop = min(start + _BLOCK, len(gates))
            others = inputs[:stop], gates[:stop]
            self._write_gram(result[start:stop, :stop], inputs[start:stop], gates[start:stop], *others)
        result[np.diag_indices_from(result)] *= 1 + jitter
        return result

    def cross_gram(self, inputs, gates, other_inputs, other_gates):
        """Return `(gates other_gates') * (inputs other_inputs')`."""
        result = np.empty((len(gates), len(other_gates)), np.float32)
        for start in range(0, len(gates), _BLOCK):
            rows = slice(start, start + _BLOCK)
            self._write_gram(result[rows], inputs[rows], gates[rows], other_inputs, other_gates)
        return result

    def _write_gram(self, out, inputs, gates, other_inputs, other_gates):
        np.matmul(inputs, other_inputs.T, out=out)
        out *= self._product(gates, other_gates.T)

    def _product(self, left, right):
        return np.matmul(left, right, out=self._scratch((len(left), right.shape[1])))

    def _scratch(self, shape):
        size = math.prod(shape)
        if size > self._buffer.size:
            self._buffer = np.empty(size, np.float32)
        return self._buffer[:size].reshape(shape)

    def cholesky(self, matrix):
        """Return the lower factor of a matrix, of which it reads the lower triangle and overwrites all.

        Raises:
            np.linalg.LinAlgError: the matrix is not positive definite in float32.
        """
        lower = linalg.cholesky(matrix.T, overwrite_a=True, check_finite=False).T  # LAPACK's order is by columns
        return _finite(lower, np.diagonal(lower))

    def solve_triangular(self, lower, right, transposed=False):
        """Return `lower^-1 right`, or the same with the transpose of `lower`."""
        return linalg.solve_triangular(lower, right, trans=int(transposed), lower=True, check_finite=False)


def _finite(lower, diagonal):
    """Return a Cholesky factor, or raise: what has no error of its own leaves NaN on the diagonal."""
    if not np.isfinite(diagonal).all():
        raise np.linalg.LinAlgError("The matrix is not positive definite.")
    return lower


class Accelerator:
    """`keras.ops` on the backend's default device, in whole float32: TensorFloat-32 would lose small margins."""

    def array(self, values) -> Any:
        return ops.convert_to_tensor(values, "float32")

    def numpy(self, array):
        return np.asarray(ops.convert_to_numpy(array))

    def take(self, array, rows):
        return ops.take(array, rows, axis=0)

    def reshape(self, array, shape):
        return ops.reshape(array, shape)

    def swapped(self, array, shape):
        """Return an array of this shape with its last two axes exchanged."""
        return ops.swapaxes(ops.reshape(array, shape), -1, -2)

    def matmul(self, left, right):
        with _backend.full_precision():
            return ops.matmul(left, right)

    def transposed_matmul(self, left, right):
        """Return `left' right`."""
        return self.matmul(ops.transpose(left), right)

    def gated_matmul(self, left, right, gates):
        """Return `(left right) * gates`."""
        return self.matmul(left, right) * gates

    def mixed_matmul(self, left, right, gates):
        """Return `sum_k gates_k (left right_k)` for the K matrices side by side in `right`."""
        maps = ops.reshape(self.matmul(left, right), (*gates.shape, -1))
        return self.matmul(gates[:, None, :], maps)[:, 0]

    def gram(self, inputs, gates, jitter):
        """Return `(gates gates') * (inputs inputs')` with its diagonal times `1 + jitter`."""
        result, each = self.cross_gram(inputs, gates, inputs, gates), np.arange(len(gates))
        return ops.scatter_update(result, np.stack([each, each], axis=1), ops.diag(result) * (1 + jitter))

    def cross_gram(self, inputs, gates, other_inputs, other_gates):
        """Return `(gates other_gates') * (inputs other_inputs')`."""
        products = self.matmul(gates, ops.transpose(other_gates))
        return products * self.matmul(inputs, ops.transpose(other_inputs))

    def outer(self, gates, rows):
        """Return `gates_k rows` side by side."""
        return ops.reshape(gates[:, :, None] * rows[:, None, :], (gates.shape[0], -1))

    def cholesky(self, matrix):
        """Return the lower factor of a matrix.

        Raises:
            np.linalg.LinAlgError: the matrix is not positive definite in float32.
        """
        with _backend.full_precision():
            try:
                lower = ops.cholesky(matrix)
            except Exception as error:  # TensorFlow and torch have errors of their own, JAX returns NaN
                if any(word in str(error).lower() for word in ("memory", "oom", "exhausted")):
                    raise
                raise np.linalg.LinAlgError(str(error)) from error
        return _finite(lower, self.numpy(ops.diag(lower)))

    def solve_triangular(self, lower, right, transposed=False):
        """Return `lower^-1 right`, or the same with the transpose of `lower`."""
        with _backend.full_precision():
            return ops.solve_triangular(ops.transpose(lower) if transposed else lower, right, lower=not transposed)
