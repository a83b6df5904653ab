"""Norms of columns, and upper bounds of spectral norms that stay bounds in float64."""

import numpy as np
from scipy import linalg

from keras_dal._backend.arrays import EPS

SAFETY = 1 + 1e-10  # the rounding of an eigenvalue routine, generously: an upper bound must stay one


def sigma_max_bound(matrix, num_rows=None):
    """Return an upper bound of sigma_max, close to it; `num_rows` counts those that the matrix stands for."""
    largest = nonzero(np.max(np.abs(matrix), initial=0.0))
    scaled = matrix / largest
    gram = scaled.T @ scaled if scaled.shape[0] > scaled.shape[1] else scaled @ scaled.T
    return float(largest * sigma_max_bound_of_gram(gram, max(num_rows or 0, *matrix.shape)))


def sigma_max_bound_of_gram(gram, num_terms=1, eps=EPS):
    """Return an upper bound of the root, close to it, where every entry is a sum of `num_terms` rounded products."""
    last = len(gram) - 1
    largest = max(linalg.eigvalsh(gram, subset_by_index=(last, last))[0], 0.0)
    return np.sqrt(largest + eps * (num_terms + len(gram)) * np.trace(gram)) * SAFETY


def column_norms(matrix):
    """Return the norms of columns, with no square that overflows or vanishes."""
    largest = np.max(np.abs(matrix), axis=0, initial=0.0)
    return largest * np.sqrt(np.sum((matrix / nonzero(largest)) ** 2, axis=0))


def nonzero(scale):
    """Return scales to divide by, 1 for what is zero."""
    return np.where(scale > 0, scale, 1.0)
