"""The features of a model as a compiled function, kept with the model for as long as it computes the same."""

import functools

import keras

from keras_dal import _backend, _keras
from keras_dal.features.tracing import as_arrays, features_and_outputs

_KEPT = "_keras_dal_programs"  # attribute of a model; copies and files of models are made of what Keras knows of them
_LIBRARIES = ("keras", "keras_dal")  # whose layers compute what their configurations and variables say


class FeatureFunction:
    """`features_and_outputs` as a function of a batch of inputs, compiled at the first call as the model is.

    Args:
        model: a model.
        layer: the layer whose inputs are the features.
    """

    def __init__(self, model, layer):
        self._model, self._function = model, functools.partial(features_and_outputs, model, layer)
        self._compiled = functools.cache(lambda run_eagerly: _backend.compiled(self._function, model))

    def __call__(self, x):
        return self._compiled(self._model.run_eagerly)(x)

    @functools.cached_property
    def _in_one(self):
        return self if _backend.COMPILED_MAY_ASSIGN else _backend.in_one(self._function, self._model)

    def evaluate(self, x):
        """Return what `tracing.evaluate` does, by one program for all batches of one shape.

        It is another one where that of features would not let random layers draw anew.
        """
        return as_arrays(self._in_one(x))


def feature_function(model, layer):
    """Return the `FeatureFunction` of a model: the one that is kept with it, unless it may compute something else now.

    Layers of Keras' own compute what their configurations and variables say, but for those that are adapted to data,
    or hold functions. Where there are other layers nothing is kept.
    """
    computes = _what_it_computes(model)
    if computes is None:
        return FeatureFunction(model, layer)
    kept = vars(model).get(_KEPT)
    if kept is None or not kept.are_of(computes, model.variables):
        kept = vars(model)[_KEPT] = _Kept(computes, model.variables)
    return kept.functions.setdefault(layer, FeatureFunction(model, layer))


class _Kept:
    """Functions by layer, with what the model was when they were made."""

    def __init__(self, computes, variables):
        self._computes, self._variables, self.functions = computes, list(variables), {}

    def are_of(self, computes, variables):
        """Return whether the model is as it was, in the same variables, whatever their values."""
        same = len(variables) == len(self._variables) and all(map(_is, variables, self._variables))
        return same and computes == self._computes


def _is(one, other):
    return one is other


def _what_it_computes(model):
    """Return what determines, with the variables, what a model computes and how it is run; None where that is more."""
    if any(map(_may_hold_more, (model, *_keras.sublayers(model)))):
        return None
    try:
        configuration = keras.saving.serialize_keras_object(model.get_config())
    except Exception:  # of whatever kind: a function in it that cannot be written down, say
        return None
    if not all(map(_is_known, _modules_of(configuration))):
        return None
    return configuration, model.run_eagerly, getattr(model, "jit_compile", None)


def _may_hold_more(layer):
    """Whether a layer may compute something else with the same configuration and the same variables."""
    module = type(layer).__module__
    adapts = hasattr(layer, "adapt") and not module.startswith("keras_dal.")  # gates are adapted in variables
    return not _is_known(module) or adapts or isinstance(layer, keras.layers.Lambda) or "call" in vars(layer)


def _is_known(module):
    return module.split(".")[0] in _LIBRARIES


def _modules_of(part):
    """Yield the modules of all classes and functions that a configuration names."""
    if isinstance(part, dict):
        if isinstance(module := part.get("module"), str):
            yield module
        for each in part.values():
            yield from _modules_of(each)
    elif isinstance(part, list):
        for each in part:
            yield from _modules_of(each)
