"""The same argument has the same name, place and default in every public function."""

import inspect
import itertools
from unittest import mock

import keras
import numpy as np
import pytest

import keras_dal

DATA = ["model", "x", "y", "sample_weight"]
SHARED = [
    "time_limit",
    "loss",
    "parameters",
    "cache",
    "max_bytes",
    "batch_size",
    "seed",
    "verbose",
]  # in this order, at the end
FUNCTIONS = [function for name in keras_dal.__all__ if inspect.isfunction(function := getattr(keras_dal, name))]
# the parameters of a tangent operator are its subject, and a structure is what has them
EXCEPT = {("tangent_operator", "parameters"), ("find_structure", "parameters")}
# a path of `converge` ends by itself, a search for a proof of what cannot be proved does not
DEFAULTS_OF_THEIR_OWN = {("converge", "time_limit")}
KINDS = [keras_dal.Wrap, keras_dal.AlignmentMonitor]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)


def arguments(function):
    return inspect.signature(function).parameters


@each_function
def test_data_come_first_and_what_follows_is_given_by_name(function):
    names = list(arguments(function))
    data = [name for name in names if name in DATA]
    assert names[: len(data)] == data == DATA[: len(data)]
    for name in names[len(data) :]:
        by_name = arguments(function)[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert by_name or (function.__name__, name) in EXCEPT


@each_function
def test_shared_arguments_come_last_in_one_order(function):
    names = [name for name in arguments(function) if (function.__name__, name) not in EXCEPT]
    shared = [name for name in SHARED if name in names]
    assert names[len(names) - len(shared) :] == shared


@pytest.mark.parametrize("kind", KINDS)
def test_objects_take_their_subject_by_place_and_all_else_by_name(kind):
    _, *others = arguments(kind).values()
    assert {each.kind for each in others} <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_argument_has_one_default(name):
    others = EXCEPT | DEFAULTS_OF_THEIR_OWN
    takers = [function for function in FUNCTIONS + KINDS if (function.__name__, name) not in others]
    assert len({arguments(function)[name].default for function in takers if name in arguments(function)}) == 1


@each_function
@pytest.mark.parametrize("limit", [None, "4GB", -1, True])
def test_limits_of_memory_are_numbers(function, limit):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss="mse")
    for name in [name for name in arguments(function) if name.endswith("_bytes")]:
        data = [np.ones((4, 2))] * (1 + ("y" in arguments(function)))
        with pytest.raises(ValueError, match=f"{name} must be a number of bytes.*Received"):
            function(model, *data, **{name: limit})


@pytest.mark.parametrize("function", [each for each in FUNCTIONS if "batch_size" in arguments(each)])
@pytest.mark.parametrize("size", [0, 2.5, True])
def test_batches_have_a_whole_number_of_samples(function, size):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss="mse")
    data = [np.ones((4, 2))] * (1 + ("y" in arguments(function)))
    with pytest.raises(ValueError, match=r"batch_size must be a positive integer.*Received: batch_size="):
        function(model, *data, batch_size=size)


@pytest.mark.parametrize("function", [each for each in FUNCTIONS if "time_limit" in arguments(each)])
@pytest.mark.parametrize("limit", [0, -1.0, "5", float("nan")])
def test_limits_of_time_are_positive_seconds(function, limit):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=r"time_limit must be a positive number.*Received: time_limit="):
        function(model, np.ones((4, 2)), np.ones((4, 2)), time_limit=limit)


@pytest.mark.parametrize("function", [each for each in FUNCTIONS if "time_limit" in arguments(each)])
def test_none_is_no_limit_of_time(function):
    """The clock of a solver leaps by a year whenever it is looked at."""
    x = np.random.default_rng(0).standard_normal((40, 2)).astype("float32")
    y = (x @ [1.0, 2.0] > 0).astype(int)
    y[:2] = 1 - y[:2]
    options = {"converge": {"gated": False}, "width_curve": {"widths": [0], "draws": 1}}.get(function.__name__, {})

    def is_found(limit):
        model, years = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), itertools.count(0.0, 3.2e7)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with mock.patch("time.perf_counter", side_effect=years):
            found = function(model, x, y, time_limit=limit, verbose=0, **options)
        if function is keras_dal.converge:
            return found.stopped_by != "the time limit"
        if function is keras_dal.alignment:
            return found.verdict != "undecided"
        low, high = np.ravel(found.infimum)
        return high - low < 1e-6

    assert is_found(None)
    assert not is_found(1.0)
