"""Products with J_S on features that stay as they are: float32 matrix products, block by block."""

import copy
import functools
import operator
from typing import Any

import numpy as np

from keras_dal import heads
from keras_dal.heads import array_backend

_BLOCK = 1024  # samples whose hidden values exist at a time, at most
_ENTRIES = 2**25  # hidden values that do


class CachedJacobian:
    """J_S of a head on fixed features, with its gates computed once where memory allows.

    Products are float32; sums over blocks of samples are float64.

    Args:
        head: a `heads.Head` with P parameters and C outputs.
        features: array `(n, m)`, possibly memory-mapped.
        max_bytes: limit for what is computed once; beyond it gates are computed again in every product.
        on: one of `arithmetic`; the fastest there is by default.
    """

    def __init__(self, head, features, max_bytes=2**32, on=None):
        self.on = on or array_backend.fastest()
        self.parts, self.features = _parts(head, self.on), features
        self.num_outputs, self.num_parameters = head.num_outputs, head.num_parameters
        size = 4 * len(features) * sum(part.width for part in self.parts)
        self._prepared = [part.prepare(features) for part in self.parts] if size <= max_bytes else None

    def __len__(self):
        return len(self.features)

    def restricted(self, rows):
        """Return the same for some of the samples, given by their indices in ascending order."""
        other = copy.copy(self)
        other._prepared = self._prepared and [
            [a if a is None else self.on.take(a, rows) for a in arrays] for arrays in self._prepared
        ]
        other.features = self.features[rows] if other._prepared else _Rows(self.features, rows)
        return other

    def part(self, index):
        """Return J_S of one part alone."""
        other, part = copy.copy(self), self.parts[index]
        other.parts, other.num_parameters = [part], part.shape[0] * part.shape[1]
        other._prepared = self._prepared and [self._prepared[index]]
        return other

    def inputs_and_gates(self):
        """Return both, for all samples, of the one part there is."""
        return self._prepared[0] if self._prepared else self.parts[0].prepare(self.features[:])

    def logits(self, theta):
        """Return the logits `(n, C)`, float32, for a flat theta `(P,)`."""
        weights = self._weights(theta)
        logits = np.empty((len(self), self.num_outputs), np.float32)
        for rows, block in self.blocks():
            logits[rows] = self._apply(block, weights)
        return logits

    def adjoint(self, cotangent):
        """Return `J' vec(cotangent)`, float64 of shape `(P,)`, for a cotangent `(n, C)`."""
        return self._pulled_back((cotangent[rows], block) for rows, block in self.blocks())

    def normal(self, theta, curve):
        """Return `J' curve(J theta)`, float64 of shape `(P,)`, in one pass over the samples.

        Args:
            theta: flat, `(P,)`.
            curve: a function of the logits `(b, C)` of some samples and of their slice, `criteria.Anchored.curvature`.
        """
        weights = self._weights(theta)
        return self._pulled_back((curve(self._apply(block, weights), rows), block) for rows, block in self.blocks())

    def _weights(self, theta):
        """Return the matrix of each part, None for one that computes nothing, as a branch does at first."""
        pairs = zip(self.parts, self.split(theta), strict=True)
        return [part.factor(weight) if weight.any() else None for part, weight in pairs]

    def _apply(self, block, weights):
        terms = zip(self.parts, block, weights, strict=True)
        products = [part.apply(u, gates, weight) for part, (u, gates), weight in terms if weight is not None]
        if not products:
            return np.zeros((len(block[0][0]), self.num_outputs), np.float32)
        return self.on.numpy(functools.reduce(operator.add, products))

    def _pulled_back(self, cotangents):
        totals = [np.zeros(part.working) for part in self.parts]
        for cotangent, block in cotangents:
            cotangent = self.on.array(cotangent)
            for part, (inputs, gates), total in zip(self.parts, block, totals, strict=True):
                total += self.on.numpy(part.transposed(inputs, gates, cotangent))
        return np.concatenate([part.flat(total) for part, total in zip(self.parts, totals, strict=True)])

    def split(self, theta):
        """Return a flat theta as one float32 matrix for each part."""
        ends = np.cumsum([part.shape[0] * part.shape[1] for part in self.parts])[:-1]
        pieces = np.split(np.asarray(theta, np.float32), ends)
        return [piece.reshape(part.shape) for piece, part in zip(pieces, self.parts, strict=True)]

    def blocks(self):
        """Yield slices of the samples, and for each of them the inputs and gates of every part."""
        step = max(1, min(_BLOCK, _ENTRIES // max(part.working[1] for part in self.parts)))
        for start in range(0, len(self), step):
            rows = slice(start, min(start + step, len(self)))
            if self._prepared:
                yield rows, [[a if a is None else a[rows] for a in arrays] for arrays in self._prepared]
            else:
                yield rows, [part.prepare(self.features[rows]) for part in self.parts]


class _Rows:
    """Some rows of an array that is too large to copy them."""

    def __init__(self, array, rows):
        self.array, self.rows = array, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, part):
        return self.array[self.rows[part]]


class StackedJacobian:
    """The rows of several `CachedJacobian` of one head, one below the other."""

    def __init__(self, jacobians):
        self.jacobians = jacobians
        self.num_parameters = jacobians[0].num_parameters
        self._ends = np.cumsum([len(each) for each in jacobians])

    def __len__(self):
        return int(self._ends[-1])

    def restricted(self, rows):
        """Return the same for some of the rows, given by their indices in ascending order."""
        starts = self._ends - [len(each) for each in self.jacobians]
        pieces = np.split(rows, np.searchsorted(rows, self._ends[:-1]))
        kept = zip(self.jacobians, pieces, starts, strict=True)
        return StackedJacobian(
            [each if len(piece) == len(each) else each.restricted(piece - start) for each, piece, start in kept]
        )

    def part(self, index):
        """Return the rows of one part alone."""
        return StackedJacobian([each.part(index) for each in self.jacobians])

    def logits(self, theta):
        """Return the logits of all rows, float32."""
        return np.concatenate([each.logits(theta) for each in self.jacobians])

    def adjoint(self, cotangent):
        """Return `J' vec(cotangent)`, float64 of shape `(P,)`."""
        pieces = np.split(cotangent, self._ends[:-1])
        return sum(each.adjoint(piece) for each, piece in zip(self.jacobians, pieces, strict=True))

    def normal(self, theta, curve):
        """Return `J' curve(J theta)`, float64 of shape `(P,)`, as `CachedJacobian.normal`."""

        def shifted(start):
            return lambda change, rows: curve(change, slice(start + rows.start, start + rows.stop))

        starts = self._ends - [len(each) for each in self.jacobians]
        return sum(each.normal(theta, shifted(start)) for each, start in zip(self.jacobians, starts, strict=True))


class _Part:
    """One summand of a head, with the `shape` of its matrix of parameters and the one it is `working` with."""

    def __init__(self, on, shape):
        self.on, self.shape, self.working = on, shape, shape

    def prepare(self, features) -> tuple:
        """Return inputs and gates, arrays with a row for each sample, or None for no gates."""
        raise NotImplementedError

    def apply(self, inputs, gates, weight) -> Any:
        """Return the logits."""
        raise NotImplementedError

    def transposed(self, inputs, gates, cotangent) -> Any:
        """Return the transpose of `apply`, as a function of the weight."""
        raise NotImplementedError

    def factor(self, weight):
        """Return the matrix of parameters as `apply` takes it."""
        return self.on.array(weight)

    def flat(self, total):
        """Return a sum of what `transposed` returned, in the order of theta."""
        return np.ravel(total)


class _WithGates(_Part):
    """Standardized features with a one, and gates; the bias is the last row of W, as the heads lay out their theta."""

    def __init__(self, head, on, outputs):
        features, gates = head.gate_kernel.shape
        super().__init__(on, (features + 1, gates * outputs))
        self.head, self.width = head, features + 1 + gates  # of what is computed once for a sample

    def prepare(self, features):
        features = np.asarray(features, np.float32)
        inputs = _with_ones(self.head.standardize(features))
        return self.on.array(inputs), self.on.array(self.head.gates(features))


class _Gated(_WithGates):
    """`((inputs W) * gates) V`."""

    copies = 1

    def __init__(self, head, on):
        super().__init__(head, on, outputs=1)
        self.output, self.back = on.array(head.output_kernel), on.array(head.output_kernel.T)

    def apply(self, inputs, gates, weight):
        return self.on.matmul(self.on.gated_matmul(inputs, weight, gates), self.output)

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


class _Mixture(_WithGates):
    """`sum_k gates_k (inputs W_k)`, W_k beside one another.

    The sum over inputs and gates is made over the more numerous of both first, so that little is left of each sample.
    """

    def __init__(self, head, on):
        super().__init__(head, on, outputs=head.num_outputs)
        self.copies, (features, gates) = head.num_outputs, head.gate_kernel.shape
        self._gates_first = gates > features + 1
        if self._gates_first:
            self.working = (gates, (features + 1) * self.copies)

    def factor(self, weight):
        return self.on.array(self._exchanged(weight) if self._gates_first else weight)

    def flat(self, total):
        return np.ravel(self._exchanged(total) if self._gates_first else total)

    def _exchanged(self, matrix):
        """Return `(b, a C)` for a matrix `(a, b C)`."""
        rows = len(matrix)
        return matrix.reshape(rows, -1, self.copies).swapaxes(0, 1).reshape(-1, rows * self.copies)

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


class _Dense(_Part):
    """`inputs W`, with the features, the features and ones, or ones alone as inputs."""

    copies = None  # of a factor for gates

    def __init__(self, num_features, num_outputs, use_bias, on):
        self.num_features, self.use_bias, self.width = num_features, use_bias, num_features + use_bias
        super().__init__(on, (self.width, num_outputs))

    def prepare(self, features):
        inputs = np.asarray(features[:, : self.num_features], np.float32)
        return self.on.array(_with_ones(inputs) if self.use_bias else inputs), None

    def apply(self, inputs, gates, weight):
        return self.on.matmul(inputs, weight)

    def transposed(self, inputs, gates, cotangent):
        return self.on.transposed_matmul(inputs, cotangent)


def _parts(head, on):
    if isinstance(head, heads.SumHead):
        return [part for each in head.parts for part in _parts(each, on)]
    if isinstance(head, heads.DenseHead):
        return [_Dense(head.shapes[0][0], head.num_outputs, head.use_bias, on)]
    if isinstance(head, heads.MixtureHead):
        return [_Mixture(head, on)]
    if isinstance(head, heads.GatedHead):
        return [_Gated(head, on)] + ([_Dense(0, head.num_outputs, True, on)] if head.use_bias else [])
    raise TypeError(f"The head must be plain, gated or a sum of those. Received: head={head!r}")


def _with_ones(inputs):
    return np.concatenate([inputs, np.ones((len(inputs), 1), inputs.dtype)], axis=1)
