"""Lower bounds that follow from samples with equal features, against entropies by hand, and minimized losses."""

import keras
import numpy as np
import pytest
from scipy import optimize, special

import keras_dal
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_dal.solvers.equal_features import groups_of_equal, least_loss


def test_groups_are_of_equal_rows_and_zeros_have_no_sign():
    features = np.array([[0.0, 1.0], [2.0, 1.0], [-0.0, 1.0], [2.0, 1.0], [2.0, 1.5]], "float32")
    assert sorted(map(sorted, groups_of_equal(features))) == [[0, 2], [1, 3]]
    assert groups_of_equal(features[:1]) == []


@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy(), SoftmaxCrossEntropy(0.1), SigmoidCrossEntropy()], ids=repr)
def test_the_bound_is_the_least_loss_of_logits_that_groups_share(loss):
    generator = np.random.default_rng(0)
    features = np.array([0, 0, 1, 1, 1, 2, 3, 3], "float32")[:, None]
    y = np.array([0, 1, 2, 2, 0, 1, 1, 1])
    y = y if loss.activation == "softmax" else np.eye(3)[y]
    targets, weights = loss.targets(y, 3), generator.uniform(0.2, 3.0, 8)

    def mean(flat):
        logits = flat.reshape(4, 3)[features[:, 0].astype(int)]
        slopes = np.zeros((4, 3))
        np.add.at(slopes, features[:, 0].astype(int), weights[:, None] * loss.gradient(logits, targets) / 8)
        return weights @ loss.values(logits, targets) / 8, slopes.ravel()

    least = optimize.minimize(mean, np.zeros(12), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15})
    found = least_loss(loss, features, targets, weights)
    assert found <= least.fun
    assert found == pytest.approx(least.fun, abs=1e-6)


def test_labels_that_agree_leave_nothing_by_rounding():
    targets = SoftmaxCrossEntropy().targets(np.zeros(7, int), 3)
    assert least_loss(SoftmaxCrossEntropy(), np.ones((7, 2)), targets, np.full(7, 1 / 3)) == 0


def test_a_label_that_hardly_weighs_proves_no_more_than_it_may():
    """Means of one, up to rounding, have an entropy of their rounding."""
    targets = SoftmaxCrossEntropy().targets(np.array([0] * 9 + [1]), 2)
    for seed in range(50):
        weights = np.append(np.random.default_rng(seed).uniform(0.1, 1.0, 9), 1e-300)
        assert 0 <= least_loss(SoftmaxCrossEntropy(), np.ones((10, 1)), targets, weights) <= 1e-300 * 700


def test_an_output_whose_labels_agree_takes_nothing_from_the_bound():
    """Beside it, in the mean of two outputs, half the entropy of a label of 3 in 10."""
    generator, y = np.random.default_rng(0), np.zeros((10, 2))
    y[:, 0], y[:3, 1] = 1, 1
    for _ in range(50):
        weights = generator.uniform(0.1, 1.0, 10)
        share = weights[:3].sum() / weights.sum()
        expected = weights.mean() * special.entr([share, 1 - share]).sum() / 2
        found = least_loss(SigmoidCrossEntropy(), np.ones((10, 1)), SigmoidCrossEntropy().targets(y, 2), weights)
        assert found == pytest.approx(expected, rel=1e-10)
        assert found <= expected


@pytest.mark.parametrize("gated", [False, True])
def test_contradictions_are_proved_where_all_else_can_be_separated(gated):
    """Images without a feature, say, with two labels: the loss of all others can come as near to 0 as one likes."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 8 if gated else 60)).astype("float32")
    x[[3, 11, 20]] = 0.0
    y = generator.integers(0, 4, 40)
    y[[3, 11, 20]] = 0, 1, 0
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(4)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if gated:
        model = keras_dal.add_gated_head(model, num_samples=40, seed=0, verbose=False)
    expected = 3 / 40 * special.entr([1 / 3, 2 / 3]).sum()
    certificate = keras_dal.certify(model, x, y, verbose=0)
    assert certificate.verdict == keras_dal.alignment(model, x, y).verdict == "not separable"
    assert certificate.infimum[0] == pytest.approx(expected, rel=1e-9)
    assert certificate.infimum[0] <= expected <= certificate.infimum[1] <= expected + 1e-5
