"""The right sides of samples with hard labels: what a solver makes of them, and the dual of separating them.

A loss has one of these two kinds or none. Targets are NumPy's or tensors of the backend, those of duals NumPy's.
"""

import numpy as np
from scipy import special

from keras_dal._backend import arrays

ALL = slice(None)  # rows


class RightClass:
    """One class y is right per sample: gaps are `f_y - f_j` for every other class j, `u_i = sum_j q_ij (e_j - e_y)`.

    Args:
        targets: with a one for the right class, `(n, C)`.
    """

    exclusive = True

    def __init__(self, targets):
        self.targets, self._xp = targets, arrays.of(targets)
        self._labels = self._xp.argmax(targets)

    def gaps(self, logits, rows=ALL):
        return self._xp.take(logits, self._labels[rows]) - logits

    def pairs(self, values, rows=ALL):
        """Return one value per sample and class, 0 for the right one, which has no gap; NumPy's are put in place."""
        return self._xp.put(values, self._labels[rows], 0.0)

    def from_gaps(self, pairs, rows=ALL):
        """Return the transpose of `gaps`, applied to what `pairs` returns."""
        return self._xp.put(-pairs, self._labels[rows], self._xp.row_sum(pairs))

    def nearest(self, logits, gap):
        """Return the nearest logits `(n, C)` whose gaps are at least this one."""
        right = np.take_along_axis(logits, self._labels, axis=1)
        others = logits + gap
        np.put_along_axis(others, self._labels, -np.inf, axis=1)
        others = np.sort(others, axis=1)[:, :0:-1]
        # the right class rises to the mean of itself and of the others that it must push down, the highest first
        raised = np.cumsum(np.hstack([right, others]), axis=1) / np.arange(1, logits.shape[1] + 1)
        pushed = np.sum(others > raised[:, :-1], axis=1, keepdims=True)
        raised = np.take_along_axis(raised, pushed, axis=1)
        nearest = np.minimum(logits, raised - gap)
        np.put_along_axis(nearest, self._labels, raised, axis=1)
        return nearest

    def wrong(self, logits):
        """Return the probabilities of wrong classes, `(n, C)`."""
        return special.softmax(logits, axis=1) * (self.targets == 0)

    def most(self, shares):
        """Return the largest probability of all wrong classes of a sample."""
        return shares.sum(axis=1).max()

    def entropy(self, shares):
        """Return the terms of the entropy, `(n, C)`, of probabilities whose wrong ones are shares."""
        wrong = np.minimum(1.0, shares.sum(axis=1, keepdims=True))
        return special.entr(shares) + self.targets * entropy_of_rest(wrong)


class RightSides:
    """Each output t has a right side: its gap is `t_j f_j`, and `u_ij = -t_ij q_ij`; a loss averages over the outputs.

    Args:
        targets: -1 or 1, `(n, C)`.
    """

    exclusive = False

    def __init__(self, targets):
        self.targets = targets

    def gaps(self, logits, rows=ALL):
        return self.targets[rows] * logits

    def pairs(self, values, rows=ALL):
        return values

    def from_gaps(self, pairs, rows=ALL):
        return self.targets[rows] * pairs

    def nearest(self, logits, gap):
        return self.targets * np.maximum(self.targets * logits, gap)

    def wrong(self, logits):
        return special.expit(-self.targets * logits)

    def most(self, shares):
        return shares.max()

    def entropy(self, shares):
        return (special.entr(shares) + entropy_of_rest(shares)) / self.targets.shape[1]


def entropy_of_rest(shares):
    """Return `-(1 - s) log(1 - s)` of shares in [0, 1], to all digits where they are small."""
    return -special.xlog1py(1.0 - shares, -shares)
