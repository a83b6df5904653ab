"""How many columns are independent: the rule for ranks, and how many columns of features have a direction of their own.

Columns are centred where there is a bias and divided by `sizes_of_columns`, neither of which changes their span, and a
singular value counts above `rank_tolerance` times the largest. So a rank does not depend on units, and on offsets only
by the digits that they cost.
"""

import numpy as np
from scipy import linalg

from keras_dal._backend import arrays
from keras_dal._backend.arrays import EPS
from keras_dal.features.samples import some_rows

_GRAM_SAFETY = 8  # eigenvalues of a matrix of order k are moved by rounding in a few times k places
_ROWS = 4  # samples that are looked at, for each column
_BLOCK = 1024  # of them at a time
_WIDEST = 2048  # columns up to which eigenvalues are computed, in seconds


def sizes_of_columns(before, norms, eps):
    """Return by what columns are divided before their rank is decided, so that rounding is alike in all of them.

    What was computed in a coarser precision than float64 carries its rounding in the scale that it had before it was
    centred. Features in float64 are taken as they are.

    Args:
        before: norms of the columns before they were centred, `(k,)`.
        norms: those of the centred ones, `(k,)`.
        eps: spacing at one of the numbers that they were computed in.
    """
    return np.maximum(norms, before) if eps > EPS else norms


def rank_tolerance(num_rows, num_columns, eps, lost=1.0):
    """Return the size, relative to the largest, up to which a singular value may be rounding.

    Rounding the entries of a matrix with columns of norm one moves its singular values by at most
    `eps / 2 * sqrt(num_columns)` (Weyl); twice that is allowed, and what the factorization in float64 adds: `lost`
    times as much where columns were so much longer before they were centred.
    """
    shorter, longer = sorted((num_rows, num_columns))
    return eps * np.sqrt(shorter) + EPS * longer * lost


def gram_tolerance(num_columns, eps):
    """Return the same where singular values are roots of eigenvalues of a Gram matrix: it squares them.

    Args:
        num_columns: of the matrix.
        eps: spacing at one of the numbers in which its products were summed up.
    """
    return float(np.sqrt(_GRAM_SAFETY * num_columns * eps))


def num_independent(features, eps):
    """Return the rank of features about their means, from some of the samples.

    Args:
        features: `(n, m)`.
        eps: spacing at one of the numbers that they were computed in.

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
    rare = np.sum((norms == 0) & (features.max(axis=0) > features.min(axis=0)))
    varies = norms > 0
    scale = sizes_of_columns(np.sqrt(squares), norms, eps)[varies]
    if not varies.any():
        return max(1, int(rare))
    values = linalg.eigvalsh(gram[np.ix_(varies, varies)] / np.outer(scale, scale), check_finite=False)
    values = np.sqrt(np.maximum(values, 0.0))
    tolerance = max(gram_tolerance(width, EPS), rank_tolerance(len(chosen), width, eps))
    return max(1, int(np.sum(values > tolerance * values[-1]) + rare))


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
