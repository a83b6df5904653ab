"""Where float32 matrix products are made: by NumPy, or by the Keras backend where it has an accelerator."""

from typing import Any

import numpy as np
from keras import ops

from keras_dal import _backend


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

    def matmul(self, left, right):
        return left @ right

    def transposed_matmul(self, left, right):
        """Return `left' right`."""
        return left.T @ right

    def gated_matmul(self, left, right, gates):
        """Return `(left right) * gates`, valid until the next call."""
        size = gates.size
        if size > self._buffer.size:
            self._buffer = np.empty(size, np.float32)
        product = np.matmul(left, right, out=self._buffer[:size].reshape(gates.shape))
        product *= gates
        return product


class Accelerator:
    """`keras.ops` on the backend's default device, in whole float32: TensorFloat-32 would lose small margins."""

    def array(self, values) -> Any:
        return ops.convert_to_tensor(values, "float32")

    def numpy(self, array):
        return np.asarray(ops.convert_to_numpy(array))

    def take(self, array, rows):
        return ops.take(array, rows, axis=0)

    def matmul(self, left, right):
        with _backend.full_precision():
            return ops.matmul(left, right)

    def transposed_matmul(self, left, right):
        """Return `left' right`."""
        return self.matmul(ops.transpose(left), right)

    def gated_matmul(self, left, right, gates):
        """Return `(left right) * gates`."""
        return self.matmul(left, right) * gates
