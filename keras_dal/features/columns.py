"""How many columns of features are independent: constant, dead and repeated ones add nothing to the others."""

import numpy as np
from scipy import linalg

from keras_dal._backend import arrays
from keras_dal._backend.arrays import EPS
from keras_dal.features.samples import some_rows

_ROWS = 4  # samples that are looked at, for each column
_BLOCK = 1024  # of them at a time
_WIDEST = 2048  # columns up to which eigenvalues are computed, in seconds
_COARSE = 1e-3  # rounding of a column beside an offset, above which it is a constant
_SAFETY = 8  # rounding moves what it moves by a few of its units
_SINGLE = float(np.finfo(np.float32).eps)  # in which features are kept, whatever they were computed in


def num_independent(features):
    """Return the rank of features about their means, from some of the samples, in the scale of each column.

    Args:
        features: `(n, m)`.

    Returns:
        A number of columns, at least 1; m where there are no more samples than columns, which are then too few to tell,
        or where there are more than 2,048 columns. What varies, but not in those samples, counts as independent.
    """
    size, width = features.shape
    if size <= width + 1 or width > _WIDEST:
        return width
    chosen = some_rows(size, _ROWS * (width + 1))
    gram, squares = _moments(features, chosen)
    norms = np.sqrt(np.diag(gram))
    rounding = _SINGLE * np.sqrt(squares) / np.where(norms > 0, norms, np.inf)  # of a column, in its own scale
    varies = (norms > 0) & (rounding < _COARSE)
    rare = np.sum((norms == 0) & (features.max(axis=0) > features.min(axis=0)))
    scaled = gram[np.ix_(varies, varies)] / np.outer(norms[varies], norms[varies])
    values = linalg.eigvalsh(scaled, check_finite=False) if varies.any() else np.zeros(1)
    noise = np.sum(rounding[varies] ** 2) + width * EPS * values[-1]
    return max(1, int(np.sum(values > _SAFETY * noise) + rare))


def _moments(features, chosen):
    """Return the second moments of some rows about their means, `(m, m)`, and the squares of their columns, `(m,)`."""
    first = features[chosen[0]].astype(np.float64)  # from which a constant column has no distance at all
    blocks = [chosen[rows] for rows in arrays.slices(len(chosen), _BLOCK)]
    mean = sum(np.sum(features[rows] - first, axis=0) for rows in blocks) / len(chosen)
    width = features.shape[1]
    gram, squares = np.zeros((width, width)), np.zeros(width)
    for rows in blocks:
        block = features[rows].astype(np.float64)
        centred = block - first - mean
        gram, squares = gram + centred.T @ centred, squares + np.sum(block**2, axis=0)
    return gram, squares
