r"""The Jacobian J of a model's logits in its parameters as a SciPy linear operator, never formed.

Rows are the logits \( \mathrm{vec} f_X \), samples first, columns the parameters. For a linear head the products are
analytic, on features that are computed once; for other parameters they are Jacobian-vector and vector-Jacobian products
of automatic differentiation, in the precision of the model.
"""

import functools
import math
import time
from typing import Any

import keras
import numpy as np
from keras import tree
from scipy.sparse.linalg import LinearOperator

from keras_dal import _backend
from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.features import tracing
from keras_dal.features.batches import BATCH_SIZE, batches, feature_batches
from keras_dal.features.inputs import num_samples, sample_inputs
from keras_dal.features.samples import check_bytes
from keras_dal.features.variables import num_entries
from keras_dal.heads.parameters import join, split
from keras_dal.models.find_structure import find_structure
from keras_dal.models.linear_layers import named_variables

_VECTORS = 4  # of each length that a Krylov method such as LSQR keeps


def tangent_operator(
    model: Any, x: Any, parameters: Any = "head", *, max_bytes: int = MAX_BYTES, batch_size: int = BATCH_SIZE
) -> "HeadOperator | AutodiffOperator":
    """Return J as a linear operator, for the head of a model, its whole network, or any parameters between.

    Args:
        model: a Keras model that `find_structure` understands.
        x: inputs of shape `(n, ...)`, or several such arrays in the structure that the model takes.
        parameters: `"head"`, `"all"` trainable ones, or layers, names or a regular expression as in `find_structure`,
            which need not be linear here.
        max_bytes: limit of the memory that the operator and a Krylov method with it need; a larger one is refused
            before anything is computed.
        batch_size: samples in one product of automatic differentiation.

    Returns:
        A `scipy.sparse.linalg.LinearOperator` of shape `(n C, P)` and dtype float64, a `HeadOperator` or an
        `AutodiffOperator`, with `num_bytes` of memory and `seconds_per_product`, measured on one product.

    Raises:
        MemoryError: the estimate is above `max_bytes`.
        ValueError: no linear head, unknown parameters, or inputs that are empty or not finite.
    """
    check_bytes("max_bytes", max_bytes)
    linear = isinstance(parameters, str) and parameters == "head"
    structure = find_structure(model, x)
    if linear:
        return HeadOperator(structure, x, batch_size, max_bytes)
    if isinstance(parameters, str) and parameters == "all":
        return operator_of_all(structure, x, batch_size, max_bytes)
    return AutodiffOperator(structure, x, named_variables(model, parameters), batch_size, max_bytes)


def operator_of_all(structure, x, batch_size, max_bytes):
    """Return the `tangent_operator` of all trainable parameters of a model whose `Structure` is at hand."""
    return AutodiffOperator(structure, x, structure.model.variables, batch_size, max_bytes)


class _Operator(LinearOperator):
    def __init__(self, num_samples, num_outputs, num_parameters, num_bytes, max_bytes):
        super().__init__(np.dtype(np.float64), (num_samples * num_outputs, num_parameters))
        self.num_outputs = num_outputs
        self.num_bytes: int = num_bytes + 8 * _VECTORS * sum(self.shape)
        if self.num_bytes > max_bytes:
            raise MemoryError(
                f"Products with this Jacobian would take about {self.num_bytes:,} bytes (formed, it would take "
                f"{8 * math.prod(self.shape):,}). Take fewer samples, or raise max_bytes= where the function has it. "
                f"Received: {num_samples:,} samples, {num_outputs:,} outputs, {num_parameters:,} parameters, "
                f"max_bytes={max_bytes:,}"
            )

    @functools.cached_property
    def seconds_per_product(self) -> float:
        """Estimated time of one product, from one batch; LSQR makes two products per iteration."""
        self._try()  # compiles
        start = time.perf_counter()
        return self._try() * (time.perf_counter() - start)

    def _try(self):
        """Does one batch of a product, and returns the number of batches."""
        raise NotImplementedError


class HeadOperator(_Operator):
    """J restricted to the linear parameters, `[Z, 1] kron I_C` for a plain head."""

    def __init__(self, structure, x, batch_size, max_bytes):
        self._head = structure.head()
        size = num_samples(x)
        super().__init__(
            size, self._head.num_outputs, self._head.num_parameters, 8 * size * structure.num_features, max_bytes
        )
        features = [batch for batch, _, _ in feature_batches(structure, x, batch_size=batch_size)]
        self._features = np.concatenate(features).astype(np.float64)

    def _matvec(self, x):
        return self._head.logits(self._features, np.ravel(x).astype(np.float64)).ravel()

    def _try(self):
        self._matvec(np.zeros(self.shape[1]))
        return 1

    def _rmatvec(self, x):
        return self._head.adjoint(self._features, np.reshape(x, (-1, self.num_outputs)).astype(np.float64))


class AutodiffOperator(_Operator):
    """J in any variables of the model, in inference mode, by automatic differentiation one batch after another."""

    def __init__(self, structure, x, variables, batch_size, max_bytes):
        self.variables = tuple(variable for variable in variables if variable.trainable)
        if not self.variables:
            raise ValueError(
                "At least one of the chosen parameters must be trainable. "
                f"Received: model {structure.model.name!r} with trainable={structure.model.trainable}"
            )
        sample = sample_inputs(structure.model, x)
        values = batch_size * _bytes_per_sample(structure.model, sample)
        size = num_entries(self.variables)
        super().__init__(num_samples(x), structure.num_outputs, size, 3 * values, max_bytes)  # tangents, gradients too
        self._x, self._batch_size = x, batch_size

        def logits(inputs):
            return tracing.logits(structure.model, structure.output_layer, inputs)

        self._logits_dtype = keras.backend.standardize_dtype(logits(sample).dtype)
        self._jvp = _backend.jvp(logits, self.variables)
        self._vjp = _backend.vjp(logits, self.variables)

    def _try(self):
        first = next(batches(self._x, batch_size=self._batch_size))[0]
        _joined([self._jvp(first, self._tangents(np.zeros(self.shape[1])))])
        return math.ceil(num_samples(self._x) / self._batch_size)

    def _tangents(self, theta):
        pairs = zip(split(np.ravel(theta), self.variables), self.variables, strict=True)
        return [keras.ops.convert_to_tensor(part, dtype=variable.dtype) for part, variable in pairs]

    def _matvec(self, x):
        tangents = self._tangents(x)
        rows = batches(self._x, batch_size=self._batch_size)
        return _joined(self._jvp(batch, tangents) for batch, _, _ in rows)

    def _rmatvec(self, x):
        total, start = np.zeros(self.shape[1]), 0
        cotangent = np.reshape(x, (-1, self.num_outputs))
        for batch, _, _ in batches(self._x, batch_size=self._batch_size):
            rows = cotangent[start : start + num_samples(batch)]
            gradients = self._vjp(batch, keras.ops.convert_to_tensor(rows, dtype=self._logits_dtype))
            total += _joined(gradients)
            start += len(rows)
        return total


def _joined(tensors):
    return join([tracing.to_numpy(tensor) for tensor in tensors])


def _bytes_per_sample(model, sample):
    """Return the memory of what all layers return for one sample, which bounds what is kept for a gradient."""
    calls, _ = tracing.recorded_calls(model, sample)
    outputs = [output for call in calls for output in tree.flatten(call.outputs)]
    sizes = [math.prod(output.shape) * 8 for output in outputs if hasattr(output, "shape")]
    return sum(sizes) // num_samples(sample)
