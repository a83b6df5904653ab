"""A backbone that has seen ImageNet: a new last layer for CIFAR-10 is solved on its features.

TFDS_DATA_DIR=DIR python examples/recipes/imagenet.py

The backbone is `keras.applications.MobileNet` of a quarter of the width; Keras downloads its weights, 2 MB. DIR holds
CIFAR-10 as tensorflow-datasets prepares it; it is `~/tensorflow_datasets` where it is not given.
"""

import time

import keras
import numpy as np
from common import BATCH, LOSS, fine_tune, freeze_and_fit, predicted, show
from data import load
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keras_dal

SIDE = 96  # pixels to which images are enlarged; the backbone has seen 224
RIDGE = 1e-3  # a small weight of the change: the new last layer begins at zero, and that is worth nothing


def cifar10(num_train, seed):
    """Return `(train, test)`, each `(x, y)` with pixels in 0 ... 255: some training images, all test images."""
    train, test, _ = load("cifar10")
    chosen = np.random.default_rng(seed).permutation(len(train))[:num_train]
    return (train.x[chosen], train.y[chosen]), (test.x, test.y)


def backbone(shape, weights):
    """Return images of 0 ... 255 in, features `(n, 256)` out, frozen."""
    images = keras.Input(shape)
    enlarged = keras.layers.Rescaling(1 / 127.5, -1)(keras.layers.Resizing(SIDE, SIDE)(images))
    shape = (SIDE, SIDE, shape[-1])
    network = keras.applications.MobileNet(shape, alpha=0.25, include_top=False, weights=weights, pooling="avg")
    network.trainable = False
    return keras.Model(images, network(enlarged))


def classifier(features, num_classes):
    """Return a backbone with a last layer of zeros, compiled."""
    head = keras.layers.Dense(num_classes, kernel_initializer="zeros", name="logits")
    model = keras.Sequential([features, head])
    model.compile("sgd", LOSS, metrics=["accuracy"])
    return model


def computed(features, x):
    return features.predict(x, batch_size=500, verbose=0)


def run(seed=0, images=None, num_train=5000, epochs=10, weights="imagenet"):
    """Return accuracies on the test images, and the seconds that each way takes, without reading images."""
    (x, y), (x_test, y_test) = images or cifar10(num_train, seed)
    keras.utils.set_random_seed(seed)
    num_classes, features, rows = int(y.max()) + 1, backbone(x.shape[1:], weights), {}
    of_test = computed(features, x_test)

    def add(way, labels, seconds):
        rows[way] = {"test accuracy, %": 100 * np.mean(labels == y_test), "seconds": seconds}

    usual = classifier(features, num_classes)
    seconds = freeze_and_fit(usual, x, y, epochs)
    add(f"freeze and fit, {epochs} epochs", predicted(usual, x_test), seconds)
    start = time.perf_counter()
    head = keras.Sequential([keras.layers.Dense(num_classes, kernel_initializer="zeros")])
    head.compile("adam", LOSS)
    head.fit(computed(features, x), y, batch_size=BATCH, epochs=10 * epochs, verbose=0)
    seconds = time.perf_counter() - start
    add(f"Adam on computed features, {10 * epochs} epochs", predicted(head, of_test), seconds)
    start = time.perf_counter()
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(computed(features, x), y)
    seconds = time.perf_counter() - start
    add("scikit-learn's LogisticRegression", linear.predict(of_test), seconds)
    ours = classifier(features, num_classes)
    start = time.perf_counter()
    keras_dal.converge(ours, x, y, ridge=RIDGE, verbose=0)
    seconds = time.perf_counter() - start
    add(f"keras_dal.converge, ridge {RIDGE:g}", predicted(ours, x_test), seconds)
    seconds += fine_tune(ours, x, y, epochs)
    add(f"converge, then all layers, {epochs} epochs", predicted(ours, x_test), seconds)
    at_once = classifier(backbone(x.shape[1:], weights), num_classes)
    seconds = fine_tune(at_once, x, y, epochs)
    add(f"all layers at once, {epochs} epochs", predicted(at_once, x_test), seconds)
    return rows


if __name__ == "__main__":
    show("CIFAR-10 for a MobileNet that has seen ImageNet", run())
