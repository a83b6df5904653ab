"""What a loss is, as plain NumPy functions of logits, and what labels must be."""

import abc

import numpy as np


class Loss(abc.ABC):
    """A loss `l(logits, targets)` that is convex in the logits.

    `targets` is the matrix Y_l of the data-architecture alignment condition, float64 of shape `(n, C)`: the labels
    themselves for the squared error, the one-hot matrix for softmax and `2 y - 1` for sigmoid cross-entropy
    (Kawaguchi, Zhang and Deng, 2022).
    """

    name: str
    activation: str  # what turns the logits into the predictions that Keras' loss takes

    @abc.abstractmethod
    def targets(self, y, num_outputs):
        """Return Y_l, float64 of shape `(n, num_outputs)`, for labels as Keras takes them.

        Raises:
            ValueError: labels that are empty, out of range, not finite or of the wrong shape.
        """

    @abc.abstractmethod
    def curvature(self, num_outputs):
        """Return the largest second derivative of one sample's loss in its logits."""

    @abc.abstractmethod
    def values(self, logits, targets):
        """Return the loss of every sample, shape `(n,)`, for logits and targets of shape `(n, C)`."""

    @abc.abstractmethod
    def gradient(self, logits, targets):
        """Return d values / d logits, shape `(n, C)`."""

    @abc.abstractmethod
    def margins(self, logits, targets):
        """Return by how much every sample is on its right side, shape `(n,)`; None where there are no sides."""

    @abc.abstractmethod
    def at_margin(self, margin, num_outputs):
        """Return the largest loss a sample of this margin can have; None where margins do not bound the loss."""

    def __repr__(self):
        return f"<{self.name}>"


def matrix(y, num_outputs):
    y = np.asarray(y, dtype=np.float64)
    if y.ndim == 1 and num_outputs == 1:
        y = y[:, None]
    if y.size == 0:
        raise ValueError(f"There are no labels. Pass at least one sample. Received: y of shape {y.shape}")
    if y.ndim != 2 or y.shape[1] != num_outputs:
        raise ValueError(
            f"The labels must have one column per output, shape (n, {num_outputs}). Received: y of shape {y.shape}"
        )
    if not np.isfinite(y).all():
        raise ValueError(f"The labels must be finite. Received: y with the value {y[~np.isfinite(y)][0]}")
    return y


def integers(y, num_outputs):
    if not np.issubdtype(y.dtype, np.number) and y.dtype != bool:
        raise ValueError(f"Labels must be numbers. Received: y of dtype {y.dtype}")
    if not np.isfinite(y).all() or (y != np.floor(y)).any() or y.min() < 0 or y.max() >= num_outputs:
        raise ValueError(
            f"Integer labels must lie in 0..{num_outputs - 1}, one class per model output. "
            f"Received: y from {y.min()} to {y.max()}"
        )
    return y.astype(np.int64)
