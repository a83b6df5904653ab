"""A name for features: the same as long as everything they depend on is."""

import hashlib
import inspect
import json

import keras
import numpy as np
from keras import tree

from keras_dal import _keras

_LIBRARIES = ("builtins", "keras", "tensorflow", "torch")  # whose classes are what their configuration says
_REFERENCES = ("name", "keras_history", "input_layers", "output_layers")  # keys of layers' names


def fingerprint(structure, x):
    """Return a name for the features, from all they depend on: configuration, weights outside the head, and data.

    The words of lookup layers are neither in their configuration nor in variables, and of layers that are not Keras'
    own a configuration need not tell all: their plain attributes and the code of their methods count.
    """
    digest = hashlib.blake2b(_configuration(structure.model).encode(), digest_size=16)
    for part in _of_own_layers(structure.model):
        digest.update(part.encode())
    layers = (structure.layer, structure.output_layer)
    others = {id(variable) for layer in layers for variable in layer.variables}
    # what random layers draw from is new in every process, and says nothing about inference
    others |= {id(v) for v in structure.model.variables if v.path.endswith("seed_generator_state")}
    weights = [keras.ops.convert_to_numpy(v) for v in structure.model.variables if id(v) not in others]
    words = [layer.get_vocabulary() for layer in _keras.sublayers(structure.model) if hasattr(layer, "get_vocabulary")]
    for array in (*weights, *(np.array(list(map(str, each))) for each in words), *tree.flatten(x)):
        array = np.asarray(array)
        array = np.ascontiguousarray(array.astype(str) if array.dtype == object else array)  # of strings
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _of_own_layers(model):
    """Yield what layers compute with whose classes are not Keras' own: the code of their methods, and plain values."""
    for layer in (model, *_keras.sublayers(model)):
        kinds = [kind for kind in type(layer).__mro__ if kind.__module__.split(".")[0] not in _LIBRARIES]
        for kind in kinds:
            for name, value in vars(kind).items():
                value = getattr(value, "fget", getattr(value, "__func__", value))  # of a property or a class method
                function = inspect.unwrap(value) if callable(value) else None
                if inspect.isfunction(function):
                    around = inspect.getclosurevars(function)
                    yield f"{name} {_described(function.__code__)}"
                    yield from _plain([function.__defaults__, function.__kwdefaults__])
                    yield from _plain([around.nonlocals, around.globals])
                elif not name.startswith("__"):  # as where it stands
                    yield from _plain({name: value})
        if kinds:
            yield from _plain(_keras.own_attributes(layer))


def _described(code):
    """Return what a function does, wherever it stands in its file."""
    ordered = [sorted(each, key=repr) if isinstance(each, frozenset) else each for each in code.co_consts]
    inner = [_described(each) if inspect.iscode(each) else repr(each) for each in ordered]
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def _plain(values):
    """Yield the numbers, texts and arrays in a structure, with their paths in it."""
    for path, leaf in tree.flatten_with_path(values):
        if leaf is None or isinstance(leaf, (bool, int, float, complex, str, bytes, np.generic)):
            yield f"{path} {leaf!r}"
        elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
            yield f"{path} {hashlib.blake2b(leaf.tobytes()).hexdigest()}"


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
        yield from (layer["config"]["name"] for layer in layers if "name" in layer.get("config", {}))
    for child in children:
        if isinstance(child, (dict, list)):
            yield from _names_in_graphs(child)


def _renamed(part, names, refers=False):
    """Return a part of a configuration with other names where layers are named or referred to."""
    if isinstance(part, dict):
        return {key: _renamed(value, names, key in _REFERENCES) for key, value in part.items()}
    if isinstance(part, list):
        return [_renamed(value, names, refers) for value in part]
    return names.get(part, part) if refers and isinstance(part, str) else part
