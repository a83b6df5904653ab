"""The least change of a mixture of linear maps that gives chosen samples chosen logits: one Cholesky factorization."""

from typing import NamedTuple

import numpy as np

from keras_dal._backend import arrays
from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.heads.parameters import join
from keras_dal.solvers.whitening import Whitening

_JITTER, _LARGEST = 1e-6, 1e-3  # of the diagonal: what float32 needs to factorize, and what it gets at most
_BLOCK = 1024  # samples whose products of gates and logits exist at a time


class _Panel(NamedTuple):
    """Samples that joined together, in whitened coordinates, and their columns of the transposed factor."""

    inputs: object
    gates: object
    above: list
    lower: object


class Interpolation:
    """Finds the change of least norm, in whitened coordinates, that moves the logits of chosen samples as wanted.

    The Jacobian of a mixture in these coordinates is `J T = A kron I_C` with `A A' = Q = (G G') o (U U')` for whitened
    gates G and inputs U. The change is `T T' J' vec(alpha)` with `Q alpha = moves`. Samples can join: the Cholesky
    factor of Q grows by a panel of rows. Samples that are held enter with the variance of an observation on their
    diagonal, as in the regression with a Gaussian process (Rasmussen and Williams, 2006).

    Args:
        mixture: the `CachedJacobian` of a `MixtureHead` on all samples.
        anchors: the same on the samples whose mean squared change T whitens.
        max_bytes: size of the largest factor.
    """

    def __init__(self, mixture, anchors, max_bytes=MAX_BYTES):
        self._mixture, self._whitening, self._on = mixture, Whitening(anchors, mixture), mixture.on
        self._max_bytes = max_bytes
        self.clear()

    def clear(self):
        """Forget all samples, those that are held too."""
        self._held, self._panels, self.chosen = 0, [], np.empty(0, int)

    def hold(self, anchors):
        """Make the change of least squared norm plus mean squared change of the logits of these, before any sample.

        Args:
            anchors: the `CachedJacobian` of the mixture on them.

        Raises:
            np.linalg.LinAlgError: as for `extend`.
        """
        if len(anchors):
            self._join(anchors, len(anchors))
            self._held = len(anchors)

    def extend(self, rows):
        """Add samples, by their indices in ascending order.

        Raises:
            np.linalg.LinAlgError: Q is singular in float32, or its factor larger than `max_bytes`.
        """
        if len(rows):
            self._join(self._mixture.restricted(rows), 0)
            self.chosen = np.concatenate([self.chosen, rows])

    def _join(self, samples, variance):
        if 4 * (self._held + len(self.chosen) + len(samples)) ** 2 > self._max_bytes:
            raise np.linalg.LinAlgError(f"The factor takes more than {self._max_bytes:,} bytes.")
        inputs, gates = self._whitening.rows(*samples.inputs_and_gates())
        above = self._forward([self._on.cross_gram(each.inputs, each.gates, inputs, gates) for each in self._panels])
        lower = self._factor(inputs, gates, above, variance, _JITTER)
        self._panels.append(_Panel(inputs, gates, above, lower))

    def _factor(self, inputs, gates, above, variance, jitter):
        """Return the Cholesky factor of what is left of the new samples' own block."""
        block = self._on.gram(inputs, gates, jitter, variance)
        for each in above:
            block = self._on.without_gram(block, each)
        try:
            return self._on.cholesky(block)
        except np.linalg.LinAlgError:
            if jitter >= _LARGEST:
                raise
        del block
        return self._factor(inputs, gates, above, variance, 10 * jitter)

    def change(self, moves):
        """Return the change of theta that moves the logits of the chosen samples, and the multipliers of these.

        Args:
            moves: changes of the logits `(k, C)`, in the order of `chosen`.

        Returns:
            The change `(P,)` and `alpha`, float32 `(k, C)`. The sum of `moves * alpha` is the minimum: the squared norm
            of the change in whitened coordinates, plus the mean squared change of what is held.
        """
        moves = np.asarray(moves, np.float32)
        still = np.zeros((self._held, moves.shape[1]), np.float32)
        alphas = self._solve(np.concatenate([still, moves]))
        (part,), total = self._mixture.parts, 0.0
        for panel, alpha in zip(self._panels, alphas, strict=True):
            for rows in arrays.slices(len(panel.gates), _BLOCK):
                pulled_back = part.transposed(panel.inputs[rows], panel.gates[rows], alpha[rows])
                total = total + self._on.numpy(pulled_back).astype(np.float64)
        multipliers = np.concatenate([self._on.numpy(alpha) for alpha in alphas])[self._held :]
        return self._whitening.theta(join([part.in_order(total)])), multipliers

    def _solve(self, moves):
        """Return alpha in panels."""
        ends = np.cumsum([len(panel.lower) for panel in self._panels])[:-1]
        parts = self._forward([self._on.array(part) for part in np.split(moves, ends)])
        for last in reversed(range(len(parts))):
            panel = self._panels[last]
            parts[last] = self._on.solve_triangular(panel.lower, parts[last], transposed=True)
            for index, block in enumerate(panel.above):
                parts[index] = parts[index] - self._on.matmul(block, parts[last])
        return parts

    def _forward(self, parts):
        """Return `L^-1` times a matrix given in panels."""
        done = []
        for part, panel in zip(parts, self._panels, strict=True):
            for block, solved in zip(panel.above, done, strict=True):
                part = part - self._on.transposed_matmul(block, solved)
            done.append(self._on.solve_triangular(panel.lower, part))
        return done
