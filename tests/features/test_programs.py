"""A model is compiled for its features once, and anew where it may compute something else."""

import copy
import tempfile

import keras
import numpy as np
import pytest

import keras_dal
from keras_dal import _backend
from keras_dal.features.tracing import evaluate, to_numpy

X = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
Y = np.arange(12) % 3


class Shifted(keras.layers.Layer):
    """What it adds is an attribute that its configuration does not have."""

    shift = 0.0

    def call(self, inputs):
        return inputs + self.shift


def made(*before):
    model = keras.Sequential(
        [keras.Input((6,)), *before, keras.layers.Dense(4, "relu", name="hidden"), keras.layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture
def compilations(monkeypatch):
    """Counts the functions that are compiled."""
    compiled, count = _backend.compiled, []
    monkeypatch.setattr(_backend, "compiled", lambda *args: count.append(args) or compiled(*args))
    return count


def check(model):
    features = keras_dal.find_structure(model).feature_function(X)[0]
    np.testing.assert_allclose(to_numpy(features), evaluate(model, model.layers[-1], X)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing is compiled there")
@pytest.mark.parametrize("adapted", [False, True])
def test_public_functions_share_one_program_of_a_model(compilations, adapted):
    model = made(*[normalization()] * adapted, keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    keras_dal.alignment(model, X, Y, verbose=0)
    first = len(compilations)
    keras_dal.alignment(model, X, Y, verbose=0)
    keras_dal.certify(model, X, Y, verbose=0)
    keras_dal.converge(model, X, Y, gated=False, verbose=0)
    assert len(compilations) == first


def test_a_kept_program_follows_the_weights():
    model = made()
    for scale in (1.0, 2.0):
        model.get_layer("hidden").kernel.assign(scale * np.eye(6, 4))
        check(model)


def of_activation(model):
    model.get_layer("hidden").activation = keras.activations.tanh


def of_a_layer(model):
    model.layers[0].shift = 1.0


def of_adapted(model):
    model.layers[0].adapt(3 * X + 1)


def of_loaded(model):
    other = made(normalization())
    other.set_weights(model.get_weights())
    other.layers[0].adapt(3 * X + 1)
    with tempfile.TemporaryDirectory() as folder:
        other.save_weights(f"{folder}/other.weights.h5")
        model.load_weights(f"{folder}/other.weights.h5")


def of_a_call(model):
    layer = model.get_layer("hidden")
    own = layer.call
    layer.call = lambda inputs, training=None: own(inputs) + 1


def of_the_layers(model):
    head = model.layers[-1]
    model.pop()
    model.add(keras.layers.Dense(4, "tanh"))
    model.add(head)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def normalization():
    layer = keras.layers.Normalization()
    layer.adapt(X)
    return layer


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (None, of_activation),
        (Shifted, of_a_layer),
        (normalization, of_adapted),
        (normalization, of_loaded),
        (lambda: keras.layers.Lambda(lambda x: x * len(SCALES)), lambda model: SCALES.append(1)),
        (None, of_a_call),
        (None, of_the_layers),
    ],
    ids=["activation", "attribute", "adapted", "loaded", "lambda", "call", "layers"],
)
def test_a_model_that_computes_something_else_is_compiled_anew(layer, change):
    model = made(*([layer()] if layer else []))
    keras_dal.find_structure(model)
    check(model)
    before = evaluate(model, model.layers[-1], X)[0]
    change(model)
    check(model)
    assert not np.allclose(evaluate(model, model.layers[-1], X)[0], before)


SCALES = [1]


def scaled(x):
    return x * len(SCALES)


def gelu(x):
    return scaled(x)


@pytest.mark.parametrize("function", [scaled, gelu, lambda x: x * len(SCALES)], ids=["named", "as Keras'", "lambda"])
def test_a_function_of_ones_own_is_not_taken_for_what_its_name_says(function):
    model = made(keras.layers.Dense(6, activation="gelu"))
    check(model)
    model.layers[0].activation = function
    check(model)
    SCALES.append(1)
    check(model)


def test_an_adapter_that_is_switched_off_is_left_out():
    model = made()
    hidden = model.get_layer("hidden")
    hidden.enable_lora(2)
    hidden.lora_kernel_b.assign(np.ones((2, 4)))
    check(model)
    hidden.lora_enabled = False
    check(model)


def test_a_copy_keeps_nothing_of_its_original():
    backbone = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(5)])
    keras_dal.find_structure(backbone)
    model = keras.Sequential([keras.Input((6,)), backbone, keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    copy_of_it = keras_dal.add_gated_head(model, num_samples=12, verbose=0).layers[-2]
    assert copy_of_it is not backbone
    assert "_keras_dal_programs" not in vars(copy_of_it)


def test_copies_and_files_of_a_model_have_no_program(tmp_path, compilations):
    model = made()
    check(model)
    model.save(tmp_path / "model.keras")
    copies = [copy.deepcopy(model), keras.models.clone_model(model), keras.saving.load_model(tmp_path / "model.keras")]
    for each in copies:
        before = len(compilations)
        each.get_layer("hidden").kernel.assign(np.eye(6, 4))
        check(each)
        assert len(compilations) > before


def test_a_model_that_is_told_to_run_eagerly_does():
    model, seen = made(), []
    check(model)
    model.compile(loss="mse", run_eagerly=True)
    structure = keras_dal.find_structure(model)
    own = model.layers[0].call
    model.layers[0].call = lambda inputs, training=None: seen.append(1) or own(inputs)
    for _ in range(2):
        structure.feature_function(X)
    assert len(seen) == 2
