"""The few lines that differ between the Keras backends: what each has in a module of its own, and what is shared."""

import importlib

import keras

from keras_dal._backend import _shared

_own = importlib.import_module(f"keras_dal._backend.{keras.backend.backend()}")


def _of(name):
    return getattr(_own if hasattr(_own, name) else _shared, name)


COMPILED_HIDES_NAN = _of("COMPILED_HIDES_NAN")
COMPILED_MAY_ASSIGN = _of("COMPILED_MAY_ASSIGN")
COMPILES_SHAPES = _of("COMPILES_SHAPES")
END_OF_DATA = _of("END_OF_DATA")
WORTH_AN_ACCELERATOR = _of("WORTH_AN_ACCELERATOR")
add_where_set = _of("add_where_set")
apply = _of("apply")
applies_whole = _of("applies_whole")
as_computed = _of("as_computed")
buffers = _of("buffers")
buffers_kept = _of("buffers_kept")
build = _of("build")
build_metrics = _of("build_metrics")
check_in_step = _of("check_in_step")
compiled = _of("compiled")
full_precision = _of("full_precision")
has_accelerator = _of("has_accelerator")
in_one = _of("in_one")
in_replica = _of("in_replica")
is_chief = _of("is_chief")
jvp = _of("jvp")
leaves_variables = _of("leaves_variables")
logs_of = _of("logs_of")
make_train_function = _of("make_train_function")
over_replicas = _of("over_replicas")
product = _of("product")
reading = _of("reading")
reattach = _of("reattach")
refuse = _of("refuse")
shapes_of = _of("shapes_of")
statistics_dtype = _of("statistics_dtype")
test_step = _of("test_step")
training_scope = _of("training_scope")
vjp = _of("vjp")
where_set = _of("where_set")
without_gradients = _of("without_gradients")
