"""A small image model with everything that must stop at the switch, and data to train it on."""

import re

import keras
import numpy as np
from keras import layers

import keras_dal

NUM_CLASSES = 3


def images(n=96, seed=0):
    """Return `(x, y)`: noise of shape `(n, 8, 8, 2)` with a class-dependent stripe."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, NUM_CLASSES, n)
    x = generator.standard_normal((n, 8, 8, 2)).astype("float32")
    x[np.arange(n), 2 * y] += 1.0
    return x, y


def small_model(seed=0, dropout=0.3, **head):
    """Return a residual network with batch normalization, dropout and a linear head named `logits`."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 2))
    x = shortcut = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Add()([x, shortcut])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES, name="logits", dtype="float32", **head)(x))


def compiled(optimizer, model=None, **options):
    """Return the model, `small_model` unless given, compiled for cross-entropy on logits."""
    model = small_model() if model is None else model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], **options)
    return model


def fit(model, epochs, callbacks=None, **options):
    """Train from a fixed seed with the monitor and any other callbacks, and return the history."""
    keras.utils.set_random_seed(1)
    x, y = images()
    callbacks = [keras_dal.AlignmentMonitor(verbose=False)] if callbacks is None else callbacks
    options = {"batch_size": 16, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=callbacks, **options).history


def features_of(model, x):
    """Return the head's inputs in inference mode, from a model of their own."""
    return keras.Model(model.inputs, model.get_layer("logits").input).predict(x, verbose=0).astype(np.float64)


def snapshot(model):
    """Return copies of all of the model's variables by path, less the number that Keras gives to seed generators."""
    return {re.sub(r"_\d+/", "/", v.path): np.array(keras.ops.convert_to_numpy(v)) for v in model.variables}


def moved(before, after):
    """Return the paths of the variables that changed by at least one bit."""
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


class Snapshots(keras.callbacks.Callback):
    """Keeps all variables of the model at the beginning of every epoch, after the monitor, and at the end."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def on_epoch_begin(self, epoch, logs=None):
        self.taken.append(snapshot(self.model))

    def on_train_end(self, logs=None):
        self.taken.append(snapshot(self.model))


class StopsReading(keras.callbacks.Callback):
    """Stops training at the second batch of the epoch that reads the data."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = (logs or {}).get("phase") == 1 and batch == 1
