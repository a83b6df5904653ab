"""The alignment of a whole network: LSQR on its Jacobian, which is never made."""

import numpy as np
from numpy.linalg import norm
from scipy.sparse.linalg import lsqr

from keras_dal import _backend
from keras_dal.analysis.misses import misses_some
from keras_dal.analysis.reports import report, shares
from keras_dal.analysis.verdict import Evidence, decisive_share
from keras_dal.features.batches import in_one_array
from keras_dal.features.samples import check_labels, checked_weight, positive
from keras_dal.losses import common_scale
from keras_dal.models.tangent import operator_of_all
from keras_dal.solvers.jacobian_base import Products
from keras_dal.solvers.label_squares import centred_total, safe_mean

_LSQR = "LSQR, which bounds the alignment from below up to an estimate of the rounding in the network"
_ITERATIONS = 300  # of LSQR on a whole network: each is two passes over the data
_DAMPING = 1e-4  # of the largest singular value: what float32 leaves of directions without effect must not grow
_POWERS = 5  # steps of the power method that finds it well enough
PRODUCTS = 3 + 2 * (_POWERS + _ITERATIONS)  # at most: one to begin each, and one for what is left


def alignment_of_network(structure, loss, x, y, sample_weight, max_bytes, batch_size):
    """Measure how much of the labels all trainable parameters reach, to first order, by LSQR.

    Args:
        structure: a `Structure`.
        loss: a `losses.Loss`.
        x, y, sample_weight, max_bytes, batch_size: as for `alignment`.
    """
    operator = operator_of_all(structure, x, batch_size, max_bytes)
    y, sample_weight = in_one_array("labels", y), in_one_array("sample weights", sample_weight)
    check_labels(y, x)
    targets = loss.targets(y, structure.num_outputs)
    scale, targets = common_scale(loss.scales(targets)), loss.seen(loss.label_matrix(targets))
    weights = checked_weight(sample_weight, len(targets))
    (used, _), bias = positive(weights), _has_bias(operator, structure)
    centred = targets - safe_mean(targets, weights) if bias else targets
    roots = np.sqrt(weights)[:, None]

    def mapped(rows):
        """Returns rows as the loss sees them; the map is its own transpose."""
        return (roots * loss.seen(rows.reshape(targets.shape))).ravel()

    unit = np.max(np.abs(centred), initial=0.0) or 1.0  # products are float32
    right = mapped(centred / unit)
    scaled = Products(operator.shape, lambda v: mapped(operator.matvec(v)), lambda u: operator.rmatvec(mapped(u)))
    with _backend.full_precision():
        size = _power_method(scaled, right)
        direction = lsqr(scaled, right, damp=_DAMPING * size, atol=1e-9, btol=1e-9, iter_lim=_ITERATIONS)[0]
        residual = right - scaled @ direction
    rounding = 8 * np.finfo(np.float32).eps * size * norm(direction)  # of the product, an estimate
    residual = (unit * residual * (1 + rounding / (norm(residual) or 1.0))).reshape(targets.shape)
    left = residual**2
    squares = centred_total(targets[used], weights[used], bias)
    fitted = centred[used] - residual[used] / roots[used]
    found = _Fitted(scale, decisive_share(loss, left.sum(axis=0), squares), centred[used], fitted, bias)
    return report(
        structure,
        loss,
        int(np.sum(used)),
        found.finding(),
        **shares(left.sum(axis=1), left.sum(axis=0), squares),
        num_parameters=operator.shape[1],
        exact=False,
    )


class _Fitted(Evidence):
    """What LSQR reaches of labels: a bound from below only.

    Args:
        scale, share: as for `Evidence`.
        labels: centred, `(n, C)`.
        fitted: what stands for them, `(n, C)`.
        use_bias: whether a constant of each output is free.
    """

    def __init__(self, scale, share, labels, fitted, use_bias):
        self.scale, self.share, self._compared = scale, share, (labels, fitted, 0.0, use_bias)

    def reaches_all(self):
        return not misses_some(*self._compared)

    def of_undecided(self):
        return f"{_LSQR}, with a residual share of {self.share:.1e}"


def _power_method(operator, start):
    direction = operator.rmatvec(start)
    for _ in range(_POWERS):
        direction = operator.rmatvec(operator.matvec(direction / (norm(direction) or 1.0)))
    return np.sqrt(norm(direction))


def _has_bias(operator, structure):
    """Whether the constants that a head's bias adds are among what the operator's variables reach."""
    return structure.use_bias and any(v is structure.linear_parameters[-1] for v in operator.variables)
