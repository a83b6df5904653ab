"""What is said of a point that is chosen, or looked at after the model has moved on."""

import cases
import keras
import numpy as np
import pytest
from keras import layers

import keras_dal
from keras_dal.finishing.evaluation import FittedHead
from keras_dal.finishing.stopping import Ending

CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(dtype="float32", **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,), dtype=dtype), layers.Dense(3, dtype=dtype, **options)])
    model.compile("sgd", CLASSES)
    return model


def data(n=60):
    generator = np.random.default_rng(0)
    return generator.standard_normal((n, 3)).astype("float32"), generator.integers(0, 3, n)


def test_another_point_of_a_minimization_is_not_the_minimum():
    result = keras_dal.converge(classifier(), *data(), gated=False, ridge=0.1, tol=1e-3, verbose=0)
    assert result.reached
    assert result.gradient_steps is not None
    first = result.choose(0)
    assert (first.stopped_by, first.gradient_steps, first.reached) == (Ending.CHOSEN, None, False)
    assert list(first.proof()) == []
    assert "ended by            your choice, " in str(first)
    again = first.choose(-1)
    assert (again.stopped_by, again.gradient_steps, again.reached) == (
        result.stopped_by,
        result.gradient_steps,
        True,
    )
    assert list(again.proof()) == list(result.proof())


def test_another_point_of_a_separation_is_reached_by_its_own_loss_alone():
    x, (right, off) = data()[0], np.random.default_rng(1).standard_normal((2, 3, 3))
    y, model = np.argmax(x @ right, axis=1), classifier()
    model.set_weights([right + 0.3 * off, np.zeros(3)])  # random ones differ between the backends
    result = keras_dal.converge(model, x, y, gated=False, verbose=0)
    assert result.stopped_by == Ending.SEPARATED
    first = result.choose(0)
    assert len(first.left) > 0
    assert not first.reached
    assert "separation" not in str(first)
    assert first.choose(result.point).reached


def test_a_certificate_is_of_the_gates_and_penalties_of_its_solve():
    (x, y), model = data(), classifier(kernel_regularizer=keras.regularizers.L2(0.01))
    gated = keras_dal.add_gated_head(model, x, seed=0, verbose=False)
    result = keras_dal.converge(gated, x, y, time_limit=20, verbose=0)
    expected, same = result.certificate, result.choose(result.point)  # which makes its certificate later
    branch = result.structure.output_layer
    branch.gate_bias.assign(branch.gate_bias + 1.0)
    branch.dense.kernel.regularizer = None
    assert same.certificate == expected


@cases.TENSORFLOW_TAKES_FLOAT64
def test_features_that_float32_cannot_hold_are_not_decided_on():
    generator = np.random.default_rng(0)
    x = 1e9 + generator.standard_normal((40, 3))
    y = (x[:, 0] > 1e9).astype(int)
    model = classifier("float64", kernel_initializer="zeros")
    assert keras_dal.certify(model, x, y).verdict == "separable"
    certificate = keras_dal.converge(model, x, y, gated=False, ridge=0.1, verbose=0).certificate
    assert certificate.verdict == "undecided"
    assert "were rounded" in certificate.decided_by
    assert certificate.tolerance >= 2.0**-23
    assert any("finer than float32" in sentence for sentence in certificate.not_covered)


@cases.TENSORFLOW_TAKES_FLOAT64
def test_numbers_of_features_that_float32_cannot_hold_say_so():
    """In float32, all of these features are equal."""
    x = 1e9 + np.random.default_rng(0).random((40, 1))
    assert len(np.unique(x.astype("float32"))) == 1
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,), dtype="float64"), layers.Dense(2, dtype="float64")])
    model.compile("sgd", CLASSES)
    result = keras_dal.converge(model, x, (x[:, 0] > 1e9 + 0.5).astype(int), gated=False, ridge=0.01, verbose=0)
    assert "features finer than float32: these were rounded to it" in str(result)
    assert all("rounded to float32" in line for line in result.proof() if "above the minimum" in line)
    exact = keras_dal.converge(classifier(), *data(), gated=False, ridge=0.01, verbose=0)
    assert "rounded" not in str(exact) + "".join(exact.proof())


@cases.HAS_FLOAT64
def test_features_of_a_float64_model_that_float32_holds_are_decided_on():
    generator = np.random.default_rng(0)
    x, y = generator.integers(-3, 4, (40, 3)).astype("float64"), generator.integers(0, 3, 40)
    model = classifier("float64")
    expected = keras_dal.certify(model, x, y).verdict
    assert keras_dal.converge(model, x, y, gated=False, ridge=0.1, verbose=0).certificate.verdict == expected


@pytest.mark.parametrize(
    ("scale", "message"),
    [(1e300, "not finite"), (np.nan, "positive"), (0.0, "positive"), (-1.0, "positive"), ("2", "positive")],
)
def test_a_scale_that_the_weights_cannot_hold_or_that_turns_them_round_is_refused(scale, message):
    model = classifier()
    result = keras_dal.converge(model, *data(), gated=False, ridge=0.1, verbose=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match=rf"{message}.*Received: scale="):
        result.rescale(scale)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_scale_is_one_that_the_weights_can_hold():
    """Float16 ends at 65,504, which a head of small margins would have to pass to reach the loss."""
    x = np.array([[1.0, 1e-3], [1.0, -1e-3]] * 10, "float16")
    model = keras.Sequential([keras.Input((2,), dtype="float16"), layers.Dense(2, dtype="float16", use_bias=False)])
    model.compile("sgd", CLASSES)
    model.layers[0].set_weights([np.array([[1.0, 1.0], [0.5, -0.5]], "float16")])
    with pytest.warns(UserWarning, match="computed in float16"):
        result = keras_dal.converge(model, x, np.array([0, 1] * 10), gated=False, tol=1e-30, verbose=0)
    assert result.margin > 0
    assert (result.scale, result.reached) == (1, False)
    result.rescale()


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="modules that are no layers are PyTorch's")
def test_running_statistics_of_a_torch_module_are_part_of_what_features_depend_on():
    import torch

    inputs = keras.Input((3,))
    features = layers.TorchModuleWrapper(torch.nn.BatchNorm1d(3), output_shape=(None, 3))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(features))
    model.compile("sgd", CLASSES)
    result = keras_dal.converge(model, *data(), gated=False, ridge=0.1, verbose=0)
    result.choose(0)
    model(data()[0] + 1.0, training=True)
    with pytest.raises(ValueError, match="has changed since this result was found"):
        result.choose(0)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only tensors of PyTorch refuse NumPy")
def test_labels_and_weights_may_be_tensors_that_have_gradients():
    import torch

    x, y = data()
    ones = torch.ones(len(x), requires_grad=True)
    result = keras_dal.converge(classifier(), torch.tensor(x, requires_grad=True), torch.tensor(y), ones, verbose=0)
    assert result.accuracy == 1


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", None])
def test_a_seed_that_is_none_is_refused_before_anything_is_computed(seed):
    model, (x, y) = classifier(), data()
    before = model.get_weights()
    calls = [
        lambda: keras_dal.converge(model, x, y, seed=seed, verbose=0),
        lambda: keras_dal.width_curve(model, x, y, seed=seed, verbose=0),
        lambda: keras_dal.add_gated_head(model, x, seed=seed, verbose=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="seed must be an integer that is not negative. Received: seed="):
            call()
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("act", [lambda result: result.choose(0), lambda result: result.rescale()])
def test_a_head_is_not_written_into_a_model_that_has_changed_since(act):
    samples = data()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(3)])
    model.compile("sgd", CLASSES)
    result = keras_dal.converge(model, *samples, gated=False, ridge=0.1, verbose=0)
    model.layers[-1].kernel.assign(np.zeros((4, 3)))  # another head, with the same features
    act(result)
    model.fit(*samples, epochs=1, verbose=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match="has changed since this result was found.*Received: <Result"):
        act(result)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_branch_that_computes_nothing_yet_is_adapted_by_converge_too():
    x, y = data()
    x = x * [1.0, 100.0, 0.01] + 5.0
    gated = keras_dal.add_gated_head(classifier(), x, seed=0, verbose=False)
    keras_dal.converge(gated, x, y, time_limit=20, verbose=0)
    np.testing.assert_allclose(gated.layers[-1].mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(gated.layers[-1].scale, x.std(axis=0), rtol=1e-5)


def test_an_interrupt_while_a_point_is_looked_at_leaves_the_model_as_it_was(monkeypatch):
    model = classifier()
    result = keras_dal.converge(model, *data(), gated=False, verbose=0)
    before, looked = model.get_weights(), []
    mean_loss = FittedHead.mean_loss

    def interrupted(self, scale=1.0):
        looked.append(scale)
        if len(looked) == 2:
            raise KeyboardInterrupt
        return mean_loss(self, scale)

    monkeypatch.setattr(FittedHead, "mean_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.choose(0)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.filterwarnings("ignore:.*samples stay on their wrong side")
def test_a_head_that_is_wrong_by_much_costs_no_samples():
    """The same labels on the same features, of which a head of large logits knows as much as one of small ones."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(256, 8))
    y = (np.tanh(x @ generator.normal(size=(8, 3))) + 0.3 * generator.normal(size=(256, 3))).argmax(1)
    x, left = (10 * x).astype("uint8").astype("float32") / 100, []
    for scale in (1.0, 100.0):
        model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(3)])
        model.compile("sgd", CLASSES)
        weights = np.random.default_rng(1)
        first, last = weights.uniform(-0.5, 0.5, (8, 16)), weights.uniform(-0.5, 0.5, (16, 3))
        model.set_weights([first, np.zeros(16), scale * last, np.zeros(3)])
        left.append(len(keras_dal.converge(model, x, y, verbose=0).left))
    assert left[1] <= left[0] + 3
