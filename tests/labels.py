"""Labels `(n, c)` of every kind, the same at every call."""

import numpy as np


def one_hot(n, c, seed=1):
    return np.eye(c)[np.random.default_rng(seed).integers(0, c, n)]


def mixed(n, c):
    """Return two classes a row, as mixup makes them, and zeros elsewhere."""
    share = np.random.default_rng(2).uniform(0.1, 0.9, (n, 1))
    return share * one_hot(n, c) + (1 - share) * np.roll(one_hot(n, c), 1, axis=1)


def full(n, c):
    """Return probabilities of all classes."""
    return np.random.default_rng(3).dirichlet(np.ones(c), n)
