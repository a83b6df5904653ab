"""`converge` where the logits do not fit: a minimum is found block by block, and all else is refused at once."""

import tracemalloc

import keras
import numpy as np
import pytest
from scipy import optimize, special

import keras_dal
from keras_dal import GatedDense
from keras_dal.finishing.stopping import Ending
from keras_dal.losses import SoftmaxCrossEntropy

N, M, C = 1200, 6, 4
LIMIT = 8 * N * C - 1  # of one copy of the logits in float64
CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SMOOTHED = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)


def network(loss, gates=()):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((M,)), *gates, keras.layers.Dense(C)])
    model.compile("sgd", loss)
    return model


def data(n=N, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, M)).astype("float32")
    return x, (x[:, :C] + generator.standard_normal((n, C))).argmax(axis=1)


def logits_of(model, x):
    kernel, bias = (keras.ops.convert_to_numpy(each).astype("float64") for each in model.weights)
    return x.astype("float64") @ kernel + bias


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("kind", ["hard", "smoothed", "squared error"])
def test_a_minimum_is_that_of_newton(kind, anchored):
    x, y = data()
    weights, held = np.random.default_rng(1).uniform(0.5, 2.0, N), data(300, seed=2)
    loss = {"hard": CLASSES, "smoothed": SMOOTHED, "squared error": "mse"}[kind]
    labels, of_held = (y, held[1]) if kind == "hard" else (np.eye(C)[y], np.eye(C)[held[1]])
    anchors, found, logits = data(200, seed=3)[0] if anchored else None, [], []
    options = {"ridge": 1e-2, "validation_data": (held[0], of_held), "anchors": anchors, "verbose": 0}
    for max_bytes in (2**32, LIMIT):
        model = network(loss)
        found.append(keras_dal.converge(model, x, labels, weights, max_bytes=max_bytes, **options))
        logits.append(logits_of(model, x))
        assert found[-1].reached
        assert bool(list(found[-1].proof())) == (not anchored)
    whole, blocks = found
    gap = 1e-6 * np.mean(weights)  # a hundredth of the tolerance, of a loss of one or less
    assert np.sqrt(np.mean((logits[0] - logits[1]) ** 2)) <= 2 * np.sqrt(gap / 1e-2)  # by strong convexity
    assert blocks.path[0].loss == pytest.approx(whole.path[0].loss, rel=1e-5)
    assert blocks.path[0].validation == pytest.approx(whole.path[0].validation, rel=1e-5)
    assert blocks.point.validation == pytest.approx(whole.point.validation, rel=1e-2)
    assert blocks.point.moved == pytest.approx(whole.point.moved, rel=1e-2)
    for name in ("before", "after"):
        expected, quality = getattr(whole, name), getattr(blocks, name)
        assert quality.loss == pytest.approx(expected.loss, rel=1e-2)
        assert quality.accuracy == (expected.accuracy and pytest.approx(expected.accuracy, rel=1e-2))


def test_soft_labels_end_at_the_minimum_of_scipy():
    x, y = data()
    q, columns = 0.9 * np.eye(C)[y] + 0.1 / C, np.column_stack([x, np.ones(N)]).astype("float64")

    def objective(theta):
        logits = columns @ theta.reshape(-1, C)
        slope = columns.T @ (special.softmax(logits, axis=1) - q) / N
        return np.mean(special.logsumexp(logits, axis=1) - np.sum(q * logits, axis=1)), slope.ravel()

    least = optimize.minimize(objective, np.zeros((M + 1) * C), jac=True, method="L-BFGS-B").fun
    model = network(SMOOTHED)
    result = keras_dal.converge(model, x, np.eye(C)[y], max_bytes=LIMIT, verbose=0)
    assert result.loss == pytest.approx(least, abs=1e-4)
    ridges = [point.ridge for point in result.path]
    assert ridges == sorted(ridges, reverse=True)
    assert ridges[0] > ridges[-1]
    again = keras_dal.converge(model, x, np.eye(C)[y], tol=1.0, max_bytes=LIMIT, verbose=0)
    assert (again.stopped_by, len(again.path), again.point.moved) == (Ending.TOLERANCE, 1, 0.0)


def test_rules_end_it_as_they_end_newton():
    (x, y), held = data(), data(300, seed=2)
    options = {"validation_data": (held[0], np.eye(C)[held[1]]), "max_bytes": LIMIT, "verbose": 0}
    result = keras_dal.converge(network(SMOOTHED), x, np.eye(C)[y], time_limit=1e-9, **options)
    assert result.stopped_by == Ending.TIME
    result = keras_dal.converge(network(SMOOTHED), x, np.eye(C)[y], patience=2, **options)
    assert result.stopped_by == Ending.PATIENCE
    assert result.point is result.path[int(np.argmax([point.validation for point in result.path]))]


@pytest.mark.parametrize(
    ("gates", "options"),
    [
        ([], {}),
        ([], {"gated": False}),
        ([], {"gated": True, "ridge": 1e-2}),
        ([GatedDense], {"ridge": 1e-2}),
    ],
    ids=["separation", "separation of the own head", "gates that are added", "gates"],
)
def test_what_needs_all_logits_is_refused_before_there_are_any(gates, options, monkeypatch):
    monkeypatch.setattr("keras_dal._backend.arrays.BLOCK", 100)
    made, targets = [], SoftmaxCrossEntropy.targets

    def counted(loss, labels, num_outputs):
        made.append(len(labels))
        return targets(loss, labels, num_outputs)

    monkeypatch.setattr(SoftmaxCrossEntropy, "targets", counted)
    model = network(CLASSES, [gate(3, gates="random", seed=0) for gate in gates])
    before = model.get_weights()
    message = rf"Logits are needed in memory, several arrays of {8 * N * C:,} bytes.*ridge=.*Received: .*{N:,} samples"
    with pytest.raises(MemoryError, match=message):
        keras_dal.converge(model, *data(), max_bytes=LIMIT, verbose=0, **options)
    assert max(made, default=0) <= 100
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_head_with_gates_is_refused_by_finish_too():
    model = network(CLASSES, [GatedDense(3, gates="random", seed=0)])
    with pytest.raises(MemoryError, match=rf"Logits are needed in memory.*{8 * N * C:,} bytes.*or a plain head.*Rec"):
        keras_dal.finish(model, *data(), max_bytes=LIMIT, verbose=0)


def test_a_minimum_takes_no_memory_of_the_size_of_the_logits():
    n, classes = 100_000, 100
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((n, 4)).astype("float32"), generator.integers(0, classes, n)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(classes)])
    model.compile("sgd", CLASSES)
    options = {"ridge": 1e-2, "batch_size": 10_000, "max_bytes": 7 * n * classes, "verbose": 0}
    tracemalloc.start()
    result = keras_dal.converge(model, x, y, validation_data=(x, y), **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.stopped_by == Ending.CERTIFIED
    assert peak < 7 * n * classes  # most of it is of the 10,000 anchors
