"""The least change of a mixture that moves samples, against dense least squares in float64."""

import cases
import numpy as np
import pytest
from scipy import optimize

from keras_dal.heads.array_backend import Accelerator, Host
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.losses.sides import RightClass, RightSides
from keras_dal.solvers.min_norm_interpolation import Interpolation
from keras_dal.solvers.objectives import Separation
from keras_dal.solvers.whitening import Whitening

N, M, K, C = 40, 5, 12, 3


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def head(generator):
    return cases.HEADS["mixture"](generator, M, K, C)


def coordinates(whitening, size):
    """The matrix T."""
    return np.stack([whitening.theta(unit) for unit in np.eye(size)], axis=1).astype(np.float64)


@pytest.mark.parametrize("on", [Host, Accelerator])
@pytest.mark.parametrize("max_bytes", [0, 2**30], ids=["gates computed again", "gates kept"])
@pytest.mark.parametrize("joins", [[30], [10, 20], [7, 13, 1, 9]])
def test_change_is_the_whitened_least_squares_solution(head, generator, joins, max_bytes, on, monkeypatch):
    monkeypatch.setattr("keras_dal.heads.array_backend._BLOCK", 4)  # so that Gram matrices have several blocks
    features = generator.normal(size=(N, M))
    mixture = CachedJacobian.of_head(head, features, max_bytes, on())
    solver, drawn = Interpolation(mixture, mixture), generator.permutation(N)[: sum(joins)]
    for rows in np.split(drawn, np.cumsum(joins)[:-1]):
        solver.extend(np.sort(rows))
    assert sorted(solver.chosen) == sorted(drawn)
    moves = generator.normal(size=(len(drawn), C))
    jacobian = cases.head_jacobian(head, features)
    basis = coordinates(Whitening(mixture), head.num_parameters)
    chosen = jacobian[solver.chosen].reshape(-1, head.num_parameters) @ basis
    phi = np.linalg.lstsq(chosen, moves.ravel(), rcond=None)[0]
    expected = basis @ phi
    change, multipliers = solver.change(moves)
    assert np.sum(moves * multipliers) == pytest.approx(phi @ phi, rel=2e-3)
    np.testing.assert_allclose(change, expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose((jacobian @ change)[solver.chosen], moves, atol=1e-3)


@pytest.mark.parametrize("on", [Host, Accelerator])
def test_anchors_are_held_as_far_as_the_moves_allow(head, generator, on, monkeypatch):
    """The minimum of mean squared change plus squared norm under the moves, from its optimality conditions."""
    monkeypatch.setattr("keras_dal.solvers.min_norm_interpolation._BLOCK", 4)
    features, still = generator.normal(size=(2, N, M))
    mixture, anchors = (
        CachedJacobian.of_head(head, features, on=on()),
        CachedJacobian.of_head(head, still[:25], on=on()),
    )
    solver = Interpolation(mixture, anchors)
    solver.hold(anchors)
    solver.extend(np.arange(6))
    solver.extend(np.arange(6, 9))
    moves, size = generator.normal(size=(9, C)), head.num_parameters
    basis = coordinates(Whitening(anchors, mixture), size)
    moved, held = (cases.head_jacobian(head, each).reshape(-1, size) @ basis for each in (features[:9], still[:25]))
    hessian = held.T @ held / 25 + np.eye(size)
    system = np.block([[hessian, moved.T], [moved, np.zeros((len(moved),) * 2)]])
    expected = basis @ np.linalg.solve(system, np.concatenate([np.zeros(size), moves.ravel()]))[:size]
    change, multipliers = solver.change(moves)
    phi = np.linalg.solve(basis, expected)
    assert np.sum(moves * multipliers) == pytest.approx(phi @ hessian @ phi, rel=5e-3)
    np.testing.assert_allclose(change, expected, atol=5e-3 * np.abs(expected).max())
    np.testing.assert_allclose(mixture.logits(change)[:9], moves, atol=1e-3)


@pytest.mark.parametrize("on", [Host, Accelerator])
def test_a_singular_matrix_is_refused(head, generator, on):
    features = generator.normal(size=(N, M))
    features[5] = np.nan
    mixture = CachedJacobian.of_head(head, features, on=on())
    solver = Interpolation(mixture, CachedJacobian.of_head(head, features[10:], on=on()))
    with pytest.raises(np.linalg.LinAlgError):
        solver.extend(np.arange(10))


@pytest.mark.parametrize("on", [Host, Accelerator])
def test_equal_samples_are_moved_by_their_mean(head, generator, on, monkeypatch):
    monkeypatch.setattr("keras_dal.solvers.min_norm_interpolation._JITTER", 1e-4)
    features = generator.normal(size=(N, M))
    features[1] = features[0]
    mixture = CachedJacobian.of_head(head, features, on=on())
    solver = Interpolation(mixture, mixture)
    solver.extend(np.arange(2))
    moves = np.array([[1.0, 0.0, -1.0], [3.0, 0.0, 1.0]])
    np.testing.assert_allclose(mixture.logits(solver.change(moves)[0])[0], [2.0, 0.0, 0.0], atol=0.05)


@pytest.mark.parametrize("exclusive", [True, False])
def test_nearest_logits_are_those_of_a_general_optimizer(generator, exclusive):
    labels, logits = generator.integers(0, 4, 30), 0.7 * generator.normal(size=(30, 4))
    targets = np.eye(4)[labels] if exclusive else np.where(generator.random((30, 4)) < 0.5, -1.0, 1.0)
    criterion = Separation((RightClass if exclusive else RightSides)(targets), 0.5)
    found = criterion.nearest(logits)
    for sample in range(30):

        def margins(f, sample=sample):
            if not exclusive:
                return targets[sample] * f - 0.5
            return np.delete(f[labels[sample]] - f, labels[sample]) - 0.5

        best = optimize.minimize(
            lambda f, sample=sample: np.sum((f - logits[sample]) ** 2),
            logits[sample],
            jac=lambda f, sample=sample: 2 * (f - logits[sample]),
            constraints={"type": "ineq", "fun": margins},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 200},
        )
        np.testing.assert_allclose(found[sample], best.x, atol=1e-5)
    np.testing.assert_allclose(criterion.values(found.astype(np.float32)), 0.0, atol=1e-10)
