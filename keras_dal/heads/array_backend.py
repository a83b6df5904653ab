"""Where matrix products are made: by NumPy, or in float32 by the Keras backend on an accelerator that is worth it."""

import math
import re
from typing import Any

import numpy as np
from keras import ops
from scipy import linalg

from keras_dal import _backend
from keras_dal._backend import arrays

_BLOCK = 1024  # rows of a Gram matrix that are made at a time
_NO_MEMORY = re.compile(r"(out.of|not.enough|insufficient).memory|alloc|resource.?exhausted|\boom\b", re.IGNORECASE)
_QUIET = np.errstate(over="ignore", invalid="ignore")  # numbers that are not finite end the path
_SYRK, _TRSM = linalg.get_blas_funcs(("syrk", "trsm"), dtype=np.float32)


def fastest(operations, shapes_vary=False):
    """Return the arithmetic of the accelerator that Keras uses, if it gains more than beginning takes, or the host's.

    Args:
        operations: of one product over all samples.
        shapes_vary: whether most products have shapes of their own, each of which a backend may compile.
    """
    if not _backend.has_accelerator() or (shapes_vary and _backend.COMPILES_SHAPES):
        return Host()
    return Accelerator() if operations >= _backend.WORTH_AN_ACCELERATOR else Host()


class _Library:
    """What both do by the functions `xp` of their arrays, of `block` samples and `entries` hidden values at a time."""

    xp: Any
    block: int
    entries: int
    dtype: Any = np.float32

    def array(self, values) -> Any:
        return self.xp.single(values)

    def numpy(self, array):
        return self.xp.numpy(array)

    def take(self, array, rows):
        return self.xp.rows(array, rows)

    def reshape(self, array, shape):
        return self.xp.reshape(array, shape)

    def swapped(self, array, shape):
        """Return an array of this shape with its last two axes exchanged."""
        return self.xp.swapaxes(self.reshape(array, shape), -1, -2)


class Host(_Library):
    """NumPy, whose matrix products write into memory that is used again: fresh pages cost as much as the product.

    Args:
        dtype: of the products; Gram matrices are float32 in any case.
    """

    xp, block, entries = arrays.NUMPY, 1024, 2**25

    def __init__(self, dtype: Any = np.float32):
        self.dtype, self._buffer = dtype, np.empty(0, dtype)

    def array(self, values):
        return np.asarray(values, self.dtype)

    @_QUIET
    def matmul(self, left, right):
        return left @ right

    @_QUIET
    def transposed_matmul(self, left, right):
        """Return `left' right`."""
        return left.T @ right

    def squares(self, array):
        """Return the sum of the squares of every column, float64."""
        return np.einsum("ij,ij->j", array, array, dtype=np.float64)

    def gated_matmul(self, left, right, gates):
        """Return `(left right) * gates`, valid until the next call."""
        product = self._product(left, right)
        product *= gates
        return product

    def mixed_matmul(self, left, right, weights):
        """Return `sum_k weights_k (left right_k)` for the matrices side by side in `right`."""
        maps = self._product(left, right)
        return np.matmul(weights[:, None, :], maps.reshape(*weights.shape, -1))[:, 0]

    def outer(self, weights, rows):
        """Return `weights_k rows` side by side, valid until the next call."""
        product = self._scratch((*weights.shape, rows.shape[1]))
        np.multiply(weights[:, :, None], rows[:, None, :], out=product)
        return product.reshape(len(weights), -1)

    def gram(self, inputs, gates, jitter, shift):
        """Return `(gates gates') * (inputs inputs')`, 0 above its blocks; diagonal times `1 + jitter` plus shift."""
        result = np.zeros((len(gates), len(gates)), np.float32)
        for rows in arrays.slices(len(gates), _BLOCK):
            others = inputs[: rows.stop], gates[: rows.stop]
            self._write_gram(result[rows, : rows.stop], inputs[rows], gates[rows], *others)
        diagonal = np.einsum("ii->i", result)
        diagonal *= 1 + jitter
        diagonal += shift
        return result

    def cross_gram(self, inputs, gates, other_inputs, other_gates):
        """Return `(gates other_gates') * (inputs other_inputs')`."""
        result = np.empty((len(gates), len(other_gates)), np.float32)
        for rows in arrays.slices(len(gates), _BLOCK):
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
            self._buffer = np.empty(size, self.dtype)
        return self._buffer[:size].reshape(shape)

    def without_gram(self, matrix, columns):
        """Return `matrix - columns' columns` in its lower triangle; the matrix is overwritten."""
        return _SYRK(-1.0, columns.T, beta=1.0, c=matrix.T, overwrite_c=1).T  # BLAS's order is by columns

    def cholesky(self, matrix):
        """Return the lower factor of a matrix, of which it reads the lower triangle and overwrites all.

        Raises:
            np.linalg.LinAlgError: the matrix is not positive definite in float32.
        """
        lower = linalg.cholesky(matrix.T, overwrite_a=True, check_finite=False).T  # LAPACK's order is by columns
        return _finite(lower, np.diagonal(lower))

    def solve_triangular(self, lower, right, transposed=False):
        """Return `lower^-1 right`, or the same with the transpose of `lower`."""
        # both transposed, BLAS takes them as they lie; LAPACK's trtrs wakes its threads for the smallest system
        return _TRSM(1.0, lower.T, right.T, side=1, trans_a=int(transposed)).T


def _finite(lower, diagonal):
    """Return a Cholesky factor, or raise: what has no error of its own leaves NaN on the diagonal."""
    if not np.isfinite(diagonal).all():
        raise np.linalg.LinAlgError("The matrix is not positive definite.")
    return lower


def is_out_of_memory(error):
    """Return whether an error, of NumPy or of a backend, says that there is no more memory."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


class Accelerator(_Library):
    """`keras.ops` on the backend's default device, in whole float32: TensorFloat-32 would lose small margins."""

    xp, block, entries = arrays.TENSORS, 2**16, 2**28

    def matmul(self, left, right):
        with _backend.full_precision():
            return ops.matmul(left, right)

    def transposed_matmul(self, left, right):
        """Return `left' right`."""
        with _backend.full_precision():
            return ops.einsum("ij,ik->jk", left, right)  # without a transposed copy

    def squares(self, array):
        """Return the sum of the squares of every column, float64."""
        return self.numpy(ops.sum(ops.square(array), axis=0)).astype(np.float64)

    def gated_matmul(self, left, right, gates):
        """Return `(left right) * gates`."""
        return self.matmul(left, right) * gates

    def mixed_matmul(self, left, right, weights):
        """Return `sum_k weights_k (left right_k)` for the matrices side by side in `right`."""
        maps = ops.reshape(self.matmul(left, right), (*weights.shape, -1))
        return self.matmul(weights[:, None, :], maps)[:, 0]

    def gram(self, inputs, gates, jitter, shift):
        """Return `(gates gates') * (inputs inputs')`, the diagonal times `1 + jitter` plus shift."""
        result, each = self.cross_gram(inputs, gates, inputs, gates), np.arange(len(gates))
        return ops.scatter_update(result, np.stack([each, each], axis=1), ops.diag(result) * (1 + jitter) + shift)

    def cross_gram(self, inputs, gates, other_inputs, other_gates):
        """Return `(gates other_gates') * (inputs other_inputs')`."""
        products = self.matmul(gates, ops.transpose(other_gates))
        return products * self.matmul(inputs, ops.transpose(other_inputs))

    def outer(self, weights, rows):
        """Return `weights_k rows` side by side."""
        return ops.reshape(weights[:, :, None] * rows[:, None, :], (weights.shape[0], -1))

    def without_gram(self, matrix, columns):
        """Return `matrix - columns' columns`."""
        return matrix - self.transposed_matmul(columns, columns)

    def cholesky(self, matrix):
        """Return the lower factor of a matrix.

        Raises:
            np.linalg.LinAlgError: the matrix is not positive definite in float32.
        """
        with _backend.full_precision():
            try:
                lower = ops.cholesky(matrix)
            except Exception as error:  # TensorFlow and torch have errors of their own, JAX returns NaN
                if is_out_of_memory(error):
                    raise
                raise np.linalg.LinAlgError(str(error)) from error
        return _finite(lower, self.numpy(ops.diag(lower)))

    def solve_triangular(self, lower, right, transposed=False):
        """Return `lower^-1 right`, or the same with the transpose of `lower`."""
        with _backend.full_precision():
            return ops.solve_triangular(ops.transpose(lower) if transposed else lower, right, lower=not transposed)
