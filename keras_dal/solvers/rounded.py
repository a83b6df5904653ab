"""Bounds of margins and losses for logits that are known up to rounding; what is not finite bounds nothing."""

import numpy as np

from keras_dal._backend.arrays import EPS

ROUNDING = 1e-12  # relative, of sums of terms by their sizes


def smallest_margin(loss, logits, errors, targets):
    """Return a lower bound of the smallest margin for logits with errors up to `errors`, `(n, C)`."""
    least = np.min(loss.margins(logits, targets) - (2 + EPS) * errors.max(axis=1))
    return -np.inf if np.isnan(least) else float(least)


@np.errstate(over="ignore", invalid="ignore")
def largest_loss(loss, logits, errors, targets, weights):
    """Return an upper bound of the mean loss for logits with errors up to `(n, C)`."""
    values = loss.values(logits, targets)
    curvature = loss.curvature(targets.shape[1])
    if curvature is None:  # of every logit apart, so that the slope is steepest at an end
        ends = [np.abs(loss.gradient(logits + sign * errors, targets)) for sign in (-1, 1)]
        more = np.sum(np.maximum(*ends) * errors, axis=1)
    else:
        slopes = np.sum(np.abs(loss.gradient(logits, targets)) * errors, axis=1)
        more = slopes + curvature / 2 * np.sum(errors**2, axis=1)
    bound = np.mean(weights * (values + more)) + ROUNDING * np.mean(weights * (np.abs(values) + more))
    return np.inf if np.isnan(bound) else float(bound)
