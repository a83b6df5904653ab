"""A name for features: the same as long as everything they depend on is."""

import contextlib
import hashlib
import inspect
import json

import keras
import numpy as np
from keras import tree

from keras_dal import _keras
from keras_dal.features.tracing import as_numpy

_LIBRARIES = ("builtins", "keras", "tensorflow", "torch")  # whose classes are what their configuration says
_PLAIN = (bool, int, float, complex, str, bytes, np.generic)
_REFERENCES = ("name", "keras_history", "input_layers", "output_layers")  # keys of layers' names


def fingerprint(structure, x):
    """Return a name for the features, from all they depend on: configuration, weights outside the head, and data.

    The words of lookup layers are neither in their configuration nor in variables, and of layers that are not Keras'
    own a configuration need not tell all: the source of these classes and plain attributes count.
    """
    digest = hashlib.blake2b(_configuration(structure.model).encode(), digest_size=16)
    digest.update(keras.backend.backend().encode())  # each rounds in its own way
    for part in _of_own_layers(structure.model):
        digest.update(part)
    layers = (structure.layer, structure.output_layer)
    others = {id(variable) for layer in layers for variable in layer.variables}
    others |= {id(v) for v in structure.model.variables if _keras.is_seed(v)}  # which say nothing about inference
    weights = [keras.ops.convert_to_numpy(v) for v in structure.model.variables if id(v) not in others]
    words = [layer.get_vocabulary() for layer in _keras.sublayers(structure.model) if hasattr(layer, "get_vocabulary")]
    for array in (*weights, *(np.array(list(map(str, each))) for each in words), *tree.flatten(x)):
        for part in _bits(as_numpy(array)):
            digest.update(part)
    return digest.hexdigest()


def name_of(chosen):
    """Return a name for a choice of some samples, from booleans `(n,)`."""
    return hashlib.blake2b(np.packbits(chosen).tobytes(), digest_size=8).hexdigest()


def _of_own_layers(model):
    """Yield what layers whose classes are not Keras' own compute with: the source of these, and plain attributes."""
    own = {layer: _own_classes(layer) for layer in (model, *_keras.sublayers(model))}
    for kind in dict.fromkeys(kind for kinds in own.values() for kind in kinds):
        with contextlib.suppress(OSError, TypeError):  # of a class that was typed in, or is compiled
            yield inspect.getsource(kind).encode()
    for layer, kinds in own.items():
        yield from _plain(_keras.own_attributes(layer) if kinds else {})


def _own_classes(layer):
    return [kind for kind in type(layer).__mro__ if kind.__module__.split(".")[0] not in _LIBRARIES]


def _plain(value, depth=4):
    """Yield the numbers, texts and arrays in attributes, in an order that is the same in every process."""
    if value is None or isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray):
        yield from _bits(value)
    elif isinstance(value, (set, frozenset)):
        yield repr(sorted(repr(each) for each in value if isinstance(each, _PLAIN))).encode()
    elif isinstance(value, (list, tuple)) and depth:
        for each in value:
            yield from _plain(each, depth - 1)
    elif isinstance(value, dict) and depth:
        for key in sorted((key for key in value if isinstance(key, _PLAIN)), key=repr):
            yield repr(key).encode()
            yield from _plain(value[key], depth - 1)


def _bits(array):
    """Yield all of an array."""
    array = np.ascontiguousarray(array.astype(str) if array.dtype == object else array)  # of strings
    yield f"{array.dtype}{array.shape}".encode()
    yield array.reshape(-1).view(np.uint8).data


def _configuration(model):
    """Return how the model is made, without how it was compiled or what Keras called its layers on the way.

    That is the name of its class where it cannot tell.
    """
    try:
        description = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError):
        return type(model).__qualname__
    names = {}
    for name in (model.name, *(layer.name for layer in _keras.sublayers(model)), *_names_in_graphs(description)):
        names.setdefault(name, f"layer {len(names)}")
    description.pop("compile_config", None)
    return json.dumps(_renamed(description, names), sort_keys=True)


def _names_in_graphs(description):
    """Yield the names of layers and operations in the graphs of a configuration, in their order."""
    children = description.values() if isinstance(description, dict) else description
    if isinstance(description, dict) and isinstance(layers := description.get("layers"), list):
        yield from filter(None, map(_name_of_layer, layers))
    for child in children:
        if isinstance(child, (dict, list)):
            yield from _names_in_graphs(child)


def _name_of_layer(part):
    """Return the name in the configuration of a layer, None for a number, say, in a list that is called the same."""
    config = part.get("config") if isinstance(part, dict) else None
    name = config.get("name") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def _renamed(part, names, refers=False):
    """Return a part of a configuration with other names where layers are named or referred to."""
    if isinstance(part, dict):
        return {key: _renamed(value, names, key in _REFERENCES) for key, value in part.items()}
    if isinstance(part, list):
        return [_renamed(value, names, refers) for value in part]
    return names.get(part, part) if refers and isinstance(part, str) else part
