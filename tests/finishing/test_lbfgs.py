"""A head whose logits exist block by block ends where the one with all of them in memory ends."""

import tracemalloc

import keras
import numpy as np
import pytest
from cases import KERAS_LOSSES

from keras_dal.features.cache import CachedFeatures
from keras_dal.finishing.head_data import HeadData
from keras_dal.finishing.history import Path
from keras_dal.finishing.lbfgs import LBFGSTask, _Evaluation
from keras_dal.finishing.proof import Proof
from keras_dal.finishing.result import finished
from keras_dal.finishing.solve import solve_head
from keras_dal.finishing.stopping import Ending
from keras_dal.losses import SquaredError, loss_of
from keras_dal.models.find_structure import find_structure
from keras_dal.solvers.penalties import Quadratic


def head(m, classes, loss, penalty=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((m,)), keras.layers.Dense(classes, kernel_regularizer=penalty)])
    model.compile(loss=loss)
    return model


def task_of(model, train):
    data = HeadData.of(find_structure(model), loss_of(model, "linear"), train, 2**31, lazy=True)
    return LBFGSTask(data, Path())


def samples(kind, n=3000, m=12, classes=4):
    generator = np.random.default_rng(0)
    z = generator.standard_normal((n, m)).astype("float32") * np.geomspace(1e-2, 1e2, m, dtype="float32")
    y = (z[:, :classes] / z[:, :classes].std(axis=0) + generator.standard_normal((n, classes))).argmax(axis=1)
    labels = y if kind == "softmax" else np.eye(classes)[y]
    return CachedFeatures(z, labels, generator.uniform(0.5, 2.0, n), np.arange(n))


@pytest.mark.parametrize(
    ("kind", "penalty"),
    [
        *((kind, None) for kind in KERAS_LOSSES if kind != "softmax of probabilities"),
        *((kind, keras.regularizers.L2(1e-3)) for kind in ("softmax", "smoothed softmax")),
    ],
)
def test_it_ends_where_newton_ends(kind, penalty):
    train = samples(kind)
    results = []
    for max_bytes in (2**32, 1000):
        model = head(12, 4, KERAS_LOSSES[kind], penalty)
        model.layers[-1].kernel.assign(model.layers[-1].kernel / train.features.std(axis=0)[:, None])
        structure = find_structure(model)
        result = solve_head(structure, loss_of(model, "linear"), train, max_bytes)
        results.append((result, structure.theta()))
    (newton, theta), (lbfgs, again) = results
    assert lbfgs.stopped_by == newton.stopped_by == Ending.CERTIFIED
    assert lbfgs.point.gap <= 1e-4 * np.mean(train.weights)
    assert lbfgs.gradient_steps == pytest.approx(newton.gradient_steps, abs=1)
    columns = np.column_stack([train.features, np.ones(len(train))]).astype(np.float64)
    logits = [columns @ each.reshape(-1, 4) for each in (theta, again)]
    apart = np.sqrt(np.mean((logits[0] - logits[1]) ** 2))
    assert apart <= 2 * np.sqrt(1e-4 * np.mean(train.weights) / newton.point.ridge)  # by strong convexity
    for name in ("loss", "accuracy", "floor") if kind != "squared error" else ("loss", "floor"):
        assert getattr(lbfgs, name) == pytest.approx(getattr(newton, name), rel=1e-3, abs=3e-3)


@pytest.mark.parametrize("row", [0, -1], ids=["first", "last"])
def test_one_soft_label_in_any_block_leaves_no_hard_ones(row, monkeypatch):
    monkeypatch.setattr("keras_dal._backend.arrays.BLOCK", 1000)
    train, model = samples("sigmoid"), head(12, 4, KERAS_LOSSES["sigmoid"])
    assert task_of(model, train).data.has_hard_labels
    train.labels[row] = 0.25
    assert not task_of(model, train).data.has_hard_labels


def test_its_gradient_is_that_of_finite_differences():
    train, model = samples("softmax", n=200), head(12, 4, KERAS_LOSSES["softmax"])
    task = task_of(model, train)
    task.penalty = np.linspace(0.0, 0.1, task.data.head.num_parameters)
    phi = 0.1 * np.random.default_rng(1).standard_normal(task.data.head.num_parameters)

    def at(each):
        return evaluation(task, each).value

    gradient = evaluation(task, phi).gradient
    for index in range(0, len(phi), 7):
        step = np.eye(len(phi))[index] * 1e-2
        assert (at(phi + step) - at(phi - step)) / 2e-2 == pytest.approx(gradient[index], abs=2e-4)


def evaluation(task, phi):
    return _Evaluation(task, phi, Quadratic(task._whitening, 0.01, task.penalty, task.data.theta))


@pytest.mark.parametrize(
    ("proof", "endings"),
    [
        (Proof(1e-4, True, 3, 1), [Ending.CERTIFIED]),
        (Proof(1e-4, False, None, 1), [Ending.GAP]),
        (None, [Ending.MAX_STEPS, Ending.STALLED]),
    ],
)
def test_a_gap_that_is_to_be_proved_ends_nothing_without_a_proof(proof, endings, monkeypatch):
    asked = []
    monkeypatch.setattr("keras_dal.finishing.lbfgs.prove", lambda task, *_: asked.append(task.path.points[-1]) or proof)
    monkeypatch.setattr("keras_dal.finishing.lbfgs._STEPS", 60)
    task = task_of(head(12, 4, KERAS_LOSSES["softmax"]), samples("softmax", n=300))
    task.minimize_to(0.01, 1e-4)
    assert task.path.stopped_by in endings
    assert task.proof is proof
    assert [point.gap for point in asked] == [point.gap for point in task.path.points if point.gap <= 1e-4]
    assert (len(asked) > 1) == (proof is None)


def test_memory_does_not_grow_with_samples_times_outputs():
    classes, n = 300, 40_000
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((n, 8)).astype("float32"), generator.integers(0, classes, n)
    model = head(8, classes, KERAS_LOSSES["softmax"])
    train = CachedFeatures(z, y, np.ones(n), np.arange(n))
    task = task_of(model, train)
    tracemalloc.start()
    evaluation(task, np.full(task.data.head.num_parameters, 0.01))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * n * classes  # of one matrix of logits in float32; the anchors take a quarter of it


def test_newton_is_left_where_its_copies_of_the_logits_do_not_fit_and_memory_stays_below_the_limit():
    n, classes, steps, peaks = 100_000, 40, [], []
    generator = np.random.default_rng(0)
    train = CachedFeatures(
        generator.standard_normal((n, 4)).astype("float32"), generator.integers(0, classes, n), np.ones(n), np.arange(n)
    )
    for bytes_per_logit in (7, 39, 40):
        model = head(4, classes, KERAS_LOSSES["softmax"])
        structure, loss = find_structure(model), loss_of(model, "linear")
        tracemalloc.start()
        result = solve_head(structure, loss, train, bytes_per_logit * n * classes)
        peaks.append(tracemalloc.get_traced_memory()[1] / n / classes)
        tracemalloc.stop()
        steps.append(list(result.proof())[1].split("; ")[1])
    assert [each.split(" took ")[0] for each in steps] == ["L-BFGS", "L-BFGS", "Newton's method"]
    assert peaks[0] < 7
    assert peaks[2] > 36  # or else the limit would be too low


def test_parameters_that_are_kept_do_not_grow_with_the_steps_and_others_are_not_chosen():
    train, found = samples("softmax"), []
    for gap in (1e-2, 1e-7):
        model = head(12, 4, KERAS_LOSSES["softmax"])
        structure = find_structure(model)
        task = task_of(model, train)
        task.minimize_to(0.01, gap)
        result = finished(task, None, gap)
        found.append((len(result.path), sum(point.theta is not None for point in result.path)))
    (few, _), (many, kept) = found
    assert kept <= 3 < few < many
    columns = np.column_stack([train.features, np.ones(len(train))]).astype(np.float64)
    for index in (0, -1):
        chosen = result.choose(index)
        logits = columns @ structure.theta().reshape(-1, 4)
        losses = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(train)), train.labels]
        assert chosen.loss == pytest.approx(np.mean(train.weights * losses), rel=1e-6)
        assert chosen.point.loss == pytest.approx(chosen.loss, rel=1e-3)
    before = structure.theta()
    with pytest.raises(ValueError, match=r"L-BFGS takes many steps.*choose one of \[0, .*Received: point=Point"):
        result.choose(next(index for index, point in enumerate(result.path) if point.theta is None))
    np.testing.assert_array_equal(structure.theta(), before)


def test_the_squared_error_has_no_accuracy():
    train, model = samples("squared error", n=100), head(12, 4, KERAS_LOSSES["squared error"])
    result = solve_head(find_structure(model), SquaredError(), train, 100)
    assert result.accuracy is None
    assert result.margin is None
