"""A loss with right sides that is no cross-entropy, registered here: what is proved of it is of its own conjugate."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize

import keras_dal
from keras_dal.heads import DenseHead
from keras_dal.losses import REGISTERED, Loss, register
from keras_dal.losses.base import checked_matrix
from keras_dal.losses.sides import RightSides
from keras_dal.solvers import duality
from keras_dal.solvers.jacobian import jacobian

N = 100


class SquaredHinge(Loss):
    """`mean_j max(0, 1 - t_j f_j)^2` for t of -1 or 1."""

    name = "squared hinge of a test"
    activation = "linear"
    keras_losses = (keras.losses.SquaredHinge,)
    has_sides = True

    def targets(self, y, num_outputs):
        return np.where(checked_matrix(y, num_outputs) > 0, 1.0, -1.0)

    def step_targets(self, y, num_outputs):
        y = ops.reshape(y, (-1, num_outputs))
        return ops.where(y > 0, 1.0, -1.0), ops.ones(ops.shape(y)[:1], "bool")

    def _short(self, logits, targets):
        return np.maximum(0.0, 1.0 - targets * logits)

    def values(self, logits, targets):
        return np.mean(self._short(logits, targets) ** 2, axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return -2.0 * targets * self._short(logits, targets) / targets.shape[1]

    def hessian(self, logits, targets):
        slopes = 2.0 * (self._short(logits, targets) > 0) / targets.shape[1]
        return lambda change, block: slopes[block] * change

    def curvature(self, num_outputs):
        return 2.0 / num_outputs

    def infimum(self, targets):
        return np.zeros(len(targets))

    def scales(self, targets):
        return np.full(len(targets), np.inf)

    def conjugate(self, slopes, targets):
        u = slopes * targets * targets.shape[1]
        return np.where((u <= 0).all(axis=1), np.mean(u + u**2 / 4, axis=1), np.inf)

    def margins(self, logits, targets):
        return np.min(targets * logits, axis=1)

    def at_margin(self, margin, num_outputs):
        return np.maximum(0.0, 1.0 - margin) ** 2

    def sides(self, targets):
        return RightSides(targets)

    def confidence(self, logits, targets):
        return None


@pytest.fixture(autouse=True)
def registered():
    register(SquaredHinge)
    yield
    del REGISTERED[SquaredHinge.name]


def model_of(features):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((features,)), keras.layers.Dense(1)])
    model.compile("sgd", keras.losses.SquaredHinge())
    return model


def least(x, y):
    columns, t = np.column_stack([x.astype(float), np.ones(len(x))]), np.where(y > 0, 1.0, -1.0)

    def objective(theta):
        short = np.maximum(0.0, 1.0 - t * (columns @ theta))
        return np.mean(short**2), -2 * columns.T @ (t * short) / len(t)

    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10_000}
    return optimize.minimize(objective, np.zeros(columns.shape[1]), jac=True, method="L-BFGS-B", options=options).fun


def drawn(noise):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, 4)).astype("float32")
    return x, (x[:, 0] + noise * generator.standard_normal(N) > 0).astype(int)


def test_the_infimum_of_a_bias_alone_is_enclosed():
    """Of 100 labels one is another: 0.99 (1 - f)^2 + 0.01 (1 + f)^2 is least at f = 0.98."""
    x, y, exact = np.full((N, 1), 1e-3, "float32"), np.arange(N) > 0, 0.99 * 0.02**2 + 0.01 * 1.98**2
    certificate = keras_dal.certify(model_of(1), x, y)
    lower, upper = certificate.infimum
    assert lower - 1e-12 <= exact <= upper + 1e-12
    assert upper - lower < 1e-6
    assert certificate.verdict == "not separable"
    loss, weights = SquaredHinge(), np.ones(N)
    search = duality._Search(jacobian(DenseHead(1, 1), x, weights), loss, loss.targets(y, 1), weights, 5.0)
    search.run()
    assert 0 < search.lower <= exact  # the entropy of its dual point is 0.056


@pytest.mark.parametrize(("noise", "verdict"), [(0.3, "undecided"), (1.0, "undecided"), (3.0, "not separable")])
def test_what_is_certified_holds_for_the_minimum_of_scipy(noise, verdict):
    """No bound is known where samples lie beyond the margin: those have no part in a dual point."""
    x, y = drawn(noise)
    certificate, expected = keras_dal.certify(model_of(4), x, y), least(x, y)
    lower, upper = certificate.infimum
    assert lower <= expected + 1e-9
    assert upper == pytest.approx(expected, abs=1e-9)
    assert (lower > 0.9 * expected) == (verdict == "not separable")
    assert certificate.verdict == verdict
    assert any("first order" in sentence for sentence in certificate.not_covered) == (lower > 0)


def test_converge_puts_every_sample_on_its_side():
    x, y = drawn(0.0)
    model = model_of(4)
    result = keras_dal.converge(model, x, y, validation_data=(x, y), gated=False, verbose=0)
    assert result.accuracy == 1
    assert result.margin > 0
    assert result.after.ece is None
    assert "margin" in str(result)
    assert keras_dal.certify(model, x, y).infimum == (0.0, 0.0)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(result.loss, rel=1e-5)


def test_converge_finds_the_minimum_where_the_own_head_does_not_separate():
    x, y = drawn(1.0)
    result = keras_dal.converge(model_of(4), x, y, gated=False, verbose=0)
    assert result.loss == pytest.approx(least(x, y), abs=1e-4)


def test_a_gated_head_puts_every_sample_on_its_side():
    result = keras_dal.converge(model_of(4), *drawn(1.0), verbose=0)
    assert result.accuracy == 1
    assert result.certificate.infimum == (0.0, 0.0)
