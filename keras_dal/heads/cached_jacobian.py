"""Products with J_S on features that stay as they are: float32 matrix products, block by block."""

import copy
import functools
import operator

import numpy as np

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
        on: an `array_backend`; the fastest there is by default.
    """

    def __init__(self, head, features, max_bytes=2**32, on=None):
        self.on = on or array_backend.fastest()
        self.parts, self.features = head.products(self.on), features
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

    def of_block(self, block, theta):
        """Return the logits of one of the `blocks`, float32."""
        return self._apply(block, self._weights(theta))

    def adjoint(self, cotangent):
        """Return `J' vec(cotangent)`, float64 of shape `(P,)`, for a cotangent `(n, C)`."""
        return self.pulled_back((cotangent[rows], block) for rows, block in self.blocks())

    def normal(self, theta, curve):
        """Return `J' curve(J theta)`, float64 of shape `(P,)`, in one pass over the samples.

        Args:
            theta: flat, `(P,)`.
            curve: a function of the logits `(b, C)` of some samples and of their slice, as `Anchored.curvature`.
        """
        weights = self._weights(theta)
        return self.pulled_back((curve(self._apply(block, weights), rows), block) for rows, block in self.blocks())

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

    def pulled_back(self, cotangents):
        """Return the sum of `J' vec(cotangent)` over pairs of a cotangent and the one of the `blocks` it is of."""
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
