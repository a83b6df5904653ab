"""The reason that is given for samples on their wrong side."""

import keras
import numpy as np
import pytest

from keras_dal import converge
from keras_dal.finishing.wrong_sides import contradicted, warn_of_wrong

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


def test_equal_features_with_other_labels_are_named_and_not_their_cost():
    with pytest.warns(UserWarning, match="samples") as told:
        warn_of_wrong(np.array([2, 4, 6]), MEANT, 8, 0.5, equal=np.array([1, 2]))
    found = [str(each.message) for each in told]
    assert len(found) == 3
    assert found[0].startswith("1 of 8 samples stay on their wrong side, because samples with equal features have")
    assert found[1].startswith("1 of 8 samples stay on their wrong side, because moving them would change")
    assert found[2].startswith("1 of 8 samples are on their wrong side by rounding alone")


def test_samples_are_contradicted_where_features_are_equal_and_labels_are_not():
    features, classes = np.array([[1.0], [2.0], [1.0], [2.0], [3.0], [0.0], [-0.0]]), np.array([0, 1, 1, 1, 0, 0, 1])
    assert contradicted(features, np.eye(2)[classes]).tolist() == [True, False, True, False, False, True, True]


def test_inputs_that_are_all_equal_are_said_to_be_inseparable():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.arange(60) % 3
    with pytest.warns(UserWarning, match=r"^40 of 60 samples stay on their wrong side, because samples with equal"):
        converge(model, np.ones((60, 6), "float32"), y, verbose=0)
