"""`converge` on soft labels: the loss itself is minimized, against SciPy, and nothing is called separated."""

import keras
import labels
import numpy as np
import pytest
from scipy import optimize, special

import keras_dal
from keras_dal.finishing.stopping import Ending

N, C = 80, 3
ONE_HOT, MIXED = labels.one_hot(N, C), labels.mixed(N, C)
SMOOTHED = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
PLAIN = keras.losses.CategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1)


def network(width, loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(C)])
    model.compile("sgd", loss)
    return model, np.random.default_rng(4).standard_normal((N, width)).astype("float32")


def least(x, q):
    columns = np.column_stack([x.astype(float), np.ones(N)])

    def objective(theta):
        f = columns @ theta.reshape(-1, C)
        value = np.mean(special.logsumexp(f, axis=1) - np.sum(q * f, axis=1))
        return value, (columns.T @ (special.softmax(f, axis=1) - q)).ravel() / N

    start = np.zeros(columns.shape[1] * C)
    return optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15}).fun


@pytest.mark.parametrize(("loss", "y", "q"), [(SMOOTHED, ONE_HOT, 0.9 * ONE_HOT + 0.1 / C), (PLAIN, MIXED, MIXED)])
def test_a_head_that_cannot_fit_them_ends_at_the_minimum_of_scipy(loss, y, q):
    model, x = network(5, loss)
    result = keras_dal.converge(model, x, y, verbose=0)
    assert result.model is model  # no gated head is added
    assert result.loss == pytest.approx(least(x, q), abs=1e-5)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(result.loss, rel=1e-5)
    assert result.stopped_by in (Ending.CERTIFIED, Ending.STALLED, Ending.MAX_STEPS)
    assert (result.scale, result.scaled_loss, result.reached) == (1.0, result.loss, False)
    lower, upper = result.certificate.infimum
    assert result.floor < lower <= upper <= result.loss + 1e-7
    assert result.accuracy == pytest.approx(np.mean(model.predict(x, verbose=0).argmax(1) == q.argmax(1)))


@pytest.mark.parametrize(("loss", "y"), [(SMOOTHED, ONE_HOT), (PLAIN, MIXED), (BINARY, ONE_HOT)])
def test_a_head_that_can_fit_them_ends_nearly_at_their_entropy(loss, y):
    model, x = network(100, loss)
    result = keras_dal.converge(model, x, y, tol=1e-3, validation_data=(x, y), verbose=0)
    assert result.stopped_by == Ending.TOLERANCE
    assert 0 <= result.loss - result.floor <= 1e-3
    assert result.floor > 0.1
    assert result.reached
    assert (result.scale, result.accuracy) == (1.0, 1.0)
    assert result.after.loss == pytest.approx(result.loss, rel=1e-6)
    assert "the least of any model: reached" in str(result)
    again = keras_dal.converge(model, x, y, tol=2e-3, verbose=0)
    assert len(again.path) == 1  # it is there already


def test_a_gated_head_for_smoothed_labels_reaches_their_entropy_where_it_is_wanted():
    model, x = network(5, SMOOTHED)
    result = keras_dal.converge(model, x, ONE_HOT, gated=True, tol=1e-2, verbose=0)
    assert result.reached
    assert result.model is not model
    assert result.model.evaluate(x, ONE_HOT, verbose=0) <= result.floor + 1.1e-2


def test_hard_validation_labels_beside_mixed_training_labels():
    model, x = network(100, PLAIN)
    result = keras_dal.converge(model, x, MIXED, validation_data=(x, labels.one_hot(N, C, seed=7)), verbose=0)
    right = np.mean(model.predict(x, verbose=0).argmax(1) == labels.one_hot(N, C, seed=7).argmax(1))
    assert result.after.accuracy == pytest.approx(right)


def test_rows_that_are_no_probabilities_are_refused():
    model, x = network(5, PLAIN)
    with pytest.raises(ValueError, match="sum to one.*Received: a row"):
        keras_dal.converge(model, x, 2 * MIXED, verbose=0)


@pytest.mark.parametrize(("loss", "named"), [(SMOOTHED, "accuracy, loss"), (PLAIN, "accuracy, NLL")])
def test_a_loss_of_smoothed_labels_is_not_called_a_likelihood(loss, named):
    model, x = network(5, loss)
    text = str(keras_dal.converge(model, x, ONE_HOT, gated=False, validation_data=(x, ONE_HOT), verbose=0))
    assert text.count(named) == text.count("validation ") > 1
