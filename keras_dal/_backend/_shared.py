"""What a backend does that has no function of the same name itself: one that runs operation by operation."""

import contextlib

import keras

COMPILES_SHAPES = False
COMPILED_HIDES_NAN = False  # whether what `compiled` returns may make finite numbers of NaN, by units that are fused
COMPILED_MAY_ASSIGN = True  # whether what `compiled` returns changes variables that the function assigns to
WORTH_AN_ACCELERATOR = 1e8  # operations of a product, beside which launching it is little
END_OF_DATA = (StopIteration,)  # how a train function says that the epoch is over


def training_scope(model):
    """Return the context in which variables for the model's training step are made."""
    return contextlib.nullcontext()


def build(model, *arguments):
    """Build a model for the inputs that the arguments of a train function will bring; here `fit` has done so."""


def make_train_function(model):
    """Let a model trace its training step anew."""
    model.make_train_function(force=True)


def applies_whole(optimizer):
    """Return whether `apply` hands the optimizer all its variables, whichever are to be changed."""
    return False


def apply(optimizer, gradients, variables):
    """Let an optimizer take a step for some of the variables it was built with."""
    optimizer.apply(gradients, trainable_variables=variables)


def refuse(error, variables):
    """Raise an error in a step that would change these variables."""
    raise error


def adding(where_set):
    """Return the `add_where_set` of a backend whose `where_set` can assign."""

    def add_where_set(flag, variables, function):
        """Add what a function returns to variables, in the steps in which a scalar tensor is not zero."""

        def add():
            for variable, addend in zip(variables, function(), strict=True):
                variable.assign_add(addend)

        where_set(flag, add)

    return add_where_set


def test_step(model, batch):
    """Run the model's own `test_step` for a batch, of a replica."""
    model.test_step(batch)


def reattach(model, *arguments):
    """Give the model the variables back that a train function was handed; here it has them in its steps, too."""


def without_gradients(variables):
    """Return a context in which no gradients are computed for these variables; a compiler drops unused ones itself."""
    return contextlib.nullcontext()


def in_replica(function, model, *arguments):
    """Return what a function returns, run as the model's steps are."""
    return function(*arguments)


def build_metrics(model, *arguments):
    """Leave metrics to Keras, which makes their variables before the first step."""


def buffers(layers):
    """Return what modules inside layers keep beside parameters, with its name: only PyTorch has such modules."""
    return []


def buffers_kept(layers):
    """Return a context after which these are what they were before it."""
    return contextlib.nullcontext()


def leaves_variables(model):
    """Return whether functions made by `over_replicas` leave the variables of a model as they are."""
    return False


def in_one(function, model, changing=()):
    """Return the function as it is: what runs operation by operation compiles nothing."""
    return function


def shapes_of(function, model, x):
    """Return what a function of a batch returns."""
    return function(x)


def as_computed(tensor):
    """Return a tensor as it is."""
    return tensor


def logs_of(returned):
    """Return the logs in what a train function returns."""
    return returned


def stateless(function, variables):
    """Return `(values, x) -> function(x)` with the variables replaced by values."""

    def call(values, x):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(x)

    return call
