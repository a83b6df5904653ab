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
        self._split, self._on = jacobian.split, jacobian.on
        sums = [[0.0, 0.0] for _ in jacobian.parts]
        for _, block in jacobian.blocks():
            for part, (inputs, gates), total in zip(jacobian.parts, block, sums, strict=True):
                total[:] = [old + new for old, new in zip(total, part.moments(inputs, gates), strict=True)]
        roots = [[_inverse_root(total / len(jacobian)) for total in pair] for pair in sums]
        self._factors = [[self._on.array(root) for root in pair] for pair in roots]
        self._transposes = [[self._on.array(root.T) for root in pair] for pair in roots]

    def theta(self, phi):
        """Return `T phi`, float32 of shape `(P,)`."""
        pairs = zip(self._transposes, self._factors, strict=True)
        return self._between(phi, [(left, right) for (left, _), (_, right) in pairs])

    def transposed(self, gradient):
        """Return `T' gradient`, float64 of shape `(P,)`."""
        pairs = zip(self._factors, self._transposes, strict=True)
        return self._between(gradient, [(left, right) for (left, _), (_, right) in pairs]).astype(np.float64)

    def _between(self, theta, pairs):
        """Return `left piece right` for the piece of every part, flat."""
        on, pieces = self._on, zip(self._split(theta), pairs, strict=True)
        products = (on.matmul(left, on.matmul(on.array(piece), right)) for piece, (left, right) in pieces)
        return np.concatenate([on.numpy(product).ravel() for product in products])


def _inverse_root(moments):
    """Return `L^-1` in float32 for `L L' = moments`, slightly regularized in the scale of each coordinate."""
    moments = np.asarray(moments, np.float64)
    scale = np.diag(moments).copy()
    scale[scale <= 0] = 1.0  # an input that is always zero; its gradient is zero too
    moments[np.diag_indices_from(moments)] += _RIDGE * scale
    lower = linalg.cholesky(moments, lower=True, check_finite=False, overwrite_a=True)
    (invert,) = linalg.get_lapack_funcs(("trtri",), (lower,))
    inverse, _ = invert(lower, lower=1, overwrite_c=1)  # a third of the work of solving for the identity
    return inverse.astype(np.float32)
