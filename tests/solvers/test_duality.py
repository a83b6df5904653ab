"""Lower bounds of the infimum count what is not known of columns and of dual points."""

from fractions import Fraction

import numpy as np
import pytest
from cases import BACKEND, LOSSES
from scipy import optimize, special

from keras_dal.heads import DenseHead
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_dal.solvers import duality
from keras_dal.solvers.exact_dual import sparse_dual
from keras_dal.solvers.jacobian import jacobian


def test_columns_that_count_as_rounding_are_not_what_a_lower_bound_is_of():
    """Two features that differ in the last digit of one sample reach it alone, by a large theta."""
    generator = np.random.default_rng(0)
    first, only, ones = generator.standard_normal(12), np.eye(12)[0], np.ones(12)
    second = first.copy()
    second[0] = np.nextafter(first[0], 2.0)
    loss, head = SigmoidCrossEntropy(), DenseHead(2, 1)
    targets = loss.targets(generator.uniform(0.05, 0.95, (12, 1)), 1)
    found, apart = (
        duality.enclose_infimum(jacobian(head, np.column_stack(pair)), loss, targets, ones)
        for pair in ((first, second), (first, only))
    )
    assert found.upper > apart.upper + 1e-3
    assert found.lower <= apart.upper


@pytest.mark.parametrize("part", [1e-3, 1e-6])
def test_an_entropy_bound_holds_for_the_exact_dual_point_too(part, monkeypatch):
    loss, features, weights = SoftmaxCrossEntropy(), np.random.default_rng(0).standard_normal((4, 2)), np.ones(4)
    targets = loss.targets(np.arange(4) % 3, 3)
    shares = 0.01 * (targets == 0)
    monkeypatch.setattr(duality, "nearby_dual", lambda *_: (shares.copy(), np.full(4, part), True))
    search = duality._Search(jacobian(DenseHead(2, 3), features, weights, True), loss, targets, weights, 5.0)
    bound, _ = search._bound_without(None, 0.0)
    for exact in (shares * (1 - part), shares * (1 + part)):
        assert 0 < bound <= np.mean(np.sum(loss.sides(targets).entropy(exact), axis=1))


@pytest.mark.parametrize(("seconds", "tries"), [(0.0, 1), (120.0, 16)])
def test_the_last_tries_for_a_proof_end_with_the_time(seconds, tries, monkeypatch):
    loss, features, weights = SoftmaxCrossEntropy(), np.random.default_rng(0).standard_normal((4, 2)), np.ones(4)
    made = []

    def without_proof(jac, sides, shares, *_):
        made.append(shares)
        return np.zeros_like(shares), np.zeros(len(shares)), False

    monkeypatch.setattr(duality, "nearby_dual", without_proof)
    targets = loss.targets(np.arange(4) % 3, 3)
    search = duality._Search(jacobian(DenseHead(2, 3), features, weights, True), loss, targets, weights, seconds)
    assert search._last_bound(np.zeros((4, 3))) == 0
    assert (len(made), search.out_of_time) == (tries, seconds == 0)


def separates(loss, features, targets):
    """Return whether a linear program finds parameters with all gaps at least one."""
    columns = np.column_stack([features, np.ones(len(features))])
    rows = []
    for column, target in zip(columns, targets, strict=True):
        for output in range(len(target)):
            if loss.activation == "softmax" and target[output] == 1:
                continue
            unit = np.eye(len(target))[output]
            signs = target - unit if loss.activation == "softmax" else target[output] * unit
            rows.append(np.outer(column, signs).ravel())
    found = optimize.linprog(
        np.zeros(len(rows[0])), A_ub=-np.array(rows), b_ub=-np.ones(len(rows)), bounds=(None, None)
    )
    assert found.status in (0, 2)
    return found.status == 0


@pytest.mark.parametrize("loss", [LOSSES["softmax"], LOSSES["sigmoid"]], ids=lambda loss: loss.activation)
def test_a_dual_point_of_few_pairs_is_found_where_rare_features_separate_some(loss, monkeypatch):
    """A third of the features is active in three samples each, as those of rectified units may be."""
    nothing = lambda jac, sides, shares, *_: (np.zeros_like(shares), np.zeros(len(shares)), False)  # noqa: E731
    monkeypatch.setattr(duality, "nearby_dual", nothing)
    decided, problems = 0, 30 if BACKEND == "tensorflow" else 6  # NumPy computes them with every backend
    for seed in range(problems):
        generator = np.random.default_rng(seed)
        features = np.maximum(generator.standard_normal((60, 9)), 0.0).astype(np.float32).astype(np.float64)
        for column in range(3):
            features[np.argsort(features[:, column])[:-3], column] = 0.0
        features *= 10.0 ** generator.uniform(-12, 12, 9)
        labels = np.where(generator.random(60) < 0.3, generator.integers(0, 3, 60), features[:, 3:6].argmax(axis=1))
        softmax = loss.activation == "softmax"
        targets = loss.targets(labels if softmax else np.eye(3)[labels], 3)
        weights = generator.uniform(0.5, 2.0, 60)
        columns = jacobian(DenseHead(9, 3), features, weights, softmax)
        found = duality.enclose_infimum(columns, loss, targets, weights, 20.0)
        search = duality._Search(columns, loss, targets, weights, 20.0)
        assert 0 <= search._last_bound(np.zeros((60, 3))) <= found.upper
        scaled = features / np.abs(features).max(axis=0)
        assert (found.lower > 0) <= (not separates(loss, scaled, targets))
        decided += found.lower > 0
    assert decided >= 5 / 6 * problems


def test_no_pair_with_mass_is_no_dual_point():
    loss, features, weights = LOSSES["softmax"], np.ones((4, 2)), np.ones(4)
    targets = loss.targets(np.arange(4) % 3, 3)
    columns = jacobian(DenseHead(2, 3), features, weights, True)
    shares, *_ = sparse_dual(columns, loss.sides(targets), np.zeros((4, 3)), weights, 5.0)
    assert not shares.any()


def test_two_equal_samples_of_two_classes_are_a_dual_point_of_two_pairs():
    loss, features, weights = LOSSES["softmax"], np.array([[1.0], [1.0], [3.0], [4.0]]), np.ones(4)
    targets = loss.targets(np.array([0, 1, 0, 0]), 2)
    search = duality._Search(jacobian(DenseHead(1, 2), features, weights, True), loss, targets, weights, 5.0)
    shares, part, _ = sparse_dual(search.jacobian, search.sides, search.sides.wrong(np.zeros((4, 2))), weights, 5.0)
    assert 0 < search._bound_of(0.5 * shares / search.sides.most(shares), part) <= 0.5 * np.log(2)


@pytest.mark.parametrize("seed", range(4))
def test_classes_without_samples_loosen_no_bound_where_there_is_no_bias(seed):
    """Their probabilities do not vanish at the minimum, and belong to the dual point."""
    generator, loss, head = np.random.default_rng(seed), SoftmaxCrossEntropy(), DenseHead(3, 4, False)
    features, targets = generator.standard_normal((20, 3)), loss.targets(generator.integers(0, 2, 20), 4)

    def mean_loss(theta):
        logits = features @ theta.reshape(3, 4)
        slopes = features.T @ (special.softmax(logits, axis=1) - targets) / 20
        return np.mean(special.logsumexp(logits, axis=1) - np.sum(targets * logits, axis=1)), slopes.ravel()

    least = optimize.minimize(mean_loss, np.zeros(12), jac=True, method="BFGS", options={"gtol": 1e-10}).fun
    found = duality.enclose_infimum(jacobian(head, features, None, True), loss, targets, np.ones(20))
    assert found.lower <= least + 1e-12
    assert found.upper - found.lower < 2e-7


def test_a_lower_bound_of_squares_that_nothing_reaches_counts_their_rounding():
    for seed in range(50):
        labels = np.random.default_rng(seed).standard_normal((7, 2))
        columns = jacobian(DenseHead(2, 2, False), np.zeros((7, 2)), None, False)
        exact = sum(Fraction(float(label)) ** 2 for label in labels.ravel())
        least = Fraction(float(columns.least_left(labels).sum()))
        assert (1 - Fraction(1, 10**12)) * exact <= least <= exact
