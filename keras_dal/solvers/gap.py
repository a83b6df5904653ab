"""How far a head may be from the minimum of `loss + ridge * change`, and how soon gradient steps get there."""

import math
from typing import NamedTuple

import numpy as np
from scipy import linalg

from keras_dal._backend import arrays
from keras_dal._backend.arrays import EPS

_BLOCK = 4096  # samples whose logits exist at a time in float64
_SAFETY = 1 + 1e-6  # for rounding in the sums below that have no signs, generously
_AFFORDABLE = 2e10  # multiplications to say how many gradient steps there would be


class Bound(NamedTuple):
    """What float64 sees of a head.

    Attributes:
        gap: upper bound of how far the objective is above its minimum.
        decrease: by how much it is below what it was before any change, up to rounding.
        gradient: in the whitened coordinates, `(P,)`, up to rounding.
    """

    gap: float
    decrease: float
    gradient: np.ndarray


def bound_gap(head, features, loss, targets, weights, theta, start, anchors, ridge, whitening, factors=None):
    r"""Return a `Bound` of \( F(\theta) - \min F \) for a plain head.

    \( F = \frac1n \sum_i w_i l(f_i) + \rho \left( \frac1a \sum_a \|f_a - f_a^0\|^2 + \|\phi\|^2 \right) +
    \sum_k \lambda_k \theta_k^2 \) with
    \( \theta = \theta^0 + T \phi \) is \( 2 \rho \)-strongly convex in \( \phi \), so that it lies at most
    \( \|\nabla_\phi F\|^2 / (4 \rho) \) above its minimum (e.g. Boyd and Vandenberghe, 2004, section 9.1.2). A bound
    of all that rounding may have done to the gradient is added to it.

    Args:
        head: a `heads.DenseHead`.
        features: `(n, m)`.
        loss: a `losses.Loss`.
        targets: its Y_l, `(n, C)`.
        weights: of the samples, `(n,)`.
        theta: where, `(P,)`.
        start: theta at which the change is zero, `(P,)`.
        anchors: indices `(a,)` of the samples on which the change is measured.
        ridge: the weight \( \rho \), positive.
        whitening: the `Whitening` of the head, the map T.
        factors: L2 factors \( \lambda \), `(P,)`, or None for zeros.
    """
    hold = np.zeros(len(features))
    hold[anchors] = 2 * ridge / len(anchors)
    gradient, error, decrease = np.zeros(head.num_parameters), np.zeros(head.num_parameters), 0.0
    longest = min(len(features), _BLOCK) + len(features) // _BLOCK + 8  # of the sums
    for rows in arrays.slices(len(features), _BLOCK):
        block = np.asarray(features[rows], np.float64)
        logits, before, share = head.logits(block, theta), head.logits(block, start), weights[rows] / len(features)
        slopes, off = loss.gradient(logits, targets[rows]), head.rounding(block, theta)
        cotangent = share[:, None] * slopes + hold[rows, None] * (logits - before)
        gradient += head.adjoint(block, cotangent)
        missed = share[:, None] * _slopes_error(loss, logits, targets[rows], slopes, off)
        missed += hold[rows, None] * (off + head.rounding(block, start))
        error += head.adjoint(np.abs(block), missed + EPS * longest * np.abs(cotangent))
        decrease += share @ (loss.values(before, targets[rows]) - loss.values(logits, targets[rows]))
        decrease -= hold[rows] @ np.sum((logits - before) ** 2, axis=1) / 2
    if factors is not None:
        slope = 2 * factors * theta
        gradient, error = gradient + slope, error + 4 * EPS * np.abs(slope)
        decrease += factors @ start**2 - factors @ theta**2
    phi, phi_error = whitening.exact_inverse(theta - start)
    pulled_back = whitening.exact_transposed(gradient) + 2 * ridge * phi
    root = np.abs(whitening.root)
    error += EPS * (len(root) + 4) * np.abs(gradient)
    error = (root @ error.reshape(len(root), -1)).ravel() + 2 * ridge * (phi_error + EPS * np.abs(phi))
    gap = _SAFETY * float(np.linalg.norm(pulled_back) + np.linalg.norm(error)) ** 2 / (4 * ridge)
    return Bound(gap, float(decrease - ridge * (phi @ phi)), pulled_back)


def _slopes_error(loss, logits, targets, slopes, off):
    """Return a bound of the errors in a loss's gradient for logits with errors up to `off`, `(k, C)`."""
    off = off + 4 * EPS * np.max(np.abs(logits), axis=1, keepdims=True)  # differences of logits are exponents
    curvature = loss.curvature(logits.shape[1])
    if curvature is None:  # of every logit apart
        moved = loss.gradient(logits + off, targets) - loss.gradient(logits - off, targets)
    else:
        moved = curvature * np.linalg.norm(off, axis=1, keepdims=True)
    size = np.abs(slopes) if loss.quadratic or loss.are_hard(targets) else np.abs(slopes) + np.abs(targets)
    return np.abs(moved) + 8 * EPS * size


def gradient_steps(features, use_bias, curvature, weights, anchors, ridge, whitening, excess, gap):
    r"""Return a number of accelerated gradient steps in \( \phi \) after which F is within `gap` of its minimum.

    Let A and M be the second moments of the inputs over samples, by their weights, and over anchors, in the whitening
    of `bound_gap`. The second derivative of F lies between \( \mu = 2 \rho (1 + \lambda_{min}(M)) \) and
    \( \beta = \lambda_{max}(c A + 2 \rho M) + 2 \rho \), so that k steps of size \( 1 / \beta \) with
    momentum \( (1 - q) / (1 + q) \), \( q = \sqrt{\mu / \beta} \), leave at most \( (1 - q)^k \) of twice the excess
    (Nesterov, 2018, theorem 2.2.3 with \( \gamma_0 = \mu \), where \( \frac{\mu}{2} \|\phi^*\|^2 \) is no more than the
    excess).

    Args:
        features: `(n, m)`.
        use_bias: whether the head has one.
        curvature: c, an upper bound of the loss's second derivative in the logits.
        weights, anchors, ridge, whitening: as in `bound_gap`, with no penalty.
        excess: upper bound of how far F is above its minimum at first.
        gap: how far it may be in the end, positive.

    Returns:
        The number, or None where it would take long to find.
    """
    if excess <= gap:
        return 0
    if len(features) * features.shape[1] ** 2 > _AFFORDABLE:
        return None
    held = _moments(features, use_bias, anchors, np.full(len(anchors), 2 * ridge / len(anchors)))
    bent = held + _moments(features, use_bias, np.arange(len(features)), curvature * weights / len(features))
    bent, held = (whitening.root @ moments @ whitening.root.T for moments in (bent, held))
    largest = _SAFETY * float(linalg.eigvalsh(bent)[-1]) + 2 * ridge
    smallest = max(0.0, float(linalg.eigvalsh(held)[0]) - (_SAFETY - 1) * largest) + 2 * ridge
    if smallest >= largest:
        return 1
    return math.ceil(math.log(2 * excess / gap) / -math.log1p(-math.sqrt(smallest / largest)))


def _moments(features, use_bias, rows, factors):
    """Return the sum over some rows of the outer products of the inputs, each times its factor, `(m + 1, m + 1)`."""
    total = 0.0
    for some in arrays.slices(len(rows), _BLOCK):
        block = np.asarray(features[rows[some]], np.float64)
        columns = np.column_stack([block, np.ones(len(block))]) if use_bias else block
        total = total + columns.T @ (factors[some, None] * columns)
    return total
