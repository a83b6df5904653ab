"""The Jacobian J_S of a head on cached features: its column space, least-squares solutions and spectral norm."""

import numpy as np

from keras_dal._backend.arrays import EPS, MAX_BYTES
from keras_dal.solvers.factorized_jacobian import DenseJacobian, KroneckerJacobian
from keras_dal.solvers.iterative_jacobian import IterativeJacobian

MAX_JACOBIAN_BYTES = 2**28  # of a matrix whose singular values are computed, by default


def jacobian(
    head,
    features,
    weights=None,
    shift_invariant=False,
    max_jacobian_bytes=MAX_JACOBIAN_BYTES,
    eps=EPS,
    max_bytes=MAX_BYTES,
):
    """Return J_S as the cheapest object that still decides ranks exactly, where memory allows one.

    Args:
        head: a `heads.Head` with P parameters and C outputs.
        features: float64 array of shape `(n, m)`.
        weights: positive sample weights `(n,)`; ones by default.
        shift_invariant: whether constants per row are removed (softmax).
        max_jacobian_bytes: largest matrix whose singular values are computed; beyond it the result is iterative.
        eps: spacing at one of the numbers that the features were computed in.
        max_bytes: memory for gates and for a factor, each, of an iterative one.

    Returns:
        A `Jacobian`.
    """
    shared = head.kronecker_factor(features[:1]) is not None
    size = 8 * len(features) * head.num_parameters * (1 / head.num_outputs if shared else head.num_outputs)
    weights = np.ones(len(features)) if weights is None else weights
    if size > max_jacobian_bytes and not head.is_plain:
        return IterativeJacobian(head, features, weights, shift_invariant, eps, max_bytes)
    return (KroneckerJacobian if shared else DenseJacobian)(head, features, weights, shift_invariant, eps)
