"""Upper bounds for a head on features: of its Jacobian's spectral norm, and of what rounding does to its logits."""

import copy
from typing import Any

import numpy as np

from keras_dal import heads
from keras_dal.solvers.least_squares import SAFETY, largest_singular_value, root_of_largest_eigenvalue

_BLOCK = 4096  # samples whose gates exist at a time in float64
_EPS = np.finfo(np.float64).eps


def spectral_norm_bound(head, features, weights, centered=False):
    """Return an upper bound of sigma_max(J_S), exact for a plain head, from matrices of the order of m + 1 and H only.

    For gated units `J J'` is the entrywise product of the Gram matrices of `(u_i, 1)` and of `V_j * g_i`. By Schur's
    product theorem `sigma_max(A o B) <= max_i A_ii sigma_max(B)` for positive semidefinite A and B; scaled to
    `A_ii = 1` this leaves the largest eigenvalue of `(V V') o (G' D G)`, of order H, with `D_ii = |u_i|^2 + 1`. A
    mixture has the same without `V V'`.
    Iterative estimates of sigma_max are lower bounds and would not do.
    """
    if isinstance(head, heads.SumHead):
        return np.sqrt(sum(spectral_norm_bound(part, features, weights, centered) ** 2 for part in head.parts))
    if isinstance(head, heads.DenseHead):
        columns = head.columns(features)
        return largest_singular_value(columns * np.sqrt(weights)[:, None])
    if not isinstance(head, (heads.GatedHead, heads.MixtureHead)):
        raise TypeError(f"The head must be plain, gated or a sum of those. Received: head={head!r}")
    moments = 0.0
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        gates = head.gates(block)
        squares = weights[start : start + _BLOCK] * (1.0 + np.sum(head.standardize(block) ** 2, axis=1))
        moments = moments + gates.T @ (gates * squares[:, None])
    if isinstance(head, heads.MixtureHead):
        return root_of_largest_eigenvalue(moments, len(features))
    output = head.output_kernel - head.output_kernel.mean(axis=1, keepdims=True) * centered
    largest = root_of_largest_eigenvalue((output @ output.T) * moments, len(features))
    return np.hypot(largest, np.sqrt(weights.sum()) * SAFETY * head.use_bias)


def rounding(head, features, theta):
    """Return a bound `(n, C)` of the errors float64 makes in `head.logits`, with gates and inputs taken as computed."""
    num_terms = 8 + sum(sum(shape) for shape in head.shapes)  # of the longest sum, at most
    return _EPS * num_terms * _magnitudes(head, features, np.abs(theta))


def _magnitudes(head, features, theta):
    """Return the logits with every product in their sums replaced by its magnitude, for a theta without signs."""
    if isinstance(head, heads.SumHead):
        pieces = np.split(theta, np.cumsum([part.num_parameters for part in head.parts])[:-1])
        return sum(_magnitudes(part, features, piece) for part, piece in zip(head.parts, pieces, strict=True))
    if isinstance(head, heads.DenseHead):
        return head.logits(np.abs(features), theta)
    unsigned: Any = copy.copy(head)
    unsigned.standardize, unsigned.gates = lambda rows: np.abs(head.standardize(rows)), head.gates
    if isinstance(head, heads.GatedHead):
        unsigned.output_kernel = np.abs(head.output_kernel)
    return unsigned.logits(features, theta)
