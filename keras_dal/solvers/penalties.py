"""What is added to an objective of logits in the whitened coordinates: the squared distance, and an L2 penalty."""

import functools

import numpy as np
from scipy import linalg

from keras_dal._backend import arrays


class Quadratic:
    """`ridge ||phi||^2 + sum_k factor_k theta_k^2` with `theta = start + T phi`.

    A penalty is of a plain head, whose `T' = R kron I` it multiplies in float64 where arrays are NumPy's: where
    features are small the penalty is stiff in these coordinates, and float32 would lose all else beside it.

    Args:
        whitening: a `Whitening`, the map T.
        ridge: weight of the squared distance, not negative.
        factors: L2 factors of the parameters, `(P,)`, or None for no penalty.
        start: theta where `phi = 0`, `(P,)`, for a penalty.
    """

    def __init__(self, whitening, ridge, factors=None, start=None):
        self.ridge, self._root = ridge, None
        if factors is not None:
            self._root = whitening.root
            shape = (len(self._root), -1)
            self._factors, self._start = factors.reshape(shape), np.asarray(start, np.float64).reshape(shape)
            self._parts = self._factors, self._start, self._root, self._root.T

    @functools.cached_property
    def _tensors(self):
        """The factors, the start and the two maps on the device, which are not sent there for every product."""
        return tuple(arrays.TENSORS.single(part) for part in self._parts)

    def _there(self, xp):
        return self._parts if xp is arrays.NUMPY else self._tensors

    def value(self, phi):
        """Return it as a float."""
        xp = arrays.of(phi)
        distance = self.ridge * xp.dot(phi, phi)
        if self._root is None:
            return distance
        theta = self._start + xp.numpy(self._change(phi, xp)).astype(np.float64)
        return distance + np.sum(self._factors * theta**2)

    def gradient(self, phi):
        """Return the gradient in phi, of its kind."""
        gradient, xp = 2 * self.ridge * phi, arrays.of(phi)
        if self._root is None:
            return gradient
        _, start, _, _ = self._there(xp)
        return gradient + self._pulled_back(start + self._change(phi, xp), xp)

    def product(self, direction):
        """Return the second derivative times a direction."""
        bent, xp = 2 * self.ridge * direction, arrays.of(direction)
        return bent if self._root is None else bent + self._pulled_back(self._change(direction, xp), xp)

    @functools.cached_property
    def preconditioner(self):
        r"""A function that undoes \( 4 \rho + 2 T' \Lambda T \), by mean factors of all outputs; None for no penalty.

        The loss is of order one beside it.
        """
        if self._root is None:
            return None
        bent = 2 * (self._root * self._factors.mean(axis=1)) @ self._root.T
        inverse = linalg.inv(4 * self.ridge * np.eye(len(bent)) + bent)
        on_device = functools.cache(lambda: arrays.TENSORS.single(inverse))

        def precondition(vector):
            xp = arrays.of(vector)
            there = inverse if xp is arrays.NUMPY else on_device()
            return xp.reshape(xp.matmul(there, xp.reshape(vector, self._factors.shape)), (-1,))

        return precondition

    def _change(self, phi, xp):
        _, _, _, transposed = self._there(xp)
        return xp.matmul(transposed, xp.reshape(phi, self._factors.shape))

    def _pulled_back(self, theta, xp):
        factors, _, root, _ = self._there(xp)
        return xp.reshape(xp.matmul(root, 2 * factors * theta), (-1,))
