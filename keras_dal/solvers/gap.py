"""How far a head may be from the minimum of `loss + ridge * change`, and how soon gradient steps get there."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg

from keras_dal._backend import arrays
from keras_dal._backend.arrays import BLOCK, EPS

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


@dataclasses.dataclass(frozen=True, eq=False)
class ProximalLoss:
    r"""The loss of a plain head, a weight of its change, and an L2 penalty, in whitened coordinates.

    \( F = \frac1n \sum_i w_i l(f_i) + \rho \left( \frac1a \sum_a \|f_a - f_a^0\|^2 + \|\phi\|^2 \right) +
    \sum_k \lambda_k \theta_k^2 \) with \( \theta = \theta^0 + T \phi \).

    Args:
        head: a `heads.DenseHead`.
        loss: a `losses.Loss`.
        features: `(n, m)`.
        targets: its Y_l, `(n, C)`.
        weights: of the samples, `(n,)`.
        start: theta at which the change is zero, `(P,)`.
        anchors: indices `(a,)` of the samples on which the change is measured.
        ridge: the weight \( \rho \), positive.
        whitening: the `Whitening` of the head, the map T.
        factors: L2 factors \( \lambda \), `(P,)`, or None for zeros.
    """

    head: Any
    loss: Any
    features: Any
    targets: Any
    weights: np.ndarray
    start: np.ndarray
    anchors: np.ndarray
    ridge: float
    whitening: Any
    factors: np.ndarray | None = None

    def bound(self, theta):
        r"""Return a `Bound` of \( F(\theta) - \min F \).

        F is \( 2 \rho \)-strongly convex in \( \phi \), so that it lies at most
        \( \|\nabla_\phi F\|^2 / (4 \rho) \) above its minimum (e.g. Boyd and Vandenberghe, 2004, section 9.1.2). A
        bound of all that rounding may have done to the gradient is added to it.

        Args:
            theta: where, `(P,)`.
        """
        gradient, error, decrease = self._derivative(theta)
        phi, phi_error = self.whitening.exact_inverse(theta - self.start)
        pulled_back = self.whitening.exact_transposed(gradient) + 2 * self.ridge * phi
        root = np.abs(self.whitening.root)
        error += EPS * (len(root) + 4) * np.abs(gradient)
        error = (root @ error.reshape(len(root), -1)).ravel() + 2 * self.ridge * (phi_error + EPS * np.abs(phi))
        gap = _SAFETY * float(np.linalg.norm(pulled_back) + np.linalg.norm(error)) ** 2 / (4 * self.ridge)
        return Bound(gap, float(decrease - self.ridge * (phi @ phi)), pulled_back)

    def _derivative(self, theta):
        """Return gradient in theta, a bound of its error, and decrease since the start, all but what phi adds."""
        head, loss, start, size = self.head, self.loss, self.start, len(self.features)
        hold = np.zeros(size)
        hold[self.anchors] = 2 * self.ridge / len(self.anchors)
        gradient, error, decrease = np.zeros(head.num_parameters), np.zeros(head.num_parameters), 0.0
        longest = min(size, BLOCK) + size // BLOCK + 8  # of the sums
        for rows in arrays.slices(size):
            block, targets = np.asarray(self.features[rows], np.float64), self.targets[rows]
            logits, before, share = head.logits(block, theta), head.logits(block, start), self.weights[rows] / size
            off = head.rounding(block, theta)
            slopes, slopes_error = _slopes(loss, logits, targets, off)
            cotangent = share[:, None] * slopes + hold[rows, None] * (logits - before)
            gradient += head.adjoint(block, cotangent)
            missed = share[:, None] * slopes_error
            missed += hold[rows, None] * (off + head.rounding(block, start))
            error += head.adjoint(np.abs(block), missed + EPS * longest * np.abs(cotangent))
            decrease += share @ (loss.values(before, targets) - loss.values(logits, targets))
            decrease -= hold[rows] @ np.sum((logits - before) ** 2, axis=1) / 2
        if self.factors is not None:
            slope = 2 * self.factors * theta
            gradient, error = gradient + slope, error + 4 * EPS * np.abs(slope)
            decrease += self.factors @ start**2 - self.factors @ theta**2
        return gradient, error, decrease

    def gradient_steps(self, excess, gap):
        r"""Return a number of accelerated gradient steps in \( \phi \) after which F is within `gap` of its minimum.

        Let A and M be the second moments of the inputs over samples, by their weights, and over anchors, in the
        whitening, and c an upper bound of the loss's second derivative in the logits. The second derivative of F lies
        between \( \mu = 2 \rho (1 + \lambda_{min}(M)) \) and \( \beta = \lambda_{max}(c A + 2 \rho M) + 2 \rho \), so
        that k steps of size \( 1 / \beta \) with momentum \( (1 - q) / (1 + q) \), \( q = \sqrt{\mu / \beta} \),
        leave at most \( (1 - q)^k \) of twice the excess (Nesterov, 2018, theorem 2.2.3 with \( \gamma_0 = \mu \),
        where \( \frac{\mu}{2} \|\phi^*\|^2 \) is no more than the excess).

        Args:
            excess: upper bound of how far F is above its minimum at first.
            gap: how far it may be in the end, positive.

        Returns:
            The number, or None where it would take long to find, or there is a penalty, beside which it is of no use.
        """
        curvature = self.loss.curvature(self.head.num_outputs)
        if curvature is None or self.factors is not None:
            return None
        if excess <= gap:
            return 0
        size = len(self.features)
        if size * self.features.shape[1] ** 2 > _AFFORDABLE:
            return None
        each = 2 * self.ridge / len(self.anchors)
        held = self._moments(self.anchors, np.full(len(self.anchors), each))
        bent = held + self._moments(np.arange(size), curvature * self.weights / size)
        root = self.whitening.root
        bent, held = (root @ moments @ root.T for moments in (bent, held))
        largest = _SAFETY * float(linalg.eigvalsh(bent)[-1]) + 2 * self.ridge
        smallest = max(0.0, float(linalg.eigvalsh(held)[0]) - (_SAFETY - 1) * largest) + 2 * self.ridge
        if smallest >= largest:
            return 1
        return math.ceil(math.log(2 * excess / gap) / -math.log1p(-math.sqrt(smallest / largest)))

    def _moments(self, rows, factors):
        """Return the sum over some rows of the outer products of the inputs, each times its factor."""
        total = 0.0
        for some in arrays.slices(len(rows)):
            columns = self.head.kronecker_factor(np.asarray(self.features[rows[some]], np.float64))
            total = total + columns.T @ (factors[some, None] * columns)
        return total


def _slopes(loss, logits, targets, off):
    """Return a loss's gradient for logits with errors up to `off`, and a bound of its own errors, each `(k, C)`."""
    logits = np.ascontiguousarray(logits)  # NumPy adds up a row in pairs then, and else with a rounding for each term
    slopes = loss.gradient(logits, targets)
    off = off + 4 * EPS * np.max(np.abs(logits), axis=1, keepdims=True)  # differences of logits are exponents
    curvature = loss.curvature(logits.shape[1])
    if curvature is None:  # of every logit apart
        moved = loss.gradient(logits + off, targets) - loss.gradient(logits - off, targets)
    else:
        moved = curvature * np.linalg.norm(off, axis=1, keepdims=True)
    size = np.abs(slopes) if loss.quadratic or loss.are_hard(targets) else np.abs(slopes) + np.abs(targets)
    return slopes, np.abs(moved) + 8 * EPS * size
