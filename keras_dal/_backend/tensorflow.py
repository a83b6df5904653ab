"""TensorFlow."""

import contextlib

import tensorflow as tf

END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)  # how a train function says that the epoch is over


def training_scope(model):
    """Return the context in which variables for the model's training step are made."""
    return model.distribute_strategy.scope()


def statistics_dtype():
    """Return the widest float dtype in which sums can be kept inside a training step."""
    return "float64"


def without_gradients(variables):
    """Return a context in which no gradients are computed for these variables; a graph drops unused ones itself."""
    return contextlib.nullcontext()


def is_chief():
    """Return whether this process is the one that speaks."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    return resolver is None or not resolver.task_id
