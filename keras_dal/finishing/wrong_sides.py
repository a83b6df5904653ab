"""Warnings about the samples that a separation leaves on their wrong side."""

import numpy as np

from keras_dal._backend.warning import warn
from keras_dal.tables import percent


def warn_of_wrong(left, meant, num_samples, accuracy):
    """Warn of samples that were not moved because that costs too much, and of those that only rounding put there.

    Args:
        left: indices of the samples on their wrong side, among those that were given.
        meant: of those that were not moved; the solver separated all others.
        num_samples: how many there are.
        accuracy: training accuracy.
    """
    costly = int(np.sum(np.isin(left, meant)))
    if costly:
        warn(
            f"{costly} of {num_samples} samples stay on their wrong side, because moving them would change the other "
            "outputs most. Look at them (Result.left): correct wrong labels, or give these samples weight 0; where "
            "labels are right, train the network further, until it tells them from others. Received: training "
            f"accuracy {percent(accuracy)}"
        )
    if rounded := len(left) - costly:
        warn(
            f"{rounded} of {num_samples} samples are on their wrong side by rounding alone (Result.left): the "
            "solver separated them, by less than the dtype of the head or float32 features can hold. Give the last "
            f"layer dtype='float32', or normalize its inputs. Received: training accuracy {percent(accuracy)}"
        )
