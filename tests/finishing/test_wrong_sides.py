"""The reason that is given for samples on their wrong side."""

import keras
import numpy as np
import pytest

import keras_dal
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


@pytest.mark.filterwarnings("ignore:.* of 200 samples stay on their wrong side")
@pytest.mark.parametrize("seed", [5, 13, 15])
def test_light_samples_are_not_left_for_their_weight(seed):
    data, generator = np.random.default_rng(0), np.random.default_rng(seed)
    x = data.standard_normal((200, 4)).astype("float32")
    y = (x @ data.standard_normal((4, 3)) + data.standard_normal((200, 3))).argmax(axis=1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    shapes = (4, 8), (8,), (8, 3), (3,)
    hidden, bias, head, zeros = (generator.standard_normal(shape).astype("float32") for shape in shapes)
    model.set_weights([hidden, 0.1 * bias, 3 * head, 0 * zeros])
    model = keras_dal.add_gated_head(model, x, verbose=0)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = keras_dal.finish(model, x, y, np.choose(y, [1.0, 5.0, 0.01]), verbose=0)
    assert len(result.left) <= 10  # 25 to 60 where they begin as far on their wrong side as the weights let them
