"""The same argument has the same name, place and default in every public function."""

import inspect

import keras
import numpy as np
import pytest

import keras_dal

DATA = ["model", "x", "y", "sample_weight"]
SHARED = ["loss", "parameters", "cache", "max_bytes", "batch_size", "seed", "verbose"]  # in this order, at the end
FUNCTIONS = [function for name in keras_dal.__all__ if inspect.isfunction(function := getattr(keras_dal, name))]
# the parameters of a tangent operator are its subject, and a structure is what has them
EXCEPT = {("tangent_operator", "parameters"), ("find_structure", "parameters")}
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
    takers = [function for function in FUNCTIONS + KINDS if (function.__name__, name) not in EXCEPT]
    assert len({arguments(function)[name].default for function in takers if name in arguments(function)}) == 1


@each_function
@pytest.mark.parametrize("limit", [None, "4GB", -1])
def test_limits_of_memory_are_numbers(function, limit):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss="mse")
    for name in [name for name in arguments(function) if name.endswith("_bytes")]:
        data = [np.ones((4, 2))] * (1 + ("y" in arguments(function)))
        with pytest.raises(ValueError, match=f"{name} must be a number of bytes.*Received"):
            function(model, *data, **{name: limit})
