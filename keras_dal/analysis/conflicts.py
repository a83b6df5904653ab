"""Samples with the same features and other labels: no head, however wide, puts all of them on their right side."""

import numpy as np

from keras_dal.features.precision import blocks_of


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
    keys = np.fromiter((hash(row.tobytes()) for block in _blocks(features) for row in block), np.int64, len(features))
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] - 1))
    groups = np.split(order, starts[1:])
    return sum(_wrong(group, features, targets, loss) for group in groups if len(group) > 1)


def _blocks(features):
    for block in blocks_of(features):
        yield np.ascontiguousarray(block) + 0.0  # -0.0 is 0.0


def _wrong(group, features, targets, loss):
    """Return how many of a group of samples, most likely of equal features, are wrong at least."""
    same = group[(features[group] == features[group[0]]).all(axis=1)]  # but for a collision of hashes
    own = np.unique(loss.label_matrix(targets[same]), axis=0)
    either = [np.where(own == 0, side, own) for side in (1.0, -1.0)]  # an output that is right on both sides
    answers = np.concatenate([own, *either, np.eye(own.shape[1])])
    right = [
        np.sum(loss.margins(np.broadcast_to(answer, targets[same].shape), targets[same]) > 0) for answer in answers
    ]
    return len(same) - int(max(right))
