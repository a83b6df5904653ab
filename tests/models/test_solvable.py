"""Heads that nothing is solved for, or with a warning."""

import cases
import keras
import numpy as np
import pytest
from keras import layers

import keras_dal
from keras_dal.models.find_structure import find_structure
from keras_dal.models.solvable import check_solvable


def compiled(head):
    model = cases.sequential(head)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, np.random.default_rng(0).standard_normal((12, 5)).astype("float32"), np.arange(12) % 3


def test_a_constraint_on_the_head_is_told():
    check_solvable(find_structure(cases.CASES[0].build()))
    model = cases.sequential(layers.Dense(3, kernel_constraint="non_neg"))
    with pytest.raises(ValueError, match=r"without constraints.*Received: .*kernel"):
        check_solvable(find_structure(model))


def test_a_norm_that_training_keeps_is_told():
    model = cases.sequential(layers.SpectralNormalization(layers.Dense(3)))
    with pytest.raises(ValueError, match=r"without a bound of its norm.*Received: layer 'spectral"):
        check_solvable(find_structure(model))
    body = layers.SpectralNormalization(layers.Dense(4, activation="relu"))
    check_solvable(find_structure(keras.Sequential([layers.Input((5,)), body, layers.Dense(3)])))


@pytest.mark.parametrize("solve", [keras_dal.finish, keras_dal.converge])
def test_a_bias_that_is_frozen_stays_as_it_is(solve):
    model, x, y = compiled(layers.Dense(3))
    model.layers[-1].bias.trainable = False
    before = [weight.copy() for weight in model.get_weights()]
    with pytest.raises(ValueError, match=r"trainable=True.*Received: frozen .*bias"):
        solve(model, x, y, verbose=0)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_model_that_only_predicts_may_be_finished():
    model, x, y = compiled(layers.Dense(3))
    model.trainable = False
    before = model.evaluate(x, y, verbose=0)
    assert keras_dal.finish(model, x, y, verbose=0).loss < before


@pytest.mark.parametrize("function", [keras_dal.finish, keras_dal.converge])
def test_a_head_that_is_not_finite_is_refused(function):
    model, x, y = compiled(layers.Dense(3))
    model.layers[-1].bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match=r"must be finite.*Received: 1 parameters"):
        function(model, x, y, verbose=0)


@pytest.mark.parametrize("solve", [keras_dal.finish, keras_dal.converge])
def test_a_head_in_half_precision_is_pointed_out(solve):
    model, x, y = compiled(layers.Dense(3, dtype="mixed_bfloat16"))
    with pytest.warns(UserWarning, match=r"computed in bfloat16.*Received: layer"):
        solve(model, x, y, verbose=0)


class OfItsOwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight, training)


class Adding(keras.Model):
    def __init__(self, inputs, outputs, name):
        super().__init__(name=name)
        self.inner = keras.Model(inputs, outputs)

    def call(self, inputs):
        outputs = self.inner(inputs)
        self.add_loss(keras.ops.mean(outputs**2))
        return outputs


class AddingBefore(layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs**2))
        return inputs


def of_kind(kind):
    """Return a model, its data, and what its certificate does not cover."""
    inputs = keras.Input((5,))
    before = AddingBefore(name="before")(layers.Dense(4, "tanh")(inputs))
    model = kind(inputs, layers.Dense(3)(before), name="whole")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.random.default_rng(0).standard_normal((12, 5)).astype("float32"), np.arange(12) % 3
    return model, x, y, "\n".join(keras_dal.certify(model, x, y, verbose=0).not_covered)


@pytest.mark.parametrize("solve", [keras_dal.finish, keras_dal.converge])
@pytest.mark.parametrize(
    ("kind", "what"), [(OfItsOwnLoss, "compute_loss of the model's own"), (Adding, "add_loss of whole")]
)
def test_what_is_minimized_in_training_alone_is_told(kind, what, solve):
    model, x, y, _ = of_kind(kind)
    with pytest.warns(UserWarning, match=f"solved for the compiled loss alone, without what the {what} adds"):
        solve(model, x, y, verbose=0)


@pytest.mark.parametrize("solve", [keras_dal.finish, keras_dal.converge])
def test_losses_that_do_not_hang_on_the_last_layer_are_not_warned_of(solve):
    model, x, y, said = of_kind(keras.Model)
    solve(model, x, y, verbose=0)
    assert "losses that layers add (before)" in said
    assert "of the model's own" not in said


class OfItsOwnStep(keras.Model):
    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (OfItsOwnLoss, "compute_loss of the model's own"),
        (OfItsOwnStep, "train_step of the model's own"),
        (Adding, "losses that layers add (before, whole)"),
    ],
)
def test_what_is_minimized_in_training_alone_is_not_certified(kind, pattern):
    assert pattern in of_kind(kind)[-1]
