"""A copy of a model in which one layer, wherever it sits, is another one."""

import collections
import inspect
import operator
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_dal import _keras
from keras_dal.features.tracing import inference, recorded, replaced, to_numpy
from keras_dal.features.variables import assign_all, is_real, restored, values_of
from keras_dal.output.warning import described, warn

_BASE_CONFIG = ("name", "trainable", "dtype")  # Keras adds them, and many subclassed models do not take them
_LOOKUPS = (keras.layers.TextVectorization, keras.layers.StringLookup, keras.layers.IntegerLookup)
_RTOL, _ATOL = 1e-4, 1e-5  # of what the head of a copy sees


def copy_with_replacement(model, layer, replacement, inputs):
    """Return a copy of a model with `replacement` for `layer`, and why it shares its other layers, None if it does not.

    Whatever holds the layer is made anew from its parts: graphs through `clone_model`, subclassed models and layers as
    another instance with the same attributes. The other layers are made again from their configuration and given the
    same state: variables, vocabularies, and what loading a layer makes of them. A layer that cannot be made again and
    has nothing that trains, as a `Lambda`, is in both. Where another one cannot be made, or the copy then computes
    something else, because a layer has a state that saving it does not keep or a function sees variables of the model,
    the copy has the very layers of the model.

    Args:
        model: a built Keras model.
        layer: one of its layers.
        replacement: a built layer.
        inputs: a few inputs, which build the copy; those of `layer` must be the same in both.

    Raises:
        ValueError: the copy computes something else even so.
    """
    before, why = _inputs_of(layer, model, inputs), None
    try:
        copy = _Copier(layer, replacement, shares=False).copied(model, inputs)
        seen = [_inputs_of(replacement, copy, inputs), _without(model, replacement, copy, inputs)]
        if not all(_is_close(*each) for now in seen for each in zip(before, now, strict=True)):
            why = "a copy of its layers that computes something else"
    except _NotCopiedError as error:
        why = str(error)
    except Exception as error:  # a configuration that a layer does not give or does not take may fail in any way
        why = described(error)
    if why is not None:
        copy = _Copier(layer, replacement, shares=True).copied(model, inputs)
        now = _inputs_of(replacement, copy, inputs)  # nothing, where the copy goes on calling the layer itself
        if len(now) != len(before) or not all(map(_is_close, before, now)):
            raise ValueError(
                "A copy of the model with another head computes something else before it: do not keep methods of a "
                f"model, or functions of its layers, as attributes. Received: model {model.name!r}"
            )
    return copy, why


class _NotCopiedError(Exception):
    """Says which layer cannot be copied, and what its code raised."""

    def __init__(self, layer, error):
        super().__init__(f"layer {layer.name!r}, {described(error)}")


class _Copier:
    def __init__(self, layer, replacement, shares):
        self.layer, self.shares = layer, shares
        self.copies: dict[int, Any] = {id(layer): replacement}
        self.made_again = []  # layers with their copies, which are given the same values once they are built

    def copied(self, model, inputs):
        copy = self.copy(model)
        inference(copy, inputs)
        for old, new in self.made_again:
            try:
                _restore(old, new)
                assign_variables(old, new)
            except Exception as error:
                raise _NotCopiedError(old, error) from error
            _freeze_alike(old, new)
        return copy

    def copy(self, value):
        """Return what an attribute's value is in the copy: a copy of layers and variables, and all else as it is."""
        if id(value) not in self.copies:
            self.copies[id(value)] = self._made(value)
        return self.copies[id(value)]

    def _made(self, value):
        if isinstance(value, tuple):
            return _tuple(self.copy, value)
        if _keras.is_collection(value):
            return _map(self.copy, value)
        if isinstance(value, keras.layers.Layer):
            return self._layer(value)
        if self.shares:
            return value
        if isinstance(value, keras.metrics.Metric):
            return _unused_metric(value)
        if isinstance(value, keras.Variable):
            return _variable(value)
        if isinstance(value, keras.random.SeedGenerator):
            return keras.random.SeedGenerator(value.get_config()["seed"])
        return value

    def _layer(self, layer):
        holds = any(part is self.layer for part in _keras.sublayers(layer))
        if self.shares and not holds:
            return layer
        if _keras.is_graph(layer):
            with replaced(layer, "compiled", False):  # or else Keras compiles the copy, from what is registered only
                graph = keras.models.clone_model(layer, clone_function=self.copy)
            _keras.take_after(graph, layer, self.copy)
            return graph
        if holds:
            return _keras.remade(layer, self.copy)
        return self._again(layer)

    def _again(self, layer):
        try:
            copy = _from_config(layer)
        except Exception as error:  # in any way, as above
            if layer.variables or _keras.sublayers(layer):
                raise _NotCopiedError(layer, error) from error
            return layer  # nothing in it trains
        self.made_again.append((layer, copy))
        return copy


def _map(function, values):
    """Return a plain collection of what a function makes of each value."""
    if isinstance(values, dict):
        kind = collections.OrderedDict if isinstance(values, collections.OrderedDict) else dict
        return kind((key, function(value)) for key, value in values.items())
    made = [function(value) for value in values]
    return set(made) if isinstance(values, set) else made


def _tuple(function, values):
    """Return a tuple of the same kind of what a function makes of each value, the same one where that is the same."""
    made = [function(value) for value in values]
    if all(map(operator.is_, made, values)):
        return values
    kind = values.__class__  # of what TensorFlow may have put a wrapper of another type around
    return kind(*made) if hasattr(values, "_fields") else kind(made)


def _variable(variable):
    copy = keras.Variable(
        *values_of([variable]),
        dtype=variable.dtype,
        trainable=variable.trainable,
        aggregation=variable.aggregation,
        name=variable.name,
    )
    copy.regularizer, copy.constraint = variable.regularizer, variable.constraint
    return copy


def _from_config(layer):
    kind, config = type(layer), layer.get_config()
    accepted = inspect.signature(kind.__init__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        config = {key: value for key, value in config.items() if key in accepted or key not in _BASE_CONFIG}
    copy = kind.from_config(config)
    copy.name = layer.name  # Keras leaves it out of the configurations that it makes itself for some signatures
    if isinstance(layer, _LOOKUPS):
        copy.set_vocabulary(layer.get_vocabulary(), *_saved(layer).values())  # the shape of outputs depends on it
    return copy


def _saved(layer):
    """Return what Keras would write to a file as the state of a layer alone, by name."""
    store = {}
    layer.save_own_variables(store)
    return dict(zip(store, values_of(store.values()), strict=True))


def _restore(old, new):
    """Load the state of a layer, at any depth, into another one."""
    for layer, copy in zip([old, *_keras.sublayers(old)], [new, *_keras.sublayers(new)], strict=True):
        copy.load_own_variables(_saved(layer))


def assign_variables(old, new):
    """Gives the variables of one layer, in their order, to another one."""
    for variable, copy in zip(old.variables, new.variables, strict=True):
        if variable.shape != copy.shape:
            raise ValueError(f"A copy must have the same shape. Received: {variable.path}, {copy.path}")
    assign_all(new.variables, values_of(old.variables))


def _freeze_alike(old, new):
    """Let what does not train in one layer, at any depth, not train in the other: a configuration need not say so."""
    for layer, copy in zip([old, *_keras.sublayers(old)], [new, *_keras.sublayers(new)], strict=True):
        if copy.trainable != layer.trainable:
            copy.trainable = layer.trainable
    for variable, copy in zip(old.variables, new.variables, strict=True):
        if copy.trainable != variable.trainable:
            copy.trainable = variable.trainable


def _inputs_of(layer, model, inputs):
    """Return what a layer of a model is called with, as NumPy arrays."""
    calls = []
    with recorded([layer], calls.append):
        inference(model, inputs)
    return [to_numpy(part) for call in calls for part in tree.flatten(call.inputs)]


def _without(model, replacement, copy, inputs):
    """Return what the head of a copy sees while the variables of the model are others: functions may see these."""
    variables = [variable for variable in model.variables if is_real(variable)]
    with restored(variables):
        assign_all(variables, [1.5 * value + 0.1 for value in values_of(variables)])
        return _inputs_of(replacement, copy, inputs)


def _is_close(one, other):
    return np.allclose(one, other, rtol=_RTOL, atol=_ATOL, equal_nan=True)  # as a mean of nothing but padding is


def compile_alike(model, copy):
    """Compile a copy as the model is: with the same loss, but an optimizer and metrics of its own, without a state.

    Nothing needs registration. Keras sets the state of metrics back only once a model has used them.
    """
    arguments = _keras.compile_arguments(model)
    if not model.compiled or not arguments:
        return
    if not isinstance(arguments["optimizer"], str):
        arguments["optimizer"] = _unused_or_default(arguments["optimizer"])
    for kind in ("metrics", "weighted_metrics"):
        arguments[kind] = tree.map_structure(_unused_metric, arguments.get(kind))
    copy.compile(**arguments)
    if copy.trainable_variables:
        copy.optimizer.build(copy.trainable_variables)  # so that the copy can be saved with it at once


def _unused_metric(metric):
    """Return a metric of the same kind and options that has seen nothing; what is no metric object as it is."""
    if not isinstance(metric, keras.metrics.Metric):
        return metric
    try:
        return _keras.copied_metric(metric)
    except Exception:  # of what it holds: shared then, as a loss is
        return metric


def _unused_or_default(optimizer):
    try:
        return _unused(optimizer)
    except Exception as error:  # of a class of the user's own: no reason to lose a head that was solved for
        warn(
            "The optimizer cannot be made anew from its configuration, and the copy of the model has keras.optimizers."
            f"SGD(): compile it with another one before it is trained. Received: {described(error)}"
        )
        return keras.optimizers.SGD()


def _unused(optimizer):
    """Return an optimizer of the same kind and configuration that has not seen a variable."""
    with keras.saving.custom_object_scope(_kinds(optimizer)):
        return type(optimizer).from_config(optimizer.get_config())


def _kinds(optimizer):
    """Return the classes of an optimizer, of those it wraps and of their schedules, by name."""
    kinds = {type(optimizer).__name__: type(optimizer)}
    for part in vars(optimizer).values():
        if isinstance(part, keras.optimizers.Optimizer):
            kinds |= _kinds(part)
        elif isinstance(part, keras.optimizers.schedules.LearningRateSchedule):
            kinds[type(part).__name__] = type(part)
    return kinds
