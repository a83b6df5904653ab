"""Which parameters the logits of a model are linear in, and a numerical check that they are."""

import contextlib
import dataclasses
import functools
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.layers import RNN

from keras_dal import _backend, _keras
from keras_dal.features import tracing
from keras_dal.features.inputs import SHOWN, enlarged, sample_inputs
from keras_dal.features.tracing import evaluate, inference, recorded_calls
from keras_dal.features.variables import restored
from keras_dal.models import linearity
from keras_dal.models.activations import ACTIVATIONS
from keras_dal.models.linear_layers import is_gated, is_head, named_variables, quantized_head
from keras_dal.models.structure import Structure, structure_of

_NOT_PLAIN = "its kernel is not a plain variable of the model (LoRA or quantization)"


def find_structure(model: Any, x: Any = None, parameters: Any = "head") -> Structure:
    """Find the parameters that a model's logits are linear in, and check numerically that they are.

    Recognized are models that end with a `Dense` layer, with a gated layer before or around it, or with a `Dense` layer
    or 1 x 1 convolution and average pooling, each with linear, softmax or sigmoid outputs. The check writes random
    values into the model's parameters and puts the old ones back, bit for bit, on an exception too.

    Args:
        model: a Keras model with one output, built, or with x.
        x: a few sample inputs; needed only where the model does not know the shape of its inputs.
        parameters: `"head"`, or theta_S as a layer, a layer's name, a list of those, or a regular expression that is
            searched for in the paths of the variables. In `Wrap` it is called `exploit`.

    Returns:
        A `Structure`.

    Raises:
        ValueError: the model has no linear head, or `parameters` are not what its logits are linear in.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "The model must be a Keras model; keras.saving.load_model(path) makes one of a file. "
            f"Received: model={model!r}"
        )
    _check_stateless(model)
    given, x = x, sample_inputs(model, x)
    if not all(layer.built for layer in (model, *_keras.sublayers(model))):
        with _taken(x, is_invented=given is None):
            inference(model, x)
    with restored(model.variables):  # seeds of random layers among them
        with _taken(x, is_invented=given is None), tracing.losses_added(model) as adding:
            calls, outputs = recorded_calls(model, x)
        forms = _forms(model, calls, outputs)
        named = not (isinstance(parameters, str) and parameters == "head")
        form = _selected(forms, parameters, x) if named else forms[0]
        for layer in form.gated_layers:
            layer.freeze_gates()  # as they will be after the switch
        activation = _activation(form, calls, x, can_be_enlarged=given is None)
    return dataclasses.replace(form, activation=activation, adds_losses=tuple(dict.fromkeys(adding)))


def _check_stateless(model):
    """Raise a ValueError where features depend on the batches before."""
    stateful = [layer.name for layer in _keras.sublayers(model) if isinstance(layer, RNN) and layer.stateful]
    if stateful:
        raise ValueError(
            "The features of a sample must not depend on the batches before: make the model anew with stateful=False, "
            f"and give it the weights. Received: stateful layers {stateful}"
        )


@contextlib.contextmanager
def _taken(x, is_invented):
    """Says what to do where a model does not take its inputs."""
    try:
        yield
    except Exception as error:
        shapes = [np.shape(part) for part in tree.flatten(x)][:SHOWN]
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if not is_invented:
            raise ValueError(
                "The model does not take the inputs it was given: pass x as fit takes it, an array, or a list or dict "
                f"of one array for each input. Received: {type(x).__name__} of shapes {shapes}, {what}"
            ) from error
        raise ValueError(
            f"The model does not take the random inputs that it was tried on, of shapes {shapes}. Let the batch size "
            "be open, and pass a few samples of your own: find_structure(model, x), or AlignmentMonitor(data=(x, y)) "
            f"in fit. Received: {what}"
        ) from error


def _activation(form, calls, x, can_be_enlarged):
    """Return what `_checked` finds by one program or, where that fails or refuses a model, operation by operation.

    They may round differently: a refusal has to be of both.
    """
    with _backend.full_precision():
        with contextlib.suppress(Exception), restored(form.model.variables):
            return _checked(form, calls, x, can_be_enlarged, form.feature_function.evaluate)
        return _checked(form, calls, x, can_be_enlarged, functools.partial(evaluate, form.model, form.layer))


def _checked(form, calls, x, can_be_enlarged, evaluated):
    """Return the activation of a structure that passes all checks; random parameters are left in the model."""
    given, (x, others) = x, linearity.overlapping(x)
    features = evaluated(x)[0]
    if can_be_enlarged and not np.isfinite(features).all():  # a masked mean of nothing but padding, say
        x, others = linearity.overlapping(linearity.finite(given, evaluated(given)[0]))
        features = evaluated(x)[0]
    if can_be_enlarged and not features.any():
        x, others = enlarged(x), enlarged(others)  # a model for raw pixels may see nothing in smaller values
        features = evaluated(x)[0]
    of_others = evaluated(others)[0]
    if not any(rows.any() for rows in linearity.in_both(features, of_others)):
        linearity.awaken(form.model, lambda: evaluated(x)[0], lambda found: linearity.in_both(found, of_others)[0])
        features, of_others = evaluated(x)[0], evaluated(others)[0]
    linearity.check_samples_are_apart(form, features, of_others, lambda: evaluated(x)[0])
    shown = x if features.any() else others
    return _checked_activation(form, calls, lambda: evaluated(shown))


def _forms(model, calls, outputs):
    """Return the structures that a model can have, before any check: with its gated layer first, where it has one."""
    if len(outputs) != 1:
        raise ValueError(
            "The model must have one output; make one model per output. "
            f"Received: model {model.name!r} with {len(outputs)} outputs"
        )
    (outputs,) = outputs
    where = [index for index, call in enumerate(calls) if is_head(call.layer)]
    if not where:
        if (quantized := quantized_head(model)) is not None:
            raise _refusal(quantized, _NOT_PLAIN)
        raise ValueError(
            "The model has no linear last layer: end it with keras.layers.Dense. "
            f"Received: model {model.name!r}, which ends with {_describe(_after(calls, -1))}"
        )
    last = calls[where[-1]]
    if len(outputs.shape) != 2:
        mend = "leave out what squeezes the last one" if len(outputs.shape) < 2 else "pool or flatten the others"
        raise ValueError(
            f"Outputs must have two axes, samples and values; {mend}. Received: layer "
            f"{last.layer.name!r} with inputs of shape {tuple(last.inputs.shape)}, model outputs of shape "
            f"{tuple(outputs.shape)}"
        )
    inputs = {last.layer: last.inputs}
    before = [call for call in calls[: where[-1]] if not isinstance(call.layer, keras.layers.Dropout)][-1:]
    if before and is_gated(before[0].layer, before=True) and isinstance(last.layer, keras.layers.Dense):
        inputs = {before[0].layer: before[0].inputs, **inputs}
    widths = {layer: int(tracing.pooled(layer, features).shape[-1]) for layer, features in inputs.items()}
    sizes = [(layer, last.layer, "linear", width, int(outputs.shape[1])) for layer, width in widths.items()]
    return [structure_of(model, *each) for each in sizes]


def _selected(forms, parameters, x):
    """Return the form whose theta_S are the variables that the user names."""
    model = forms[0].model
    chosen = named_variables(model, parameters)
    for form in forms:
        linear = {id(variable) for variable in form.linear_parameters}
        others = [variable for variable in chosen if id(variable) not in linear]
        if linear <= {id(variable) for variable in chosen} and not any(v.trainable for v in others):
            return form
    variables = [variable for variable in chosen if variable.trainable]
    defect = linearity.defect(variables, lambda: forms[0].logits(x)) if variables else "not trainable"
    wanted = " or ".join(str([variable.path for variable in form.linear_parameters]) for form in forms)
    raise ValueError(
        f"The logits are {defect or 'linear, but not as a head of features,'} in the chosen parameters. Choose 'head', "
        f"or exactly {wanted}. Received: {parameters!r}, which are {[v.path for v in chosen]}"
    )


def _is_masked_average(call):
    """Whether a call averages some positions only, as random samples, which mask nothing, do not show."""
    return isinstance(call.layer, keras.layers.GlobalAveragePooling1D) and call.is_masked


def _checked_activation(form, calls, evaluated):
    """Return the activation for which the model equals `activation(head(features))` at random parameters."""
    layer = form.output_layer
    if not all(any(variable is own for own in form.model.variables) for variable in form.linear_parameters):
        raise _refusal(layer, _NOT_PLAIN)
    position = max(index for index, call in enumerate(calls) if call.layer is layer)
    if any(_is_masked_average(call) for call in calls[position:]):
        raise _refusal(layer, "a mask leaves positions out of the average of its outputs: average before it")
    own = [call for call in calls if call.layer is layer and len(call.outputs.shape) == 2 and layer.supports_masking]
    if any(call.is_masked for call in own):
        raise _refusal(layer, "a mask leaves samples out of the loss: give them sample_weight 0 instead")
    fitting = [name for name in ACTIVATIONS if name != "softmax" or form.num_outputs > 1]  # else constant
    for probe in linearity.probes(form, evaluated):
        if probe.reason:
            raise _refusal(layer, probe.reason)
        fitting = [name for name in fitting if probe.confirms(name)]
        if not fitting and (quantized := quantized_head(form.model)) is not None:
            raise _refusal(quantized, _NOT_PLAIN)
        if not fitting and form.num_outputs == 1 and form.output_layer.activation is keras.activations.softmax:
            raise _refusal(layer, "a softmax of one output is 1 whatever goes in: use a sigmoid, or a unit per class")
        if not fitting:
            later = _describe(_after(calls, position))
            raise _refusal(layer, f"what follows it is more than a softmax or sigmoid: {later}")
    return fitting[0]


def _after(calls, position):
    """Return the layers without sublayers that were called after a position, or the very last one."""
    leaves = [call.layer for call in calls if not _keras.parts(call.layer)]
    later = [call.layer for call in calls[position + 1 :] if not _keras.parts(call.layer)]
    return later if position >= 0 else leaves[-1:]


def _describe(layers):
    names = ", ".join(f"{layer.name!r} ({type(layer).__name__})" for layer in layers)
    return names or "an operation of the model or of the layer itself"


def _refusal(layer, reason):
    activation = getattr(layer, "activation", None)
    return ValueError(
        f"The outputs are not linear in the parameters of the last layer: {reason}. End the model with a Dense layer "
        "whose outputs are the logits, with softmax or sigmoid after them at most. Received: "
        f"layer {layer.name!r} ({type(layer).__name__}) with activation {getattr(activation, '__name__', activation)!r}"
    )
