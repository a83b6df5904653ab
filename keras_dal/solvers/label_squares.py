"""What a residual of least squares is compared with: the squares of labels about their means."""

import dataclasses

import numpy as np

from keras_dal._backend.arrays import SPREAD


def safe_mean(columns, weights=None):
    """Return means over axis 0, from the distances to the first row, so that a constant is its own mean exactly."""
    return columns[0] + np.average(columns - columns[0], axis=0, weights=weights)


def centred_total(labels, weights, use_bias):
    """Return the `LabelSquares` of labels `(n, C)` for positive weights `(n,)`; a bias makes their means free."""
    whole = weights @ labels**2
    if not use_bias:
        return LabelSquares.settled(whole, whole)
    moved = labels - labels[0]  # exactly zero where an output is constant, however large
    return LabelSquares.settled(weights @ (moved - safe_mean(moved, weights)) ** 2, whole)


@dataclasses.dataclass(frozen=True)
class LabelSquares:
    """The squared norm of each output's labels.

    Attributes:
        centred: about the mean where there is a bias, `(C,)`; zero where that is only rounding.
        whole: of the labels as they are, `(C,)`, which stands in where no output varies.
    """

    centred: np.ndarray
    whole: np.ndarray

    @classmethod
    def settled(cls, centred, whole, rounding=SPREAD**2):
        """Return them with what is only rounding set to zero.

        Args:
            centred: as computed, `(C,)`.
            whole: `(C,)`.
            rounding: share of `whole` that may be rounding of `centred`.
        """
        return cls(np.where(centred > rounding * whole, centred, 0.0), whole)

    def share(self, residual):
        """Return what residual squares, of all outputs together, are of the labels'."""
        total = self.centred.sum() or self.whole.sum()
        return residual / total if total > 0 else 0.0 * residual

    def share_per_class(self, residual):
        """Return the same for each output, for residual squares `(C,)`."""
        total = np.where(self.centred > 0, self.centred, self.whole)
        return np.divide(residual, total, out=np.zeros_like(total), where=total > 0)
