"""The last Newton steps, with gradients in float64, and what they leave to prove."""

import cases
import keras
import numpy as np
import pytest

from keras_dal.features.cache import CachedFeatures
from keras_dal.finishing.converge import converge
from keras_dal.finishing.history import Path
from keras_dal.finishing.newton import NewtonTask
from keras_dal.finishing.proof import refinements
from keras_dal.finishing.solve import solve_head
from keras_dal.finishing.stopping import Ending, Stopped
from keras_dal.losses import SoftmaxCrossEntropy
from keras_dal.models.find_structure import find_structure
from keras_dal.solvers.gap import Bound

RIDGE, TOL = 1e-3, 1e-14  # a gradient in float32 is wrong by about 1e-8, which is a gap of 1e-16 / (4 RIDGE)


@pytest.mark.parametrize(
    ("gaps", "kept"),
    [([0.9], 0), ([9.0, 0.9], 1), ([1.5, 0.9], 1), ([9.0, 8.0, 0.1], 1), ([9.0, 3.0, 4.0], 1), ([np.nan, 0.1], 0)],
)
def test_steps_end_at_the_wanted_gap_or_where_one_gains_little_and_the_best_is_kept(gaps, kept):
    """Theta is the number of steps that were taken; the wanted gap is 1."""
    *_, (bound, theta) = refinements(
        lambda theta: Bound(gaps[theta], 0.0, np.zeros(1)), 0, 1.0, lambda theta, gradient: 1, lambda theta: theta
    )
    assert theta == kept
    assert bound.gap == pytest.approx(gaps[kept], nan_ok=True)


@pytest.mark.parametrize(
    ("decreases", "kept"), [([1.0, 2.0], 1), ([1.0, 1.0 - 1e-14], 1), ([1.0, 0.5], 0), ([0, -60], 0)]
)
def test_a_step_with_a_smaller_gradient_is_not_taken_where_it_raises_the_objective(decreases, kept):
    *_, (_, theta) = refinements(
        lambda theta: Bound(9.0 - theta, decreases[theta], np.zeros(1)), 0, 1.0, lambda *_: 1, lambda theta: theta
    )
    assert theta == kept


def test_a_step_that_is_not_finite_is_not_taken():
    steps = refinements(lambda _: Bound(9.0, 0.0, np.zeros(1)), 0.0, 1.0, lambda *_: np.nan, lambda theta: theta)
    assert [theta for _, theta in steps] == [0.0]


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((150, 8)).astype("float32")
    return x, generator.integers(0, 3, 150)


def solved(data, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, dtype="float64")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return converge(model, *data, gated=False, ridge=RIDGE, tol=TOL, verbose=0, **options)


@cases.HAS_FLOAT64
@pytest.mark.parametrize("where", ["host", "accelerator"])
def test_a_gap_below_the_rounding_of_float32_is_proved(data, where, monkeypatch):
    if where == "accelerator":
        cases.pretend_accelerator(monkeypatch)
    taken, step_at = [], NewtonTask._step_at

    def counted(task, problem, theta, gradient):
        taken.append(np.linalg.norm(gradient))
        return step_at(task, problem, theta, gradient)

    monkeypatch.setattr(NewtonTask, "_step_at", counted)
    result = solved(data)
    assert result.stopped_by == Ending.CERTIFIED
    assert result.point.gap <= 1e-2 * TOL
    assert taken
    assert result.point is result.path[-1]
    assert result._run.proof.num_steps == len(result.path) - 1 + len(taken)


@cases.HAS_FLOAT64
@pytest.mark.parametrize(
    ("stop", "ending"), [(Stopped(Ending.TIME), Ending.TIME), (KeyboardInterrupt(), Ending.INTERRUPT)], ids=str
)
def test_what_is_stopped_while_it_is_refined_keeps_the_minimum_that_was_found(data, stop, ending, monkeypatch):
    step_at, gaps = NewtonTask._step_at, []
    for most in (0, 1):
        left = most

        def stopped(*arguments):
            nonlocal left
            if not left:
                raise stop
            left -= 1
            return 0.9 * step_at(*arguments)  # which leaves a hundredth of the gap

        monkeypatch.setattr(NewtonTask, "_step_at", stopped)
        result = solved(data, validation_data=data)
        assert result.stopped_by == ending
        assert result.point is result.path[-1]
        assert not list(result.proof())
        gaps.append(result.point.gap)
    assert 1e-2 * TOL < gaps[1] < 0.1 * gaps[0] < 1e-7


@pytest.mark.parametrize("max_bytes", [100, 2**32], ids=["block by block", "whole"])
def test_a_proved_point_says_what_its_parameters_do_once_they_are_those_of_the_model(data, max_bytes, monkeypatch):
    """Against float64, by hand; before they were rounded to the model's float16 they had another loss."""
    added, add = [], Path.add

    def noted(path, point):
        added.append(point)
        add(path, point)

    monkeypatch.setattr(Path, "add", noted)
    keras.utils.set_random_seed(0)
    x, y = data
    x = (x + 30.0).astype("float16").astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, dtype="float16")])
    model.set_weights([0.05 * np.random.default_rng(1).standard_normal((8, 3)), np.zeros(3)])
    train = CachedFeatures(x, y, np.ones(len(y)), np.arange(len(y)))
    structure = find_structure(model)
    first = np.column_stack([x, np.ones(len(x))]).astype("float64") @ structure.theta().reshape(9, 3)
    result = solve_head(structure, SoftmaxCrossEntropy(), train, max_bytes)
    kernel, bias = (keras.ops.convert_to_numpy(each).astype("float64") for each in model.weights)
    logits = x.astype("float64") @ kernel + bias
    values = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(y)), y]
    margins = logits[np.arange(len(y)), y] - np.max(np.where(np.eye(3)[y], -np.inf, logits), axis=1)
    moved = np.sqrt(np.mean(np.sum((logits - first) ** 2, axis=1)))
    last, point = added[-1], result.path[-1]
    assert abs(last.loss - np.mean(values)) > 1e-5 * last.loss
    np.testing.assert_allclose(point.theta, np.concatenate([kernel.ravel(), bias]))
    assert point.loss == pytest.approx(np.mean(values), rel=1e-6)
    assert point.margin == pytest.approx(np.min(margins), rel=1e-4)
    assert point.moved == pytest.approx(moved, rel=1e-4)
    assert point.accuracy == np.mean(margins > 0)
