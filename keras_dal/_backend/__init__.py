"""The few lines that differ between the Keras backends, one module each with the same functions."""

import importlib

import keras

_module = importlib.import_module(f"keras_dal._backend.{keras.backend.backend()}")

END_OF_DATA = _module.END_OF_DATA
compiled = _module.compiled
full_precision = _module.full_precision
has_accelerator = _module.has_accelerator
is_chief = _module.is_chief
jvp = _module.jvp
statistics_dtype = _module.statistics_dtype
training_scope = _module.training_scope
without_gradients = _module.without_gradients
vjp = _module.vjp
