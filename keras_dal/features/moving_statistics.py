"""Moving statistics, as of batch normalization: which layers of a model keep some, and what they begin with."""

import numpy as np

from keras_dal import _keras


def with_statistics(model):
    """Return the layers of a model that keep moving statistics, each with the variables of these."""
    pairs = [(layer, moving_of(layer)) for layer in _keras.sublayers(model) if hasattr(layer, "momentum")]
    return [(layer, variables) for layer, variables in pairs if variables]


def statistics_of(model):
    """Return the variables of all moving statistics of a model."""
    return [variable for _, variables in with_statistics(model) for variable in variables]


def moving_of(layer):
    """Return the variables of the moving statistics of a layer."""
    return [variable for variable in layer.non_trainable_variables if variable.name.startswith("moving_")]


def at_first(variable):
    """Return the values that a moving statistic begins with."""
    return np.full(variable.shape, float("variance" in variable.name), variable.dtype)
