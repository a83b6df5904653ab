"""How far a head may be from the minimum of `loss + ridge * change`, in float64."""

import numpy as np

_BLOCK = 4096  # samples whose logits exist at a time in float64
_SAFETY = 1 + 1e-6  # for rounding in the sums below, generously


def proved_gap(head, features, loss, targets, weights, theta, start, anchors, ridge, coordinates):
    r"""Return an upper bound of \( F(\theta) - \min F \) for the objective of a plain head.

    \( F = \frac1n \sum_i w_i l(f_i) + \rho \left( \frac1a \sum_a \|f_a - f_a^0\|^2 + \|\phi\|^2 \right) \) with
    \( \theta = \theta^0 + T \phi \) is \( 2 \rho \)-strongly convex in \( \phi \), so that it lies at most
    \( \|\nabla_\phi F\|^2 / (4 \rho) \) above its minimum (e.g. Boyd and Vandenberghe, 2004, section 9.1.2).

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
        coordinates: the `Whitening` of the head, the map T.
    """
    hold = np.zeros(len(features))
    hold[anchors] = 2 * ridge / len(anchors)
    gradient = np.zeros(head.num_parameters)
    for begin in range(0, len(features), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        block = np.asarray(features[rows], np.float64)
        logits = head.logits(block, theta)
        cotangent = weights[rows, None] / len(features) * loss.gradient(logits, targets[rows])
        cotangent += hold[rows, None] * (logits - head.logits(block, start))
        gradient += head.adjoint(block, cotangent)
    pulled_back = coordinates.exact_transposed(gradient) + 2 * ridge * coordinates.exact_inverse(theta - start)
    return _SAFETY * float(pulled_back @ pulled_back) / (4 * ridge)
