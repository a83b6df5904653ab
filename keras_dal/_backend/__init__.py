"""The few lines that differ between the Keras backends, one module each with the same functions."""

import importlib

import keras

_module = importlib.import_module(f"keras_dal._backend.{keras.backend.backend()}")

COMPILES_SHAPES = _module.COMPILES_SHAPES
END_OF_DATA = _module.END_OF_DATA
WORTH_AN_ACCELERATOR = _module.WORTH_AN_ACCELERATOR
add_where_set = _module.add_where_set
apply = _module.apply
applies_whole = _module.applies_whole
as_computed = _module.as_computed
build = _module.build
check_in_step = _module.check_in_step
compiled = _module.compiled
full_precision = _module.full_precision
has_accelerator = _module.has_accelerator
in_one = _module.in_one
in_replica = _module.in_replica
is_chief = _module.is_chief
jvp = _module.jvp
leaves_variables = _module.leaves_variables
logs_of = _module.logs_of
over_replicas = _module.over_replicas
product = _module.product
reading = _module.reading
reattach = _module.reattach
shapes_of = _module.shapes_of
statistics_dtype = _module.statistics_dtype
test_step = _module.test_step
training_scope = _module.training_scope
vjp = _module.vjp
where_set = _module.where_set
without_gradients = _module.without_gradients
