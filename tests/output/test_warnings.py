"""Warnings point to the line of the user that they are about, through Keras and its backends."""

import re

import keras
import pytest
from fits import compiled, images

import keras_dal
from keras_dal.output.warning import warn
from keras_dal.training import checks


def converge_in_half_precision(x, y):
    head = keras.layers.Dense(4, dtype="bfloat16")
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Flatten(), head])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras_dal.converge(model, x, y, gated=False, verbose=0)


def finish_without_averaged_steps(x, y):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.begin_average()
    keras_dal.finish(model, x, y, statistics_from=x, verbose=0)


def lines_of(function):
    code = function.__code__
    return range(code.co_firstlineno, max(line for _, _, line in code.co_lines() if line) + 1)


def pointing(seen, said, function):
    """Whether there is one warning that says this, and whether it points into the function."""
    (warning,) = [each for each in seen if re.search(said, str(each.message))]
    return warning.filename == __file__ and warning.lineno in lines_of(function)


@pytest.mark.parametrize(
    ("program", "said"),
    [(converge_in_half_precision, "computed in bfloat16"), (finish_without_averaged_steps, "No step was averaged")],
)
def test_a_warning_points_to_the_call_of_the_user(program, said):
    with pytest.warns(UserWarning, match=said) as seen:
        program(*images())
    assert pointing(seen, said, program)


def fit_with_a_monitor(x, y):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None))
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])


def test_frames_of_the_package_and_of_keras_are_passed_over(monkeypatch):
    inside = {"__name__": "keras_dal.training.made_up", "warn": warn}
    exec("def check(params): warn('said within fit')", inside)
    monkeypatch.setattr(checks, "check_epochs", inside["check"])
    with pytest.warns(UserWarning, match="said within fit") as seen:
        fit_with_a_monitor(*images())
    assert pointing(seen, "said within fit", fit_with_a_monitor)


def test_code_without_a_module_can_be_warned():
    with pytest.warns(UserWarning, match="said to nobody"):
        exec("warn('said to nobody')", {"warn": warn})
