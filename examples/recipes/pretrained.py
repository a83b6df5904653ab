"""A pretrained backbone: a new last layer for other classes is solved on its features.

python examples/recipes/pretrained.py

The backbone here has learned half of the classes; the task is the other half, with few images of each.
"""

import time

import keras
import numpy as np
from common import LOSS, copy_of, fine_tune, freeze_and_fit, predicted, show, some, trained
from sklearn.linear_model import LogisticRegression

import keras_dal

NUM_CLASSES = 5  # known to the backbone, and as many new ones
RIDGE = 1e-3  # a small weight of the change: the new last layer begins at zero, and that is worth nothing


def with_new_head(backbone):
    """Return a copy of the trained network with a last layer of zeros in place of its own."""
    copy = copy_of(backbone)
    head = keras.layers.Dense(NUM_CLASSES, kernel_initializer="zeros", name="new_logits")
    network = keras.Model(copy.input, head(copy.layers[-1].input))
    network.compile("sgd", LOSS, metrics=["accuracy"])
    return network


def run(seed=0, num_train=8000, num_new=1000, epochs=20):
    """Return accuracies on new classes, and seconds beyond the backbone's own training."""
    _, (x, y), (x_test, y_test) = some(num_train, seed)
    known, test = y < NUM_CLASSES, y_test >= NUM_CLASSES
    backbone = trained(x[known], y[known], NUM_CLASSES, epochs, seed)
    new = np.flatnonzero(~known)[:num_new]
    x, y, x_test, y_test = x[new], y[new] - NUM_CLASSES, x_test[test], y_test[test] - NUM_CLASSES
    rows = {}

    def add(way, labels, seconds):
        rows[way] = {"new classes, %": 100 * np.mean(labels == y_test), "seconds": seconds}

    for more in (10, 50):
        usual = with_new_head(backbone)
        seconds = freeze_and_fit(usual, x, y, more)
        add(f"freeze and fit, {more} epochs", predicted(usual, x_test), seconds)
    start = time.perf_counter()
    features = keras.Model(backbone.input, backbone.layers[-1].input)
    linear = LogisticRegression(max_iter=1000).fit(features.predict(x, batch_size=500, verbose=0), y)
    seconds = time.perf_counter() - start
    labels = linear.predict(features.predict(x_test, batch_size=500, verbose=0))
    add("scikit-learn's LogisticRegression", labels, seconds)
    ours = with_new_head(backbone)
    start = time.perf_counter()
    keras_dal.converge(ours, x, y, ridge=RIDGE, verbose=0)
    seconds = time.perf_counter() - start
    add(f"keras_dal.converge, ridge {RIDGE:g}", predicted(ours, x_test), seconds)
    seconds += fine_tune(ours, x, y, epochs)
    add(f"converge, then all layers, {epochs} epochs", predicted(ours, x_test), seconds)
    start = time.perf_counter()
    anew = trained(x, y, NUM_CLASSES, epochs, seed)
    seconds = time.perf_counter() - start
    add(f"all layers from the start, {epochs} epochs", predicted(anew, x_test), seconds)
    return rows


if __name__ == "__main__":
    show("Five new classes for a network of five others", run())
