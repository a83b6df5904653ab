"""The functions that losses and solvers need, for arrays of NumPy and for tensors of the backend alike.

`of(array)` says which library an array is of, as `array_namespace` of the Python array API does: tensors of TensorFlow
have no such interface. Sums over samples that decide are float64 in NumPy; tensors stay float32, where they are.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
from keras import ops
from scipy import special

EPS = float(np.finfo(np.float64).eps)  # spacing of float64 at one
BLOCK = 4096  # samples that are looked at together
MAX_BYTES = 2**32  # of memory for each thing that is computed once, by default
SPREAD = 4 * EPS  # of labels, relative to their size, that is none
_TINY = np.finfo(np.float32).tiny  # below it an accelerator may take numbers for zero


def slices(size, step=None):
    """Return slices of at most `step`, `BLOCK` by default, that cover `range(size)`, in order."""
    step = BLOCK if step is None else step
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def seen(rows, shift_invariant):
    """Return rows `(n, C)` as a loss sees them: without constants per row, where these change nothing."""
    if not shift_invariant:
        return rows
    rows = rows - rows[:, :1]  # first: what is equal in all columns becomes zero, and no rounding of it
    return rows - rows.mean(axis=1, keepdims=True)


def of(array) -> Any:
    """Return the functions for arrays of this kind."""
    return NUMPY if isinstance(array, np.ndarray) else TENSORS


def _put(array, indices, values):
    """Write one value a row, where `indices` `(n, 1)` say, and return the array; NumPy's is changed itself."""
    np.put_along_axis(array, indices, values, axis=1)
    return array


def _put_in_tensor(array, indices, values):
    chosen = ops.equal(ops.arange(array.shape[1], dtype=indices.dtype), indices)
    return ops.where(chosen, ops.cast(values, array.dtype), array)


def _add_to_first(array, rows):
    """Add `rows` to the first of an array's, and return it; NumPy's is changed itself."""
    array[: len(rows)] += rows
    return array


def _add_to_first_of_tensor(array, rows):
    count = rows.shape[0]
    return array + rows if count == array.shape[0] else ops.concatenate([array[:count] + rows, array[count:]], axis=0)


def _dot_of_tensors(a, b):
    """Return a dot product as a number of float64, whose factors float32 could not always square."""
    sizes = [ops.max(ops.abs(part)) for part in (a, b)]
    scaled = ops.sum((a / sizes[0]) * (b / sizes[1]))
    first, second, total = np.asarray(ops.convert_to_numpy(ops.stack([*sizes, scaled])), np.float64)
    return 0.0 if np.minimum(first, second) < _TINY else float(first * second * total)  # NaN is not below


NUMPY = SimpleNamespace(
    abs=np.abs,
    add_to_first=_add_to_first,
    argmax=lambda a: np.argmax(a, axis=1)[:, None],
    concatenate=np.concatenate,
    dot=lambda a, b: a @ b if a.ndim == 1 else np.einsum("ij,ij->", a, b, dtype=np.float64),
    exp=np.exp,
    log1p=np.log1p,
    matmul=np.matmul,
    max=lambda a: np.max(a, axis=1),
    maximum=np.maximum,
    min=lambda a: np.min(a, axis=1),
    numpy=lambda a: a,
    put=_put,
    reshape=np.reshape,
    row_dot=lambda a, b: np.einsum("ij,ij->i", a, b),
    row_square=lambda a: np.sum(np.square(a, dtype=np.float64), axis=1),
    row_sum=lambda a: np.sum(a, axis=1, keepdims=True),
    row_total=lambda a: np.sum(a, axis=1, dtype=np.float64),
    rows=lambda a, indices: a[indices],
    sigmoid=special.expit,
    single=lambda a: np.asarray(a, np.float32),
    sign=np.sign,
    softmax=lambda a: special.softmax(a, axis=1),
    swapaxes=np.swapaxes,
    take=lambda a, indices: np.take_along_axis(a, indices, axis=1),
    where=np.where,
    zeros=np.zeros,
)
TENSORS = SimpleNamespace(
    abs=ops.abs,
    add_to_first=_add_to_first_of_tensor,
    argmax=lambda a: ops.expand_dims(ops.argmax(a, axis=1), 1),
    concatenate=ops.concatenate,
    dot=_dot_of_tensors,
    exp=ops.exp,
    log1p=ops.log1p,
    matmul=ops.matmul,
    max=lambda a: ops.max(a, axis=1),
    maximum=ops.maximum,
    min=lambda a: ops.min(a, axis=1),
    numpy=lambda a: np.asarray(ops.convert_to_numpy(a)),
    put=_put_in_tensor,
    reshape=ops.reshape,
    row_dot=lambda a, b: ops.sum(a * b, axis=1),
    row_square=lambda a: ops.sum(ops.square(a), axis=1),
    row_sum=lambda a: ops.sum(a, axis=1, keepdims=True),
    row_total=lambda a: ops.sum(a, axis=1),
    rows=lambda a, indices: ops.take(a, indices, axis=0),
    sigmoid=ops.sigmoid,
    single=lambda a: ops.convert_to_tensor(a, "float32"),
    sign=ops.sign,
    softmax=lambda a: ops.softmax(a, axis=1),
    swapaxes=ops.swapaxes,
    take=lambda a, indices: ops.take_along_axis(a, indices, axis=1),
    where=ops.where,
    zeros=lambda shape: ops.zeros(shape, "float32"),
)
