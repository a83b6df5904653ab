"""Bounds for logits that are known up to rounding, against the worst that the errors allow."""

import numpy as np
import pytest

from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from keras_dal.solvers.rounded import largest_loss, smallest_margin

C = 3


@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy(), SigmoidCrossEntropy(), SquaredError()], ids=repr)
def test_bounds_hold_for_all_logits_within_the_errors(loss):
    generator = np.random.default_rng(0)
    logits, errors = generator.standard_normal((6, C)), np.full((6, C), 0.3)
    weights, right = generator.uniform(0.5, 2.0, 6), np.eye(C)[generator.integers(0, C, 6)]
    targets = loss.targets(right, C)
    worst = logits - errors * (2 * right - 1)
    assert np.mean(weights * loss.values(worst, targets)) <= largest_loss(loss, logits, errors, targets, weights)
    if loss.has_sides:
        assert smallest_margin(loss, logits, errors, targets) <= np.min(loss.margins(worst, targets))
