"""Samples with equal features: whatever function of these a head is, it has the same logits for all of them."""

import numpy as np

from keras_dal._backend.arrays import EPS
from keras_dal.features.precision import blocks_of

_SAFETY = 64  # an entropy near zero grows by its argument's rounding times minus the logarithm of that


def groups_of_equal(features):
    """Return the indices of samples whose features are equal, an array for each group of two or more.

    Args:
        features: `(n, m)`.
    """
    keys = np.fromiter((hash(row.tobytes()) for block in _blocks(features) for row in block), np.int64, len(features))
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] - 1))
    alike = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    # but for a collision of hashes
    groups = [group[(features[group] == features[group[0]]).all(axis=1)] for group in alike]
    return [group for group in groups if len(group) > 1]


def _blocks(features):
    for block in blocks_of(features):
        yield np.ascontiguousarray(block) + 0.0  # -0.0 is 0.0


def least_loss(loss, features, targets, weights):
    """Return a lower bound of the mean cross-entropy of any function of the features, rounding counted.

    The loss is affine in the targets, so that samples of one group have together that of their mean target, and its
    infimum is an entropy: the value of a dual point that is known exactly.

    Args:
        loss: a `losses.Loss` that `has_entropy`.
        features: `(n, m)`.
        targets: of the loss, `(n, C)`.
        weights: positive sample weights, `(n,)`.
    """
    bounds = weights * loss.infimum(targets)
    for group in groups_of_equal(features):
        if (targets[group] == targets[group[0]]).all():
            continue
        total = np.sum(weights[group])
        mean = weights[group] @ targets[group] / total
        mean = np.clip(mean, targets[group].min(axis=0), targets[group].max(axis=0))  # which rounding may leave
        entropy = float(loss.infimum(mean[None])[0])
        rounding = _SAFETY * EPS * (len(group) + targets.shape[1]) * (1 + entropy)
        together, apart = total * (entropy - rounding), np.sum(bounds[group])
        bounds[group] = max(together, apart) / len(group)
    return float(np.sum(bounds) * (1 - len(bounds) * EPS) / len(bounds))
