"""Which layers are linear in their parameters, and their head as a function of features."""

import re

import keras

from keras_dal import _keras
from keras_dal.features.tracing import to_numpy
from keras_dal.heads import DenseHead
from keras_dal.models.gated_layers import GatedBranch, GatedDense


def is_gated(layer, before):
    """Whether a layer has gated units, before a linear layer that takes them or beside one, as a head by itself."""
    return isinstance(layer, GatedDense if before else GatedBranch)


def linear_head(layer, output_layer):
    """Return the NumPy head from the inputs of `layer` to the logits, and the variables that it is linear in."""
    if layer is not output_layer:
        return layer.linear_head(output_layer)
    if is_gated(layer, before=False):
        return layer.linear_head()
    bias = (layer.bias,) if layer.use_bias else ()
    return DenseHead(*layer.kernel.shape[-2:], use_bias=layer.use_bias), (layer.kernel, *bias)


def has_bias(head):
    """Return whether a head adds a bias to the logits."""
    return bool((head.dense if is_gated(head, before=False) else head).use_bias)


def as_dense(head, width):
    """Return a plain head as a `Dense` layer of so many features, averaged over positions where it has some."""
    if isinstance(head, keras.layers.Dense):
        return head
    shared = ("use_bias", "kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint")
    options = {name: getattr(head, name) for name in shared}
    dense = keras.layers.Dense(head.filters, head.activation, name=head.name, dtype=head.dtype_policy, **options)
    dense.build((None, width))
    for variable, own in zip(head.variables, dense.variables, strict=True):
        own.assign(to_numpy(variable).reshape(own.shape))
    return dense


def is_plain(layer):
    """Return whether the outputs of a layer are its inputs times a kernel, as far as its kind tells."""
    return isinstance(layer, keras.layers.Dense) or _is_pointwise(layer)


def is_head(layer):
    """Return whether the outputs of a layer are linear in its parameters, as far as its kind tells."""
    return is_plain(layer) or is_gated(layer, before=False)


def quantized_head(model):
    """Return the last layer of a model if it is quantized, of which Keras calls another method than `call`, or None."""
    leaves = [layer for layer in _keras.sublayers(model) if not _keras.parts(layer)]
    return next((last for last in leaves[-1:] if is_head(last) and getattr(last, "quantization_mode", None)), None)


def _is_pointwise(layer):
    """Whether a layer is a convolution that is the same linear map at every position."""
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    if not isinstance(layer, kinds) or layer.groups != 1:
        return False
    return all(size == 1 for size in (*layer.kernel_size, *layer.strides))


def named_variables(model, parameters):
    """Return the variables of layers, of layers' names, or whose paths a regular expression is found in."""
    layers = _keras.sublayers(model)
    names = [parameters] if isinstance(parameters, (str, keras.layers.Layer)) else list(parameters)
    if not names:
        raise ValueError(
            f"Choose the linear parameters by at least one layer, name or regular expression. Received: {parameters!r}"
        )
    found = {}
    for name in names:
        alike = [layer for layer in layers if layer is name or _is_called(layer, name)]
        meant = [layer for layer in alike if not any(layer in _keras.sublayers(other) for other in alike)]
        if len(meant) > 1:
            raise ValueError(
                "Several layers of the model have this name: give the one that is meant a name of its own. "
                f"Received: {name!r}"
            )
        variables = meant[0].variables if meant else _with_paths(model, name)
        if not variables:
            heads = [layer.name for layer in layers if is_head(layer)]
            raise ValueError(
                f"No layer of the model has this name and no path of a variable matches it. Its linear layers are "
                f"{heads}. Received: {name!r}"
            )
        found.update({id(variable): variable for variable in variables})
    return list(found.values())


def _is_called(layer, name):
    """Return whether a layer has a name of its own: a model that stands for its last layer may have that one's."""
    last = layer.layers[-1:] if isinstance(layer, keras.Sequential) else []
    return layer.name == name and not any(each.name == name for each in last)


def _with_paths(model, expression):
    """Return the trainable variables in whose paths a regular expression is found; none for a layer."""
    if isinstance(expression, keras.layers.Layer):
        return []
    try:
        return [variable for variable in model.trainable_variables if re.search(expression, variable.path)]
    except re.error as error:
        raise ValueError(f"This is not a valid regular expression: {error}. Received: {expression!r}") from error
