"""The softmax cross-entropy."""

import keras
import numpy as np
from keras import ops
from scipy import special

from keras_dal._backend import arrays
from keras_dal.losses.base import checked_classes, checked_matrix, in_columns, register
from keras_dal.losses.cross_entropy import CrossEntropy
from keras_dal.losses.sides import RightClass

_ROUNDING = 1e-5  # by which a row of probabilities in float32 may miss the sum of one, which Keras does not mend
_EQUAL = 1e-5  # relative difference of probabilities in single precision that counts as none


@register
class SoftmaxCrossEntropy(CrossEntropy):
    """`logsumexp(f) - <q, f>`, as in `keras.losses.(Sparse)CategoricalCrossentropy`; targets are q."""

    name = "softmax cross-entropy"
    activation = "softmax"
    keras_losses = (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
    shift_invariant = True
    tensors = True
    least_outputs = 2

    def targets(self, y, num_outputs):
        y = in_columns(np.asarray(y))
        if y.size and (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1 < num_outputs)):
            classes = checked_classes(y.reshape(-1), num_outputs)
            q = np.zeros((len(classes), num_outputs))
            q[np.arange(len(classes)), classes] = 1.0
            return self._smoothed(q)
        y = checked_matrix(y, num_outputs)
        sums = y.sum(axis=1, keepdims=True)
        wrong = (y < 0).any(axis=1) | (np.abs(sums[:, 0] - 1) > _ROUNDING)
        if wrong.any():
            raise ValueError(
                "Softmax cross-entropy needs integer labels, or one-hot or soft ones: rows of probabilities that sum "
                f"to one within {_ROUNDING:.0e}, so in float32 or finer. Received: a row y={y[wrong][0]} with the sum "
                f"{sums[wrong].item(0):.6g}"
            )
        return self._smoothed(y / sums)

    def step_targets(self, y, num_outputs):
        y = in_columns(y)
        if len(y.shape) == 1 or y.shape[-1] == 1:  # more may be unknown when a step is traced
            y = ops.cast(ops.equal(ops.reshape(y, (-1, 1)), ops.arange(num_outputs, dtype=y.dtype)), y.dtype)
        sums = ops.sum(y, axis=1)
        known = ops.logical_and(ops.min(y, axis=1) >= 0, ops.abs(sums - 1) <= _ROUNDING)
        return self._smoothed(y / ops.where(known, sums, ops.ones_like(sums))[:, None]), known

    def _smoothed(self, q):
        return q * (1.0 - self.label_smoothing) + self.label_smoothing / q.shape[1] if self.label_smoothing else q

    def values(self, logits, targets):
        xp = arrays.of(logits)
        largest = xp.argmax(logits)
        below = logits - xp.take(logits, largest)  # at most 0: float32 loses nothing small
        others = xp.put(xp.exp(below), largest, 0.0)  # the largest is 1, beside which small ones would be lost
        return xp.log1p(xp.row_total(others)) - xp.row_total(below * targets)

    def gradient(self, logits, targets):
        xp = arrays.of(logits)
        likely = xp.argmax(targets)
        slopes = xp.put(xp.softmax(logits) - targets, likely, 0.0)  # p - 1 would lose what the others add up to
        return xp.put(slopes, likely, -xp.row_sum(slopes))

    def hessian(self, logits, targets):
        xp = arrays.of(logits)
        p = xp.softmax(logits)
        return lambda change, block: p[block] * (change - xp.row_dot(p[block], change)[:, None])

    def curvature(self, num_outputs):
        return 0.5

    def mean_curvature(self, logits, targets):
        p = special.softmax(logits, axis=1)
        return np.mean(p * (1.0 - p), axis=1)

    def infimum(self, targets):
        return np.sum(special.entr(targets), axis=1) + 0.0  # the entropy of one class is -0

    def scales(self, targets):
        """Of a class smoothed with e: `log q = s q + const` at all classes; infinite for e = 0, nan for mixed ones.

        Zero for equal probabilities, which any factor leaves equal.
        """
        last = targets.shape[1] - 1
        places = [0, max(last - 1, 0), last]
        low, second, high = np.partition(targets, places, axis=1)[:, places].T
        apart = high - low > _EQUAL * low
        with np.errstate(divide="ignore"):
            slope = np.where(apart, np.log(high / low) / np.where(apart, high - low, 1.0), 0.0)
        return np.where(second - low <= _EQUAL * second, slope, np.nan)

    def growth(self, targets):
        """Of `sum_j q_j (logsumexp(f) - f_j) >= min(q) (max(f) - min(f))`, and C deviations of at most half of that."""
        return 2.0 / np.sqrt(targets.shape[1]) * targets.min(axis=1)

    def conjugate(self, slopes, targets):
        p = targets + slopes
        inside = (p >= 0).all(axis=1) & (np.abs(slopes.sum(axis=1)) <= 1e-12)
        return np.where(inside, -np.sum(special.entr(np.maximum(p, 0.0)), axis=1), np.inf)

    def margins(self, logits, targets):
        xp = arrays.of(logits)
        right = targets == xp.max(targets)[:, None]
        return xp.max(xp.where(right, logits, -np.inf)) - xp.max(xp.where(right, -np.inf, logits))

    def at_margin(self, margin, num_outputs):
        return np.logaddexp(0.0, np.log(num_outputs - 1.0) - margin)

    def sides(self, targets):
        return RightClass(targets)

    def confidence(self, logits, targets):
        return special.softmax(logits, axis=1).max(axis=1), self.margins(logits, targets) > 0
