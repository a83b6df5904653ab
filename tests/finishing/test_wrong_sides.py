"""The reason that is given for samples on their wrong side."""

import numpy as np
import pytest

from keras_dal.finishing.wrong_sides import warn_of_wrong

MEANT = np.array([2, 6])


def test_what_it_would_cost_is_the_reason_of_what_was_left():
    with pytest.warns(
        UserWarning, match=r"^2 of 4 samples stay.*change the other outputs most.*Received: training accuracy 50.00%"
    ) as told:
        warn_of_wrong(np.array([2, 6]), MEANT, 4, 0.5)
    assert len(told) == 1


def test_rounding_is_the_reason_of_what_was_separated():
    with pytest.warns(
        UserWarning, match=r"^1 of 4 samples are.*by rounding alone.*Received: training accuracy"
    ) as told:
        warn_of_wrong(np.array([4]), MEANT, 4, 0.75)
    assert len(told) == 1
