"""The least change of a mixture of linear maps that gives chosen samples chosen logits: one Cholesky factorization."""

import numpy as np

from keras_dal.whitening import Whitening

_JITTER, _LARGEST = 1e-6, 1e-3  # of the diagonal: what float32 needs to factorize, and what it gets at most


class Interpolation:
    """Finds the change of least norm, in whitened coordinates, that moves the logits of chosen samples as wanted.

    The Jacobian of a mixture in these coordinates is `J T = A kron I_C` with `A A' = Q = (G G') o (U U')` for whitened
    gates G and inputs U. The change is `T T' J' vec(alpha)` with `Q alpha = moves`. Samples can join: the Cholesky
    factor of Q grows by a panel of rows.

    Args:
        mixture: the `CachedJacobian` of a `MixtureHead` on all samples.
        anchors: the same on the samples whose mean squared change T whitens.
        max_bytes: size of the largest factor.
    """

    def __init__(self, mixture, anchors, max_bytes=2**32):
        self._mixture, self._whitening, self._on = mixture, Whitening(anchors), mixture.on
        self._max_bytes = max_bytes
        self.chosen, self._samples, self._panels = np.empty(0, int), [], []

    def extend(self, rows):
        """Add samples, by their indices in ascending order.

        Raises:
            np.linalg.LinAlgError: Q is singular in float32, or its factor larger than max_bytes.
        """
        if not len(rows):
            return
        if 4 * (len(self.chosen) + len(rows)) ** 2 > self._max_bytes:
            raise np.linalg.LinAlgError("The factor is larger than max_bytes.")
        inputs, gates = self._whitening.rows(*self._mixture.restricted(rows).inputs_and_gates())
        solved = self._forward([self._on.cross_gram(*sample, inputs, gates) for sample in self._samples])
        lower = self._factor(inputs, gates, solved, _JITTER)
        self._panels.append((solved, lower))
        self._samples.append((inputs, gates))
        self.chosen = np.concatenate([self.chosen, rows])

    def _factor(self, inputs, gates, solved, jitter):
        """Return the Cholesky factor of what is left of the new samples' own block."""
        block = self._on.gram(inputs, gates, jitter)
        for each in solved:
            block -= self._on.transposed_matmul(each, each)
        try:
            return self._on.cholesky(block)
        except np.linalg.LinAlgError:
            if jitter >= _LARGEST:
                raise
        del block
        return self._factor(inputs, gates, solved, 10 * jitter)

    def change(self, moves):
        """Return the change of theta `(P,)` that moves the logits of the chosen samples by moves `(k, C)`."""
        order = np.argsort(self.chosen)
        gradient = self._mixture.restricted(self.chosen[order]).adjoint(self._solve(moves)[order])
        return self._whitening.theta(self._whitening.transposed(gradient))

    def _solve(self, moves):
        ends = np.cumsum([len(lower) for _, lower in self._panels])[:-1]
        parts = [self._on.array(part) for part in np.split(np.asarray(moves, np.float32), ends)]
        parts = self._forward(parts)
        for last in reversed(range(len(parts))):
            above, lower = self._panels[last]
            parts[last] = self._on.solve_triangular(lower, parts[last], transposed=True)
            for index, block in enumerate(above):
                parts[index] = parts[index] - self._on.matmul(block, parts[last])
        return np.concatenate([self._on.numpy(part) for part in parts])

    def _forward(self, parts):
        """Return `L^-1` times a matrix given in panels."""
        done = []
        for part, (above, lower) in zip(parts, self._panels, strict=True):
            for block, solved in zip(above, done, strict=True):
                part = part - self._on.transposed_matmul(block, solved)
            done.append(self._on.solve_triangular(lower, part))
        return done
