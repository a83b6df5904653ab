"""Products with J_S on features that stay as they are, block by block."""

import functools
import math
import operator
from typing import Any

import numpy as np

from keras_dal._backend import arrays
from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.heads import array_backend
from keras_dal.heads.parameters import join, split


class CachedJacobian:
    """J_S of the parts of a head on fixed features.

    What it is given in NumPy it returns in NumPy: logits in the dtype of the parts, and sums over blocks of samples in
    float64. Tensors of the backend stay float32 tensors.

    Args:
        parts: of the head, each a `part.Part`, on one `array_backend`.
        features: array `(n, m)`, possibly memory-mapped.
        prepared: inputs and gates of every part for all samples; by default they are computed in every product.
        entries: hidden values, and features where they are not kept, that exist at a time; by default as many as is
            best for where products are made.
    """

    def __init__(self, parts, features: Any, prepared: Any = None, entries=None):
        self.parts, self.features, self.on = parts, features, parts[0].on
        self._prepared, self._entries = prepared, entries or self.on.entries
        self.num_outputs, self.num_parameters = parts[0].num_outputs, sum(part.num_parameters for part in parts)

    @classmethod
    def of_head(cls, head, features, max_bytes=MAX_BYTES, on=None, entries=None):
        """Return that of a head, in float32, with its gates computed once where memory allows.

        Args:
            head: a `heads.Head` with P parameters and C outputs.
            features: array `(n, m)`, possibly memory-mapped.
            max_bytes: limit for what is computed once; beyond it gates are computed again in every product.
            on: an `array_backend`; the fastest for such a head by default.
            entries: as above.
        """
        operations = 4 * len(features) * head.num_parameters
        parts = head.products(on or array_backend.fastest(operations, head.mixture is not None))
        fits = 4 * len(features) * sum(part.width for part in parts) <= max_bytes
        return cls(parts, features, [part.prepare(features) for part in parts] if fits else None, entries)

    def __len__(self):
        return len(self.features)

    def restricted(self, rows):
        """Return the same for some of the samples, given by their indices in ascending order."""
        kept = self._prepared and [[a if a is None else self.on.take(a, rows) for a in pair] for pair in self._prepared]
        return CachedJacobian(self.parts, _Rows(self.features, rows), kept, self._entries)

    def part(self, index):
        """Return J_S of one part alone."""
        prepared = self._prepared and [self._prepared[index]]
        return CachedJacobian([self.parts[index]], self.features, prepared, self._entries)

    def inputs_and_gates(self):
        """Return both, for all samples, of the one part there is."""
        return self._prepared[0] if self._prepared else self.parts[0].prepare(self.features[:])

    def logits(self, theta):
        """Return the logits `(n, C)` for a flat theta `(P,)`."""
        weights, xp = self._weights(theta), arrays.of(theta)
        if xp is not arrays.NUMPY:
            return xp.concatenate([self._apply(block, weights) for _, block in self.blocks()])
        logits = np.empty((len(self), self.num_outputs), self.on.dtype)
        for rows, block in self.blocks():
            logits[rows] = self.on.numpy(self._apply(block, weights))
        return logits

    def magnitudes(self, theta):
        """Return logits of NumPy, in double precision, with magnitudes for all products, for a theta without signs."""
        weights, sums = self._weights(theta), np.zeros((len(self), self.num_outputs), self.on.dtype)
        for rows, block in self.blocks():
            for part, (inputs, gates), weight in zip(self.parts, block, weights, strict=True):
                sums[rows] += part.magnitudes(inputs, gates, weight)
        return sums

    def of_block(self, block, theta):
        """Return the logits of one of the `blocks`, of NumPy."""
        return self.on.numpy(self._apply(block, self._weights(theta)))

    def adjoint(self, cotangent):
        """Return `J' vec(cotangent)`, shape `(P,)`, for a cotangent `(n, C)`."""
        return self.pulled_back(((cotangent[rows], block) for rows, block in self.blocks()), arrays.of(cotangent))

    def normal(self, theta, curve):
        """Return `J' curve(J theta)`, shape `(P,)`, in one pass over the samples.

        Args:
            theta: flat, `(P,)`.
            curve: a function of the logits `(b, C)` of some samples and of their slice, as `Anchored.hessian`.
        """
        weights, kept = self._weights(theta), arrays.of(theta)

        def bent():
            for rows, block in self.blocks():
                logits = self._apply(block, weights)
                yield curve(self.on.numpy(logits) if kept is arrays.NUMPY else logits, rows), block

        return self.pulled_back(bent(), kept)

    def _weights(self, theta):
        """Return the matrix of each part, None in single precision for one that is zero, as a branch is at first."""
        looks = arrays.of(theta) is arrays.NUMPY and self.on.dtype == np.float32
        pairs = zip(self.parts, self.split(theta), strict=True)
        return [None if looks and not weight.any() else part.factor(weight) for part, weight in pairs]

    def _apply(self, block, weights):
        terms = zip(self.parts, block, weights, strict=True)
        products = [part.apply(u, gates, weight) for part, (u, gates), weight in terms if weight is not None]
        if not products:
            return self.on.array(np.zeros((len(block[0][0]), self.num_outputs)))
        return functools.reduce(operator.add, products)

    def pulled_back(self, cotangents, xp=arrays.NUMPY):
        """Return the sum of `J' vec(cotangent)` over pairs of a cotangent and the one of the `blocks` it is of.

        Args:
            cotangents: the pairs.
            xp: the `arrays` that the result is of.
        """
        totals = [xp.zeros(part.working) for part in self.parts]
        for cotangent, block in cotangents:
            cotangent = self.on.array(cotangent)
            for index, (part, (inputs, gates)) in enumerate(zip(self.parts, block, strict=True)):
                product = part.transposed(inputs, gates, cotangent)
                totals[index] += self.on.numpy(product) if xp is arrays.NUMPY else product
        return join([part.in_order(total) for part, total in zip(self.parts, totals, strict=True)])

    def split(self, theta):
        """Return a flat theta as one matrix for each part."""
        xp = arrays.of(theta)
        return split(np.asarray(theta, self.on.dtype) if xp is arrays.NUMPY else xp.single(theta), self.parts)

    def blocks(self):
        """Yield slices of the samples, and for each of them the inputs and gates of every part."""
        widest = max(max(part.working[1], 0 if self._prepared else part.width) for part in self.parts)
        most = max(1, min(self.on.block, self._entries // widest))
        count = max(1, math.ceil(len(self) / most))
        step = max(1, math.ceil(len(self) / count))  # as even as can be: a backend may compile every size
        for rows in arrays.slices(len(self), step):
            if self._prepared and len(self) <= step:
                yield rows, self._prepared
            elif self._prepared:
                yield rows, [[a if a is None else a[rows] for a in pair] for pair in self._prepared]
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
        return arrays.of(theta).concatenate([each.logits(theta) for each in self.jacobians])

    def adjoint(self, cotangent):
        """Return `J' vec(cotangent)`, shape `(P,)`."""
        rows = zip(self._ends - [len(each) for each in self.jacobians], self._ends, strict=True)
        pieces = [cotangent[start:stop] for start, stop in rows]
        return sum(each.adjoint(piece) for each, piece in zip(self.jacobians, pieces, strict=True))

    def normal(self, theta, curve):
        """Return `J' curve(J theta)`, shape `(P,)`, as `CachedJacobian.normal`."""

        def shifted(start):
            return lambda change, rows: curve(change, slice(start + rows.start, start + rows.stop))

        starts = self._ends - [len(each) for each in self.jacobians]
        return sum(each.normal(theta, shifted(start)) for each, start in zip(self.jacobians, starts, strict=True))
