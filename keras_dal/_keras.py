"""The private names of Keras that are needed, each with a test that pins what it does."""

import collections
import contextlib
import copy
import functools
import sys
from typing import Any

import keras
from keras.src.backend import compute_output_spec
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.losses.loss import unscale_loss_for_distribution
from keras.src.utils import tracking
from keras.src.utils.python_utils import pythonify_logs

_STORES = ("_trainable_variables", "_non_trainable_variables", "_seed_generators", "_layers")
_CARRIED = (  # what Keras sets when a layer is made, and an instance may have changed since
    "_auto_config",
    "_called",
    "_supports_masking",
    "_dtype_policy",
    "_trainable",
    "_input_spec",
    "_convert_input_args",
    "_allow_non_tensor_positional_args",
    "_build_shapes_dict",
    "_path",
    "_parent_path",
    "activity_regularizer",
    "autocast",
    "built",
    "supports_jit",
)
PROGRAMS = "_keras_dal_programs"  # of a model: what its features were compiled to
_COMPILED = (  # what `compile` and `fit` add, and this package
    PROGRAMS,
    "_compile_config",
    "_compiled_trainable_state",
    "_eval_epoch_iterator",
    "_jax_state",
    "_torch_params",
    "history",
    "optimizer",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
)
_OF_GRAPHS = ("_nodes", "output_names")  # addresses, and names of layers, automatic ones too
_COLLECTIONS = (list, dict, collections.OrderedDict, set)  # and what Keras makes of them where they are attributes
_TRACKED = (tracking.TrackedList, tracking.TrackedDict, tracking.TrackedOrderedDict, tracking.TrackedSet)
AVERAGES, OPTIMIZED, RATE = "_model_variables_moving_average", "_trainable_variables", "_learning_rate"  # of optimizers


def moving_averages(optimizer):
    """Return the averages that an optimizer with `use_ema` keeps, in the order of the variables it was built with."""
    return getattr(optimizer, AVERAGES)


def optimized(optimizer):
    """Return the variables that an optimizer was built with, in their order."""
    return getattr(optimizer, OPTIMIZED)


def lend_averages(kind, keeper):
    """Let optimizers of a class tell the averages that another one keeps, for `SwapEMAWeights` asks the outer one.

    Args:
        kind: the class.
        keeper: a function from such an optimizer to the one that keeps them.
    """
    setattr(kind, AVERAGES, property(lambda self: moving_averages(keeper(self))))


def index_of(optimizer, variable):
    """Return the place of a variable among those an optimizer was built with, None where it is none of them."""
    return optimizer._trainable_variables_indices.get(optimizer._var_key(variable))


def track(optimizer, variable):
    """Let a variable be part of an optimizer's state."""
    optimizer._track_variable(variable)


def rate_variable(optimizer):
    """Return the variable of an optimizer's learning rate, whatever `learning_rate` says."""
    return getattr(optimizer, RATE)


def step_count(optimizer):
    """Return the variable that counts an optimizer's steps, whatever `iterations` says."""
    return optimizer._iterations


def count_step(optimizer):
    """Count a step that an optimizer did not take itself; part of the training step."""
    optimizer._iterations.assign_add(1)


def optimizers(outer):
    """Yield an optimizer and each one inside it, to the innermost; none where there is none."""
    while outer is not None:
        yield outer
        outer = vars(outer).get("inner_optimizer")


def is_seed(variable):
    """Return whether a variable is what a random layer draws from, which is another one in every process."""
    return variable.path.endswith("seed_generator_state")


def is_collection(value):
    """Return whether a value is one of Python's collections that can be changed, and of no class that extends them."""
    return type(value) in (*_COLLECTIONS, *_TRACKED)


def layout_of(variable):
    """Return how a variable is laid out over devices, None where nothing was said."""
    return getattr(variable, "_layout", None)


def mask_of(tensor):
    """Return the mask that a tensor carries, or None; Keras keeps those of JAX's traced tensors beside them."""
    return get_keras_mask(tensor)


def set_mask(tensor, mask):
    """Let a tensor carry a mask, or none."""
    set_keras_mask(tensor, mask)


def tracked_metrics(model):
    """Return the list of metrics whose variables a model carries through its steps, to be changed in place."""
    return model._metrics


def is_own(function):
    """Return whether a train function is one that Keras made."""
    return getattr(function, "__module__", "").startswith("keras.src.backend.")


def has_own_compute_loss(model):
    """Return whether a model's class overrides what training minimizes."""
    return type(model).compute_loss is not keras.Model.compute_loss


def _callers():
    """Yield the frames that are at work, from the innermost on."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def model_in_step(optimizer):
    """Return the model whose training step calls an optimizer now, as Keras' own and most others do, or None."""
    owners = (frame.f_locals.get("self") for frame in _callers())
    models = (owner for owner in owners if isinstance(owner, keras.Model))
    return next((m for m in models if any(o is optimizer for o in optimizers(getattr(m, "optimizer", None)))), None)


def steps_per_epoch(model):
    """Return what the `fit` of a model that is at work was given as its number of steps, None where it was not."""
    fits = (frame.f_locals for frame in _callers() if _is_of(frame, ("fit",), model))
    return next((given for names in fits if (given := names.get("steps_per_epoch"))), None)


def steps_in_fit(model):
    """Return whether a callback of a model's `fit` trains it, by `train_on_batch` or by a `fit` of its own."""
    callers = _callers()
    nested = (("train_on_batch", "fit"), model), (None, keras.callbacks.CallbackList), (("fit",), model)
    return all(any(_is_of(frame, names, owner) for frame in callers) for names, owner in nested)


def running():
    """Return which call of a `fit` or a `train_on_batch` is the innermost, None where there is none.

    By name alone, as each step asks: to look at what it is of would copy all that `fit` holds.
    """
    return next((id(frame) for frame in _callers() if frame.f_code.co_name in ("fit", "train_on_batch")), None)


def calling_list():
    """Return the list of callbacks that calls, which lives as long as the call of `fit` that made it, or None."""
    lists = (frame for frame in _callers() if _is_of(frame, None, keras.callbacks.CallbackList))
    return next((frame.f_locals["self"] for frame in lists), None)


def _is_of(frame, names, owner):
    """Return whether a frame is of a method of an object by one of the names, or of any method of a class."""
    its = frame.f_locals.get("self")
    return isinstance(its, owner) if names is None else its is owner and frame.f_code.co_name in names


def copied_metric(metric):
    """Return a metric with the same options, variables of its own, and no state: it need not list its options.

    Layers that it looks at, as a model of which it tells something, are the same.
    """
    made = object.__new__(type(metric))
    memo = {id(metric): made} | {id(part): copied_metric(part) for part in metric._metrics}
    memo |= {id(part): part for part in vars(metric).values() if isinstance(part, keras.layers.Layer)}
    vars(made).update(copy.deepcopy(vars(metric), memo))
    made.reset_state()
    return made


def lacks_metrics(model):
    """Return whether the first step of a model makes the variables of the metrics it was compiled with."""
    metrics = model._compile_metrics
    return metrics is not None and not metrics.built and not has_own_train_step(model)


def build_metrics(model, x, y, sample_weight):
    """Make the variables of the metrics that a model was compiled with, for symbolic tensors."""
    outputs = compute_output_spec(model, x, training=False)
    compute_output_spec(model.compute_metrics, x, y, outputs, sample_weight=sample_weight)


def logged(metrics):
    """Return results of metrics as `fit` logs them: floats, and arrays where they are no single number."""
    return pythonify_logs(metrics)


@contextlib.contextmanager
def inference_mode(model):
    """Let the `call` of a model that runs inside, and all the calls it makes, be those of inference."""
    model._get_call_context().set_value("training", False)
    try:
        yield
    finally:
        model._maybe_reset_call_context()  # on JAX `call` is called alone, and nothing else ends the context


def reattach(model, state):
    """Give a model on JAX its variables back, whose values `fit` has handed to the train function as its state."""
    names = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
    model._jax_state = dict(zip(names, state, strict=True))
    model.jax_state_sync()


def is_taken(variable):
    """Return whether `fit` on JAX has taken a variable's value into the state of its steps."""
    return variable._value is None


def sublayers(layer):
    """Return all layers inside a layer, each once, in an order that is the same for equal models."""
    return layer._flatten_layers(include_self=False)


def has_own_train_step(model):
    """Return whether a model's class overrides the training step."""
    return type(model).train_step is not keras.Model.train_step


def has_own_test_step(model):
    """Return whether a model's class overrides the step of an evaluation."""
    return getattr(type(model), "test_step", None) not in (None, keras.Model.test_step)


def parts(layer):
    """Return the layers that a layer holds itself, in the order in which they were given to it."""
    return list(layer._layers)


def is_graph(layer):
    """Return whether a layer is a model that is given by a graph, which `clone_model` can walk."""
    return isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph")


def compile_arguments(model):
    """Return the objects that a model was compiled with, as keywords of `compile`; none where it overrides that."""
    config = getattr(model, "_compile_config", None)
    return {} if config is None else dict(config.config)


def loss_function(loss):
    """Return the function that a loss averages, None for a loss without one, and the options it is called with."""
    return (loss.fn, loss._fn_kwargs) if hasattr(loss, "fn") else (None, {})


def whole_loss(loss):
    """Return the loss that `fit` logs for that of a step, which is divided by the number of replicas."""
    return unscale_loss_for_distribution(loss)


def loss_weight(model):
    """Return the factor that a model with one output was compiled with for its loss."""
    weights = keras.tree.flatten(compile_arguments(model).get("loss_weights"))
    return next((float(weight) for weight in weights if weight is not None), 1.0)


def own_attributes(layer):
    """Return the attributes of a layer that neither Keras nor the backend gives to any, by name."""
    known = _known_attributes(isinstance(layer, keras.Model))
    return {n: v for n, v in vars(layer).items() if n not in known and not n.startswith("_self_")}


@functools.cache
def _known_attributes(of_model):
    bare = (keras.Model if of_model else keras.layers.Layer)(name="bare")  # so that Keras counts no name
    return {*vars(bare), *_COMPILED, *_OF_GRAPHS}


def remade(layer, exchanged):
    """Return another instance of a layer's class with the attributes of the layer, without calling its `__init__`.

    Args:
        layer: a built layer or subclassed model, without what a model is compiled with.
        exchanged: a function that returns what an attribute's value becomes.
    """
    kind: Any = type(layer)
    new = kind.__new__(kind)
    (keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer).__init__(new, name=layer.name)
    own = {*vars(new), *_COMPILED}
    for name in _CARRIED:
        if name in vars(layer):
            setattr(new, name, vars(layer)[name])
    for name, value in {**vars(layer), **vars(layer).get("_modules", {})}.items():  # torch keeps layers apart
        if name not in own and not name.startswith("_self_"):  # which TensorFlow keeps for itself
            setattr(new, name, exchanged(value))
    for store in _STORES:  # in the old order, with what is held by no attribute
        values = [exchanged(value) for value in getattr(layer, store)]
        tracked = getattr(new, store)
        for value in values:
            if not any(value is each for each in tracked):
                new._tracker.add_to_store(store.removeprefix("_"), value)
        places = {id(value): place for place, value in enumerate(values)}
        tracked.sort(key=lambda value: places.get(id(value), len(places)))
    return new


def take_after(graph, model, exchanged):
    """Give a graph that was made anew the class of a model, and the attributes that it lacks.

    Keras makes a plain model of one whose class has a constructor of its own, and calls no other.

    Args:
        graph: from `clone_model`.
        model: the graph it was made from.
        exchanged: a function that returns what an attribute's value becomes.
    """
    graph.__class__ = type(model)
    graph._trainable = model._trainable  # of it alone: `trainable` would be that of all its layers
    graph.dtype_policy = model.dtype_policy  # the global one may be another by now, and the loss scale hangs on it
    for name, value in own_attributes(model).items():
        if name not in vars(graph):
            setattr(graph, name, exchanged(value))
