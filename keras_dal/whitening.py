"""Coordinates of a head's parameters in which the mean squared change of its logits is about the squared distance."""

import numpy as np
from scipy import linalg

_RIDGE = 1e-2  # relative: directions the anchors hardly see are not free


class Whitening:
    """`theta = T phi` with `(T T')^-1` the Kronecker-factored second moment of the rows of J_S over anchors.

    The row of output j for anchor a is `(V_j * g_a) kron u_a`. Summed over j, the mean of its outer products is
    approximated by `mean(u u') kron (mean(g g') * (V V'))`, as if inputs and gates were independent (the idea of K-FAC,
    Martens and Grosse, 2015); for a plain head it is exact. Parts of a sum are treated apart.

    Args:
        jacobian: a `CachedJacobian` on the anchors.
    """

    def __init__(self, jacobian):
        self._split = jacobian.split
        sums = [[0.0, 0.0] for _ in jacobian.parts]
        for _, block in jacobian.blocks():
            for part, (inputs, gates), total in zip(jacobian.parts, block, sums, strict=True):
                total[:] = [old + new for old, new in zip(total, part.moments(inputs, gates), strict=True)]
        self._factors = [[_inverse_root(total / len(jacobian)) for total in pair] for pair in sums]

    def theta(self, phi):
        """Return `T phi`, float32 of shape `(P,)`."""
        pieces = zip(self._split(phi), self._factors, strict=True)
        return np.concatenate([(left.T @ piece @ right).ravel() for piece, (left, right) in pieces])

    def transposed(self, gradient):
        """Return `T' gradient`, float64 of shape `(P,)`."""
        pieces = zip(self._split(gradient), self._factors, strict=True)
        return np.concatenate([(left @ piece @ right.T).ravel() for piece, (left, right) in pieces]).astype(np.float64)


def _inverse_root(moments):
    """Return `L^-1` in float32 for `L L' = moments`, slightly regularized in the scale of each coordinate."""
    moments = np.asarray(moments, np.float64)
    scale = np.diag(moments).copy()
    scale[scale <= 0] = 1.0  # an input that is always zero; its gradient is zero too
    moments[np.diag_indices_from(moments)] += _RIDGE * scale
    lower = linalg.cholesky(moments, lower=True, check_finite=False, overwrite_a=True)
    return linalg.solve_triangular(lower, np.eye(len(lower)), lower=True, check_finite=False).astype(np.float32)
