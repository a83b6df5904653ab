"""Long tails: the last layer is solved again, with every class counting the same.

python examples/recipes/long_tail.py

Features learned from imbalanced classes are good; what is biased is the last layer (Kang et al., "Decoupling
representation and classifier for long-tailed recognition", 2020).
"""

import time

import numpy as np
from common import copy_of, freeze_and_fit, predicted, show, some, trained

import keras_dal

IMBALANCE = 50  # images of the most frequent class for each of the rarest
RIDGE = 1e-4  # a small weight of the change, beside the 1e-2 of `finish`


def tail(x, y, seed):
    """Return images whose classes are ever rarer, exponentially."""
    most, keep = np.bincount(y).min(), []
    for label in range(10):
        number = round(most * IMBALANCE ** (-label / 9))
        keep.append(np.random.default_rng([seed, label]).permutation(np.flatnonzero(y == label))[:number])
    keep = np.concatenate(keep)
    return x[keep], y[keep]


def accuracies(model, x, y):
    right, counts = predicted(model, x) == y, [y == label for label in range(10)]
    by_class = [100 * right[of_class].mean() for of_class in counts]
    return {"all classes, %": np.mean(by_class), "three rarest, %": np.mean(by_class[-3:])}


def run(seed=0, num_train=12_000, epochs=20):
    """Return accuracies and seconds of each way."""
    _, train, test = some(num_train, seed)
    x, y = tail(*train, seed)
    counts = np.bincount(y, minlength=10)
    balanced = len(y) / (10 * counts)
    model = trained(x, y, 10, epochs, seed)
    rows = {"as it was trained": {**accuracies(model, *test), "seconds": 0.0}}
    usual = copy_of(model)
    seconds = freeze_and_fit(usual, x, y, 10, class_weight=dict(enumerate(balanced)))
    rows["freeze and fit, balanced, 10 epochs"] = {**accuracies(usual, *test), "seconds": seconds}
    ours, start = copy_of(model), time.perf_counter()
    keras_dal.finish(ours, x, y, balanced[y], verbose=0)
    seconds = time.perf_counter() - start
    rows["keras_dal.finish, balanced"] = {**accuracies(ours, *test), "seconds": seconds}
    free, start = copy_of(model), time.perf_counter()
    keras_dal.converge(free, x, y, balanced[y], ridge=RIDGE, verbose=0)
    seconds = time.perf_counter() - start
    rows[f"keras_dal.converge, ridge {RIDGE:g}, balanced"] = {**accuracies(free, *test), "seconds": seconds}
    return rows


if __name__ == "__main__":
    show(f"Classes {IMBALANCE} to 1", run())
