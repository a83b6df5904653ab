"""A new class: the last layer gets one more output, and is solved on the features of old and new images.

python examples/recipes/new_class.py
"""

import time

import keras
import numpy as np
from common import LOSS, freeze_and_fit, predicted, show, some, trained

import keras_dal

NEW = 9  # the class that the network has not seen
RIDGE = 1e-4  # a small weight of the change: the new output has to change much


def widened(model):
    """Return the model with one output more, whose weights are zero."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    head = copy.layers[-1]
    wider = keras.layers.Dense(head.units + 1, name="wider")
    network = keras.Model(copy.input, wider(head.input))
    wider.set_weights([np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, 1)]) for weights in head.get_weights()])
    network.compile("sgd", LOSS, metrics=["accuracy"])
    return network


def accuracies(model, x, y):
    right = predicted(model, x) == y
    return {"old classes, %": 100 * right[y != NEW].mean(), "new class, %": 100 * right[y == NEW].mean()}


def run(seed=0, num_train=3000, epochs=20):
    """Return accuracies and seconds of each way, and those of a network that saw all classes from the start."""
    _, (x, y), test = some(num_train, seed)
    old = y != NEW
    model = trained(x[old], y[old], 9, epochs, seed)
    rows = {"before": {**accuracies(widened(model), *test), "seconds": 0.0}}
    usual = widened(model)
    seconds = freeze_and_fit(usual, x, y, 10)
    rows["freeze and fit, 10 epochs"] = {**accuracies(usual, *test), "seconds": seconds}
    ours, start = widened(model), time.perf_counter()
    keras_dal.finish(ours, x, y, verbose=0)
    seconds = time.perf_counter() - start
    rows["keras_dal.finish"] = {**accuracies(ours, *test), "seconds": seconds}
    free, start = widened(model), time.perf_counter()
    keras_dal.converge(free, x, y, ridge=RIDGE, verbose=0)
    seconds = time.perf_counter() - start
    rows[f"keras_dal.converge, ridge {RIDGE:g}"] = {**accuracies(free, *test), "seconds": seconds}
    start = time.perf_counter()
    everything = trained(x, y, 10, epochs, seed)
    seconds = time.perf_counter() - start
    rows["trained anew on all classes"] = {**accuracies(everything, *test), "seconds": seconds}
    return rows


if __name__ == "__main__":
    show("A tenth class for a network of nine", run())
