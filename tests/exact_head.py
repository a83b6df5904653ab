"""A linear head in exact arithmetic: fractions for whatever is linear, 60 digits for logarithms.

It takes the floats that the package sees, in units as awkward as they are, and rounds nothing.
"""

import decimal
import functools
from fractions import Fraction

import numpy as np

DIGITS, EPS = 60, Fraction(1, 2**52)
fractions = np.vectorize(
    lambda value: value if isinstance(value, Fraction) else Fraction(float(value)), otypes=[object]
)
exponentials = np.vectorize(decimal.Decimal.exp, otypes=[object])
logarithms = np.vectorize(decimal.Decimal.ln, otypes=[object])


@np.vectorize
def decimals(value):
    """Return fractions or floats with 60 digits, in the context of the caller."""
    value = Fraction(value)
    return decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)


def independent(matrix):
    """Return which columns of fractions do not depend on those before them, by elimination."""
    rows, kept = [list(row) for row in matrix], []
    for column in range(len(rows[0])):
        below = range(len(kept), len(rows))
        pivot = next((index for index in below if rows[index][column]), None)
        if pivot is None:
            continue
        rows[len(kept)], rows[pivot] = rows[pivot], rows[len(kept)]
        first = rows[len(kept)]
        for index in below[1:]:
            factor = rows[index][column] / first[column]
            rows[index] = [value - factor * other for value, other in zip(rows[index], first, strict=True)]
        kept.append(column)
    return kept


def solved(matrix, right):
    """Return the solution of a regular system of fractions, `(k, k)` and `(k, C)`."""
    rows = [[*row, *values] for row, values in zip(matrix, right, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = next(index for index in range(column, size) if rows[index][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for index in set(range(size)) - {column}:
            factor = rows[index][column]
            rows[index] = [value - factor * other for value, other in zip(rows[index], rows[column], strict=True)]
    return np.array([row[size:] for row in rows], object).reshape(size, np.shape(right)[1])


def left_of(columns, weights, labels):
    """Return what weighted least squares leave of labels `(n, C)`, all of them fractions."""
    basis = columns[:, independent(columns)]
    weighted = weights[:, None] * basis
    return labels - basis.dot(solved(weighted.T.dot(basis), weighted.T.dot(labels)))


class ExactHead:
    """A plain head on features `(n, m)` with targets of a cross-entropy; theta is its kernel and its bias, if any."""

    def __init__(self, features, targets, weights, use_bias, softmax):
        features = np.asarray(features, np.float64)
        self.columns = fractions(np.hstack([features, np.ones((len(features), int(use_bias)))]))
        self.weights, self.use_bias, self.softmax = fractions(weights), use_bias, softmax
        self.probabilities = fractions(targets) if softmax else (fractions(targets) + 1) / 2
        self.num_outputs = targets.shape[1]

    def logits(self, theta):
        return self.columns.dot(fractions(theta).reshape(self.columns.shape[1], -1))

    def loss(self, logits):
        """Return the mean of the weighted losses of logits `(n, C)`; the sigmoids of a sample are averaged."""
        with decimal.localcontext(prec=DIGITS):
            samples = (self._of_softmax if self.softmax else self._of_sigmoid)(decimals(logits))
            return sum(decimals(self.weights) * samples) / len(samples)

    def margins(self, logits):
        """Return by how much each sample with a hard label is on its right side."""
        right = self.probabilities == 1
        if not self.softmax:
            return np.where(right, logits, -logits).min(axis=1)
        own = np.where(right, logits, 0).sum(axis=1)
        rest = logits[~right].reshape(len(logits), -1)
        return (own[:, None] - rest).min(axis=1)

    def rounding(self, theta):
        """Return by how much logits differ, at most, where theta is a rounded one."""
        theta = abs(fractions(theta)).reshape(self.columns.shape[1], -1)
        return EPS * len(theta) * abs(self.columns).dot(theta).max()

    @functools.cached_property
    def rank(self):
        """The rank of the features and the bias."""
        return len(independent(self.columns))

    @functools.cached_property
    def residual_share(self):
        """What weighted least squares leave of hard labels, as the alignment condition writes them."""
        labels = self.probabilities - Fraction(1, self.num_outputs) if self.softmax else 2 * self.probabilities - 1
        weights = self.weights[:, None]
        means = (weights * labels).sum(axis=0) / self.weights.sum() * int(self.use_bias)
        total = (weights * (labels - means) ** 2).sum() or (weights * labels**2).sum()
        return (weights * left_of(self.columns, self.weights, labels) ** 2).sum() / total

    def curvature_along(self, direction):
        """Return the second derivative of the loss at zero, along a direction of one output or between two, `(k,)`."""
        direction = fractions(direction)
        squares = self.weights.dot(self.columns.dot(direction) ** 2) / len(self.columns)
        return squares / direction.dot(direction) / (self.num_outputs if self.softmax else 4 * self.num_outputs)

    def losses_of_descent(self, step, num_steps):
        """Return the losses at zero and after each of `num_steps` steps of gradient descent from there."""
        with decimal.localcontext(prec=DIGITS):
            columns, targets, weights = map(decimals, (self.columns, self.probabilities, self.weights[:, None]))
            step, losses = decimals(step) / len(columns) / (1 if self.softmax else self.num_outputs), []
            logits = 0 * targets
            for _ in range(num_steps + 1):
                losses.append(self.loss(logits))
                change = columns.T.dot(weights * (self._probable(logits) - targets))
                logits = logits - step * columns.dot(change)
        return losses

    def _probable(self, logits):
        if not self.softmax:
            return 1 / (1 + exponentials(-logits))
        powers = exponentials(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def _of_softmax(self, logits):
        below = logits - logits.max(axis=1, keepdims=True)
        return logarithms(exponentials(below).sum(axis=1)) - (decimals(self.probabilities) * below).sum(axis=1)

    def _of_sigmoid(self, logits):
        values = np.maximum(logits, 0) + logarithms(1 + exponentials(-abs(logits)))
        return (values - decimals(self.probabilities) * logits).sum(axis=1) / self.num_outputs
