"""TensorFlow."""

import contextlib

import keras
import tensorflow as tf
from keras import tree

from keras_dal import _keras
from keras_dal._backend import _shared

COMPILED_HIDES_NAN = True  # relu makes zero of it where Grappler has fused it with the product before
END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)  # how a train function says that the epoch is over


def training_scope(model):
    """Return the context in which variables for the model's training step are made."""
    return model.distribute_strategy.scope()


def statistics_dtype():
    """Return the widest float dtype in which sums can be kept inside a training step."""
    return "float64"


def product(left, right):
    """Return the product of two matrices in their own dtype."""
    return tf.matmul(left, right)


def where_set(flag, function):
    """Call a function, which assigns variables, in the steps in which a scalar tensor is not zero."""

    def call():  # without its value: both branches must have the same
        function()

    tf.cond(flag > 0, call, lambda: None)


add_where_set = _shared.adding(where_set)


def has_accelerator():
    """Return whether arrays lie on something faster than the host."""
    return bool(tf.config.list_logical_devices("GPU"))


@contextlib.contextmanager
def full_precision():
    """Return a context in which products of float32 matrices are not rounded to fewer bits."""
    rounded = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        tf.config.experimental.enable_tensor_float_32_execution(False)
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounded)


def is_chief(model):
    """Return whether this process, of all that train the model, is the one that speaks."""
    resolver = model.distribute_strategy.cluster_resolver
    if resolver is None:
        return True
    return resolver.task_type == "chief" if "chief" in resolver.cluster_spec().jobs else not resolver.task_id


def check_in_step(failed, message):
    """Raise where a traced or eager step runs although `failed`, a scalar tensor, is not zero; XLA drops the check."""
    tf.debugging.assert_equal(failed, tf.zeros_like(failed), message)


def reading(model, take, logs):
    """Return a train function that trains nothing: it gives batches to `take`, and returns `logs` itself."""

    def function(iterator):
        take(_without_optionals(next(iterator)))
        with contextlib.suppress(*END_OF_DATA):
            for _ in range(model.steps_per_execution - 1):
                take(_without_optionals(next(iterator)))
        return logs

    return function


def _without_optionals(batch):
    """Return a batch as steps get it: `fit` turns what a generator yields as None into an empty optional."""
    return tree.map_structure(lambda part: None if isinstance(part, tf.experimental.Optional) else part, batch)


def over_replicas(function, model):
    """Return a function of one batch as `fit` gets it: arrays whose rows are those of all replicas, one after another.

    Args:
        function: from a batch to arrays of which each row belongs to a sample, or to a replica.
        model: the model it reads.
    """
    strategy = model.distribute_strategy
    has_workers = strategy.cluster_resolver is not None

    def gatherable(data):
        return tf.nest.map_structure(_gatherable, function(data))

    def run(data):
        if not has_workers:
            return strategy.run(function, (data,))
        parts = strategy.run(gatherable, (data,))
        # here: outside of what is traced, each call would be traced anew
        return tf.nest.map_structure(lambda part: strategy.gather(part, axis=0), parts)

    def joined(part):
        """Return the rows of all replicas; without workers no collective is needed, whose keys strategies share."""
        return part if has_workers else tf.concat(strategy.experimental_local_results(part), 0)

    traced = tf.function(run, autograph=False, reduce_retracing=True)

    def call(data):
        # not called directly, as in `_traced`
        parts = run(data) if model.run_eagerly else traced.get_concrete_function(data)(data)
        return tf.nest.map_structure(lambda part: joined(part).numpy(), parts)

    return call


def _gatherable(part):
    """Return a tensor in a dtype that collectives take, and that holds its values."""
    if part.dtype in (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64):
        return part
    return tf.cast(part, tf.float32 if part.dtype.is_floating else tf.int64)


def in_replica(function, model, *arguments):
    """Return what a function returns, run as the model's steps are: on each replica, of which the first answers."""
    strategy = model.distribute_strategy
    with _without_advice():
        found = strategy.run(function, arguments)
    return tf.nest.map_structure(lambda part: strategy.experimental_local_results(part)[0], found)


@contextlib.contextmanager
def _without_advice():
    """Let TensorFlow not advise to trace what is called a few times."""

    def is_no_advice(record):
        return "eagerly has significant overhead" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(is_no_advice)
    try:
        yield
    finally:
        logger.removeFilter(is_no_advice)


def build(model, iterator):
    """Build a model for the inputs of the first batch that an iterator of `fit` will bring."""
    x, _, _ = keras.utils.unpack_x_y_sample_weight(iterator.element_spec)
    model(_symbolic(x), training=False)


def build_metrics(model, iterator):
    """Make the variables of a model's metrics before its first step, which is traced once more where it makes any."""
    is_traced = not (model.run_eagerly or tf.config.functions_run_eagerly())
    if is_traced and _keras.lacks_metrics(model):
        with contextlib.suppress(Exception):  # the step says what is wrong
            x, y, weight = keras.utils.unpack_x_y_sample_weight(iterator.element_spec)
            _keras.build_metrics(model, _symbolic(x), _symbolic(y), _symbolic(weight))


def _symbolic(specs):
    """Return symbolic tensors for specifications of tensors, None for those of nothing."""
    nothing = type(None), tf.OptionalSpec, tf.NoneTensorSpec
    return tf.nest.map_structure(
        lambda spec: None if isinstance(spec, nothing) else keras.KerasTensor(spec.shape, spec.dtype.name), specs
    )


def _traced(function):
    """Return a compiled function whose first argument is a batch of any size."""
    function = tf.function(function, autograph=False)

    def call(x, *others):
        x = tf.nest.map_structure(tf.convert_to_tensor, x)
        any_size = tf.nest.map_structure(lambda part: tf.TensorSpec([None, *part.shape[1:]], part.dtype), x)
        # not called directly: TensorFlow would warn of retracing, once a few models were measured
        return function.get_concrete_function(any_size, *others)(x, *others)

    return call


def compiled(function, model):
    """Return a function of one batch of inputs, compiled like the model; it reads its variables at every call."""
    return function if model.run_eagerly else _traced(function)


def jvp(function, variables):
    """Return `(x, tangents) -> J v` for a function of inputs that reads variables."""

    def product(x, tangents):
        with tf.autodiff.ForwardAccumulator([variable.value for variable in variables], tangents) as accumulator:
            outputs = function(x)
        return accumulator.jvp(outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return _traced(product)


def vjp(function, variables):
    """Return `(x, cotangent) -> J' u` for a function of inputs that reads variables."""

    def product(x, cotangent):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            values = [variable.value for variable in variables]
            tape.watch(values)
            outputs = function(x)
        return tape.gradient(outputs, values, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return _traced(product)
