"""Evaluating a model in inference mode, and seeing its layers at work meanwhile."""

import contextlib
import functools
import inspect
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from keras_dal import _backend, _keras

HALVES = ("float16", "bfloat16")  # dtypes of half precision
_ABSENT = object()


def to_numpy(tensor) -> np.ndarray:
    """Return a tensor or a variable of any backend as a NumPy array."""
    if getattr(tensor, "shape", None) == () and "bfloat16" in str(tensor.dtype):  # of TensorFlow, no array to NumPy
        return to_numpy(ops.reshape(tensor, (1,))).reshape(())
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def as_numpy(values) -> np.ndarray:
    """Return as `to_numpy`, which copies, but a NumPy array as it is: it may be a mapped file."""
    return np.asarray(values) if isinstance(values, np.ndarray) else to_numpy(values)


def computed_dtype(dtype):
    """Return the dtype in which layers of a dtype compute: with some backends Keras multiplies float64 in float32."""
    return _product_dtype() if str(dtype) == "float64" else str(dtype)


def held_dtype(dtype):
    """Return the dtype in which variables of a dtype are kept: JAX has no float64 unless it is set to."""
    return _backend.statistics_dtype() if str(dtype) == "float64" else str(dtype)


@functools.cache
def _product_dtype():
    """Return the dtype in which Keras multiplies float64, measured once: features come in many batches."""
    third = ops.convert_to_tensor(np.full((1, 1), 1 / 3))
    return "float64" if abs(to_numpy(ops.matmul(third, third)).item() - 1 / 9) < 1e-12 else "float32"


def feature_array(tensor):
    """Return features as an array in the dtype they were computed in: it says how precise they are."""
    array = to_numpy(tensor)
    dtype = computed_dtype(array.dtype)
    return array if dtype == str(array.dtype) else array.astype(dtype)


def takes_training(model):
    """Return whether Keras' own step trains a model in training mode: not where its `call` has no `training`."""
    return "training" in inspect.signature(model.call).parameters


def inference(model, x):
    """Return a model's outputs in inference mode, for it and for all that it calls.

    Keras hands `training` to each `call` that takes it and, through the context of the call, to the layers below one
    that does not; called by themselves, `call` and `stateless_call` would refuse it.
    """
    return model(x, training=False)


@contextlib.contextmanager
def replaced(instance, name, value):
    """Lets `instance.name` be `value` inside the context, and what it was before afterwards, on an exception too.

    The instance's dictionary is written directly: Keras' and TensorFlow's attribute tracking must not see this.
    """
    attributes = vars(instance)
    before = attributes.get(name, _ABSENT)
    attributes[name] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            del attributes[name]
        else:
            attributes[name] = before


class Swap:
    """Several attributes of instances at once, as contexts such as `replaced` put them; found anew only where needed.

    A step of a few milliseconds feels the making of a dozen closures and contexts.

    Args:
        places: pairs of an instance and the name of an attribute.
        made: function that returns a context in which they are in place.
    """

    def __init__(self, places, made):
        self._places = [(vars(instance), name) for instance, name in places]
        self._made, self._before, self._values = made, [], []

    def _now(self):
        return [attributes.get(name, _ABSENT) for attributes, name in self._places]

    def _put(self, values):
        for (attributes, name), value in zip(self._places, values, strict=True):
            if value is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = value

    def forget(self):
        """Lets them be found anew."""
        self._before = []

    @contextlib.contextmanager
    def in_place(self):
        """Lets the attributes be theirs inside the context."""
        before = self._now()
        if before != self._before:
            with self._made():
                self._values = self._now()
            self._before = before
        try:
            self._put(self._values)
            yield
        finally:
            self._put(before)


@contextlib.contextmanager
def tap(layer):
    """Collects the features that a linear layer is called with, eager or traced, wherever it sits in a model.

    Yields:
        A list that grows by the features of each call, `(k, m)`: its inputs, averaged over positions if there are any.
    """
    features = []
    with recorded([layer], lambda call: features.append(pooled(layer, call.inputs))):
        yield features


def pooled(layer, values: Any) -> Any:
    """Return the inputs or outputs of a layer that is linear at every position, averaged over positions, `(k, m)`.

    The average of its outputs is linear in its parameters as the layer itself is, with the average of its inputs.
    """
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    if "float" not in keras.backend.standardize_dtype(values.dtype):
        values = ops.cast(values, layer.compute_dtype)  # counts of words, say, as the layer takes them
    axes = tuple(range(2, len(values.shape)) if first else range(1, len(values.shape) - 1))
    return ops.mean(values, axes) if axes else values


class _Call(NamedTuple):
    layer: Any
    inputs: Any
    outputs: Any
    is_masked: bool

    def without_values(self):
        """Return the call with what its tensors look like in their place."""
        inputs, outputs = (tree.map_structure(_without_values, part) for part in (self.inputs, self.outputs))
        return self._replace(inputs=inputs, outputs=outputs)


def _without_values(part):
    try:
        return keras.KerasTensor(part.shape, keras.backend.standardize_dtype(part.dtype))
    except (AttributeError, ValueError):  # no tensor, or one of a dtype that Keras has no name for
        return part


@contextlib.contextmanager
def recorded(layers, record):
    """Tells `record` of every call of the layers, when it returns."""

    def recording(layer, call):
        @functools.wraps(call)
        def recording_call(*args, **kwargs):
            outputs = call(*args, **kwargs)
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            record(_Call(layer, inputs, outputs, _keras.mask_of(inputs) is not None))
            return outputs

        return recording_call

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced(layer, "call", recording(layer, layer.call)))
        yield


@contextlib.contextmanager
def losses_added(model):
    """Collects the layers of a model, itself among them, that add a loss of their own when they are called.

    Yields:
        A list that grows by the name of each layer at each loss; activity regularizers are attributes, and none.
    """
    names = []

    def noting(layer, add_loss):
        def add(loss):
            names.append(layer.name)
            return add_loss(loss)

        return add

    with contextlib.ExitStack() as stack:
        for layer in (model, *_keras.sublayers(model)):
            if layer.activity_regularizer is None:
                stack.enter_context(replaced(layer, "add_loss", noting(layer, layer.add_loss)))
        yield names


def logits(model, layer, x):
    """Return the outputs of a model's last linear layer before its activation, as a tensor, eager or traced."""
    calls = []
    with replaced(layer, "activation", keras.activations.linear), recorded([layer], calls.append):
        inference(model, x)
    return pooled(layer, calls[-1].outputs)


def evaluate(model, layer, x):
    """Return the features that `layer` sees and the outputs of `model` in inference mode, as NumPy arrays."""
    return as_arrays(features_and_outputs(model, layer, x))


def are_finite(values):
    """Return whether the real numbers in a structure of arrays, tensors or variables are finite."""
    real = (part for part in tree.flatten(values) if "float" in str(getattr(part, "dtype", "")))
    return all(np.isfinite(as_numpy(part)).all() for part in real)


def features_and_outputs(model, layer, x):
    """Return the features of a batch of inputs that a layer sees in inference mode, and the outputs of the model."""
    with tap(layer) as features, replaced(layer, "call", _of_one_value(layer.call)):
        outputs = inference(model, x)
    if len(features) != 1:
        raise ValueError(
            "The last layer must be called once in an evaluation of the model; share its weights with no other part. "
            f"Received: layer {layer.name!r}, called {len(features)} times"
        )
    return features[0], tree.flatten(outputs)[0]


def _of_one_value(call):
    """Return a layer's `call` of inputs that are the same for all who see them."""

    @functools.wraps(call)
    def of_one_value(*args, **kwargs):
        return call(*map(_backend.as_computed, args[:1]), *args[1:], **kwargs)

    return of_one_value


def as_arrays(evaluated):
    """Return features and outputs as NumPy arrays."""
    features, outputs = evaluated
    return feature_array(features), to_numpy(outputs)


def recorded_calls(model, x):
    """Return the calls of all layers in the order in which they return, and the model's outputs.

    Shapes and dtypes are theirs; there may be no values.
    """
    calls = []
    layers = [layer for layer in _keras.sublayers(model) if not isinstance(layer, keras.layers.InputLayer)]

    def called(x):
        calls.clear()
        with recorded(layers, lambda call: calls.append(call.without_values())):
            return inference(model, x)

    outputs = tree.flatten(_backend.shapes_of(called, model, x))
    return calls, outputs
