"""Evaluating a model in inference mode, and seeing its layers at work meanwhile."""

import contextlib
import functools
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import tree

_SAMPLES = 8  # rows a check evaluates: more would only repeat what random parameters already show
_OPEN = 64  # size of a dimension that a model leaves open


def to_numpy(tensor) -> np.ndarray:
    """Return a tensor or a variable of any backend as a NumPy array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


@contextlib.contextmanager
def replaced(instance, name, value):
    """Lets `instance.name` be `value` inside the context, and what it was before afterwards, on an exception too.

    The instance's dictionary is written directly: Keras' and TensorFlow's attribute tracking must not see this.
    """
    attributes = vars(instance)
    absent = object()
    before = attributes.get(name, absent)
    attributes[name] = value
    try:
        yield
    finally:
        if before is absent:
            del attributes[name]
        else:
            attributes[name] = before


@contextlib.contextmanager
def tap(layer):
    """Collects the inputs of a layer's calls, eager or traced, wherever it sits in a model.

    Yields:
        A list that grows by the inputs of each call; after one evaluation of the model the last are the features.
    """
    inputs = []
    with _recorded([layer], lambda call: inputs.append(call.inputs)):
        yield inputs


class _Call(NamedTuple):
    layer: Any
    inputs: Any
    outputs: Any


@contextlib.contextmanager
def _recorded(layers, record):
    """Tells `record` of every call of the layers, when it returns."""

    def recording(layer, call):
        @functools.wraps(call)
        def recording_call(*args, **kwargs):
            outputs = call(*args, **kwargs)
            record(_Call(layer, args[0] if args else next(iter(kwargs.values()), None), outputs))
            return outputs

        return recording_call

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced(layer, "call", recording(layer, layer.call)))
        yield


def logits(model, layer, x):
    """Return the outputs of a model's last linear layer before its activation, as a tensor, eager or traced."""
    calls = []
    with replaced(layer, "activation", keras.activations.linear), _recorded([layer], calls.append):
        model(x, training=False)
    return calls[-1].outputs


def evaluate(model, layer, x):
    """Return the inputs of `layer` and the outputs of `model` in inference mode, as NumPy arrays."""
    with tap(layer) as inputs:
        outputs = model(x, training=False)
    if len(inputs) != 1:
        raise ValueError(
            "The last layer must be called once in an evaluation of the model; share its weights with no other part. "
            f"Received: layer {layer.name!r}, called {len(inputs)} times"
        )
    return to_numpy(inputs[0]), to_numpy(tree.flatten(outputs)[0])


def sample_inputs(model, x):
    """Return a few inputs: the first of the user's, or random ones of the shape the model declares."""
    if x is not None:
        if not all(np.shape(part)[:1] and np.shape(part)[0] for part in tree.flatten(x)):
            raise ValueError(f"Pass at least one sample input. Received: x of shape {tree.map_structure(np.shape, x)}")
        _check_shapes(model, x)
        return tree.map_structure(lambda part: part[:_SAMPLES], x)
    inputs = input_specs(model)
    if inputs is None:
        raise ValueError(
            "The shape of the model's inputs is not known: pass a few sample inputs as x. "
            f"Received: model {model.name!r} ({type(model).__name__})"
        )
    generator = np.random.default_rng(0)

    def random(part):
        shape = (_SAMPLES, *(_OPEN if size is None else size for size in part.shape[1:]))
        if "int" in str(part.dtype) or "bool" in str(part.dtype):
            return generator.integers(0, 2, shape).astype(part.dtype)  # valid as token, mask or category
        return generator.standard_normal(shape).astype("float32")

    return tree.map_structure(random, inputs)


def enlarged(x):
    """Return inputs of the size of raw pixel values, from random ones of size one; integers stay as they are."""
    return tree.map_structure(lambda part: 100 * part if part.dtype == np.float32 else part, x)


def _check_shapes(model, x):
    specs = tree.flatten(input_specs(model)) if input_specs(model) is not None else []
    for spec, part in zip(specs, tree.flatten(x), strict=False):
        sizes = zip(spec.shape[1:], part.shape[1:], strict=False)
        if len(spec.shape) == len(part.shape) and any(size not in (None, given) for size, given in sizes):
            raise ValueError(
                f"The model takes inputs of shape {spec.shape}, with None for any size. Received: x of shape "
                f"{tuple(part.shape)}"
            )


def input_specs(model):
    """Return what the model declares about its inputs, as a structure of KerasTensors, or None."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0] if model.built and model.inputs else None
    if getattr(model, "inputs", None):
        return tree.map_structure(lambda part: part, model.input)
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if len(shapes) == 1 and shapes[0] and all(isinstance(size, (int, type(None))) for size in shapes[0]):
        return keras.KerasTensor(shapes[0])
    return None


def recorded_calls(model, x):
    """Return the calls of all layers in the order in which they return, and the model's output."""
    calls = []
    layers = [
        layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.layers.InputLayer)
    ]
    with _recorded(layers, calls.append):
        outputs = tree.flatten(model(x, training=False))
    if len(outputs) != 1:
        raise ValueError(
            "The model must have one output; make one model per output. "
            f"Received: model {model.name!r} with {len(outputs)} outputs"
        )
    return calls, outputs[0]
