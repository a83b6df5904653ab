"""Lower bounds of the infimum count what is not known of columns and of dual points."""

import numpy as np
import pytest

from keras_dal.heads import DenseHead
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_dal.solvers import duality
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
