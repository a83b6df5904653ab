"""How many columns of features are independent: constant, dead and repeated ones add nothing to the others."""

import numpy as np
from scipy import linalg

from keras_dal._backend.arrays import EPS
from keras_dal.features.precision import eps_of
from keras_dal.heads.norms import column_norms, nonzero

_ROWS = 4  # samples that are looked at, for each column
_COARSE = 1e-3  # rounding of a column beside an offset, above which it is a constant
_SAFETY = 8  # rounding moves what it moves by a few of its units


def num_independent(features):
    """Return the rank of features about their means, from some of the samples, in the scale of each column.

    Args:
        features: `(n, m)`.

    Returns:
        A number of columns, at least 1; m where there are no more samples than columns, which are then too few to tell.
    """
    size, width = features.shape
    if size <= width + 1:
        return width
    chosen = np.sort(np.random.default_rng(0).permutation(size)[: _ROWS * (width + 1)])
    rows = features[chosen].astype(np.float64)
    centred = rows - rows[0]
    centred -= centred.mean(axis=0)
    norms = column_norms(centred)
    rounding = eps_of(features.dtype) * column_norms(rows) / nonzero(norms)  # of a column, in its own scale
    varies = (norms > 0) & (rounding < _COARSE)
    scaled = centred[:, varies] / norms[varies]
    values = linalg.eigvalsh(scaled.T @ scaled, check_finite=False) if varies.any() else np.zeros(1)
    return max(1, int(np.sum(values > _SAFETY * (np.sum(rounding[varies] ** 2) + width * EPS * values[-1]))))
