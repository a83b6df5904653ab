"""The sigmoid cross-entropy."""

from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import special

from keras_dal._backend import arrays
from keras_dal.losses.base import ALIKE, checked_matrix, register, rows_in_step
from keras_dal.losses.cross_entropy import CrossEntropy
from keras_dal.losses.sides import RightSides


@register
class SigmoidCrossEntropy(CrossEntropy):
    """`mean_j log(1 + exp(f_j)) - q_j f_j`, as in `keras.losses.BinaryCrossentropy`; targets are `t = 2 q - 1`."""

    name = "sigmoid cross-entropy"
    activation = "sigmoid"
    keras_losses = (keras.losses.BinaryCrossentropy,)
    tensors = True

    def targets(self, y, num_outputs):
        y = checked_matrix(y, num_outputs)
        wrong = (y < 0) | (y > 1)
        if wrong.any():
            raise ValueError(
                "Sigmoid cross-entropy needs labels 0 or 1, or soft ones between them. "
                f"Received: y with the value {y[wrong][0]}"
            )
        return (1.0 - self.label_smoothing) * (2.0 * y - 1.0)

    def step_targets(self, y, num_outputs):
        q: Any = rows_in_step(y, num_outputs)
        known = ops.logical_and(ops.min(q, axis=1) >= 0, ops.max(q, axis=1) <= 1)
        return (1.0 - self.label_smoothing) * (2.0 * q - 1.0), known

    def values(self, logits, targets):
        xp = arrays.of(logits)
        size = xp.abs(logits)
        wrong = 0.5 * (1.0 - xp.sign(logits) * targets)  # probability of the side that the logit is not on
        return xp.row_total(xp.log1p(xp.exp(-size)) + size * wrong) / targets.shape[1]

    def gradient(self, logits, targets):
        xp, t, f = arrays.of(logits), targets, logits
        right, wrong = 0.5 * (1 + xp.abs(t)), 0.5 * (1 - xp.abs(t))  # so that small slopes of hard labels stay exact
        toward = xp.where(t < 0, -f, f)  # the more probable side
        slopes = wrong * xp.sigmoid(toward) - right * xp.sigmoid(-toward)
        return xp.where(t < 0, -slopes, slopes) / t.shape[1]

    def hessian(self, logits, targets):
        xp = arrays.of(logits)
        slopes = xp.sigmoid(logits) * xp.sigmoid(-logits) / logits.shape[1]
        return lambda change, block: slopes[block] * change

    def curvature(self, num_outputs):
        return 0.25 / num_outputs

    def infimum(self, targets):
        return np.mean(special.entr(0.5 + 0.5 * targets) + special.entr(0.5 - 0.5 * targets), axis=1) + 0.0

    def scales(self, targets):
        """Of labels smoothed with e: `logit(q) = s t` at all outputs, as `logit(q) = 2 artanh(t)`; nan for others."""
        size = np.abs(targets)
        with np.errstate(divide="ignore"):
            slopes = 2.0 * np.arctanh(size) / np.where(size > 0, size, 1.0)
        even = size == 0  # which any factor leaves where it is
        least, most = (np.min(np.where(even, np.inf, slopes), axis=1), np.max(np.where(even, 0.0, slopes), axis=1))
        fits = (most <= (1 + ALIKE) * least) & (np.isfinite(most) | ~even.any(axis=1))
        return np.where(fits, most, np.nan)

    def growth(self, targets):
        """Of `log(1 + exp(f)) - q f >= min(q, 1 - q) |f|`."""
        return 0.5 * (1.0 - np.abs(targets).max(axis=1)) / targets.shape[1]

    def conjugate(self, slopes, targets):
        p = 0.5 + 0.5 * targets + targets.shape[1] * slopes
        inside = ((p >= 0) & (p <= 1)).all(axis=1)
        p = np.clip(p, 0.0, 1.0)
        return np.where(inside, -np.mean(special.entr(p) + special.entr(1.0 - p), axis=1), np.inf)

    def margins(self, logits, targets):
        xp = arrays.of(logits)
        return xp.min(xp.where(targets == 0, np.inf, xp.sign(targets) * logits))

    def at_margin(self, margin, num_outputs):
        return np.logaddexp(0.0, -margin)

    def sides(self, targets):
        return RightSides(targets)

    def confidence(self, logits, targets):
        right = (targets == 0) | (targets * logits > 0)
        return special.expit(np.abs(logits)).ravel(), right.ravel()
