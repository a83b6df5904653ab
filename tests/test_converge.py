"""`converge` on small models: separation, scaling, certificates, stops and refusals."""

import signal
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression

import keras_dal
from keras_dal.converge import converge
from keras_dal.path import CERTIFIED, EXHAUSTED, REACHED, SEPARATED, STALLED
from keras_dal.products import CachedJacobian
from keras_dal.structure import find_structure


@pytest.fixture(scope="module")
def digits():
    """Noisy digits and the weights of a small network that fits them only partly."""
    x, y = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    x = (x / 16 + 0.3 * generator.normal(size=x.shape)).astype("float32")
    keras.utils.set_random_seed(0)
    model = network()
    model.fit(x[:600], y[:600], epochs=8, verbose=0)
    return (x[:600], y[:600]), (x[600:1200], y[600:1200]), x[1200:], model.get_weights()


def network(loss=None, outputs=10, activation=None):
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(outputs, activation)]
    )
    model.compile("adam", loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


@pytest.fixture
def model(digits):
    model = network()
    model.set_weights(digits[3])
    return model


def accuracy(model, x, y):
    return np.mean(model.predict(x, verbose=0).argmax(axis=1) == y)


def test_a_classifier_reaches_full_training_accuracy_and_any_loss(model, digits):
    (x, y), validation, unlabelled, weights = digits
    before = accuracy(model, *validation)
    result = converge(model, x, y, validation_data=validation, anchors=unlabelled, tol=1e-4, verbose=0)
    assert accuracy(result.model, x, y) == 1.0
    assert result.reached
    assert result.stopped_by == SEPARATED
    assert accuracy(result.model, *validation) > before - 0.02
    logits = result.model.predict(x, verbose=0).astype(np.float64)
    loss = np.mean(special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y])
    assert result.loss == pytest.approx(loss, rel=1e-4)
    others = np.where(np.eye(10)[y] == 1, -np.inf, logits)
    assert result.margin == pytest.approx(np.min(logits[np.arange(len(y)), y] - others.max(axis=1)), abs=1e-4)
    result.rescale()
    assert result.model.evaluate(x, y, verbose=0)[0] == pytest.approx(1e-4, rel=1e-2)
    result.rescale(1.0)
    assert result.model.evaluate(x, y, verbose=0)[0] == pytest.approx(loss, rel=1e-4)
    for kept, now in zip(weights, model.get_weights(), strict=True):
        assert (kept == now).all()  # the gated head is on a copy


def test_the_head_that_separates_changes_less_than_the_one_of_least_loss(model, digits):
    (x, y), _, unlabelled, _ = digits
    start = model.predict(unlabelled, verbose=0)
    gentle = converge(model, x, y, anchors=unlabelled, gated=True, verbose=0)
    plain = converge(model, x, y, anchors=unlabelled, gated=True, ridge=1e-6, verbose=0)

    def moved(result):
        change = result.model.predict(unlabelled, verbose=0) - start
        return np.sqrt(np.mean(np.sum(change**2, axis=1)))

    assert gentle.point.moved == pytest.approx(moved(gentle), rel=1e-2)
    assert moved(gentle) < 0.5 * moved(plain)
    assert plain.loss < 1e-3 < gentle.loss


def test_an_own_head_that_separates_is_kept(model, digits):
    x, y = digits[0]
    result = converge(model, x[:40], y[:40], verbose=0)
    assert result.model is model
    assert accuracy(model, x[:40], y[:40]) == 1.0


def test_a_separated_model_is_only_scaled(model, digits):
    x, y = digits[0]
    converge(model, x[:40], y[:40], verbose=0)
    weights = model.get_weights()
    result = converge(model, x[:40], y[:40], verbose=0)
    assert len(result.path) == 1
    assert result.point.moved == 0.0
    for kept, now in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(kept, now, rtol=1e-6)


def test_without_a_gated_head_the_loss_is_minimized(model, digits):
    x, y = digits[0]
    features = find_structure(model).features(x)
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=5000).fit(features, y)
    logits = theirs.decision_function(features)
    expected = np.mean(special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y])
    result = converge(model, x, y, gated=False, verbose=0)
    assert result.model is model
    assert expected - 1e-3 < result.loss < expected + 1e-4
    assert not result.reached
    assert result.scale == 1.0
    assert result.stopped_by in (CERTIFIED, STALLED)


def test_a_strong_ridge_ends_at_a_certified_gap(model, digits):
    x, y = digits[0]
    result = converge(model, x, y, gated=False, ridge=0.1, tol=1e-3, verbose=0)
    assert result.stopped_by == CERTIFIED
    assert result.point.gap <= 1e-5
    assert f"at most {result.point.gap:.2g}" in str(result)


def test_the_certificate_has_the_margin_as_its_witness(model, digits):
    x, y = digits[0]
    result = converge(model, x[:60], y[:60], verbose=0, gated=True)
    certificate = result.certificate
    assert certificate.status in ("separable", "aligned")
    assert certificate.infimum == (0.0, 0.0)
    assert certificate.loss == pytest.approx(result.loss, rel=1e-9)


def test_softmax_and_sigmoid_outputs(digits):
    (x, y), validation, _, _ = digits
    softmax = network(keras.losses.SparseCategoricalCrossentropy(), activation="softmax")
    result = converge(softmax, x, y, verbose=0)
    assert result.model.evaluate(x, y, verbose=0)[1] == 1.0
    labels = np.stack([y > 4, y % 2], axis=1).astype("float32")
    sigmoid = network(keras.losses.BinaryCrossentropy(), outputs=2, activation="sigmoid")
    result = converge(sigmoid, x, labels, validation_data=(validation[0], labels), tol=1e-3, verbose=0)
    assert ((result.model.predict(x, verbose=0) > 0.5) == labels).all()
    result.rescale()
    assert result.model.evaluate(x, labels, verbose=0)[0] == pytest.approx(1e-3, rel=2e-2)


def test_a_regressor_reaches_the_least_squares_solution():
    x, y = load_diabetes(return_X_y=True)
    x, y = (x * 20).astype("float32"), ((y - 150) / 75)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    features = find_structure(model).features(x)
    least = np.mean((LinearRegression().fit(features, y).predict(features) - y) ** 2)
    result = converge(model, x, y, verbose=0)
    assert result.loss == pytest.approx(least, rel=1e-3)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(least, rel=1e-3)
    assert result.margin is None
    stopped = converge(model, x, y, gated=True, tol=1e-2, verbose=0)
    assert stopped.stopped_by == REACHED
    assert stopped.reached
    assert stopped.scaled_loss <= 1e-2


def test_a_regressor_stops_at_the_gentlest_weight_that_reaches_the_tolerance(digits):
    x = digits[0][0]
    keras.utils.set_random_seed(1)
    model = network("mse", outputs=2)
    y = model.predict(x, verbose=0) + 0.3
    result = converge(model, x, y, tol=0.02, verbose=0)
    assert 0 < result.loss <= 0.02
    assert result.point.ridge == max(point.ridge for point in result.path if point.loss <= 0.02)


def test_weight_zero_takes_a_wrong_label_out(model, digits):
    x, y = digits[0]
    wrong, weight = y.copy(), np.ones(len(y))
    wrong[:50], weight[:50] = (y[:50] + 1) % 10, 0.0
    result = converge(model, x, wrong, weight, verbose=0)
    assert accuracy(result.model, x[50:], y[50:]) == 1.0
    assert accuracy(result.model, x[:50], y[:50]) > 0.5


def test_datasets_and_arrays_agree(model, digits):
    x, y = digits[0]
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(50)
    keras.utils.set_random_seed(0)
    from_arrays = converge(model, x[:60], y[:60], gated=False, verbose=0)
    model.set_weights(digits[3])
    from_dataset = converge(model, data.take(2).unbatch().take(60).batch(30), gated=False, verbose=0)
    assert from_dataset.loss == pytest.approx(from_arrays.loss, rel=1e-3)


def test_calibration_against_its_definition(model, digits):
    (x, y), (xv, yv), _, _ = digits
    before = special.softmax(model.predict(xv, verbose=0).astype(np.float64), axis=1)
    result = converge(model, x, y, validation_data=(xv, yv), verbose=0)
    confidence, right = before.max(axis=1), before.argmax(axis=1) == yv
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert result.before.ece == pytest.approx(ece, abs=1e-5)
    assert result.before.accuracy == pytest.approx(right.mean())
    assert result.before.nll == pytest.approx(-np.mean(np.log(before[np.arange(len(yv)), yv])), rel=1e-4)
    assert result.scaled.nll > result.after.nll  # why the scale is kept apart
    assert result.scaled.accuracy == result.after.accuracy


def test_every_point_of_the_path_can_be_chosen(model, digits):
    (x, y), validation, _, _ = digits
    result = converge(model, x, y, validation_data=validation, verbose=0)
    assert len(result.path) > 2
    assert result.path[0].moved == 0.0
    separated = [point.separated for point in result.path]
    assert separated == sorted(separated)  # and only the rounds that widen the margin come after the first
    assert separated[-1]
    for point in (result.path[1], result.path[-1]):
        result.choose(point)
        assert accuracy(result.model, x, y) == pytest.approx(point.accuracy, abs=2e-3)
        assert accuracy(result.model, *validation) == pytest.approx(point.validation, abs=2e-3)
    assert f"{result.margin:.4g}" in str(result)


def gated_points(result):
    """The points after the head beside the mixture was finished."""
    return [point for point in result.path if point.ridge == 0]


def test_a_branch_is_solved_for_by_interpolation(model, digits):
    (x, y), validation, _, _ = digits
    before = accuracy(model, *validation)
    result = converge(model, x, y, gated=True, validation_data=validation, verbose=0)
    assert 1 <= len(gated_points(result)) <= 6
    assert result.margin > 0
    assert result.point.gap < 1e-3 * gated_points(result)[0].moved ** 2
    assert accuracy(result.model, *validation) > before - 0.02
    first = result.path[0]
    assert first.moved == 0.0
    assert first.accuracy == pytest.approx(accuracy(model, x, y))


def test_a_branch_that_was_trained_is_finished_from_where_it_is(model, digits):
    x, y = digits[0]
    gated = keras_dal.add_gated_head(model, x, seed=0, verbose=False)
    branch = find_structure(gated).layer
    branch.kernel.assign(0.02 * np.random.default_rng(0).normal(size=branch.kernel.shape))
    start = gated.predict(x, verbose=0)
    result = converge(gated, x, y, verbose=0)
    assert result.model is gated
    assert accuracy(gated, x, y) == 1.0
    assert gated_points(result)
    change = gated.predict(x, verbose=0) - start
    assert result.point.moved == pytest.approx(np.sqrt(np.mean(np.sum(change**2, axis=1))), rel=1e-3)
    again = converge(gated, x, y, verbose=0)
    assert len(again.path) == 1
    assert again.point.moved == 0.0


def test_a_factor_that_does_not_fit_is_not_made(model, digits):
    x, y = digits[0]
    with pytest.warns(UserWarning, match="larger than max_bytes"):
        result = converge(model, x, y, gated=True, max_bytes=2**14, verbose=0)  # enough for 64 samples
    assert not gated_points(result)
    assert accuracy(result.model, x, y) == 1.0


def test_labels_that_contradict_one_another_end_without_separation(model, digits):
    x, y = digits[0]
    x, y = np.concatenate([x, x[:5]]), np.concatenate([y, (y[:5] + 1) % 10])
    with pytest.warns(UserWarning, match="did not separate.*Received.* training accuracy"):
        result = converge(model, x, y, gated=True, verbose=0)
    assert result.stopped_by == EXHAUSTED
    assert not result.point.separated
    assert not result.reached
    assert result.point.accuracy > 0.97


@pytest.mark.parametrize("full", [100, 4096])
def test_gates_before_the_head_are_solved_for_by_newtons_method(model, digits, monkeypatch, full):
    x, y = digits[0]
    monkeypatch.setattr("keras_dal.whitening._FULL", full)  # gates up to which their moments are factorized whole
    gated = keras_dal.add_gated_head(model, x, place="before", oversample=2, seed=0, verbose=False)
    assert find_structure(gated).layer.units > 100
    result = converge(gated, x, y, verbose=0)
    assert not gated_points(result)
    assert result.margin > 0
    assert accuracy(gated, x, y) == 1.0


def test_anchors_are_held_while_samples_are_moved(model, digits):
    (x, y), validation, unlabelled, _ = digits
    before = accuracy(model, *validation)
    held = converge(model, x, y, gated=True, anchors=unlabelled, verbose=0)
    assert gated_points(held)
    assert held.margin > 0
    assert accuracy(held.model, *validation) > before - 0.02
    free = converge(model, x, y, gated=True, verbose=0)
    start, *ends = (each.predict(unlabelled, verbose=0) for each in (model, held.model, free.model))
    moved = [np.sqrt(np.mean(np.sum((end - start) ** 2, axis=1))) for end in ends]
    assert moved[0] < moved[1]
    assert held.point.moved == pytest.approx(moved[0], rel=1e-3)


def test_an_accelerator_finds_the_same_head(model, digits, monkeypatch):
    (x, y), validation, _, _ = digits
    on_host = converge(model, x, y, gated=True, verbose=0)
    monkeypatch.setattr("keras_dal._backend.has_accelerator", lambda: True)
    on_accelerator = converge(model, x, y, gated=True, verbose=0)
    assert on_accelerator.point.separated
    # after several Newton steps in float32 the sums' order shows, and so does the step at which the path ends
    outputs = [result.model.predict(validation[0], verbose=0) for result in (on_host, on_accelerator)]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.02 * np.abs(outputs[0]).max())


def test_a_time_limit_and_patience_end_the_path(model, digits):
    (x, y), validation, _, _ = digits
    result = converge(model, x, y, gated=True, time_limit=1e-6, verbose=0)
    assert result.stopped_by == "the time limit"
    assert len(result.path) == 1
    result = converge(model, x, y, gated=False, ridge=1e-7, patience=2, validation_data=validation, verbose=0)
    assert result.stopped_by == "patience"
    assert result.point.validation == max(point.validation for point in result.path)
    assert accuracy(model, *validation) == pytest.approx(result.point.validation, abs=2e-3)


def test_an_interrupt_keeps_the_best_point(model, digits, monkeypatch, tmp_path):
    (x, y), validation, _, _ = digits
    products, original = [], CachedJacobian.logits

    def interrupting(self, theta):
        products.append(0)
        if len(products) == 12:
            signal.raise_signal(signal.SIGINT)
        return original(self, theta)

    monkeypatch.setattr(CachedJacobian, "logits", interrupting)
    assert threading.current_thread() is threading.main_thread()
    result = converge(model, x, y, gated=True, validation_data=validation, verbose=0)
    assert result.stopped_by == "an interrupt"
    assert result.point.validation == max(point.validation for point in result.path)
    result.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x[:5], verbose=0), result.model.predict(x[:5], verbose=0), rtol=1e-5)


def test_an_interrupt_while_reading_features_leaves_the_model(model, digits, tmp_path):
    x, y = digits[0]

    def batches():
        yield x[:50], y[:50]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converge(model, batches(), cache=tmp_path, max_bytes=0, verbose=0)
    for kept, now in zip(digits[3], model.get_weights(), strict=True):
        assert (kept == now).all()
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown(model, digits, capsys):
    x, y = digits[0]
    converge(model, x[:40], y[:40])
    assert "margin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tol": 0}, "tol must be positive. Received: tol=0"),
        ({"gated": "maybe"}, "gated must be .*Received: gated='maybe'"),
        ({"ridge": -1.0}, "ridge must not be negative. Received: ridge=-1.0"),
        ({"patience": 2}, "patience needs validation_data.*Received: patience=2"),
        ({"validation_data": (1, 2, 3)}, r"validation_data must be \(x, y\). Received: 3 parts"),
        ({"y": None}, "needs labels.*Received"),
        ({"y": np.full(5, 10)}, r"must lie in 0..9.*Received"),
        ({"loss": "hinge"}, "supported losses.*Received"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(model, digits, arguments, message):
    x, y = digits[0]
    with pytest.raises(ValueError, match=message):
        converge(model, **{"x": x[:5], "y": y[:5], "verbose": 0, **arguments})


def test_learned_gates_are_frozen_before_they_are_solved_for(digits):
    (x, y), *_ = digits
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(24, "relu"), keras_dal.GatedDense(250), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=2, verbose=0)
    result = converge(model, x, y, verbose=0)
    assert result.point.accuracy == accuracy(result.model, x, y) == 1.0


def test_an_interrupt_before_the_first_point_leaves_the_model_as_it_was(model, digits, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    (x, y), *_, weights = digits
    monkeypatch.setattr(sys.modules["keras_dal.converge"], "add_gated_head", interrupted)
    result = converge(model, x, y, gated=True, verbose=0)
    assert result.stopped_by == "an interrupt"
    np.testing.assert_allclose(result.model.get_weights()[-2], weights[-2], rtol=1e-6)


def test_validation_data_may_be_a_dataset(model, digits):
    (x, y), validation, _, weights = digits
    dataset = tf.data.Dataset.from_tensor_slices(validation).batch(100)
    arrays = converge(model, x, y, validation_data=validation, gated=False, ridge=1.0, verbose=0)
    model.set_weights(weights)
    batches = converge(model, x, y, validation_data=dataset, gated=False, ridge=1.0, verbose=0)
    assert batches.after == pytest.approx(arrays.after, rel=1e-4)
