"""A quadratic loss with a factor and an infimum of its own, registered here, is bounded by its own values."""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_dal
from keras_dal.losses import REGISTERED, Loss, register
from keras_dal.losses.base import checked_matrix

N, M, C = 90, 5, 3
ENTROPY = 0.5 * math.log(2 * math.pi)  # that a normal distribution of variance one adds to half the square


class HalfSquare(keras.losses.Loss):
    """`mean_j 0.5 (f_j - y_j)^2 + constant`, as of the likelihood of means."""

    def __init__(self, constant=0.0, **options):
        super().__init__(**options)
        self.constant = constant

    def call(self, y_true, y_pred):
        return ops.mean(0.5 * ops.square(y_pred - y_true) + self.constant, axis=-1)

    def get_config(self):
        return super().get_config() | {"constant": self.constant}


class Half(Loss):
    """The same as the package wants it."""

    name = "half squares of a test"
    activation = "linear"
    keras_losses = (HalfSquare,)
    options = ("constant",)
    quadratic = True

    def __init__(self, constant=0.0):
        self.constant = constant

    def targets(self, y, num_outputs):
        return checked_matrix(y, num_outputs)

    def step_targets(self, y, num_outputs):
        y = ops.reshape(y, (-1, num_outputs))
        return y, ops.all(ops.isfinite(y), axis=1)

    def values(self, logits, targets):
        return np.mean(0.5 * (logits - targets) ** 2 + self.constant, axis=1)

    def gradient(self, logits, targets):
        return (logits - targets) / targets.shape[1]

    def hessian(self, logits, targets):
        return lambda change, block: change / targets.shape[1]

    def curvature(self, num_outputs):
        return 1.0 / num_outputs

    def infimum(self, targets):
        return np.full(len(targets), self.constant)

    def scales(self, targets):
        return np.ones(len(targets))

    def conjugate(self, slopes, targets):
        return np.sum(slopes * targets + 0.5 * targets.shape[1] * slopes**2, axis=1) - self.constant


@pytest.fixture(autouse=True)
def registered():
    register(Half)
    yield
    del REGISTERED[Half.name]


def problem(constant):
    """Return a compiled model, its data with weights, and the minimum over plain heads by NumPy's least squares."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((N, M)).astype("float32"), generator.standard_normal((N, C))
    weights = generator.uniform(0.5, 2.0, N)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((M,)), keras.layers.Dense(C)])
    model.compile("sgd", HalfSquare(constant))
    columns, roots = np.column_stack([x.astype(float), np.ones(N)]), np.sqrt(weights)[:, None]
    residual = y - columns @ np.linalg.lstsq(roots * columns, roots * y, rcond=None)[0]
    return model, (x, y, weights), np.mean(weights[:, None] * (0.5 * residual**2 + constant))


@pytest.mark.parametrize("constant", [0.0, ENTROPY], ids=["of squares alone", "with a constant"])
def test_the_bounds_of_a_certificate_are_those_of_the_loss_itself(constant):
    model, data, expected = problem(constant)
    certificate = keras_dal.certify(model, *data)
    np.testing.assert_allclose(certificate.infimum, expected, rtol=1e-6)
    assert certificate.infimum[0] <= expected <= certificate.infimum[1]
    assert certificate.verdict == "not aligned"


@pytest.mark.parametrize("constant", [0.0, ENTROPY], ids=["of squares alone", "with a constant"])
def test_the_bounds_by_width_are_those_of_the_loss_itself(constant, monkeypatch):
    model, data, expected = problem(constant)
    for affordable in (0, math.inf):  # by the fits alone, and by a solver, too
        monkeypatch.setattr("keras_dal.analysis.width._ENCLOSED", affordable)
        lower, upper = keras_dal.width_curve(model, *data, widths=[0, 2], verbose=0).infimum[0]
        assert lower <= expected <= upper
        np.testing.assert_allclose([lower, upper], expected, rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, ENTROPY], ids=["of squares alone", "with a constant"])
def test_labels_that_a_head_has_exactly_are_aligned(constant):
    model, (x, _, weights), _ = problem(constant)
    y = x.astype(float) @ np.random.default_rng(1).integers(-3, 4, (M, C))
    certificate = keras_dal.certify(model, x, y, weights)
    assert certificate.verdict == "aligned"
    assert certificate.infimum[0] == pytest.approx(constant * np.mean(weights), rel=1e-12, abs=1e-9)
