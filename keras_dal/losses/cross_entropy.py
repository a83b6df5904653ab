"""What the two cross-entropies share: labels that are smoothed, by the loss or before it."""

from keras_dal.losses.base import Loss


class CrossEntropy(Loss):
    """A cross-entropy of probabilities q, `H(q_i) + KL(q_i || p_i)`: its infimum is the entropy of the labels.

    Args:
        label_smoothing: as for the Keras losses, in [0, 1].
    """

    options = ("label_smoothing",)
    has_sides = has_entropy = True

    def __init__(self, label_smoothing=0.0):
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1]. Received: {label_smoothing=}")
        self.label_smoothing = float(label_smoothing)

    @property
    def is_likelihood(self):
        return not self.label_smoothing

    def __repr__(self):
        return f"<{self.name}, label_smoothing={self.label_smoothing}>" if self.label_smoothing else super().__repr__()
