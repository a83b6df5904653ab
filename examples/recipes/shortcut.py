"""A shortcut: the last layer is solved on a few images in which a misleading mark says nothing.

python examples/recipes/shortcut.py

Networks that rely on a spurious mark have learned other features too, and a last layer on a small balanced set uses
them (Kirichenko, Izmailov and Wilson, "Last layer re-training is sufficient for robustness to spurious correlations",
2023).
"""

import time

import numpy as np
from common import copy_of, freeze_and_fit, predicted, show, some, trained

import keras_dal

AGREES = 0.95  # share of the training images whose mark gives the label away
KEPT = 6  # of so many training images one is kept for the last layer, with a mark that says nothing
RIDGE = 1e-4  # a small weight of the change


def marked(x, marks):
    """Return images with a bright spot at the top, in one of ten places, of which 8 pixels in a row have only eight."""
    x, (height, width) = x.copy(), x.shape[1:3]
    for image, mark in zip(x, marks, strict=True):
        start = mark * width // 10
        image[: height // 8, start : start + max(1, width // 10)] = 1.0
    return x


def misleading(x, y, share, generator):
    """Return images whose mark is that of the label for this share of them, and one of the others for the rest."""
    marks = np.where(generator.random(len(y)) < share, y, (y + generator.integers(1, 10, len(y))) % 10)
    return marked(x, marks)


def run(seed=0, num_train=6000, epochs=20):
    """Return accuracies and seconds of each way."""
    generator = np.random.default_rng(seed)
    _, (x, y), (seen, answers) = some(num_train, seed)
    few = len(x) // KEPT
    kept, labels = misleading(x[:few], y[:few], 0.1, generator), y[:few]
    x, y = misleading(x[few:], y[few:], AGREES, generator), y[few:]
    tests = {"mark agrees, %": marked(seen, answers), "mark misleads, %": misleading(seen, answers, 0, generator)}

    def accuracies(model):
        return {name: 100 * np.mean(predicted(model, images) == answers) for name, images in tests.items()}

    model = trained(x, y, 10, epochs, seed)
    rows = {"as it was trained": {**accuracies(model), "seconds": 0.0}}
    usual = copy_of(model)
    seconds = freeze_and_fit(usual, kept, labels, 10)
    rows["freeze and fit, 10 epochs"] = {**accuracies(usual), "seconds": seconds}
    ours, start = copy_of(model), time.perf_counter()
    keras_dal.converge(ours, kept, labels, ridge=RIDGE, verbose=0)
    seconds = time.perf_counter() - start
    rows[f"keras_dal.converge, ridge {RIDGE:g}"] = {**accuracies(ours), "seconds": seconds}
    start = time.perf_counter()
    everything = trained(np.concatenate([x, kept]), np.concatenate([y, labels]), 10, epochs, seed)
    seconds = time.perf_counter() - start
    rows["trained anew on all images"] = {**accuracies(everything), "seconds": seconds}
    return rows


if __name__ == "__main__":
    show(f"A mark that gives {AGREES:.0%} of the labels away", run())
