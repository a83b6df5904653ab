"""A limit of memory in `fit` is a warning, and training goes on."""

import keras
import numpy as np
import pytest
from fits import NUM_CLASSES, compiled, fit, images, small_model
from keras import layers

import keras_dal

LOGITS = 8 * 96 * NUM_CLASSES  # bytes of those of all samples in float64


def with_gates(optimizer):
    keras.utils.set_random_seed(0)
    ends = keras_dal.GatedDense(4, gates="random"), layers.Dense(NUM_CLASSES, name="logits")
    return compiled(optimizer, keras.Sequential([keras.Input((8, 8, 2)), layers.GlobalAveragePooling2D(), *ends]))


def wrap(finish="solve"):
    return keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1, finish=finish)


def test_a_head_whose_logits_are_too_large_is_not_solved_and_training_goes_on():
    model, monitor = with_gates(wrap()), keras_dal.AlignmentMonitor(max_bytes=LOGITS - 1, verbose=0)
    with pytest.warns(UserWarning, match=rf"Logits are needed in memory.*max_bytes={LOGITS - 1:,}"):
        history = fit(model, 3, [monitor])
    assert history["phase"][-1] == 0
    assert monitor.result is None


def test_a_head_that_fits_is_solved():
    model, monitor = with_gates(wrap()), keras_dal.AlignmentMonitor(max_bytes=LOGITS, verbose=0)
    fit(model, 3, [monitor])
    assert monitor.result is not None


def test_features_of_a_plain_head_are_mapped_and_it_is_solved():
    model, monitor = compiled(wrap(), small_model()), keras_dal.AlignmentMonitor(max_bytes=0, verbose=0)
    fit(model, 3, [monitor])
    assert monitor.result is not None
    assert isinstance(monitor.result._data.train.features, np.memmap)


def test_an_alignment_that_is_too_large_is_not_a_number():
    model, monitor = (
        with_gates(keras.optimizers.SGD(0.1)),
        keras_dal.AlignmentMonitor(images(), max_bytes=LOGITS - 1, verbose=0),
    )
    with pytest.warns(UserWarning, match="could not be measured.*Features and logits are needed in memory"):
        assert np.isnan(fit(model, 2, [monitor])["alignment"]).all()


def test_a_switch_does_without_a_certificate_that_is_too_large():
    model, monitor = (
        with_gates(wrap("descend")),
        keras_dal.AlignmentMonitor(images(), max_bytes=LOGITS - 1, verbose=0),
    )
    with pytest.warns(UserWarning, match="could not be measured"), pytest.warns(UserWarning, match="no certificate"):
        history = fit(model, 2, [monitor])
    assert history["phase"][-1] == 1
    with pytest.raises(MemoryError):
        monitor.certificates["end"]


@pytest.mark.parametrize("limit", [None, "4GB", -1])
def test_the_limit_is_a_number_of_bytes(limit):
    with pytest.raises(ValueError, match="max_bytes must be a number of bytes"):
        keras_dal.AlignmentMonitor(max_bytes=limit)
