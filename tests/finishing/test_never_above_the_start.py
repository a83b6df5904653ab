"""What a solver returns is no worse than what it was given, by the loss in float64."""

import keras
import numpy as np
import pytest

from keras_dal import converge, finish

BINARY, CLASSES = keras.losses.BinaryCrossentropy, keras.losses.SparseCategoricalCrossentropy


def far_off(seed, classes, size=60, width=30, scale=20.0):
    """Samples of large inputs and a head that is sure of wrong classes, where second derivatives are nearly zero."""
    generator = np.random.default_rng(seed)
    x = (scale * generator.standard_normal((size, width))).astype("float32")
    y = (x @ generator.standard_normal((width, max(classes, 2)))).argmax(axis=1)
    outputs = 1 if classes == 2 else classes
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(outputs)])
    model.compile("sgd", (BINARY if outputs == 1 else CLASSES)(from_logits=True))
    model.set_weights([0.3 * generator.standard_normal((width, outputs)), np.zeros(outputs)])
    return model, x, y


def loss_of(model, x, y):
    kernel, bias = (np.asarray(each, np.float64) for each in model.layers[-1].get_weights())
    logits = x.astype(np.float64) @ kernel + bias
    logits = np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits
    return float(np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]))


@pytest.mark.parametrize("ridge", [0, 1e-300, 1e-12, 1e-8])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_that_is_far_off_is_bettered_and_stays_of_a_size(classes, ridge):
    for seed in range(4):
        model, x, y = far_off(seed, classes)
        before = loss_of(model, x, y)
        result = converge(model, x, y, gated=False, ridge=ridge, verbose=0)
        after = loss_of(model, x, y)
        assert after <= 1e-4 < 1.0 < before
        assert result.loss == pytest.approx(after, rel=1e-6)
        assert model.evaluate(x, y, verbose=0, batch_size=len(x)) == pytest.approx(after, rel=1e-2, abs=1e-6)
        assert max(np.abs(each).max() for each in model.get_weights()) < 1e3


@pytest.mark.parametrize("ridge", [0, 1e-300, 1e-12])
@pytest.mark.parametrize("scale", [20.0, 400.0, 1e4])
def test_few_samples_that_are_far_off_are_not_made_worse(scale, ridge):
    for seed in range(8):
        model, x, y = far_off(seed, classes=3, size=20, width=4, scale=scale)
        before = loss_of(model, x, y)
        result = converge(model, x, y, gated=False, ridge=ridge, verbose=0)
        assert loss_of(model, x, y) <= before
        assert result.loss <= before
        assert all(
            later.loss <= earlier.loss + 1e-5 for earlier, later in zip(result.path, result.path[1:], strict=False)
        )


@pytest.mark.parametrize("classes", [2, 3])
def test_finish_does_not_make_it_worse(classes):
    model, x, y = far_off(0, classes)
    before = loss_of(model, x, y)
    finish(model, x, y, verbose=0)
    assert loss_of(model, x, y) < before


@pytest.mark.parametrize("unit", [1e-30, 1e30, 1e36])
def test_weights_whose_products_float32_does_not_hold_are_solved_for(unit):
    losses = []
    for weight in (1.0, unit):
        model, x, y = far_off(0, 3, scale=1.0)
        result = finish(model, x, y, np.full(len(y), weight), verbose=0)
        losses.append(loss_of(model, x, y))
        assert result.loss == pytest.approx(weight * losses[-1], rel=1e-6)
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
