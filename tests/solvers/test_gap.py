"""Numbers of gradient steps where there is nothing to do, or nothing to see."""

import dataclasses

import numpy as np
import pytest
from exact_head import fractions
from scipy import optimize

from keras_dal.heads import DenseHead
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.losses import SoftmaxCrossEntropy, SquaredError
from keras_dal.solvers import gap
from keras_dal.solvers.whitening import Whitening


def steps(features, use_bias=True, excess=1.0, wanted=1e-4):
    head = DenseHead(features.shape[1], 3, use_bias)
    coordinates = Whitening(CachedJacobian.of_head(head, features.astype(np.float32)))
    everything, targets = np.arange(len(features)), np.eye(3)[np.zeros(len(features), int)]
    samples = features, targets, np.ones(len(features))
    change = np.zeros(head.num_parameters), everything, 0.01, coordinates
    return gap.ProximalLoss(head, SoftmaxCrossEntropy(), *samples, *change).gradient_steps(excess, wanted)


def test_steps_are_those_of_the_dense_hessian_and_the_gap_holds_beside_a_penalty():
    """In the coordinates of the solver, with weights, anchors and an L2 factor for every parameter."""
    generator = np.random.default_rng(0)
    n, m, c, ridge = 60, 4, 3, 0.01
    features = (generator.standard_normal((n, m)) * [1, 1e-2, 1e2, 1]).astype(np.float32)
    head, anchors = DenseHead(m, c), np.arange(0, n, 2)
    coordinates = Whitening(CachedJacobian.of_head(head, features[anchors]), CachedJacobian.of_head(head, features))
    weights, factors = generator.uniform(0.5, 2, n), generator.uniform(0, 0.3, (m + 1) * c)
    loss, targets = SoftmaxCrossEntropy(), np.eye(c)[generator.integers(0, c, n)]
    start = generator.standard_normal((m + 1) * c) / 10
    columns = np.column_stack([features.astype(float), np.ones(n)])
    basis = np.kron(coordinates.root.T, np.eye(c))  # theta = start + basis phi
    jacobian = np.kron(columns, np.eye(c)) @ basis
    held = np.kron(columns[anchors], np.eye(c)) @ basis
    bent = 0.5 * jacobian.T @ (np.repeat(weights, c)[:, None] * jacobian) / n + 2 * ridge * held.T @ held / len(anchors)
    largest = np.linalg.eigvalsh(bent)[-1] + 2 * ridge
    smallest = 2 * ridge * (1 + np.linalg.eigvalsh(held.T @ held / len(anchors))[0])
    excess, wanted = 1.0, 1e-4
    exact = np.log(2 * excess / wanted) / -np.log1p(-np.sqrt(smallest / largest))
    proximal = gap.ProximalLoss(head, loss, features, targets, weights, start, anchors, ridge, coordinates)
    assert exact <= proximal.gradient_steps(excess, wanted) <= exact + 1.01
    penalized = dataclasses.replace(proximal, factors=factors)
    assert penalized.gradient_steps(excess, wanted) is None

    def objective(phi):
        theta = start + basis @ phi
        logits = columns @ theta.reshape(m + 1, c)
        change = (logits - columns @ start.reshape(m + 1, c))[anchors]
        of_change = np.mean(np.sum(change**2, axis=1)) + phi @ phi
        return np.mean(weights * loss.values(logits, targets)) + ridge * of_change + factors @ theta**2

    least = optimize.minimize(objective, np.zeros((m + 1) * c), method="BFGS", options={"gtol": 1e-8})
    for phi in (np.zeros((m + 1) * c), least.x + 1e-6 * generator.standard_normal((m + 1) * c)):
        theta = start + basis @ phi
        bound, decrease, gradient = penalized.bound(theta)
        steps_of = 1e-5 * np.eye(len(phi))
        slopes = [(objective(phi + each) - objective(phi - each)) / 2e-5 for each in steps_of]
        assert gradient == pytest.approx(slopes, abs=1e-6)
        assert objective(phi) - least.fun <= bound + 1e-9
        assert decrease == pytest.approx(objective(np.zeros_like(phi)) - objective(phi), abs=1e-7)
    assert bound < 0.1  # next to the minimum


def test_a_gap_counts_what_rounding_the_logits_makes_of_labels_that_are_nearly_reached():
    """Where they are reached to the last digit the slopes are zero, and all there is of them is rounding."""
    features = (1 + np.random.default_rng(0).random((20, 1))).astype(np.float32)
    head, ridge, everything, weights = DenseHead(1, 1, False), 1e-8, np.arange(20), np.ones(20)
    coordinates = Whitening(CachedJacobian.of_head(head, features))
    start = np.array([1000 / 3])
    targets = head.logits(features.astype(np.float64), start)
    proximal = gap.ProximalLoss(head, SquaredError(), features, targets, weights, start, everything, ridge, coordinates)
    z, y, (r,), (theta,), rho = map(fractions, (features[:, 0], targets[:, 0], coordinates.root[0], start, ridge))
    bend = z @ z / 20 + rho * (z @ z / 20 + 1 / r**2)
    least = theta + (z @ (y - z * theta) / 20) / bend
    for steps in range(-4, 5):
        at = start + steps * np.spacing(start)
        assert proximal.bound(at).gap >= bend * (fractions(at)[0] - least) ** 2


def test_the_gap_is_all_of_the_distance_where_the_weight_of_the_change_alone_bends():
    """The loss is at its minimum, and a feature that is zero for every sample moves no logit."""
    features = np.column_stack([np.random.default_rng(0).standard_normal(20), np.zeros(20)]).astype(np.float32)
    head, ridge, everything, weights = DenseHead(2, 1, False), 0.01, np.arange(20), np.ones(20)
    coordinates = Whitening(CachedJacobian.of_head(head, features))
    start, change = np.array([1.0, 2.0]), np.array([0.0, 3.0])
    targets = head.logits(features.astype(np.float64), start)
    proximal = gap.ProximalLoss(head, SquaredError(), features, targets, weights, start, everything, ridge, coordinates)
    phi = np.linalg.solve(coordinates.root.T, change)
    above = ridge * phi @ phi
    assert above <= proximal.bound(start + change).gap <= (1 + 1e-5) * above


def test_a_gap_counts_what_rounding_the_logits_makes_of_a_change_in_the_last_place():
    """By hand: with one sample half of the bend is that of its logit, which a change of theta may leave as it is."""
    head, ridge, start = DenseHead(1, 1, False), 1.0, np.array([1000 / 3])
    for feature in 1 + np.random.default_rng(0).random(20):
        features = np.array([[feature]], np.float32)
        coordinates = Whitening(CachedJacobian.of_head(head, features))
        targets = head.logits(features.astype(np.float64), start)
        samples = features, targets, np.full(1, 1e-30)
        proximal = gap.ProximalLoss(head, SquaredError(), *samples, start, np.arange(1), ridge, coordinates)
        (z,), (r,) = map(fractions, (features[0], coordinates.root[0]))
        for steps in (-1, 1):
            at = start + steps * np.spacing(start)
            change = fractions(at)[0] - fractions(start)[0]
            assert proximal.bound(at).gap >= (z**2 + 1 / r**2) * change**2 * (1 - 1e-9)


@pytest.mark.parametrize("order", ["C", "F"])
def test_rounding_of_slopes_is_bounded_in_whatever_order_logits_are_kept(order):
    generator = np.random.default_rng(0)
    logits = np.asarray(1e-6 * generator.standard_normal((200, 1000)), order=order)
    targets = np.eye(1000)[generator.integers(0, 1000, 200)]
    slopes, bound = gap._slopes(SoftmaxCrossEntropy(), logits, targets, np.zeros_like(logits))
    powers = np.exp(np.ascontiguousarray(logits).astype(np.longdouble))
    exact = powers / powers.sum(axis=1, keepdims=True) - targets
    assert (np.abs(slopes - exact) <= bound).all()


def test_none_are_needed_where_the_gap_is_small_already():
    assert steps(np.ones((5, 2)), excess=1e-5) == 0


def test_features_that_are_all_zero_need_one():
    assert steps(np.zeros((5, 2)), use_bias=False) == 1


def test_what_would_take_long_to_find_is_not_looked_for(monkeypatch):
    monkeypatch.setattr(gap, "_AFFORDABLE", 10)
    assert steps(np.random.default_rng(0).standard_normal((9, 2))) is None


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e15])
def test_units_do_not_change_the_number(unit):
    features = np.random.default_rng(0).standard_normal((50, 4))
    assert steps(features * unit, use_bias=False) == steps(features, use_bias=False)
