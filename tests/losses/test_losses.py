"""The losses against Keras' own, finite differences and their definitions."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_dal
from keras_dal.losses import (
    REGISTERED,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    loss_of,
    register,
    resolve_loss,
)

C = 4
LOSSES = [SquaredError(), SoftmaxCrossEntropy(), SigmoidCrossEntropy()]
SMOOTHED = [SoftmaxCrossEntropy(0.2), SigmoidCrossEntropy(0.2)]
KERAS = {
    "squared error": keras.losses.MeanSquaredError(reduction=None),
    "softmax cross-entropy": keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None),
    "sigmoid cross-entropy": keras.losses.BinaryCrossentropy(from_logits=True, reduction=None),
}


def problem(loss, n=7, seed=0):
    """Return logits and labels as Keras takes them, both `(n, C)` in float64."""
    generator = np.random.default_rng(seed)
    logits = 3 * generator.standard_normal((n, C))
    if loss.activation == "linear":
        return logits, generator.standard_normal((n, C))
    if loss.activation == "softmax":
        return logits, np.eye(C)[generator.integers(0, C, n)]
    return logits, generator.integers(0, 2, (n, C)).astype(np.float64)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_values_are_those_of_keras(loss):
    logits, y = problem(loss)
    expected = keras.ops.convert_to_numpy(KERAS[loss.name](y.astype("float32"), logits.astype("float32")))
    np.testing.assert_allclose(loss.values(logits, loss.targets(y, C)), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_labels_may_have_a_third_axis_of_size_one_as_in_keras(loss):
    logits, y = problem(loss)
    expected = keras.ops.convert_to_numpy(KERAS[loss.name](y[..., None].astype("float32"), logits.astype("float32")))
    np.testing.assert_allclose(loss.values(logits, loss.targets(y[..., None], C)), expected, rtol=1e-5)
    in_step, known = loss.step_targets(keras.ops.convert_to_tensor(y[..., None].astype("float32")), C)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(in_step), loss.label_matrix(loss.targets(y, C)), rtol=1e-6)
    assert keras.ops.convert_to_numpy(known).all()


def test_classes_may_have_a_third_axis_of_size_one_as_in_keras():
    logits, y = problem(SoftmaxCrossEntropy())
    by_keras = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    classes = y.argmax(axis=1)[:, None, None]
    expected = keras.ops.convert_to_numpy(by_keras(classes, logits.astype("float32")))
    loss = SoftmaxCrossEntropy()
    np.testing.assert_allclose(loss.values(logits, loss.targets(classes, C)), expected, rtol=1e-5)
    in_step, _ = loss.step_targets(keras.ops.convert_to_tensor(classes.astype("float32")), C)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(in_step), y)


@pytest.mark.parametrize("loss", LOSSES + SMOOTHED, ids=repr)
def test_gradient_is_the_derivative_and_its_slope_is_bounded_by_the_curvature(loss):
    logits, y = problem(loss)
    targets, direction = loss.targets(y, C), np.random.default_rng(1).standard_normal(logits.shape)
    step = 1e-6
    ahead, behind = (loss.values(logits + s * direction, targets) for s in (step, -step))
    slope = np.sum(loss.gradient(logits, targets) * direction, axis=1)
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
    steepest = 0.0
    for seed in range(50):  # the bound holds everywhere, and is reached: by two equal logits, or at zero
        d = np.zeros((1, C))
        d[0, :2] = [1, -1] if loss.activation == "softmax" else [1, 0]
        at = np.random.default_rng(seed).standard_normal((1, C)) if seed else np.array([[0.0, 0.0, -40.0, -40.0]])
        target = targets[:1]
        change = (loss.gradient(at + step * d, target) - loss.gradient(at - step * d, target)) / (2 * step)
        steepest = max(steepest, np.sum(change * d) / np.sum(d**2))
        assert steepest <= loss.curvature(C) * (1 + 1e-6)
    assert steepest == pytest.approx(loss.curvature(C), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES + SMOOTHED, ids=repr)
def test_the_mean_curvature_is_that_of_second_differences_of_the_values(loss):
    """Each is an estimate by signs, so that many of them together have its mean."""
    logits, y = problem(loss, n=4000)
    targets, step = loss.targets(y, C), 1e-3
    moved = [loss.values(logits + s * step * d, targets) for d in np.eye(C) for s in (1, -1)]
    second = (sum(moved) - 2 * C * loss.values(logits, targets)) / step**2 / C
    found = loss.mean_curvature(logits, targets)
    assert found.shape == second.shape
    assert np.mean(found) == pytest.approx(np.mean(second), rel=0.03)
    confident = np.argsort(second)[:1000]
    assert np.mean(found[confident]) == pytest.approx(np.mean(second[confident]), rel=0.1, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LOSSES[1:]), st.integers(0, 2**31))
def test_margins_bound_the_loss(loss, seed):
    logits, y = problem(loss, seed=seed)
    targets = loss.targets(y, C)
    margins = loss.margins(logits, targets)
    values = loss.values(logits, targets)
    assert (values <= loss.at_margin(margins, C) + 1e-12).all()
    predicted = logits.argmax(axis=1) == y.argmax(axis=1) if loss.activation == "softmax" else None
    right = predicted if predicted is not None else ((logits > 0) == (y > 0.5)).all(axis=1)
    np.testing.assert_array_equal(margins > 0, right)


@pytest.mark.parametrize("loss", LOSSES[1:], ids=repr)
def test_bound_of_a_margin_is_reached(loss):
    logits, y = (
        (np.array([[1.5, 0, 0, 0]]), np.eye(C)[:1])
        if loss.activation == "softmax"
        else (
            1.5 * np.ones((1, C)),
            np.ones((1, C)),
        )
    )
    assert loss.values(logits, loss.targets(y, C))[0] == pytest.approx(loss.at_margin(1.5, C))


@pytest.mark.parametrize("loss", LOSSES[1:], ids=repr)
@pytest.mark.parametrize("share", [1e-20, 1e-12, 1e-6])
def test_the_entropy_of_a_dual_point_keeps_all_digits_of_faint_shares(loss, share):
    """A lower bound of the infimum leaves room for a relative rounding of 1e-10."""
    targets = loss.targets(problem(loss, n=1)[1], C)
    shares = np.zeros((1, C))
    shares[0, np.argmin(targets)] = share
    exact = share * (1 - np.log(share)) - share**2 / 2  # up to its cube
    of_all = np.sum(loss.sides(targets).entropy(shares))
    assert of_all * (1 if loss.sides(targets).exclusive else C) == pytest.approx(exact, rel=1e-12, abs=0)


def test_the_smoothing_of_a_keras_loss_is_kept():
    for kind in (keras.losses.CategoricalCrossentropy, keras.losses.BinaryCrossentropy):
        assert resolve_loss(kind(label_smoothing=0.1)).label_smoothing == 0.1
    with pytest.raises(ValueError, match=r"in \[0, 1\].*Received: label_smoothing=1.5"):
        SoftmaxCrossEntropy(1.5)


def test_squared_error_has_no_margins():
    logits, y = problem(LOSSES[0])
    assert LOSSES[0].margins(logits, y) is None
    assert LOSSES[0].at_margin(1.0, C) is None


def test_targets():
    one_hot = np.eye(C)[[2, 0]]
    for labels in ([2, 0], [[2], [0]], one_hot, [2.0, 0.0]):
        np.testing.assert_array_equal(SoftmaxCrossEntropy().targets(labels, C), one_hot)
    np.testing.assert_array_equal(SigmoidCrossEntropy().targets([0, 1], 1), [[-1.0], [1.0]])
    np.testing.assert_array_equal(SquaredError().targets([0.5, 2], 1), [[0.5], [2.0]])


@pytest.mark.parametrize(
    ("loss", "y", "pattern"),
    [
        (SoftmaxCrossEntropy(), [0, 4], r"0\.\.3.*y from 0 to 4"),
        (SoftmaxCrossEntropy(), [-1, 0], r"0\.\.3"),
        (SoftmaxCrossEntropy(), [0.5], r"0\.\.3"),
        (SoftmaxCrossEntropy(), [0.5, 1, 1.5], r"0\.\.3.*from 0.5 to 1.5, 2 of 3 no such integers, as 0.5"),
        (SoftmaxCrossEntropy(), [0, np.nan], r"1 of 2 no such integers, as nan"),
        (SoftmaxCrossEntropy(), [[0.9, 0.2, 0, 0]], "one-hot"),
        (SoftmaxCrossEntropy(), [[1.2, -0.2, 0, 0]], "one-hot"),
        (SoftmaxCrossEntropy(), [[np.nan, 1, 0, 0]], "finite"),
        (SoftmaxCrossEntropy(), [[1.0, 1.0, 0, 0]], "one-hot"),
        (SoftmaxCrossEntropy(), [], "at least one sample"),
        (SigmoidCrossEntropy(), [[0, 1, 1.5, 1]], "labels 0 or 1.*1.5"),
        (SigmoidCrossEntropy(), [[0, 1]], r"shape \(n, 4\).*\(1, 2\)"),
        (SquaredError(), [[np.nan, 0, 0, 0]], "finite"),
        (SquaredError(), np.zeros((0, 4)), "no labels"),
    ],
)
def test_bad_labels(loss, y, pattern):
    with pytest.raises(ValueError, match=f"{pattern}") as error:
        loss.targets(y, C)
    assert "Received: " in str(error.value)


class NothingOwn(keras.losses.CategoricalCrossentropy):
    """Another name for the same loss."""


class Adjusted(keras.losses.CategoricalCrossentropy):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred + 1.0)


def shadowed():
    loss = keras.losses.MeanSquaredError()
    loss.call = lambda y_true, y_pred: 0.0 * y_pred
    return loss


def other_inside(**options):
    """Return a loss that says it is the mean squared error, or unsmoothed, and computes something else."""
    loss = keras.losses.CategoricalCrossentropy() if options else keras.losses.MeanSquaredError()
    if options:
        loss._fn_kwargs.update(options)
    else:
        loss.fn = keras.losses.mean_absolute_error
    return loss


@pytest.mark.parametrize(
    ("loss", "activation", "expected"),
    [
        ("mse", "linear", SquaredError),
        ("mean_squared_error", "linear", SquaredError),
        (keras.losses.MeanSquaredError, "linear", SquaredError),
        (keras.losses.mean_squared_error, "linear", SquaredError),
        ("sparse_categorical_crossentropy", "softmax", SoftmaxCrossEntropy),
        (keras.losses.CategoricalCrossentropy(from_logits=True), "linear", SoftmaxCrossEntropy),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, SoftmaxCrossEntropy),
        (keras.losses.binary_crossentropy, "sigmoid", SigmoidCrossEntropy),
        (keras.losses.BinaryCrossentropy(from_logits=True), "linear", SigmoidCrossEntropy),
        (["mse"], "linear", SquaredError),
        ({"out": keras.losses.BinaryCrossentropy()}, "sigmoid", SigmoidCrossEntropy),
        (NothingOwn(from_logits=True), "linear", SoftmaxCrossEntropy),
    ],
)
def test_resolves_what_compile_takes(loss, activation, expected):
    assert type(resolve_loss(loss, activation)) is expected


@pytest.mark.parametrize(
    ("loss", "activation", "pattern"),
    [
        ("mae", "linear", "supported losses"),
        ("no such loss", "linear", "supported losses"),
        (keras.losses.Huber(), "linear", "supported losses"),
        (None, "linear", "supported losses"),
        (Adjusted(), "softmax", "Received: Adjusted, which overrides call"),
        (shadowed(), "linear", "Received: MeanSquaredError, which overrides call"),
        (other_inside(), "linear", "Received: MeanSquaredError, which overrides fn"),
        (other_inside(label_smoothing=0.3), "softmax", "Received: CategoricalCrossentropy, which overrides fn"),
        (keras.losses.CategoricalCrossentropy(axis=1), "softmax", "Received: axis=1"),
        (keras.losses.BinaryCrossentropy(axis=0), "sigmoid", "Received: axis=0"),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=0), "softmax", "Received: ignore_class=0"),
        (keras.losses.CategoricalCrossentropy(reduction="mean_with_sample_weight"), "softmax", "averaged"),
        (keras.losses.CategoricalFocalCrossentropy(), "softmax", "supported losses"),
        (["mse", "mse"], "linear", "2 losses"),
        ([], "linear", "0 losses"),
        (keras.losses.MeanSquaredError(reduction="sum"), "linear", "averaged over the samples"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "sigmoid", "from_logits=False"),
        ("categorical_crossentropy", "linear", "from_logits=True"),
        ("mse", "softmax", "from_logits|last activation"),
    ],
)
def test_refuses_other_losses(loss, activation, pattern):
    with pytest.raises(ValueError, match=pattern) as error:
        resolve_loss(loss, activation)
    assert "Received: " in str(error.value)


class OfAnotherName(SoftmaxCrossEntropy):
    name = "softmax cross-entropy of another name"


class OfOtherValues(SoftmaxCrossEntropy):
    def values(self, logits, targets):
        return np.asarray(logits)[:, 0]


class Slopes:
    def gradient(self, logits, targets):
        return np.zeros_like(logits)


class OfSlopesFromElsewhere(Slopes, SquaredError):
    pass


class OfOtherValuesThatTakeTensors(OfOtherValues):
    tensors = True


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (OfAnotherName, True),
        (OfOtherValues, False),
        (OfSlopesFromElsewhere, False),
        (OfOtherValuesThatTakeTensors, True),
    ],
)
def test_a_subclass_takes_tensors_where_its_methods_are_those_that_do(kind, expected):
    assert kind.tensors is expected


def test_a_loss_with_sides_that_does_not_say_all_of_them_is_refused():
    class OneSided(SquaredError):
        name, has_sides = "one-sided", True

        def margins(self, logits, targets):
            return targets[:, 0]

    with pytest.raises(TypeError, match=r"write these, too. Received: OneSided without at_margin, sides, confidence$"):
        register(OneSided)
    assert "one-sided" not in REGISTERED


def named(outputs=lambda out: out):
    """Return a model of one output, from a layer named "out"."""
    inputs = keras.Input((3,))
    return keras.Model(inputs, outputs(keras.layers.Dense(C, name="out")(inputs)))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (named, "nonsense"),
        (lambda: named(lambda out: {"key": out}), "out"),
        (lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(C, name="out")]), "out"),
    ],
    ids=["functional", "dict", "sequential"],
)
def test_a_loss_of_an_output_that_the_model_does_not_have_is_refused_as_keras_does(model, name):
    model, x, y = model(), np.ones((2, 3)), np.ones((2, C))
    model.compile("sgd", loss={name: "mse"})
    with pytest.raises((ValueError, KeyError, TypeError)):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match=f"No output of the model has the name .*{name!r}"):
        keras_dal.certify(model, x, y, verbose=0)


@pytest.mark.parametrize(("outputs", "name"), [(lambda out: out, "out"), (lambda out: {"key": out}, "key")])
def test_a_loss_by_the_name_of_the_output_is_that_of_the_model(outputs, name):
    assert isinstance(loss_of(named(outputs), "linear", {name: "mse"}), SquaredError)
