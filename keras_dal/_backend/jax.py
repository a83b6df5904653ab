"""JAX."""

import contextlib

import jax

END_OF_DATA = (StopIteration,)  # how a train function says that the epoch is over


def training_scope(model):
    """Return the context in which variables for the model's training step are made."""
    return contextlib.nullcontext()


def statistics_dtype():
    """Return the widest float dtype in which sums can be kept inside a training step."""
    return "float64" if jax.config.jax_enable_x64 else "float32"


def without_gradients(variables):
    """Return a context in which no gradients are computed for these variables; the compiler drops unused ones itself."""
    return contextlib.nullcontext()


def is_chief():
    """Return whether this process is the one that speaks."""
    return jax.process_index() == 0
