"""What a `Result` says of the weights that a model ends with, compared with exact arithmetic, in awkward units."""

import warnings
from fractions import Fraction

import keras
import numpy as np
import pytest
import verdict_problems
from cases import KERAS_LOSSES
from exact_head import ExactHead
from false_numbers import in_float32
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dal.finishing.converge import converge


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_a_result_speaks_of_the_weights_that_the_model_has(seed):
    problem = verdict_problems.draw(seed)
    features = in_float32(problem.features)
    softmax = problem.loss.activation == "softmax"
    labels = problem.targets if softmax else (problem.targets + 1) / 2
    keras.utils.set_random_seed(seed)
    dense = keras.layers.Dense(problem.num_outputs, use_bias=problem.use_bias)
    model = keras.Sequential([keras.Input(features.shape[1:]), dense])
    model.compile("sgd", KERAS_LOSSES["softmax of probabilities" if softmax else "sigmoid"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of labels that no head fits
        result = converge(model, features, labels, problem.weights, gated=False, time_limit=2.0, verbose=0)
    exact = ExactHead(features, problem.targets, problem.weights, problem.use_bias, softmax)
    theta = np.concatenate([np.ravel(variable) for variable in model.get_weights()])
    logits, off = exact.logits(theta), exact.rounding(theta)
    margins = exact.margins(logits)
    assert set(np.flatnonzero(margins < -2 * off)) <= set(result.left) <= set(np.flatnonzero(margins <= 2 * off))
    assert result.accuracy == pytest.approx(1 - len(result.left) / len(features))
    assert abs(Fraction(result.margin) - min(margins)) <= 2 * off
    for loss, scale in ((result.loss, 1), (result.scaled_loss, Fraction(result.scale))):
        true = float(exact.loss(scale * logits))
        assert loss == pytest.approx(true, rel=1e-9, abs=float(2 * scale * off * np.mean(problem.weights)))
    if any("every margin is positive" in line for line in result.proof()):
        assert min(margins) > 0
