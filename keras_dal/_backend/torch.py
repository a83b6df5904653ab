"""PyTorch."""

import contextlib
from typing import Any

import keras
import torch

from keras_dal._backend import _shared


def statistics_dtype():
    """Return the widest float dtype in which sums can be kept inside a training step."""
    return "float32" if torch.backends.mps.is_available() else "float64"  # which Metal does not have


def product(left, right):
    """Return the product of two matrices in their own dtype: that of Keras is float32 where they are float64."""
    return torch.matmul(left, right)


def where_set(flag, function):
    """Call a function, which assigns variables, in the steps in which a scalar tensor is not zero."""
    if bool(keras.ops.convert_to_tensor(flag)):
        function()


add_where_set = _shared.adding(where_set)


@contextlib.contextmanager
def without_gradients(variables):
    """Return a context in which no gradients are computed for these variables."""
    values = [variable.value for variable in variables if variable.value.requires_grad]
    try:
        for value in values:
            value.requires_grad_(False)
        yield
    finally:
        for value in values:
            value.requires_grad_(True)


def has_accelerator():
    """Return whether arrays lie on something faster than the host."""
    return torch.as_tensor(keras.ops.zeros(())).device.type != "cpu"


@contextlib.contextmanager
def full_precision():
    """Return a context in which products of float32 numbers are not rounded to fewer bits."""
    if not has_accelerator():  # the host rounds none, and what runs inside may look at the switches
        yield
        return
    cudnn: Any = torch.backends.cudnn  # whose attributes are made when it is imported
    places, older = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn), _older_switch(cudnn)
    before = [place.fp32_precision for place in places]
    try:
        if older is not None:
            cudnn.allow_tf32 = False  # which cannot be read where the newer ones say something else
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        if older is not None:
            cudnn.allow_tf32 = older
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _older_switch(cudnn):
    """Return what the one switch for all of cuDNN says, None where newer ones contradict it."""
    try:
        return cudnn.allow_tf32
    except RuntimeError:
        return None


def is_chief(model):
    """Return whether this process, of all that train the model, is the one that speaks."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def check_in_step(failed, message):
    """Raise where a step runs although `failed`, a scalar tensor, is not zero."""
    if int(failed):
        raise RuntimeError(message)


def buffers(layers):
    """Return what modules inside layers keep beside parameters, with its name: running statistics, say."""
    wrappers = _wrappers(layers)
    return [(f"{each.name}/{name}", buffer) for each in wrappers for name, buffer in each.module.named_buffers()]


def _wrappers(layers):
    return [layer for layer in layers if isinstance(layer, keras.layers.TorchModuleWrapper)]


@contextlib.contextmanager
def buffers_kept(layers):
    """Return a context after which these are what they were before it."""
    modules = [module for wrapper in _wrappers(layers) for module in wrapper.module.modules()]
    places = [(module, *each) for module in modules for each in module.named_buffers(recurse=False)]
    before = [(*place, place[-1].clone()) for place in places]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            buffer.copy_(value)
            setattr(module, name, buffer)  # a module may have put another tensor into its place


def reading(model, take, logs):
    """Return a train function that trains nothing: it gives batches to `take`, and returns `logs` itself."""

    def function(data):
        for batch in data:
            take(_own(batch))
        return logs

    return function


def _own(batch):
    """Return a batch whose tensors the user's generator cannot write into while it waits: they share its arrays."""
    return keras.tree.map_structure(lambda part: part.clone() if isinstance(part, torch.Tensor) else part, batch)


def over_replicas(function, model):
    """Return a function of one batch as `fit` gets it: arrays with one row for each sample.

    Args:
        function: from a batch to arrays of which each row belongs to a sample, or to a replica.
        model: the model it reads.
    """
    run = compiled(function, model)
    return lambda data: keras.tree.map_structure(keras.ops.convert_to_numpy, run(data))


@torch.no_grad()
def in_replica(function, model, *arguments):
    """Return what a function returns, run as the model's steps are."""
    return function(*arguments)


def compiled(function, model):
    """Return a function of one batch of inputs, without gradients; it reads the model's variables at every call."""
    return torch.no_grad()(function)


def jvp(function, variables):
    """Return `(x, tangents) -> J v` for a function of inputs that reads variables."""
    call = _shared.stateless(function, variables)

    def product(x, tangents):
        values = [variable.value.detach() for variable in variables]
        return torch.func.jvp(lambda v: call(v, x), (values,), (tangents,))[1]

    return product


def vjp(function, variables):
    """Return `(x, cotangent) -> J' u` for a function of inputs that reads variables."""
    call = _shared.stateless(function, variables)

    def product(x, cotangent):
        values = [variable.value.detach() for variable in variables]
        return torch.func.vjp(lambda v: call(v, x), values)[1](cotangent)[0]

    return product
