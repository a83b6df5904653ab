"""Warnings about the samples that a separation leaves on their wrong side."""

import numpy as np

from keras_dal.output.tables import percent
from keras_dal.output.warning import warn
from keras_dal.solvers.equal_features import groups_of_equal


def contradicted(features, targets):
    """Return which samples have equal features as one with other targets, `(n,)`: no head puts all of them right."""
    found = np.zeros(len(features), bool)
    for group in groups_of_equal(features):
        found[group] = (targets[group] != targets[group[:1]]).any()
    return found


def warn_of_wrong(left, meant, num_samples, accuracy, equal=()):
    """Warn of samples that were not moved because they cannot be or that costs too much, and of those left by rounding.

    Args:
        left: indices of the samples on their wrong side, among those that were given.
        meant: of those that were not moved; the solver separated all others.
        num_samples: how many there are.
        accuracy: training accuracy.
        equal: indices of the samples that are `contradicted`.
    """
    is_equal = np.isin(left, equal)
    costly = int(np.sum(np.isin(left, meant) & ~is_equal))
    if inseparable := int(np.sum(is_equal)):
        warn(
            f"{inseparable} of {num_samples} samples stay on their wrong side, because samples with equal features "
            "have other labels, which no head tells apart. Look at them (Result.left): correct wrong labels, or give "
            "these samples weight 0; where inputs differ, the network makes them equal: train it further. Received: "
            f"training accuracy {percent(accuracy)}"
        )
    if costly:
        warn(
            f"{costly} of {num_samples} samples stay on their wrong side, because moving them would change the other "
            "outputs most. Look at them (Result.left): correct wrong labels, or give these samples weight 0; where "
            "labels are right, train the network further, until it tells them from others. Received: training "
            f"accuracy {percent(accuracy)}"
        )
    if rounded := len(left) - costly - inseparable:
        warn(
            f"{rounded} of {num_samples} samples are on their wrong side by rounding alone (Result.left): the "
            "solver separated them, by less than the dtype of the head or float32 features can hold. Give the last "
            f"layer dtype='float32', or normalize its inputs. Received: training accuracy {percent(accuracy)}"
        )
