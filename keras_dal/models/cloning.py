"""A copy of a model in which one layer, wherever it sits, is another one."""

import inspect

import keras
import numpy as np

_BASE_CONFIG = ("name", "trainable", "dtype")  # Keras adds them, and many subclassed models do not take them


def copy_with_replacement(model, layer, replacement, build):
    """Return a copy of a built model, with its own variables of the same values, and `replacement` for `layer`.

    Functional and Sequential models are cloned through their graph. A subclassed model or layer is made again from its
    configuration, and the attribute, list or dictionary that holds the layer then holds its replacement.

    Args:
        model: a built Keras model.
        layer: one of its layers.
        replacement: a built layer.
        build: a function that builds the copy by calling it.

    Raises:
        ValueError: a part of the model cannot be made from its configuration.
    """
    return _Copier(layer, replacement).copied(model, build)


class _Copier:
    def __init__(self, layer, replacement):
        self.layer, self.replacement = layer, replacement
        self.twins = []

    def copied(self, model, build):
        copy = self.twin(model)
        build(copy)
        while self.twins:  # exchanging a part below may clone a graph, which adds to the twins
            self._finish(*self.twins.pop())
        return copy

    def twin(self, layer):
        """Return the replacement, a clone of a graph, or a new layer that is to be finished once it is built."""
        if layer is self.layer:
            return self.replacement
        if _is_graph(layer):
            return keras.models.clone_model(layer, clone_function=self.twin)
        twin = _from_config(layer)
        if isinstance(layer, keras.layers.Layer):
            self.twins.append((layer, twin))
        return twin

    def _finish(self, old, new):
        assign_variables(old, new)
        if self._is_in(old):
            self._exchange(old, new)

    def _is_in(self, layer):
        return any(part is self.layer for part in layer._flatten_layers())

    def _exchange(self, old, new):
        """Puts the replacement where the layer's twin is, inside subclassed layers."""
        for part, twin in zip(list(old._layers), list(new._layers), strict=True):
            if part is self.layer or (_is_graph(part) and self._is_in(part)):
                _replace_sublayer(new, twin, self.twin(part))
            elif self._is_in(part):
                self._exchange(part, twin)


def _is_graph(layer):
    return isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph")


def _from_config(layer):
    kind, config = type(layer), layer.get_config()
    accepted = inspect.signature(kind.__init__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        config = {key: value for key, value in config.items() if key in accepted or key not in _BASE_CONFIG}
    try:
        return kind.from_config(config)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "Every layer must be reproducible from get_config() for the model to be copied. "
            f"Received: layer {layer.name!r} ({kind.__name__}): {error}"
        ) from error


def assign_variables(old, new):
    """Gives the variables of one layer, in their order, to another one."""
    if [variable.shape for variable in old.variables] != [variable.shape for variable in new.variables]:
        raise ValueError(
            "A layer made again from its configuration must have the same variables; put what differs into "
            f"get_config(). Received: layer {old.name!r} ({type(old).__name__}) with {len(old.variables)} variables, "
            f"its copy with {len(new.variables)}"
        )
    for variable, copy in zip(old.variables, new.variables, strict=True):
        copy.assign(np.array(keras.ops.convert_to_numpy(variable)))  # JAX would share the buffer, and donate it


def _replace_sublayer(parent, old, new):
    parent._tracker.replace_tracked_value("layers", old, new)
    for name, value in list(vars(parent).items()):
        if value is old:
            setattr(parent, name, new)
        elif isinstance(value, (list, dict)) and name != "_layers":
            for key in range(len(value)) if isinstance(value, list) else list(value):
                if value[key] is old:
                    value[key] = new
