"""Calibration: does a network know how often it is right, and its last layer when it is solved again?

python examples/recipes/calibration.py

The usual way is one temperature, by which logits are divided (Guo et al., "On calibration of modern neural networks",
2017). A last layer that is solved on images that were kept back could do the same, and more; here it does less.
"""

import time

import numpy as np
from common import copy_of, show, some, trained
from scipy import optimize, special

import keras_dal

KEPT = 6  # one of so many training images is kept back


def log_loss(logits, y):
    return -np.mean(special.log_softmax(logits, axis=1)[np.arange(len(y)), y])


def calibration_error(logits, y, bins=15):
    """Return the mean distance of confidence and accuracy, over bins of the same number of samples."""
    confidence, right = special.softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == y
    parts = np.array_split(np.argsort(confidence), bins)
    return sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts) / len(y)


def measured(logits, y, seconds):
    return {
        "accuracy, %": 100 * np.mean(logits.argmax(axis=1) == y),
        "log loss": log_loss(logits, y),
        "calibration error, %": 100 * calibration_error(logits, y),
        "seconds": seconds,
    }


def run(seed=0, num_train=6000, epochs=20):
    """Return accuracy, log loss and calibration error on test images, and the seconds of each way."""
    _, (x, y), (seen, answers) = some(num_train, seed)
    few = len(x) // KEPT
    kept, labels, x, y = x[:few], y[:few], x[few:], y[few:]
    model = trained(x, y, 10, epochs, seed)

    def logits_of(model, x):
        return model.predict(x, batch_size=500, verbose=0).astype(np.float64)

    rows = {"as it was trained": measured(logits_of(model, seen), answers, 0.0)}
    start = time.perf_counter()
    held_back = logits_of(model, kept)
    scale = optimize.minimize_scalar(lambda s: log_loss(s * held_back, labels), bounds=(0.01, 100), method="bounded").x
    seconds = time.perf_counter() - start
    rows["one temperature, images kept back"] = measured(scale * logits_of(model, seen), answers, seconds)
    for name, data in {"training images": (x, y), "images kept back": (kept, labels)}.items():
        ours, start = copy_of(model), time.perf_counter()
        keras_dal.finish(ours, *data, verbose=0)
        seconds = time.perf_counter() - start
        rows[f"keras_dal.finish, {name}"] = measured(logits_of(ours, seen), answers, seconds)
    return rows


if __name__ == "__main__":
    show("How well confidence says what is right", run())
