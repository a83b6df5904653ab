"""Shares of labels with offsets, without variation or in several units, against decompositions of centred labels."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dal
from keras_dal import heads, losses
from keras_dal.analysis.certify import certify_head
from keras_dal.models.gated_layers import GatedBranch

N, M = 40, 3


def regressor(outputs=1, gated=False, **options):
    keras.utils.set_random_seed(0)
    head = layers.Dense(outputs, **options)
    model = keras.Sequential([keras.Input((M,)), GatedBranch(head, 1, seed=0) if gated else head])
    model.compile(loss="mse")
    return model


def inputs():
    return np.random.default_rng(0).standard_normal((N, M)).astype("float32")


def share_of(x, y):
    """Return the residual share of labels `(n,)` on inputs and a constant, from deviations alone."""
    columns = np.column_stack([x.astype(np.float64), np.ones(len(x))])
    centred = (y - y[0]) - np.mean(y - y[0])
    return np.sum((centred - columns @ np.linalg.lstsq(columns, centred, rcond=None)[0]) ** 2) / np.sum(centred**2)


@pytest.mark.parametrize(("offset", "size"), [(1.7e9, 10.0), (1e12, 1.0), (-1e12, 1.0)])
def test_labels_with_a_large_offset_have_the_share_of_their_deviations(offset, size):
    x, y = inputs(), offset + size * np.random.default_rng(1).standard_normal((N, 1))
    expected = share_of(x, y[:, 0])
    report, certificate = keras_dal.alignment(regressor(), x, y), keras_dal.certify(regressor(), x, y)
    curve = keras_dal.width_curve(regressor(), x, y, widths=[0], draws=1, verbose=0)
    found = report.residual_share, certificate.residual_share, curve.residual_share[0]
    assert found == pytest.approx((expected,) * 3, rel=1e-5)
    assert report.residual_share_per_sample.sum() == pytest.approx(expected, rel=1e-6)
    assert (report.verdict, certificate.verdict, curve.settled) == ("not aligned", "not aligned", None)


def test_a_gated_head_sees_the_deviations_of_labels_too():
    x, y = inputs(), 1.7e9 + 10 * np.random.default_rng(1).standard_normal((N, 1))
    plain = 10 * np.random.default_rng(1).standard_normal((N, 1))
    found = [keras_dal.alignment(regressor(gated=True), x, each).residual_share for each in (y, plain)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] > 0.1


def test_aligned_labels_stay_aligned_beside_an_offset():
    x = inputs()
    y = 1.7e9 + 1e3 * (x[:, :1].astype(np.float64) + x[:, 1:2])
    assert keras_dal.alignment(regressor(), x, y).verdict == "aligned"
    assert keras_dal.certify(regressor(), x, y).verdict == "aligned"


@pytest.mark.parametrize("gated", [False, True])
def test_labels_without_variation_are_aligned(gated):
    x, y = inputs(), np.full((N, 1), 0.1)
    report, certificate = (each(regressor(gated=gated), x, y) for each in (keras_dal.alignment, keras_dal.certify))
    assert (report.verdict, certificate.verdict) == ("aligned", "aligned")
    assert max(report.residual_share, certificate.residual_share) < 1e-20


@pytest.mark.parametrize("name", ["squared error", "softmax"])
def test_labels_without_variation_are_in_reach_of_a_whole_network(name):
    model = regressor(3)
    if name == "softmax":
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.zeros(N, int) if name == "softmax" else np.full((N, 3), 0.1)
    report = keras_dal.alignment(model, inputs(), y, parameters="all")
    assert report.alignment == pytest.approx(1.0, abs=1e-8)
    assert report.verdict == "aligned"


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_labels_of_any_size_are_reached_by_products_in_float32(monkeypatch, size):
    x = inputs()
    y = size * (x.astype(np.float64) @ np.arange(1, M + 1)[:, None])
    assert keras_dal.alignment(regressor(), x, y, parameters="all").alignment > 0.999
    monkeypatch.setattr("keras_dal.solvers.jacobian.jacobian.__defaults__", (None, False, 1, 2.0**-52, 2**32))
    for num_samples in (4, 4 * N):  # LSQR, and a factor
        model = keras_dal.add_gated_head(regressor(), x, num_samples=num_samples, seed=0, verbose=False)
        assert keras_dal.alignment(model, x, y).alignment > 0.999


def test_an_output_in_small_units_is_not_hidden_by_one_in_large_units():
    generator, x = np.random.default_rng(1), inputs()
    y = np.column_stack([1e6 * x[:, 0].astype(np.float64), generator.standard_normal(N)])
    for make in (keras_dal.alignment, keras_dal.certify):
        report = make(regressor(2), x, y)
        assert report.residual_share < 1e-8
        assert report.verdict == "not aligned"
        reason = float(report.decided_by.split()[-1])
        assert reason == pytest.approx(share_of(x, y[:, 1]), rel=0.01)
    curve = keras_dal.width_curve(regressor(2), x, y, widths=[0], draws=1, verbose=0)
    assert curve.residual_share[0] < 1e-8
    assert (curve.settled, curve.samples_fitted) == (None, M + 1)


def test_a_bound_from_above_does_not_prove_labels_not_aligned(monkeypatch):
    generator, x = np.random.default_rng(1), inputs()
    monkeypatch.setattr("keras_dal.solvers.jacobian.jacobian.__defaults__", (None, False, 1, 2.0**-52, 2**32))
    report = keras_dal.alignment(regressor(gated=True), x, generator.standard_normal((N, 1)))
    assert not report.exact
    assert report.verdict == "undecided"
    assert "LSQR" in report.decided_by


@pytest.mark.parametrize("offset", [0.0, 1.7e9])
def test_an_iterative_bound_sees_the_deviations_of_labels_too(monkeypatch, offset):
    x, y = inputs(), offset + 10 * np.random.default_rng(1).standard_normal((N, 1))
    exact = keras_dal.alignment(regressor(gated=True), x, y).residual_share
    monkeypatch.setattr("keras_dal.solvers.jacobian.jacobian.__defaults__", (None, False, 1, 2.0**-52, 2**32))
    report = keras_dal.alignment(regressor(gated=True), x, y)
    assert not report.exact
    assert exact - 1e-9 <= report.residual_share <= exact + 1e-4


@pytest.mark.parametrize("trainable", [True, False])
def test_means_are_free_only_where_a_whole_network_trains_a_bias(trainable):
    model, x = regressor(), inputs()
    model.layers[-1].bias.trainable = trainable
    y = 5.0 + np.random.default_rng(1).standard_normal((N, 1))
    columns = np.column_stack([x, np.ones(N)]) if trainable else x.astype(np.float64)
    centred = y - y.mean() * trainable
    residual = centred - columns @ np.linalg.lstsq(columns, centred, rcond=None)[0]
    report = keras_dal.alignment(model, x, y, parameters="all")
    assert report.residual_share == pytest.approx(np.sum(residual**2) / np.sum(centred**2), abs=1e-4)


def test_labels_of_zeros_are_reached_without_a_bias():
    head = heads.DenseHead(M, 1, use_bias=False)
    zeros = np.zeros((N, 1))
    certificate = certify_head(head, losses.SquaredError(), inputs(), zeros, np.ones(M))
    assert (certificate.verdict, certificate.residual_share) == ("aligned", 0.0)


@pytest.mark.parametrize("classes", [3, 6, 7, 49])
def test_labels_that_favour_no_class_are_aligned_without_a_bias_too(classes):
    """They are 1/C everywhere, of which only rounding is left once means over classes are taken away."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((M,)), layers.Dense(classes, use_bias=False)])
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    y = np.full((N, classes), 1 / classes)
    for found in (keras_dal.alignment(model, inputs(), y), keras_dal.certify(model, inputs(), y, verbose=0)):
        assert found.verdict == "aligned"
        assert found.residual_share == 0


@pytest.mark.parametrize("size", [1e-165, 1e160])
def test_an_output_whose_squares_float64_does_not_hold_is_refused_beside_one_in_another_unit(size):
    y = np.random.default_rng(1).standard_normal((N, 2)) * [1.0, size]
    with pytest.raises(ValueError, match=r"another unit. Received: labels of output 1 up to"):
        keras_dal.alignment(regressor(2), inputs(), y)
