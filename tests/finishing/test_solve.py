"""What weight the change of a head has at the end of `fit`, against the curvature of the loss by hand."""

import keras
import numpy as np
import pytest
from scipy import optimize

import keras_dal
from keras_dal import GatedDense
from keras_dal.features.cache import CachedFeatures
from keras_dal.finishing.solve import solve_head
from keras_dal.losses import loss_of
from keras_dal.models.find_structure import find_structure

N, M, C = 400, 5, 3


def solved(confidence, loss="sparse_categorical_crossentropy", activation="softmax", weight=1.0, max_bytes=2**32):
    """Return the result for labels by a linear rule, from a head that follows it, and the logits it began with."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, M)).astype("float32")
    rule = confidence * generator.standard_normal((M, C)).astype("float32")
    logits = np.asarray(x, np.float64) @ rule
    labels = np.argmax(logits, axis=1) if activation == "softmax" else (logits > 0).astype("float32")
    model = keras.Sequential([keras.Input((M,)), keras.layers.Dense(C, activation=activation)])
    model.layers[-1].set_weights([rule, np.zeros(C, "float32")])
    model.compile("sgd", loss)
    structure = find_structure(model)
    train = CachedFeatures(x, labels, np.full(N, weight), np.arange(N))
    return solve_head(structure, loss_of(model, structure.activation), train, max_bytes), logits


def test_a_penalty_beside_a_weighted_loss_is_named_as_it_was_minimized_whatever_is_compiled_later():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((N, M)).astype("float32"), generator.integers(0, C, N)
    loss, found = keras.losses.SparseCategoricalCrossentropy(from_logits=True), []
    for weight, factor in ((50.0, 5.0), (None, 0.1)):  # the same problem
        keras.utils.set_random_seed(0)
        head = keras.layers.Dense(C, kernel_regularizer=keras.regularizers.L2(factor))
        model = keras.Sequential([keras.Input((M,)), head])
        model.compile("sgd", loss, loss_weights=weight)
        result = keras_dal.finish(model, x, y, verbose=0)
        found.append(model.get_weights()[0])
        for _ in range(2):
            name = "its L2 penalty / 50" if weight else "its L2 penalty"
            assert next(result.proof()).endswith(f"x change of the head + {name}")
            assert f"plus {name.replace('its', 'the')})" in str(result)
            model.compile("sgd", loss, loss_weights=2.0)
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.inf, np.nan])
def test_a_loss_that_does_not_count_is_refused(weight):
    x, y = np.eye(3, dtype="float32"), np.arange(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap("sgd", explore=1), loss, loss_weights=weight)
    callbacks = [keras_dal.AlignmentMonitor(verbose=False)]
    calls = (
        lambda: keras_dal.finish(model, x, y, verbose=0),
        lambda: keras_dal.converge(model, x, y, verbose=0),
        lambda: model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks),
    )
    for call in calls:
        with pytest.raises(ValueError, match="positive loss_weights, or without. Received: loss_weights="):
            call()


@pytest.mark.parametrize("max_bytes", [100, 2**32], ids=["block by block", "whole"])
@pytest.mark.parametrize("weight", [1.0, 8.0])
def test_it_is_a_third_of_the_mean_curvature(weight, max_bytes):
    result, logits = solved(8.0, weight=weight, max_bytes=max_bytes)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = np.mean(p * (1 - p)) / 3
    assert 0.004 < expected < 0.009
    assert result.path[-1].ridge / weight == pytest.approx(expected, rel=0.1)
    assert float(f"{result.path[-1].ridge / weight:.1e}") == result.path[-1].ridge / weight  # which are printed


@pytest.mark.parametrize(
    ("confidence", "expected"), [(1.0, 0.01), (1000.0, 0.003)], ids=["far from fitted", "all but fitted"]
)
def test_it_stays_in_the_range_that_was_measured(confidence, expected):
    assert solved(confidence)[0].path[-1].ridge == expected


def test_a_constant_curvature_gives_the_largest():
    assert solved(0.1, "mse", "linear")[0].path[-1].ridge == 0.01


@pytest.mark.parametrize("max_bytes", [100, 2**32], ids=["block by block", "whole"])
@pytest.mark.parametrize("far", [10.0, 25.0])
@pytest.mark.parametrize("is_regressor", [False, True])
def test_a_head_that_is_worse_than_none_is_not_held_where_it_is(is_regressor, far, max_bytes):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, M)).astype("float32")
    classes = x[:, 0] + 0.5 * generator.standard_normal(N) > 0
    y, least = (x[:, :1] + 0.5 * generator.standard_normal((N, 1)), 0.25) if is_regressor else (classes, np.log(2))
    model = keras.Sequential([keras.Input((M,)), keras.layers.Dense(1 if is_regressor else 2)])
    loss = "mse" if is_regressor else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    kernel, bias = model.get_weights()
    model.set_weights([far * generator.standard_normal(kernel.shape), bias])
    structure = find_structure(model)
    train = CachedFeatures(x, np.asarray(y, "float32" if is_regressor else int), np.ones(N), np.arange(N))
    result = solve_head(structure, loss_of(model, structure.activation), train, max_bytes)
    assert result.path[0].loss > 3.0
    assert result.loss < least * 1.1
    assert "proved:     at most" in next(result.proof())


@pytest.mark.parametrize("max_bytes", [100, 2**32], ids=["block by block", "whole"])
@pytest.mark.parametrize("gated", [False, True])
def test_an_offset_of_numbers_to_predict_is_an_offset_of_the_bias(max_bytes, gated):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, M)).astype("float32")
    y = x @ generator.standard_normal((M, 2)) + 0.5 * generator.standard_normal((N, 2))
    weights, found = generator.uniform(0.5, 2.0, N), []
    for offset in (0.0, 1e3, -1e4):
        keras.utils.set_random_seed(0)
        gates = [GatedDense(3, gates="random", seed=0)] if gated else []
        model = keras.Sequential([keras.Input((M,)), *gates, keras.layers.Dense(2)])
        model.compile("sgd", "mse")
        structure = find_structure(model)
        train = CachedFeatures(x, y + offset, weights, np.arange(N))
        result = solve_head(structure, loss_of(model, structure.activation), train, max_bytes if not gated else 2**32)
        *others, bias = model.get_weights()
        found.append(np.concatenate([each.ravel() for each in (*others, bias - offset)]))
        assert "without its mean error" in next(result.proof(), "without its mean error")
        assert "without their mean error" in str(result)
    np.testing.assert_allclose(found[1:], [found[0]] * 2, atol=5e-3)


def test_the_change_of_a_head_for_numbers_is_that_without_its_mean_error():
    """Against the normal equations in float64, in which the change counts twice: see `solve_head`."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, M)).astype("float32")
    y = x @ generator.standard_normal((M, 1)) + 30.0
    weights = generator.uniform(0.5, 2.0, N)
    model = keras.Sequential([keras.Input((M,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    structure = find_structure(model)
    columns = np.column_stack([x, np.ones(N)]).astype("float64")
    before = columns @ structure.theta()
    before += np.average(y[:, 0] - before, weights=weights)
    result = solve_head(structure, loss_of(model, structure.activation), CachedFeatures(x, y, weights, np.arange(N)))
    held = 2 * result.point.ridge
    rows, target = (weights[:, None] + held) * columns, weights * y[:, 0] + held * before
    expected = np.linalg.solve(columns.T @ rows, columns.T @ target)
    np.testing.assert_allclose(structure.theta(), expected, atol=2e-3)
    assert result.point.moved == pytest.approx(np.sqrt(np.mean((columns @ structure.theta() - before) ** 2)), rel=1e-3)


def test_gates_that_cannot_separate_leave_the_least_loss():
    """Of labels drawn at random, against SciPy; the change counts about twice what the logits move."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 4)).astype("float32"), generator.integers(0, C, 200)
    model = keras.Sequential([keras.Input((4,)), GatedDense(3, gates="random", seed=0), keras.layers.Dense(C)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    structure = find_structure(model)
    head, loss, targets = structure.head(), loss_of(model, structure.activation), np.eye(C)[y]
    before = head.logits(x.astype("float64"), structure.theta())

    def of(theta):
        logits = head.logits(x.astype("float64"), theta)
        moved = logits - before
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        slope = head.adjoint(x.astype("float64"), (p - targets + 4 * weight * moved) / 200)
        return -np.mean(np.log(p[np.arange(200), y])) + 2 * weight * np.sum(moved**2) / 200, slope

    start = structure.theta()
    result = solve_head(structure, loss, CachedFeatures(x, y, np.ones(200), np.arange(200)))
    assert result.stopped_by.is_what_was_wanted
    weight = result.path[-1].ridge
    least = optimize.minimize(of, start, jac=True).fun
    assert of(start)[0] - of(structure.theta())[0] > 0.98 * (of(start)[0] - least)
