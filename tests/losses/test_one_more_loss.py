"""A loss is one class: a Poisson regression, registered here, is measured, certified, finished and monitored.

It is convex, has no bounded second derivative, is no classifier, and approaches its infimum for a count of zero.
"""

from fractions import Fraction

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize, special

import keras_dal
from keras_dal.finishing.evaluation import Quality
from keras_dal.finishing.result_rows import _what_is_worse
from keras_dal.finishing.stopping import Ending
from keras_dal.losses import REGISTERED, Loss, register, resolve_loss
from keras_dal.losses.base import checked_matrix
from keras_dal.solvers.rounded import largest_loss

N, M, C = 120, 6, 2


class LogPoisson(keras.losses.Loss):
    """`mean_j exp(f_j) - y_j f_j` of the logarithms f of rates."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.exp(y_pred) - y_true * y_pred, axis=-1)


class Poisson(Loss):
    """The same as the package wants it; Y_l are the logarithms of the counts, of one half for a count of zero."""

    name = "Poisson of a test"
    activation = "linear"
    keras_losses = (LogPoisson,)

    def targets(self, y, num_outputs):
        return checked_matrix(y, num_outputs)

    def step_targets(self, y, num_outputs):
        y = ops.reshape(y, (-1, num_outputs))
        return ops.log(ops.where(y > 0, y, 0.5)), ops.min(y, axis=1) >= 0

    def label_matrix(self, targets):
        return np.log(np.where(targets > 0, targets, 0.5))

    def values(self, logits, targets):
        return np.mean(np.exp(logits) - targets * logits, axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return (np.exp(logits) - targets) / targets.shape[1]

    def hessian(self, logits, targets):
        return lambda change, block: np.exp(logits[block]) * change / targets.shape[1]

    def curvature(self, num_outputs):
        return None

    def infimum(self, targets):
        return np.mean(targets - special.xlogy(targets, targets), axis=1)

    def scales(self, targets):
        return np.where((targets > 0).all(axis=1), 1.0, np.nan)

    def conjugate(self, slopes, targets):
        p = targets + targets.shape[1] * slopes
        return np.where((p >= 0).all(axis=1), np.mean(special.xlogy(p, p) - p, axis=1), np.inf)


@pytest.fixture(autouse=True)
def registered():
    register(Poisson)
    yield
    del REGISTERED[Poisson.name]


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((M,)), keras.layers.Dense(C, name="rates")])
    model.compile("sgd", LogPoisson())
    return model


def data(kind):
    """Return inputs and counts: drawn ones, with zeros or without, or rates that a linear head has exactly."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, M)).astype("float32")
    rates = np.exp(x.astype(float) @ generator.normal(0, 0.3, (M, C)) + 0.5)
    return x, rates if kind == "exact" else generator.poisson(rates) + float(kind == "positive")


def least(x, y):
    """The minimum over plain heads by SciPy, from the definition."""
    columns = np.column_stack([x.astype(float), np.ones(len(x))])

    def objective(theta):
        logits = columns @ theta.reshape(-1, C)
        return np.mean(np.exp(logits) - y * logits), (columns.T @ (np.exp(logits) - y) / y.size).ravel()

    options = {"ftol": 1e-16, "gtol": 1e-10, "maxiter": 10_000}
    return optimize.minimize(objective, np.zeros((M + 1) * C), jac=True, method="L-BFGS-B", options=options).fun


def test_it_is_recognized_while_it_is_registered(model):
    assert type(resolve_loss(model.loss, "linear")) is Poisson
    with pytest.raises(ValueError, match="supported losses are .*LogPoisson"):
        resolve_loss("mae")


@pytest.mark.parametrize(
    ("kind", "verdict"), [("exact", "aligned"), ("positive", "not aligned"), ("with zeros", "not aligned")]
)
def test_alignment_is_that_of_least_squares_on_its_label_matrix(model, kind, verdict):
    x, y = data(kind)
    report = keras_dal.alignment(model, x, y)
    wanted = np.log(np.where(y > 0, y, 0.5))
    columns = np.column_stack([x.astype(float), np.ones(N)])
    residual = wanted - columns @ np.linalg.lstsq(columns, wanted, rcond=None)[0]
    expected = np.sum(residual**2) / np.sum((wanted - wanted.mean(axis=0)) ** 2)
    assert report.residual_share == pytest.approx(expected, abs=1e-6)
    assert report.verdict == verdict


@pytest.mark.parametrize(
    ("kind", "status"), [("exact", "aligned"), ("positive", "not aligned"), ("with zeros", "not aligned")]
)
def test_the_certificate_encloses_the_minimum_of_scipy_and_claims_no_rate(model, kind, status):
    x, y = data(kind)
    certificate, expected = keras_dal.certify(model, x, y), least(x, y)
    lower, upper = certificate.infimum
    assert lower - 1e-9 <= expected <= upper + 1e-7
    assert upper - lower < 1e-6
    assert certificate.verdict == status
    assert certificate.floor == pytest.approx(np.mean(y - special.xlogy(y, y)))
    assert (lower - certificate.floor < 1e-6) == (status == "aligned")
    assert (certificate.margin, certificate.beta) == (None, None)
    assert certificate.loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    assert any("second derivative" in sentence for sentence in certificate.not_covered)
    with pytest.raises(ValueError, match="There is no bound.*Received"):
        certificate.bound(10)
    assert "steps of gradient descent" not in str(certificate)


@pytest.mark.parametrize("kind", ["positive", "with zeros"])
def test_converge_reaches_the_minimum_of_scipy(model, kind):
    x, y = data(kind)
    result = keras_dal.converge(model, x, y, gated=False, verbose=0)
    assert result.loss == pytest.approx(least(x, y), abs=1e-4)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(result.loss, rel=1e-5)
    assert (result.accuracy, result.margin, result.scale, result.reached) == (None, None, 1.0, False)


def test_converge_ends_where_the_loss_is_nearly_the_least_of_any_model(model):
    result = keras_dal.converge(model, *data("exact"), validation_data=data("exact"), verbose=0)
    assert result.reached
    assert 0 <= result.loss - result.floor <= 1e-4
    assert result.stopped_by == Ending.TOLERANCE
    assert (result.after.accuracy, result.after.ece) == (None, None)


def test_the_monitor_measures_it_and_certifies_it(model):
    x, y = data("positive")
    expected = keras_dal.alignment(model, x, y).alignment  # of the inputs, which training leaves as they are
    flowing = model.fit(x, y, callbacks=[keras_dal.AlignmentMonitor()], verbose=0).history
    assert flowing["alignment"] == pytest.approx([expected], abs=1e-4)
    monitor = keras_dal.AlignmentMonitor(data=(x, y), verbose=False)
    model.compile(keras_dal.Wrap("sgd", explore=1), LogPoisson())
    history = model.fit(x, y, epochs=2, callbacks=[monitor], verbose=0).history
    assert history["phase"] == [0, 1]
    assert history["alignment"] == pytest.approx([expected] * 2, abs=1e-6)
    assert monitor.certificates["end"].infimum[1] == pytest.approx(least(x, y), abs=1e-6)


def test_a_proven_step_for_a_loss_of_unbounded_curvature_is_refused_before_training(model):
    x, y = data("positive")
    model.compile(keras_dal.Wrap("sgd", explore=1, exploit_learning_rate="auto"), LogPoisson())
    with pytest.raises(ValueError, match=r"needs a loss of bounded curvature.*Received: exploit_learning_rate='auto'"):
        model.fit(x, y, epochs=2, callbacks=[keras_dal.AlignmentMonitor(data=(x, y))], verbose=0)


def test_an_upper_bound_of_a_negative_loss_is_one():
    """In fractions: the losses are exp(f) - 10 f, below zero for logits from one to three."""
    logits = np.tile(np.arange(1.0, 4.0), (1000, 1))
    exact = sum(Fraction(float(np.exp(f))) - 10 * Fraction(f) for f in (1.0, 2.0, 3.0)) / 3
    bound = largest_loss(Poisson(), logits, np.zeros_like(logits), np.full_like(logits, 10.0), np.ones(1000))
    assert exact < 0
    assert bound > exact
    assert bound == pytest.approx(float(exact), rel=1e-11)


def test_a_fit_of_large_counts_whose_loss_is_far_below_zero_ends_with_a_solved_head(model):
    x, y = data("positive")
    y = 40.0 * y
    model.compile(keras_dal.Wrap("sgd", explore=1), LogPoisson())
    model.layers[-1].bias.assign(np.log(y.mean(axis=0)))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(x, y, epochs=2, callbacks=[monitor], verbose=0).history
    assert history["phase"] == [0, 1]
    assert history["loss"][0] < -100
    assert least(x, y) - 1e-3 <= monitor.result.loss <= least(x, y) + 0.1  # beside the weight of the head's change


def test_a_loss_below_zero_is_no_worse_than_itself():
    assert not list(_what_is_worse(Quality(-40.0, None, None), Quality(-40.0, None, None), "loss"))
    assert list(_what_is_worse(Quality(-40.0, None, None), Quality(-39.0, None, None), "loss")) == ["loss by 2.5%"]


class Robust(Poisson):
    """One more, whose option Keras leaves out of `get_config`."""

    name = "Huber of a test"
    keras_losses = (keras.losses.Huber,)
    options = ("delta",)

    def __init__(self, delta=1.0):
        self.delta = delta


def test_an_option_that_keras_does_not_list_is_handed_on():
    register(Robust)
    try:
        assert resolve_loss(keras.losses.Huber(delta=2.5)).delta == 2.5
        assert resolve_loss("huber").delta == 1.0
    finally:
        del REGISTERED[Robust.name]
