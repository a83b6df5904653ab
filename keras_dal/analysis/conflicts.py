"""Samples with the same features and other labels: no head, however wide, puts all of them on their right side."""

import numpy as np

from keras_dal.solvers.equal_features import groups_of_equal


def num_conflicting(features, targets, loss):
    """Return how many samples stay on their wrong side whatever function of the features is learned.

    Args:
        features: `(n, m)`.
        targets: `(n, C)`, of `loss.targets`.
        loss: a `losses.Loss` with sides.

    Returns:
        The least number of samples that any function of the features gets wrong, 0 where all features differ. Where
        several outputs have labels of one half, it may be fewer.
    """
    return sum(_wrong(group, targets, loss) for group in groups_of_equal(features))


def _wrong(same, targets, loss):
    """Return how many of a group of samples with equal features are wrong at least."""
    own = np.unique(loss.label_matrix(targets[same]), axis=0)
    either = [np.where(own == 0, side, own) for side in (1.0, -1.0)]  # an output that is right on both sides
    answers = np.concatenate([own, *either, np.eye(own.shape[1])])
    right = [
        np.sum(loss.margins(np.broadcast_to(answer, targets[same].shape), targets[same]) > 0) for answer in answers
    ]
    return len(same) - int(max(right))
