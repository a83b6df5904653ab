"""What the arguments of `Wrap` may be."""

import math
import re

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_dal import _keras

FINISHES = ("solve", "descend")


def plain(value):
    """Return a number of NumPy as one of Python, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def check_built_for(optimizer, variables):
    """Raise a ValueError where an optimizer was built before, and does not know all of these variables.

    Args:
        optimizer: that which has the state, inside all others.
        variables: what it is to train.
    """
    known = {id(variable) for variable in _keras.optimized(optimizer)} if optimizer.built else set()
    new = [variable.path for variable in variables if id(variable) not in known]
    if optimizer.built and new:
        raise ValueError(
            "The optimizer inside Wrap was built for other variables, of another model or before layers were made "
            "trainable: compile with a new Wrap of a new optimizer. Received: an optimizer of class "
            f"{type(optimizer).__name__} that does not know {', '.join(new)}"
        )


def check_explore(explore):
    """Raise a ValueError unless this is a share or a number of epochs to explore for."""
    fraction = isinstance(explore, float) and 0.0 < explore < 1.0
    epochs = isinstance(explore, int) and not isinstance(explore, bool) and explore >= 1
    if not (explore is None or explore == "auto" or fraction or epochs):
        raise ValueError(
            f"`explore` must be a float in (0, 1), an int of at least 1, 'auto' or None. Received: explore={explore!r}"
        )


def check_exploit(exploit):
    """Raise a ValueError unless this can name linear parameters."""
    names = [exploit] if isinstance(exploit, str) else exploit
    listed = isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names)
    if not (listed or isinstance(exploit, keras.layers.Layer)):
        raise ValueError(
            "`exploit` must be 'head', a layer, layer names, or a regular expression over variable paths. "
            f"Received: exploit={exploit!r}"
        )
    for name in names if listed else ():
        try:
            re.compile(name)
        except re.error as error:
            raise ValueError(f"`exploit` is not a valid regular expression: {error}. Received: {name!r}") from error


def check_average(average):
    """Raise a ValueError unless this is a share of the exploration."""
    if isinstance(average, bool) or not (isinstance(average, (int, float)) and 0 <= average <= 1):
        raise ValueError(
            f"`average` must be a share of the exploration, from 0 for none to 1. Received: average={average!r}"
        )


def check_finish(finish, learning_rate):
    """Raise a ValueError unless this is a second phase, and one that takes a learning rate where there is one."""
    if finish not in FINISHES:
        raise ValueError(f"`finish` must be one of {FINISHES}. Received: finish={finish!r}")
    if finish == "solve" and learning_rate is not None:
        raise ValueError(
            "A learning rate after the switch needs finish='descend': solving makes no gradient steps. "
            f"Received: finish='solve', exploit_learning_rate={learning_rate!r}"
        )


def check_noise(noise):
    """Raise a ValueError unless this is a standard deviation."""
    if not (isinstance(noise, (int, float)) and math.isfinite(noise) and noise >= 0):
        raise ValueError(f"`noise` must be a finite number of at least 0. Received: noise={noise!r}")


def check_learning_rate(rate):
    """Raise a ValueError unless this is a learning rate for after the switch."""
    positive = isinstance(rate, float) and math.isfinite(rate) and rate > 0
    if not (rate is None or rate == "auto" or positive or isinstance(rate, LearningRateSchedule)):
        raise ValueError(
            "`exploit_learning_rate` must be None, a positive float, a keras.optimizers.schedules schedule or 'auto'. "
            f"Received: exploit_learning_rate={rate!r}"
        )
