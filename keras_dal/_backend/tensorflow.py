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


def compiled(function, variables):
    """Return a function of one batch of inputs, compiled; it reads these variables anew at every call."""
    return tf.function(function, reduce_retracing=True, autograph=False)


def jvp(function, variables):
    """Return `(x, tangents) -> J v` for a function of inputs that reads variables."""

    @tf.function(reduce_retracing=True, autograph=False)
    def product(x, tangents):
        with tf.autodiff.ForwardAccumulator([variable.value for variable in variables], tangents) as accumulator:
            outputs = function(x)
        return accumulator.jvp(outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return product


def vjp(function, variables):
    """Return `(x, cotangent) -> J' u` for a function of inputs that reads variables."""

    @tf.function(reduce_retracing=True, autograph=False)
    def product(x, cotangent):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            values = [variable.value for variable in variables]
            tape.watch(values)
            outputs = function(x)
        return tape.gradient(outputs, values, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return product
