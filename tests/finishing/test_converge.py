"""`converge` on small models: separation, scaling, certificates, stops and refusals."""

import dataclasses
import signal
import sys
import threading

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression

import keras_dal
from keras_dal.finishing.converge import converge
from keras_dal.finishing.evaluation import quality
from keras_dal.finishing.history import Path
from keras_dal.finishing.newton import RIDGES
from keras_dal.finishing.result_rows import rows_of
from keras_dal.finishing.stopping import Ending
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_dal.models.find_structure import find_structure
from keras_dal.output.tables import at_most


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


def test_dead_constant_and_repeated_features_do_not_count_as_columns_of_a_gated_head():
    """Four of 64 features are free, and their quadrants are classes: no labels are wrong, and none are called so."""
    generator = np.random.default_rng(0)
    free = generator.normal(size=(300, 4))
    free += 0.3 * np.sign(free)  # no two samples of other classes are nearly equal
    y = 2 * (free[:, 0] * free[:, 1] > 0) + (free[:, 2] * free[:, 3] > 0)
    others = [np.zeros((300, 20)), np.full((300, 20), 0.3), free @ generator.normal(size=(4, 20))]
    x = np.concatenate([free, *others], axis=1).astype("float32")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(4, kernel_initializer="zeros")])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = converge(model, x, y, verbose=0)
    assert result.accuracy == 1
    assert len(result.left) == 0
    assert keras_dal.alignment(keras_dal.add_gated_head(model, x, verbose=0), x, y, verbose=0).verdict == "aligned"


def test_a_classifier_reaches_full_training_accuracy_and_any_loss(model, digits):
    (x, y), validation, unlabelled, weights = digits
    before = accuracy(model, *validation)
    result = converge(model, x, y, validation_data=validation, anchors=unlabelled, tol=1e-4, verbose=0)
    assert accuracy(result.model, x, y) == 1.0
    assert result.reached
    assert result.stopped_by == Ending.SEPARATED
    assert accuracy(result.model, *validation) > before - 0.02
    logits = result.model.predict(x, verbose=0).astype(np.float64)
    loss = np.mean(special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y])
    assert result.loss == pytest.approx(loss, rel=1e-4)
    others = np.where(np.eye(10)[y] == 1, -np.inf, logits)
    assert result.margin == pytest.approx(np.min(logits[np.arange(len(y)), y] - others.max(axis=1)), abs=1e-4)
    result.rescale()
    assert result.model.evaluate(x, y, verbose=0)[0] == pytest.approx(result.scaled_loss, rel=1e-2)
    assert result.scaled_loss <= 1e-4
    assert np.log2(result.scale) == int(np.log2(result.scale))  # so that no weight was rounded
    result.rescale(1.0)
    assert result.model.evaluate(x, y, verbose=0)[0] == pytest.approx(loss, rel=1e-4)
    for kept, now in zip(weights, model.get_weights(), strict=True):
        assert (kept == now).all()  # the gated head is on a copy


def test_the_head_that_separates_changes_less_than_the_one_of_least_loss(model, digits):
    (x, y), _, unlabelled, _ = digits
    start = model.predict(unlabelled, verbose=0)
    gentle = converge(model, x, y, anchors=unlabelled, gated=True, verbose=0)
    plain = converge(model, x, y, anchors=unlabelled, gated=True, ridge=1e-8, verbose=0)

    def moved(result):
        change = result.model.predict(unlabelled, verbose=0) - start
        return np.sqrt(np.mean(np.sum(change**2, axis=1)))

    assert "a copy with a gated head and a new" in str(gentle)
    assert gentle.point.moved == pytest.approx(moved(gentle), rel=1e-2)
    assert moved(gentle) < 0.5 * moved(plain)
    assert plain.loss < 1e-3 < gentle.loss


def test_a_proof_names_the_weight_of_the_change_that_it_is_of_where_no_step_was_taken():
    """The labels are orthogonal to the only column, so that the kernel 0 is the minimum for every weight."""
    x, y = np.array([[1.0], [-1.0], [1.0], [-1.0]], "float32"), np.array([[1.0], [1.0], [-1.0], [-1.0]])
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile("sgd", "mse")
    dense.kernel.assign([[0.0]])
    result = converge(model, x, y, verbose=0)
    assert len(result.path) == 1
    assert result.point.ridge == RIDGES[-1]
    assert "of squared error + 1e-08 x change" in next(result.proof())


def test_an_own_head_that_separates_is_kept(model, digits):
    x, y = digits[0]
    result = converge(model, x[:40], y[:40], verbose=0)
    assert result.model is model
    assert accuracy(model, x[:40], y[:40]) == 1.0


@pytest.mark.parametrize("kind", ["one output", "one output, own branch", "two outputs"])
def test_binary_classifiers_are_given_a_branch(digits, kind):
    x, _ = digits[0]
    labels = (np.random.default_rng(0).random((600, 2)) < 0.5)[:, : 1 + (kind == "two outputs")].astype("float32")
    model = network(keras.losses.BinaryCrossentropy(from_logits=True), outputs=labels.shape[1])
    if "branch" in kind:
        model = keras_dal.add_gated_head(model, x, seed=0, verbose=False)
    result = converge(model, x, labels, verbose=0)
    assert ((result.model.predict(x, verbose=0) > 0) == labels).all()
    assert result.certificate.verdict == "aligned"


@pytest.mark.parametrize("few", [1, 3, 20])
def test_few_anchors_leave_the_rest_of_the_inputs_bounded(model, digits, few):
    (x, y), validation, unlabelled, _ = digits
    before = accuracy(model, *validation)
    result = converge(model, x, y, anchors=unlabelled[:few], verbose=0)
    assert accuracy(result.model, x, y) == 1.0
    assert accuracy(result.model, *validation) > before - 0.02


def test_numbers_that_are_not_finite_end_the_path_before_they_reach_the_model(model, digits, monkeypatch):
    x, y = digits[0]
    original = CachedJacobian.logits

    def overflowing(self, theta):
        logits = original(self, theta)
        if self.on.dtype == np.float64:
            return logits  # not of the solver
        return logits if len(seen.append(0) or seen) < 8 else np.full_like(logits, np.nan)

    seen = []
    monkeypatch.setattr(CachedJacobian, "logits", overflowing)
    result = converge(model, x, y, gated=False, verbose=0)
    assert result.stopped_by == Ending.NOT_FINITE
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert np.isfinite(result.loss)


def test_features_whose_squares_overflow_end_the_path_without_warnings_of_numpy(model, digits):
    x, y = digits[0]
    before = model.get_weights()
    result = converge(model, 1e30 * x, y, verbose=0)
    assert result.stopped_by == Ending.NOT_FINITE
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.parametrize("unit", [1e-3, 1e6])
def test_the_unit_of_sample_weights_changes_nothing_but_the_loss(model, digits, unit):
    x, y = digits[0]
    plain = converge(model, x, y, gated=True, verbose=0)
    weighted = converge(model, x, y, np.full(len(y), unit), gated=True, verbose=0)
    assert weighted.loss == pytest.approx(unit * plain.loss, rel=1e-6)
    assert weighted.margin == pytest.approx(plain.margin, rel=1e-6)
    assert weighted.scale == pytest.approx(plain.scale, rel=1e-4)
    assert weighted.reached


def test_a_model_whose_loss_is_small_enough_stays(model, digits):
    x, y = digits[0]
    weights = model.get_weights()
    result = converge(model, x, y, tol=10.0, verbose=0)
    assert result.stopped_by == Ending.TOLERANCE
    assert result.model is model
    for kept, now in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)


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
    features = find_structure(model).features(x).astype(np.float64)
    features = features[:, np.ptp(features, axis=0) > 0]
    features = (features - features.mean(axis=0)) / features.std(axis=0)  # whose affine functions are the same
    theirs = LogisticRegression(C=np.inf, tol=1e-6, max_iter=20_000).fit(features, y)
    logits = theirs.decision_function(features)
    expected = np.mean(special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y])
    result = converge(model, x, y, gated=False, verbose=0)
    assert result.model is model
    assert expected - 1e-3 < result.loss < expected + 1e-4
    assert not result.reached
    assert result.scale == 1.0
    assert result.stopped_by in (Ending.CERTIFIED, Ending.GAP, Ending.STALLED)


@pytest.mark.parametrize("tol", [1e-3, 10.0])
def test_a_strong_ridge_ends_at_a_certified_gap(model, digits, tol):
    """And no loss on the way there is small enough."""
    x, y = digits[0]
    result = converge(model, x, y, gated=False, ridge=0.1, tol=tol, verbose=0)
    assert result.stopped_by == Ending.CERTIFIED
    assert result.reached
    assert result.tol is None
    assert result.point.gap <= 1e-2 * tol
    assert result.point.moved > 0
    assert f"at most {at_most(result.point.gap, 2)}" in str(result)


def test_without_any_weight_of_the_change_the_loss_is_all_there_is_to_reach(model, digits):
    x, y = digits[0]
    result = converge(model, x[:20], y[:20], gated=False, ridge=0, tol=0.01, verbose=0)
    assert result.stopped_by == Ending.TOLERANCE
    assert result.reached
    assert result.loss <= 0.01


def test_without_any_weight_of_the_change_nothing_is_proved_where_the_loss_stays_above_the_tolerance(digits):
    x, y = digits[0]
    result = converge(network(), x, np.roll(y, 1), gated=False, ridge=0, tol=1e-3, verbose=0)
    assert result.stopped_by in (Ending.STALLED, Ending.MAX_STEPS)
    assert not result.reached
    assert result.point.gap == np.inf
    assert not list(result.proof())


def test_data_that_are_not_kept_are_named(model, digits, tmp_path):
    x, y = digits[0]
    with pytest.warns(UserWarning, match="are not kept.*Received: validation data of type list"):
        converge(model, x[:60], y[:60], validation_data=[(x[60:90], y[60:90])], cache=tmp_path, gated=False, verbose=0)
    assert len(list(tmp_path.glob("*.features"))) == 1


def test_gates_are_those_of_the_seed(model, digits):
    x, y = digits[0]
    gates = [
        find_structure(converge(model, x[:60], y[:60], gated=True, seed=seed, verbose=0).model)
        .head()
        .mixture.gate_kernel
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(gates[0], gates[1])
    assert np.all(gates[0] != gates[2])


def test_the_certificate_has_the_margin_as_its_witness(model, digits):
    x, y = digits[0]
    result = converge(model, x[:60], y[:60], verbose=0, gated=True)
    certificate = result.certificate
    assert certificate.verdict in ("separable", "aligned")
    assert certificate.infimum == (0.0, 0.0)
    assert certificate.loss == pytest.approx(result.loss, rel=1e-9)
    assert certificate.margin == pytest.approx(result.margin, rel=1e-9)
    assert result.certificate.not_covered == keras_dal.certify(result.model, x[:60], y[:60]).not_covered


def test_a_penalty_on_the_head_is_reported(digits):
    x, y = digits[0]
    keras.utils.set_random_seed(0)
    head = keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.01))
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(24, "relu"), head])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = converge(model, x[:40], y[:40], verbose=0)
    assert model.evaluate(x[:40], y[:40], verbose=0) == pytest.approx(result.loss + result.penalty, rel=1e-4)
    assert result.certificate.penalty == pytest.approx(result.penalty, rel=1e-6)
    result.rescale()
    assert model.evaluate(x[:40], y[:40], verbose=0) == pytest.approx(
        result.scaled_loss + result.scaled_penalty, rel=1e-3
    )
    assert "L2 penalty" in str(result)


def test_a_head_in_low_precision_is_pointed_out(digits):
    x, y = digits[0]
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(10, dtype="mixed_bfloat16")]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="computed in bfloat16.*Received: layer"):
        converge(model, x[:40], y[:40], verbose=0)


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
    assert result.model.evaluate(x, labels, verbose=0)[0] == pytest.approx(result.scaled_loss, rel=2e-2)
    assert result.scaled_loss <= 1e-3


def regressor():
    """Return a network and the inputs and outputs that it is to fit."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x * 20).astype("float32"), ((y - 150) / 75)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model, x, y


def test_a_regressor_reaches_the_least_squares_solution():
    model, x, y = regressor()
    features = find_structure(model).features(x)
    least = np.mean((LinearRegression().fit(features, y).predict(features) - y) ** 2)
    result = converge(model, x, y, verbose=0)
    assert result.loss == pytest.approx(least, rel=1e-3)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(least, rel=1e-3)
    assert result.margin is None
    stopped = converge(model, x, y, gated=True, tol=1e-2, verbose=0)
    assert stopped.stopped_by == Ending.TOLERANCE
    assert stopped.reached
    assert stopped.scaled_loss <= 1e-2


def test_a_regressor_is_reported_on_validation_data():
    model, x, y = regressor()
    before = model.evaluate(x[300:], y[300:], verbose=0)
    result = converge(model, x[:300], y[:300], validation_data=(x[300:], y[300:]), verbose=0)
    assert result.before.loss == pytest.approx(before, rel=1e-4)
    assert result.after.loss == pytest.approx(model.evaluate(x[300:], y[300:], verbose=0), rel=1e-4)
    assert result.before.accuracy is None
    assert f"validation after    loss {result.after.loss:.4g}" in str(result)
    assert "not reached" in str(result)


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
    assert result.before.loss == pytest.approx(-np.mean(np.log(before[np.arange(len(yv)), yv])), rel=1e-4)
    assert result.scaled.loss > result.after.loss  # why the scale is kept apart
    assert result.scaled.accuracy == result.after.accuracy


def test_every_point_of_the_path_can_be_chosen(model, digits):
    (x, y), validation, _, _ = digits
    result = converge(model, x, y, validation_data=validation, verbose=0)
    assert len(result.path) > 2
    assert result.path[0].moved == 0.0
    assert len({len(point.theta) for point in result.path}) == 2  # the plain head's and the one with gates
    separated = [point.separated for point in result.path]
    assert separated == sorted(separated)  # and only the rounds that widen the margin come after the first
    assert separated[-1]
    for index in (1, len(result.path) // 2, -1):
        point = result.path[index]
        chosen = result.choose(point)
        assert accuracy(result.model, x, y) == pytest.approx(point.accuracy, abs=2e-3)
        assert accuracy(result.model, *validation) == pytest.approx(point.validation, abs=2e-3)
        assert chosen.loss == pytest.approx(point.loss, rel=1e-3)
        assert chosen.after.accuracy == pytest.approx(point.validation, abs=2e-3)
        assert result.choose(index).loss == chosen.loss
    assert f"{result.margin:.4g}" in str(result)
    for wrong in (len(result.path), None, "last"):
        with pytest.raises(ValueError, match="must be one of the path.*Received"):
            result.choose(wrong)


def gated_points(result):
    """The points after the head beside the mixture was finished."""
    return [point for point in result.path if point.ridge == 0]


def test_a_branch_is_solved_for_by_interpolation(model, digits):
    (x, y), validation, _, _ = digits
    before = accuracy(model, *validation)
    result = converge(model, x, y, gated=True, validation_data=validation, verbose=0)
    assert 1 <= len(gated_points(result)) <= 6
    assert result.margin > 0
    assert result.point.violation < 1e-3 * gated_points(result)[0].moved ** 2
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
    with pytest.warns(UserWarning, match="The factor takes more than"):
        result = converge(model, x, y, gated=True, max_bytes=105_000, verbose=0)  # enough for 162 samples
    assert not gated_points(result)
    assert accuracy(result.model, x, y) == 1.0


def test_a_gated_head_that_does_not_fit_is_not_made(model, digits):
    """So many gates give the features that are not dead, of 24, four parameters for each sample."""
    x, y = digits[0]
    alive = np.sum(np.ptp(find_structure(model).features(x), axis=0) > 0)
    size = int(np.ceil(4 * 600 / (alive + 1))) * 25 * 10
    with pytest.raises(ValueError, match=rf"too large.*Received: {size:,} parameters for 600 samples"):
        converge(model, x, y, gated=True, max_bytes=4 * size - 1, verbose=0)
    with pytest.warns(UserWarning, match=rf"a gated one is too large.*Received: {size:,} parameters.*max_bytes=60,000"):
        result = converge(model, x, y, max_bytes=60_000, verbose=0)
    assert result.model is model
    assert result.loss < result.path[0].loss


def test_single_samples_of_a_dataset_that_was_not_batched_are_refused_by_their_shape(model, digits):
    x, y = digits[0]
    alone = list(zip(x[:5], y[:5], strict=True))
    with pytest.raises(ValueError, match=r"The validation data must have shapes \(n, ...\).*Received: \[\(\)\]"):
        converge(model, x, y, validation_data=alone, verbose=0)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3])
def test_labels_that_contradict_those_of_nearly_equal_samples_are_left(model, digits, distance):
    (x, y), validation, _, _ = digits
    before = accuracy(model, *validation)
    twins = x[:5] + distance * np.random.default_rng(0).normal(size=(5, 64)).astype("float32")
    x, y = np.concatenate([x, twins]), np.concatenate([y, (y[:5] + 1) % 10])
    weight = np.ones(len(y))
    weight[10] = 0.0  # so that positions differ from those among the samples that count
    with pytest.warns(UserWarning, match="samples stay on their wrong side.*Received"):
        result = converge(model, x, y, weight, gated=True, verbose=0)
    wrong = np.flatnonzero(result.model.predict(x, verbose=0).argmax(axis=1) != y)
    assert set(wrong) <= {*result.left, 10}
    assert set(result.left) <= {*range(5), *range(600, 605)}
    assert set(result.left) == set(wrong) - {10}
    assert result.accuracy == pytest.approx(1 - len(result.left) / 604)
    first = result.choose(0)
    wrong_at_first = np.flatnonzero(first.model.predict(x, verbose=0).argmax(axis=1) != y)
    assert set(first.left) == set(wrong_at_first) - {10}
    assert first.stopped_by == Ending.CHOSEN
    assert "separation" not in str(first)
    result = result.choose(result.point)
    assert result.stopped_by == Ending.SEPARATED
    assert f"separation of {604 - len(set(wrong) - {10})} of 604 samples," in str(result)
    assert "Result.left" in str(result)
    assert not result.reached
    assert accuracy(result.model, *validation) > before - 0.02


def test_a_mixture_of_too_few_gates_goes_on_by_newtons_method(model, digits, monkeypatch):
    monkeypatch.setattr("keras_dal.finishing.separating._ROUNDS", 3)
    x, y = digits[0]
    small = keras_dal.add_gated_head(model, x, num_samples=10, seed=0, verbose=False)
    with pytest.warns(UserWarning, match="did not separate.*Received.* training accuracy"):
        result = converge(small, x, y, time_limit=10.0, verbose=0)
    assert gated_points(result)
    assert result.path[-1].ridge > 0


@pytest.mark.parametrize("full", [100, 4096])
def test_gates_before_the_head_are_solved_for_by_newtons_method(model, digits, monkeypatch, full):
    x, y = digits[0]
    monkeypatch.setattr(
        "keras_dal.solvers.whitening._FULL", full
    )  # gates up to which their moments are factorized whole
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
    cases.pretend_accelerator(monkeypatch)
    on_accelerator = converge(model, x, y, gated=True, verbose=0)
    assert on_accelerator.point.separated
    # after several Newton steps in float32 the sums' order shows, and so does the step at which the path ends
    outputs = [result.model.predict(validation[0], verbose=0) for result in (on_host, on_accelerator)]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.02 * np.abs(outputs[0]).max())


def test_a_time_limit_and_patience_end_the_path(model, digits):
    (x, y), validation, _, _ = digits
    result = converge(model, x, y, gated=True, time_limit=1e-6, verbose=0)
    assert result.stopped_by == Ending.TIME
    assert len(result.path) == 1
    result = converge(model, x, y, ridge=1e-7, patience=2, validation_data=validation, verbose=0)
    assert result.stopped_by == Ending.PATIENCE
    assert result.point.validation == max(point.validation for point in result.path)
    assert accuracy(model, *validation) == pytest.approx(result.point.validation, abs=2e-3)


def test_patience_does_not_end_the_try_with_the_own_head(model, digits):
    (x, y), validation, _, _ = digits
    result = converge(model, x, y, patience=1, validation_data=validation, verbose=0)
    assert len({len(point.theta) for point in result.path}) == 2
    assert result.point.validation == max(point.validation for point in result.path)


def test_an_interrupt_keeps_the_best_point(model, digits, monkeypatch, tmp_path):
    (x, y), validation, _, _ = digits
    products, original = [], CachedJacobian.logits

    def interrupting(self, theta):
        if self.on.dtype == np.float32:  # of the solver
            products.append(0)
            if len(products) == 6:
                signal.raise_signal(signal.SIGINT)
        return original(self, theta)

    monkeypatch.setattr(CachedJacobian, "logits", interrupting)
    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    try:
        result = converge(model, x, y, gated=True, validation_data=validation, verbose=0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.stopped_by == Ending.INTERRUPT
    assert result.point.validation == max(point.validation for point in result.path)
    result.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x[:5], verbose=0), result.model.predict(x[:5], verbose=0), rtol=1e-5)


def test_what_the_own_head_reached_is_kept_when_the_branch_is_interrupted(model, digits, monkeypatch):
    x, y = digits[0]
    original = Path.add

    def interrupting(self, point):
        if len(point.theta) > 250:
            raise KeyboardInterrupt
        original(self, point)

    monkeypatch.setattr(Path, "add", interrupting)
    result = converge(model, x, y, verbose=0)
    assert result.stopped_by == Ending.INTERRUPT
    assert result.accuracy == max(point.accuracy for point in result.path) > result.path[0].accuracy
    assert accuracy(result.model, x, y) == pytest.approx(result.accuracy, abs=2e-3)


@pytest.mark.parametrize("moment", ["assigning", "evaluating"])
def test_an_interrupt_at_the_end_is_obeyed_when_the_model_is_whole(model, digits, monkeypatch, moment):
    x, y = digits[0]
    expected = converge(model, x[:40], y[:40], verbose=0)
    weights = model.get_weights()
    model.set_weights(digits[3])
    pending = [KeyboardInterrupt]
    target = find_structure(model).linear_parameters[1]
    assign, rounded = type(target).assign, type(expected.structure).rounded

    def assigning(self, value):
        if self is target and np.array_equal(value, weights[-1]) and pending:
            raise pending.pop()
        return assign(self, value)

    def evaluating(self, theta):
        if pending:
            raise pending.pop()
        return rounded(self, theta)

    if moment == "assigning":
        monkeypatch.setattr(type(target), "assign", assigning)
    else:
        monkeypatch.setattr(type(expected.structure), "rounded", evaluating)
    result = converge(model, x[:40], y[:40], verbose=0)
    assert not pending
    assert result.stopped_by == expected.stopped_by == Ending.SEPARATED
    assert result.reached
    for mine, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_interrupt_while_reading_features_leaves_the_model(model, digits, tmp_path):
    x, y = digits[0]

    def batches():
        yield x[:50], y[:50]
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="only arrays can be recognized"), pytest.raises(KeyboardInterrupt):
        converge(model, batches(), cache=tmp_path, max_bytes=0, verbose=0)
    for kept, now in zip(digits[3], model.get_weights(), strict=True):
        assert (kept == now).all()
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown(model, digits, capsys):
    x, y = digits[0]
    result = converge(model, x[:40], y[:40], validation_data=digits[1])
    printed = capsys.readouterr().out
    for name in ("training samples", "validation data", "40/40"):
        assert name in printed
    head, *rows = printed.splitlines()[-1 - len(result.path) :]
    assert head.split() == ["step", "seconds", "loss", "accuracy", "margin", "moved", "gap", "validation"]
    for row, point in zip(rows, result.path, strict=True):
        assert f"{point.loss:.4g} {point.accuracy:10.2%}" in row
        assert row.endswith(f"{point.validation:10.2%}")


def test_a_path_that_begins_again_says_so(model, digits, capsys):
    x, y = digits[0]
    wrong = np.where(np.arange(len(y)) % 2, y, np.roll(y, 1))
    result = converge(model, x, wrong, gated=False, tol=1e-9)
    rows = capsys.readouterr().out.splitlines()
    assert "the path begins again, and its loss is minimized" in " ".join(rows)
    steps = [row.split()[0] for row in rows if row.startswith("    ")]
    assert [step for step in steps if step != "float64"] == ["step", *map(str, range(len(result.path)))]


def test_a_point_from_before_gates_says_that_they_add_nothing(model, digits):
    x, y = digits[0]
    result = converge(model, x, np.roll(y, 1), verbose=0)
    assert result._run.is_copy
    assert "adds nothing" not in str(result)
    assert "a copy with a gated head, whose gates add nothing at this point" in str(result.choose(0))
    assert result.model.evaluate(x, np.roll(y, 1), verbose=0)[0] == pytest.approx(result.path[0].loss, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tol": 0}, "tol must be a positive number. Received: tol=0"),
        ({"tol": "1"}, "tol must be a positive number. Received: tol=.1.$"),
        ({"time_limit": "5"}, "time_limit must be a positive number. Received: time_limit=.5.$"),
        ({"gated": "maybe"}, "gated must be .*Received: gated='maybe'"),
        ({"ridge": -1.0}, "ridge must be a number that is not negative. Received: ridge=-1.0"),
        ({"patience": 2}, "patience needs validation_data.*Received: patience=2"),
        ({"ridge": np.inf}, "ridge must be a number.*Received: ridge=inf"),
        ({"ridge": "0.1"}, "ridge must be a number.*Received: ridge='0.1'"),
        ({"anchors": np.zeros((3, 9))}, r"The anchors must have shapes.*\(64,\).*Received: \[\(9,\)\]"),
        ({"validation_data": (np.zeros((3, 9)), [0])}, "The validation data must have shapes.*Received"),
        ({"validation_data": (np.zeros((3, 64)), None)}, "validation_data must be .*Received: no labels"),
        ({"y": np.array(list("abcde"))}, "Labels must be numbers. Received: y of dtype <U1"),
        ({"validation_data": (1, 2, 3)}, r"validation_data must be \(x, y\). Received: 3 parts"),
        ({"y": None}, "Labels are needed.*Received"),
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


def test_a_refused_call_freezes_no_gates(digits):
    x = digits[0][0]
    model = keras.Sequential([keras.Input((64,)), keras_dal.GatedDense(40), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"must lie in 0..2"):
        converge(model, x[:5], np.full(5, 7), verbose=0)
    assert not model.layers[0].gates_frozen


def test_weights_of_validation_data_are_refused(model, digits):
    x, y = digits[0]
    data = tf.data.Dataset.from_tensor_slices((x[:20], y[:20], np.linspace(0, 1, 20))).batch(10)
    with pytest.raises(ValueError, match="must have no sample weights.*Received: weights from 0.0 to 1.0"):
        converge(model, x[:20], y[:20], validation_data=data, verbose=0)


def test_an_interrupt_before_the_first_point_leaves_the_model_as_it_was(model, digits, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    (x, y), *_, weights = digits
    monkeypatch.setattr(sys.modules["keras_dal.finishing.converge"], "with_gates_beside", interrupted)
    result = converge(model, x, y, gated=True, verbose=0)
    assert result.stopped_by == Ending.INTERRUPT
    np.testing.assert_allclose(result.model.get_weights()[-2], weights[-2], rtol=1e-6)


def test_validation_data_may_be_a_list(model, digits):
    x, y = (part[:60] for part in digits[0])
    weights = model.get_weights()
    as_tuple = converge(model, x, y, validation_data=digits[1], gated=False, ridge=1.0, verbose=0)
    model.set_weights(weights)
    as_list = converge(model, x, y, validation_data=list(digits[1]), gated=False, ridge=1.0, verbose=0)
    assert (as_tuple.before, as_tuple.after) == (as_list.before, as_list.after)


def test_validation_data_may_be_a_dataset(model, digits):
    (x, y), validation, _, weights = digits
    dataset = tf.data.Dataset.from_tensor_slices(validation).batch(100)
    arrays = converge(model, x, y, validation_data=validation, gated=False, ridge=1.0, verbose=0)
    model.set_weights(weights)
    batches = converge(model, x, y, validation_data=dataset, gated=False, ridge=1.0, verbose=0)
    assert batches.after == pytest.approx(arrays.after, rel=1e-4)


def test_statistics_that_have_not_settled_are_said_until_they_are_renewed():
    generator = np.random.default_rng(0)
    x = (5 + 3 * generator.standard_normal((120, 6))).astype("float32")
    y = (x[:, 0] > 5).astype(int) + (x[:, 1] > 5)
    keras.utils.set_random_seed(0)
    trunk = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    model = keras.Sequential([keras.Input((6,)), *trunk, keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=2, verbose=0)
    with pytest.warns(UserWarning, match="Batch statistics have not settled: 92% .*momentum=0.99 after 8 steps"):
        converge(model, x, y, gated=False, ridge=0.1, verbose=0)
    with pytest.warns(UserWarning, match="Take the model as it was before this call, and renew them, keras_dal"):
        keras_dal.finish(model, x, y, verbose=0)
    keras_dal.finish(model, x, y, statistics_from=x, verbose=0)
    converge(model, x, y, gated=False, ridge=0.1, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(40)
    converge(model, dataset, gated=False, ridge=0.1, verbose=0)
    model.layers[1].moving_mean.assign(keras.ops.zeros(8))
    with pytest.warns(UserWarning, match="Batch statistics have not settled"):
        converge(model, dataset, gated=False, ridge=0.1, verbose=0)
    converge(model, dataset.unbatch().batch(4), gated=False, ridge=0.1, verbose=0)  # too few to say so


def test_steps_of_accumulation_move_statistics_too():
    x = (5 + 3 * np.random.default_rng(0).standard_normal((120, 6))).astype("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dense(2)])
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=20)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.arange(120) % 2
    model.fit(x, y, epochs=10, batch_size=30, verbose=0)
    keras_dal.finish(model, x, y, verbose=0)  # without a warning: 40 steps, of which the optimizer counts 2


def test_statistics_that_were_loaded_are_no_fault():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((120, 6)).astype("float32"), generator.integers(0, 3, 120)
    model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=1, verbose=0)  # of mean 0 and variance 1, as the statistics began
    converge(model, x, y, gated=False, ridge=0.1, verbose=0)


def test_validation_data_on_which_the_model_does_worse_are_named(model, digits):
    x, y = digits[0]
    result = converge(model, x, y, validation_data=digits[1], verbose=0)

    def said(accuracy=0.0, loss=1.0, **others):
        after = result.after
        before = after._replace(accuracy=after.accuracy + accuracy, loss=after.loss / loss)
        rows = dict(rows_of(dataclasses.replace(result, before=before, **others)))
        return rows.get("validation worse")

    assert [said(accuracy=by) is not None for by in (0.0, 0.005, 0.02)] == [False, False, True]
    assert [said(loss=by) is not None for by in (0.9, 1.005, 1.02)] == [False, False, True]
    assert said(0.02) == "accuracy by 2.00 points: ridge=1e-2 changes less, and patience ends earlier"
    assert (
        said(0.02, 1.02)
        == "accuracy by 2.00 points and NLL by 2.0%: ridge=1e-2 changes less, and patience ends earlier"
    )
    assert said(0.02, stopped_by=Ending.PATIENCE) == "accuracy by 2.00 points: ridge=1e-2 changes less"


def test_no_gap_is_larger_than_what_is_minimized():
    generator = np.random.default_rng(0)
    x, y = 10 * generator.standard_normal((200, 4)).astype("float32"), generator.integers(0, 3, 200)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    first = converge(model, x, y, ridge=1e-6, verbose=0).path[0]
    assert first.moved == 0
    assert 0 < first.gap <= first.loss * (1 + 1e-6)


def test_the_gap_is_printed_for_the_ridge_it_was_proved_for():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 4)).astype("float32"), generator.integers(0, 3, 60)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = keras_dal.converge(model, x, y, gated=False, ridge=0.15, tol=1e-9, verbose=0)
    assert "plus 0.15 times the change" in str(result)


def test_a_tie_is_right_neither_in_the_accuracy_nor_in_the_calibration():
    y, rows = np.arange(50) % 10, slice(0, 50)
    found = quality([(rows, np.zeros((50, 10)))], SoftmaxCrossEntropy().targets(y, 10), SoftmaxCrossEntropy())
    assert found.accuracy == 0.0
    assert found.ece == pytest.approx(0.1)
    loss = SigmoidCrossEntropy()
    found = quality([(rows, np.zeros((50, 1)))], loss.targets(np.zeros(50), 1), loss)
    assert (found.accuracy, found.ece) == (0.0, 0.5)


def test_progress_in_a_log_is_a_line_without_escape_codes(model, digits, capsys):
    x, y = digits[0]
    converge(model, x, y, ridge=1e-2, batch_size=500)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\b" not in printed
    assert f"{len(x)}/{len(x)} - " in printed


def test_inputs_of_other_sizes_are_taken_where_the_model_leaves_these_open():
    """Images that are pooled, of two sizes, and the loss before as `evaluate` has it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 2))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 3, activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 6, 6, 2)).astype("float32"), generator.integers(0, 3, 40)
    larger, of_larger = generator.standard_normal((20, 9, 7, 2)).astype("float32"), generator.integers(0, 3, 20)
    expected = model.evaluate(larger, of_larger, verbose=0)
    options = {"ridge": 0.1, "anchors": larger, "verbose": 0}
    result = converge(model, x, y, validation_data=(larger, of_larger), **options)
    assert result.before.loss == pytest.approx(expected, rel=1e-4)
    assert result.after.loss == pytest.approx(model.evaluate(larger, of_larger, verbose=0), rel=1e-4)
    for wrong in (larger[..., :1], larger[:, 0]):
        with pytest.raises(ValueError, match=r"validation data must have shapes.*\(None, None, 2\).*Received: "):
            converge(model, x, y, validation_data=(wrong, of_larger), verbose=0)


@pytest.mark.parametrize("anchored", [False, True], ids=["of the samples", "given"])
def test_the_change_is_that_of_all_anchors_or_of_ten_thousand_samples(anchored):
    """As the docstring of `converge` says; with an output of each sample's own to tell which were looked at."""
    n = 10_400
    x = np.random.default_rng(0).standard_normal((n, 2)).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = model.predict(x, verbose=0)
    result = converge(model, x, x[:, 0] ** 3, anchors=x if anchored else None, ridge=0.1, verbose=0)
    squares = np.sum((model.predict(x, verbose=0) - before).astype(float) ** 2, axis=1)
    rows = np.arange(n) if anchored else np.sort(np.random.default_rng(0).permutation(n)[:10_000])
    assert result.point.moved == pytest.approx(np.sqrt(np.mean(squares[rows])), rel=1e-5)
    assert abs(result.point.moved - np.sqrt(np.mean(squares))) > 1e-4 * result.point.moved or anchored
