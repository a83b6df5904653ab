"""What is added to an objective of logits in the whitened coordinates: the squared distance, and an L2 penalty."""

from keras_dal._backend import arrays


class Quadratic:
    """`ridge ||phi||^2 + sum_k factor_k theta_k^2` with `theta = start + T phi`.

    Args:
        whitening: a `Whitening`, the map T.
        ridge: weight of the squared distance, not negative.
        factors: L2 factors of the parameters, `(P,)`, or None for no penalty.
        start: theta where `phi = 0`, `(P,)`, for a penalty.
    """

    def __init__(self, whitening, ridge, factors=None, start=None):
        self._whitening, self.ridge, self._factors, self._start = whitening, ridge, factors, start

    def value(self, phi):
        """Return it as a float."""
        xp, distance = arrays.of(phi), self.ridge * arrays.of(phi).dot(phi, phi)
        if self._factors is None:
            return distance
        theta = self._theta(phi, xp)
        return distance + xp.dot(self._there(self._factors, xp) * theta, theta)

    def gradient(self, phi):
        """Return the gradient in phi, of its kind."""
        gradient = 2 * self.ridge * phi
        return gradient if self._factors is None else gradient + self._pulled_back(self._theta(phi, arrays.of(phi)))

    def product(self, direction):
        """Return the second derivative times a direction."""
        bent = 2 * self.ridge * direction
        return bent if self._factors is None else bent + self._pulled_back(self._whitening.theta(direction))

    def _theta(self, phi, xp):
        return self._there(self._start, xp) + self._whitening.theta(phi)

    def _pulled_back(self, theta):
        return self._whitening.transposed(2 * self._there(self._factors, arrays.of(theta)) * theta)

    @staticmethod
    def _there(array, xp):
        return array if xp is arrays.NUMPY else xp.single(array)
