"""Weights and labels in another unit change the loss, and nothing else."""

import keras
import numpy as np
import pytest
from cases import KERAS_LOSSES, NUM_OUTPUTS
from keras import layers

import keras_dal
from keras_dal.features.cache import CachedFeatures
from keras_dal.finishing.solve import solve_head
from keras_dal.finishing.stopping import Ending
from keras_dal.losses import loss_of
from keras_dal.losses.lazy_targets import LazyTargets
from keras_dal.models.find_structure import find_structure

N = 80


def problem(name):
    outputs, loss = NUM_OUTPUTS[name], KERAS_LOSSES[name]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(outputs)])
    model.compile("sgd", loss)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, 4)).astype("float32")
    y = generator.integers(0, 3, N) if name == "softmax" else generator.standard_normal((N, 2))
    return model, x, y, generator.uniform(0.5, 2.0, N)


@pytest.mark.parametrize("max_bytes", [100, 2**32], ids=["block by block", "whole"])
@pytest.mark.parametrize("name", ["softmax", "squared error"])
@pytest.mark.parametrize("unit", [2.0**-10, 2.0**20, 2.0**100])
def test_the_unit_of_sample_weights_changes_no_solved_head(name, unit, max_bytes):
    def solved(unit):
        model, x, y, weights = problem(name)
        train = CachedFeatures(x, y, unit * weights, np.arange(N))
        return solve_head(find_structure(model), loss_of(model, "linear"), train, max_bytes)

    plain, scaled = solved(1.0), solved(unit)
    assert plain.stopped_by == scaled.stopped_by == Ending.CERTIFIED
    assert scaled.loss == pytest.approx(unit * plain.loss, rel=1e-3)
    assert scaled.point.moved == pytest.approx(plain.point.moved, rel=1e-2)
    assert scaled.point.moved > 0.1
    assert scaled.point.ridge == pytest.approx(unit * plain.point.ridge)
    assert scaled.gradient_steps == pytest.approx(plain.gradient_steps, abs=1)
    assert f"+ {scaled.point.ridge:g} x change" in next(scaled.proof())


@pytest.mark.parametrize("unit", [2.0**-10, 2.0**20])
def test_the_unit_of_sample_weights_changes_no_minimum_of_the_loss(unit):
    def solved(unit):
        model, x, y, weights = problem("squared error")
        return keras_dal.converge(model, x, y, unit * weights, verbose=0)

    plain, scaled = solved(1.0), solved(unit)
    assert scaled.loss == pytest.approx(unit * plain.loss, rel=1e-5)
    assert scaled.point.moved == pytest.approx(plain.point.moved, rel=1e-4)
    assert scaled.stopped_by == plain.stopped_by


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4, 1e6])
def test_the_unit_of_numbers_to_be_predicted_is_no_obstacle_to_a_proof(unit):
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 6)).astype("float32")
    y = (unit * (3 + x[:, :1] + 0.3 * generator.standard_normal((200, 1)))).astype("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    result = keras_dal.finish(model, x, y, verbose=0)
    assert result.reached
    assert 0 <= result.point.gap <= 1e-4 * np.var(y)


@pytest.mark.parametrize("unit", [2.0**-10, 2.0**10])  # by which no number is rounded otherwise
def test_the_unit_of_numbers_to_be_predicted_changes_no_path(unit):
    def solved(unit):
        keras.utils.set_random_seed(0)
        generator = np.random.default_rng(0)
        x = generator.standard_normal((200, 6)).astype("float32")
        y = unit * (3 + x[:, :1] + 0.3 * generator.standard_normal((200, 1)))
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.set_weights([unit * each for each in model.get_weights()])
        return keras_dal.converge(model, x, y, verbose=0), y

    (plain, y), (scaled, scaled_y) = solved(1.0), solved(unit)
    assert not plain.reached
    assert plain.tol == pytest.approx(1e-4 * np.var(y))
    assert scaled.tol == pytest.approx(1e-4 * np.var(scaled_y))
    assert scaled.loss == pytest.approx(unit**2 * plain.loss, rel=1e-3)
    assert scaled.point.ridge == plain.point.ridge
    assert plain.stopped_by == scaled.stopped_by


@pytest.mark.parametrize("lazily", [False, True])
def test_differences_of_squared_errors_are_small_beside_the_variance_of_the_labels(lazily):
    generator = np.random.default_rng(0)
    y, weights = 5 + generator.standard_normal((5000, 2)), generator.uniform(0.5, 2.0, 5000)
    loss = loss_of(problem("squared error")[0], "linear")
    variance = np.mean([np.cov(column, aweights=weights, ddof=0) for column in y.T])
    targets = LazyTargets(loss, y, 2) if lazily else loss.targets(y, 2)
    assert loss.unit(targets, weights) == pytest.approx(weights.mean() * variance)
    constant = np.full((5000, 2), 7.0)
    assert loss.unit(constant, weights) == pytest.approx(weights.mean())


def test_timestamps_within_a_minute_have_their_own_variance_for_a_unit():
    y = 1.7e9 + 20.0 * np.random.default_rng(0).standard_normal((200, 1))  # seconds since 1970, in float64
    loss = loss_of(problem("squared error")[0], "linear")
    assert loss.unit(loss.targets(y, 1), np.ones(200)) == pytest.approx(np.var(y), rel=1e-6)


def test_labels_that_differ_by_the_rounding_of_float32_are_constant():
    y = np.full((200, 1), 0.1, "float32")
    y[::3] = np.nextafter(y[::3], np.float32(1))
    loss = loss_of(problem("squared error")[0], "linear")
    assert loss.unit(loss.targets(y, 1), np.ones(200)) == 1.0


def test_a_last_block_of_labels_that_float32_holds_does_not_make_those_before_it_constant():
    y = 1.0 + 1e-8 * np.random.default_rng(0).standard_normal((5000, 1))
    y[4096:] = 1.0
    loss = loss_of(problem("squared error")[0], "linear")
    assert loss.unit(loss.targets(y, 1), np.ones(5000)) == pytest.approx(np.var(y), rel=1e-6)
