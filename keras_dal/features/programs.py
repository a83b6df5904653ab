"""The features of a model as a compiled function, kept with the model for as long as it computes the same."""

import functools
import inspect

import keras

from keras_dal import _backend, _keras
from keras_dal.features.tracing import as_arrays, features_and_outputs

_LIBRARIES = ("keras", "keras_dal", "tensorflow")  # whose layers and functions compute what their attributes say
_VALUES = (*_LIBRARIES, "builtins", "collections", "inspect", "jax", "jaxlib", "numpy")  # and of attributes
_PLAIN = (bool, int, float, str, type(None))


class FeatureFunction:
    """`features_and_outputs` as a function of a batch of inputs, compiled at the first call as the model is.

    Args:
        model: a model.
        layer: the layer whose inputs are the features.
    """

    def __init__(self, model, layer):
        self._model, self._function = model, functools.partial(features_and_outputs, model, layer)
        self._compiled = functools.cache(lambda run_eagerly: _backend.compiled(self._function, model))

    def __call__(self, x, fused=True):
        """Evaluate a batch; with `fused` False operation by operation, which hides no NaN."""
        return self._compiled(self._model.run_eagerly)(x) if fused else self._function(x)

    @functools.cached_property
    def _in_one(self):
        return self if _backend.COMPILED_MAY_ASSIGN else _backend.in_one(self._function, self._model)

    def evaluate(self, x):
        """Return what `tracing.evaluate` does, by one program for all batches of one shape.

        It is another one where that of features would not let random layers draw anew.
        """
        try:
            return as_arrays(self._in_one(x))
        except BaseException:  # after which it would be no program any more
            vars(self).pop("_in_one", None)
            raise


def feature_function(model, layer):
    """Return the `FeatureFunction` of a model: the one that is kept with it, unless it may compute something else now.

    Layers of Keras' own compute what their attributes say, but for those that hold functions of others or are adapted
    to data, which of `Normalization` is in its attributes. Where there are other layers nothing is kept.
    """
    state = _state(model)
    if state is None:
        return FeatureFunction(model, layer)
    kept = vars(model).get(_keras.PROGRAMS)
    if kept is None or not kept.is_of(state):
        kept = vars(model)[_keras.PROGRAMS] = _Kept(state)
    if layer not in kept.functions:
        kept.functions[layer] = FeatureFunction(model, layer)
    return kept.functions[layer]


class _Kept:
    """Functions by layer, with the state in which the model was when they were made."""

    def __init__(self, state):
        self._state, self.functions = state, {}

    def is_of(self, state):
        """Return whether a model is as it was, whatever the values of its variables."""
        return len(state) == len(self._state) and all(map(_is_same, state, self._state))


def _is_same(one, other):
    return one is other or (type(one) in _PLAIN and type(one) is type(other) and one == other)


def _state(model):
    """Return what determines what a model computes, a flat list of attributes; None where that is more than these."""
    layers = _keras.sublayers(model)
    state = [model.run_eagerly, getattr(model, "jit_compile", None)]
    for layer, attributes in [(model, _keras.own_attributes(model)), *((layer, vars(layer)) for layer in layers)]:
        if _computes_more(layer):
            return None
        state.append(layer)
        for name, value in attributes.items():
            values = [name, value, *_contents(value)]
            if not all(map(_is_known, values)):
                return None
            state += values
    return state


def _contents(value):
    """Return what is in a container."""
    if isinstance(value, dict):
        return [each for pair in value.items() for each in pair]
    return list(value) if isinstance(value, (list, tuple, set)) else []


def _computes_more(layer):
    """Whether a layer may compute something else with the same attributes: it is not Keras', or adapted to data."""
    module = type(layer).__module__
    in_attributes = type(layer) is keras.layers.Normalization  # tensors, and others when it is adapted again
    in_attributes |= module.startswith("keras_dal.")  # gates: in variables
    adapts = hasattr(layer, "adapt") and not in_attributes
    return _root(module) not in _LIBRARIES or adapts or "call" in vars(layer) or isinstance(layer, keras.layers.Lambda)


def _is_known(value):
    """Whether a value computes the same as long as it is the same: no function or object of somebody else."""
    if inspect.isroutine(value):
        return _root(getattr(value, "__module__", None) or "builtins") in _LIBRARIES
    return _root(type(value).__module__) in _VALUES


def _root(module):
    return module.split(".")[0]
