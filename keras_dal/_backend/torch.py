"""PyTorch."""

import contextlib

import torch

END_OF_DATA = (StopIteration,)  # how a train function says that the epoch is over


def training_scope(model):
    """Return the context in which variables for the model's training step are made."""
    return contextlib.nullcontext()


def statistics_dtype():
    """Return the widest float dtype in which sums can be kept inside a training step."""
    return "float64"


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


def is_chief():
    """Return whether this process is the one that speaks."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
