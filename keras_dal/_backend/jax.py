"""JAX."""

import contextlib
import functools
import warnings
from typing import Any

import jax
import keras
import numpy as np

from keras_dal import _keras
from keras_dal._backend import _shared
from keras_dal.output.warning import warn

COMPILES_SHAPES = True  # each operation, for each shape of its arguments: about 0.25 s on a GPU
COMPILED_MAY_ASSIGN = False
WORTH_AN_ACCELERATOR = 5e10  # operations of a product: a solver makes a hundred, and compiles for 15 s
_SELECTED = 2**22  # entries of a sum that an accelerator adds up in every step, whether they count or not


def statistics_dtype():
    """Return the widest float dtype in which sums can be kept inside a training step."""
    return jax.dtypes.canonicalize_dtype("float64").name


def product(left, right):
    """Return the product of two matrices in their own dtype: that of Keras is float32 where they are float64."""
    return jax.numpy.matmul(left, right)


def make_train_function(model):
    """Let a model trace its training step anew, of a function of its own.

    JAX takes a method for the same one that it has traced, for as long as anything holds that.
    """
    own, step = vars(model).get("train_step"), model.train_step
    vars(model)["train_step"] = functools.wraps(step)(lambda *args: step(*args))
    try:
        model.make_train_function(force=True)
    finally:
        vars(model).pop("train_step")
        vars(model).update({} if own is None else {"train_step": own})


def applies_whole(optimizer):
    """Return whether `apply` hands the optimizer all its variables, whichever are to be changed."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def apply(optimizer, gradients, variables):
    """Let an optimizer take a step for some of the variables it was built with."""
    if not applies_whole(optimizer):
        optimizer.apply(gradients, trainable_variables=variables)
        return
    # its `apply` assigns in a branch, which JAX forbids, and its stateless one takes all variables
    of_variable = {id(v): gradient for v, gradient in zip(variables, gradients, strict=True)}
    everything = _keras.optimized(optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist")
        applied: Any = optimizer.stateless_apply(
            [v.value for v in optimizer.variables],
            [of_variable.get(id(v)) for v in everything],
            [v.value for v in everything],
        )
    for variable, value in zip(everything, applied[0], strict=True):
        if id(variable) in of_variable:
            variable.assign(value)
    for variable, value in zip(optimizer.variables, applied[1], strict=True):
        variable.assign(value)


def add_where_set(flag, variables, function):
    """Add what a function returns to variables, in the steps in which a scalar tensor is not zero."""
    before, is_set = [variable.value for variable in variables], flag.value > 0

    def added():
        return [value + addend for value, addend in zip(before, function(), strict=True)]

    if has_accelerator() and sum(value.size for value in before) <= _SELECTED:
        # there a branch waits until the host has seen the flag
        values = [jax.numpy.where(is_set, new, old) for new, old in zip(added(), before, strict=True)]
    else:
        values = jax.lax.cond(is_set, added, lambda: before)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def where_set(flag, function):
    """Call a function that changes no variable where the flag is 0: a branch of JAX cannot assign."""
    function()


def has_accelerator():
    """Return whether arrays lie on something faster than the host."""
    return jax.default_backend() != "cpu"


def full_precision():
    """Return a context in which products of float32 matrices are not rounded to fewer bits."""
    return jax.default_matmul_precision("highest")


def is_chief(model):
    """Return whether this process, of all that train the model, is the one that speaks."""
    return jax.process_index() == 0


def refuse(error, variables):
    """Raise an error; only warn where `fit` has taken the variables' values, which an exception would lose."""
    if not any(map(_keras.is_taken, variables)):
        raise error
    lost = "Training goes on, as a step that raises on JAX loses the model's weights"
    warn(f"{lost}. {error}, {variables[0].path}")  # by name: Python shows a text once


def check_in_step(failed, message):
    """Do nothing: a compiled function of JAX cannot raise."""


def reading(model, take, logs):
    """Return a train function that trains nothing: it gives batches to `take`, and returns `logs` itself."""

    def function(state, iterator):
        take(_own(next(iterator)))
        with contextlib.suppress(*_shared.END_OF_DATA):
            for _ in range(model.steps_per_execution - 1):
                take(_own(next(iterator)))
        return logs, state

    return function


def _own(batch):
    """Return a batch whose arrays the user's generator cannot write into while it waits."""
    return jax.tree.map(lambda part: part.copy() if isinstance(part, np.ndarray) else part, batch)


def logs_of(returned):
    """Return the logs in what a train function returns."""
    return returned[0]


def over_replicas(function, model):
    """Return a function of one batch as `fit` gets it: arrays whose rows are those of all devices.

    Args:
        function: from a batch to arrays of which each row belongs to a sample, or to a replica.
        model: the model it reads.
    """
    run = compiled(function, model)
    return lambda data: jax.tree.map(np.asarray, run(data))


def leaves_variables(model):
    """Return whether functions made by `over_replicas` leave the variables of a model as they are."""
    return not model.run_eagerly


def test_step(model, batch):
    """Run the model's own `test_step` for a batch; what it makes of the state is dropped."""
    state = model.trainable_variables, model.non_trainable_variables, model.metrics_variables
    model.test_step(tuple([variable.value for variable in variables] for variables in state), batch)


def reattach(model, state, iterator):
    """Give the model its variables back, whose values `fit` has handed to its train function."""
    _keras.reattach(model, state)


def _arrays(x):
    """Return a batch as compiled functions take it: without tensors of other backends or data frames."""
    own = (np.ndarray, jax.Array)

    def array(part):
        foreign = hasattr(part, "numpy") or hasattr(part, "__array__")  # a variable of Keras has the first only
        return np.asarray(part) if foreign and not isinstance(part, own) else part

    return jax.tree.map(array, x)


def compiled(function, model):
    """Return a function of one batch of inputs, compiled like the model; it reads its variables at every call."""
    if model.run_eagerly:
        return lambda x: function(_arrays(x))
    call, variables = jax.jit(_shared.stateless(function, model.variables)), model.variables
    return lambda x: call([variable.value for variable in variables], _arrays(x))


def as_computed(tensor):
    """Return a tensor that is one value for all who use it: XLA keeps more digits of half precision for some."""
    if not isinstance(tensor, jax.Array):
        return tensor
    kept = jax.lax.optimization_barrier(tensor)
    _keras.set_mask(kept, _keras.mask_of(tensor))
    return kept


def in_one(function, model, changing=()):
    """Return a function of a batch that is one program where every operation would be compiled by itself.

    What cannot be traced, as layers that compute on the host, runs operation by operation; so does every function of a
    model that does so in `fit`.

    Args:
        function: of a batch; it may assign to variables.
        model: the model whose variables it reads.
        changing: variables that it assigns to, beside those of the model that are not trained.
    """
    fixed, changing = model.trainable_variables, [*model.non_trainable_variables, *changing]
    traced = _is_traced(model)

    @jax.jit
    def call(fixed_values, values, x):
        state = zip([*fixed, *changing], [*fixed_values, *values], strict=True)
        with keras.StatelessScope(state_mapping=list(state)) as scope:
            returned = function(x)
        if len(scope.state_mapping) > len(fixed) + len(changing):
            raise RuntimeError("A variable of another owner would stay what it is.")  # and is assigned to below
        return returned, [scope.get_current_value(variable) for variable in changing]

    def run(x):
        nonlocal traced
        if traced:
            try:
                values = [v.value for v in fixed], [v.value for v in changing]
                returned, values = jax.block_until_ready(call(*values, _arrays(x)))
            except Exception:  # of whatever kind: where the fault is not the tracing, it is raised again below
                traced = False
            else:
                for variable, value in zip(changing, values, strict=True):  # seeds of random layers among them
                    variable.assign(value)
                return returned
        return function(x)

    return run


def shapes_of(function, model, x):
    """Return what a function of a batch returns, or what has the same shapes and dtypes, without computing it."""
    if not _is_traced(model):
        return function(x)
    values = [variable.value for variable in model.variables]
    try:
        return jax.eval_shape(_shared.stateless(function, model.variables), values, _arrays(x))
    except Exception:  # as in `in_one`
        return function(x)


def _is_traced(model):
    """Return whether `fit` traces the steps of a model."""
    return not model.run_eagerly and bool(getattr(model, "jit_compile", True))


def jvp(function, variables):
    """Return `(x, tangents) -> J v` for a function of inputs that reads variables."""
    call = _shared.stateless(function, variables)
    product = jax.jit(lambda values, x, tangents: jax.jvp(lambda v: call(v, x), (values,), (tangents,))[1])
    return lambda x, tangents: product([variable.value for variable in variables], _arrays(x), tangents)


def vjp(function, variables):
    """Return `(x, cotangent) -> J' u` for a function of inputs that reads variables."""
    call = _shared.stateless(function, variables)
    product = jax.jit(lambda values, x, cotangent: jax.vjp(lambda v: call(v, x), values)[1](cotangent)[0])
    return lambda x, cotangent: product([variable.value for variable in variables], _arrays(x), cotangent)
