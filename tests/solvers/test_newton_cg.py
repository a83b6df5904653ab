"""Products, coordinates, criteria and the solver against dense algebra, SciPy and scikit-learn, in float64."""

import itertools

import cases
import numpy as np
import pytest
from cases import LOSSES
from labels import one_hot
from scipy import optimize
from sklearn.linear_model import LogisticRegression, Ridge

from keras_dal import heads, losses
from keras_dal._backend import arrays
from keras_dal.heads.array_backend import Accelerator, Host
from keras_dal.heads.cached_jacobian import CachedJacobian, StackedJacobian
from keras_dal.losses.sides import RightClass, RightSides
from keras_dal.solvers.conjugate_gradients import conjugate_gradients
from keras_dal.solvers.newton_cg import NewtonCG, gap_of
from keras_dal.solvers.objectives import Anchored, Separation, WholeLoss
from keras_dal.solvers.penalties import Quadratic
from keras_dal.solvers.whitening import Whitening

N, M, H, C = 40, 5, 12, 3


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def make(kind, generator):
    return cases.HEADS[kind](generator, M, H, C)


@pytest.fixture(params=["dense", "dense without bias", "gated", "gated beside", "branch", "branch of few gates"])
def head(request, generator):
    return make(request.param, generator)


def newton(jacobian, whitening, objective, ridge, factors=None, start=None):
    return NewtonCG(jacobian, whitening, objective, Quadratic(whitening, ridge, factors, start))


def mean_of(criterion, size=N):
    """The mean of a criterion over samples whose logits start at zero."""
    return Anchored(criterion, np.full(size, 1 / size), np.zeros((size, C), np.float32), np.zeros(size))


@pytest.mark.parametrize("on", [Host, Accelerator])
@pytest.mark.parametrize("max_bytes", [0, 2**30], ids=["gates computed again", "gates kept"])
def test_products_are_those_of_the_dense_jacobian(head, generator, max_bytes, on, monkeypatch):
    monkeypatch.setattr(on, "block", 16)  # so that there are several blocks, the last one short
    features = generator.normal(size=(N, M))
    jacobian, dense = CachedJacobian.of_head(head, features, max_bytes, on()), cases.head_jacobian(head, features)
    theta, cotangent = generator.normal(size=head.num_parameters), generator.normal(size=(N, C))
    np.testing.assert_allclose(jacobian.logits(theta), dense @ theta, rtol=1e-4, atol=1e-4)
    pulled = np.einsum("ncp,nc->p", dense, cotangent)
    np.testing.assert_allclose(jacobian.adjoint(cotangent), pulled, rtol=1e-4, atol=1e-4)
    scale = generator.normal(size=N)
    bent = jacobian.normal(theta, lambda change, rows: scale[rows, None] * change)
    np.testing.assert_allclose(bent, np.einsum("ncp,n,nc->p", dense, scale, dense @ theta), rtol=1e-3, atol=1e-3)
    rows = np.array([1, 7, 30])
    np.testing.assert_allclose(jacobian.restricted(rows).logits(theta), (dense @ theta)[rows], rtol=1e-4, atol=1e-4)


def test_stacked_rows_are_those_of_all_samples(head, generator):
    features, theta = generator.normal(size=(N, M)), generator.normal(size=head.num_parameters)
    whole = CachedJacobian.of_head(head, features)
    stacked = StackedJacobian(
        [CachedJacobian.of_head(head, features[:15]), CachedJacobian.of_head(head, features[15:])]
    )
    cotangent = generator.normal(size=(N, C))
    for rows in (np.arange(N), np.array([0, 14, 15, 39]), np.array([3]), np.array([20, 21])):
        some, same = stacked.restricted(rows), whole.restricted(rows)
        np.testing.assert_allclose(some.logits(theta), same.logits(theta), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(some.adjoint(cotangent[rows]), same.adjoint(cotangent[rows]), rtol=1e-4, atol=1e-4)
        pulled = some.normal(theta, lambda change, block: cotangent[rows][block] * change)  # noqa: B023 (used at once)
        bent = cotangent[rows] * some.logits(theta)
        np.testing.assert_allclose(pulled, some.adjoint(bent), rtol=1e-3, atol=1e-3)


def test_whitened_distance_is_the_mean_squared_change_of_a_plain_head(generator):
    head, anchors = heads.DenseHead(M, C), generator.normal(size=(500, M)) @ generator.normal(size=(M, M)) + 2.0
    jacobian = CachedJacobian.of_head(head, anchors)
    whitening, phi = Whitening(jacobian), generator.normal(size=head.num_parameters)
    change = cases.head_jacobian(head, anchors) @ whitening.theta(phi).astype(np.float64)
    assert np.mean(np.sum(change**2, axis=1)) == pytest.approx(
        phi @ phi, rel=0.1
    )  # the regularization is 1e-2 of each input


@pytest.mark.parametrize("units", [0, 100], ids=["largest eigenvalues", "all eigenvalues"])
@pytest.mark.parametrize("kind", ["gated beside", "branch"])
def test_whitening_conditions_the_jacobian_of_gates(generator, kind, units, monkeypatch):
    monkeypatch.setattr("keras_dal.solvers.whitening._FULL", units)
    head, anchors = make(kind, generator), generator.normal(size=(500, M)) @ np.diag([100, 10, 1, 0.1, 0.01])
    jacobian = CachedJacobian.of_head(head, anchors)
    whitening, dense = Whitening(jacobian), cases.head_jacobian(head, anchors)
    basis = np.stack([whitening.theta(unit) for unit in np.eye(head.num_parameters)], axis=1).astype(np.float64)

    def condition(matrix):
        values = np.linalg.svd(matrix.reshape(-1, matrix.shape[-1]), compute_uv=False)
        return values[0] / values[len(values) // 2]

    assert condition(dense @ basis) < 0.1 * condition(dense)


def test_the_largest_eigenvalues_are_those_of_the_moments(generator, monkeypatch):
    """With one output the random signs have no effect, and all eigenvalues kept must whiten the moments."""
    monkeypatch.setattr("keras_dal.solvers.whitening._FULL", 0)
    head, features = make("gated without bias", generator), generator.normal(size=(500, M))
    head.output_kernel, head.num_outputs = head.output_kernel[:, :1], 1
    whitening = Whitening(CachedJacobian.of_head(head, features))
    gates = head.gates(features) * head.output_kernel[:, 0]
    inputs = np.hstack([head.standardize(features), np.ones((500, 1))])
    moments = np.kron(inputs.T @ inputs / 500, gates.T @ gates / 500)
    basis = np.stack([whitening.theta(unit) for unit in np.eye(head.num_parameters)], axis=1).astype(np.float64)
    whitened = np.linalg.eigvalsh(basis.T @ moments @ basis)
    assert whitened.max() < 1.05
    assert np.median(whitened) > 0.9  # the rest are eigenvalues below the regularization
    monkeypatch.setattr("keras_dal.solvers.whitening._RANK", 4)
    whitening = Whitening(CachedJacobian.of_head(head, features))
    basis = np.stack([whitening.theta(unit) for unit in np.eye(head.num_parameters)], axis=1).astype(np.float64)
    conditions = [np.linalg.cond(change.T @ moments @ change) for change in (basis, np.eye(len(basis)))]
    assert conditions[0] < 0.1 * conditions[1]


@pytest.mark.parametrize("units", [0, 100], ids=["largest eigenvalues", "all eigenvalues"])
@pytest.mark.parametrize("on", [Host, Accelerator])
def test_whitening_and_its_transpose_are_transposes(head, generator, on, units, monkeypatch):
    monkeypatch.setattr("keras_dal.solvers.whitening._FULL", units)
    whitening = Whitening(CachedJacobian.of_head(head, generator.normal(size=(N, M)), on=on()))
    phi, gradient = generator.normal(size=(2, head.num_parameters))
    assert whitening.theta(phi) @ gradient == pytest.approx(phi @ whitening.transposed(gradient), rel=1e-3)


def test_a_feature_that_never_moves_is_harmless(generator):
    features = generator.normal(size=(N, M))
    features[:, 2] = 0.0
    whitening = Whitening(CachedJacobian.of_head(heads.DenseHead(M, C), features))
    assert np.isfinite(whitening.theta(np.ones((M + 1) * C))).all()


def criteria(xp=arrays.NUMPY):
    classes = one_hot(N, C)
    signs = 2.0 * np.random.default_rng(2).integers(0, 2, (N, C)) - 1
    return {
        "separation of classes": Separation(RightClass(xp.single(classes)), 0.5),
        "separation of outputs": Separation(RightSides(xp.single(signs)), 0.5),
        "anchored": Anchored(
            Separation(RightClass(xp.single(classes[: N // 2])), 0.5),
            np.random.default_rng(3).uniform(0.5, 2, N // 2),
            xp.single(np.random.default_rng(4).normal(size=(N, C))),
            np.random.default_rng(5).integers(0, 2, N),
        ),
        "squared error": WholeLoss(LOSSES["squared error"], xp.single(signs)),
        "softmax": WholeLoss(LOSSES["softmax"], xp.single(classes)),
        "sigmoid": WholeLoss(LOSSES["sigmoid"], xp.single(signs)),
    }


@pytest.mark.parametrize("name", criteria())
def test_gradient_and_hessian_are_derivatives(name, generator):
    criterion, step = criteria()[name], 1e-3
    logits, direction = generator.normal(size=(2, N, C))
    ahead, behind = logits + step * direction, logits - step * direction
    slope = (criterion.values(ahead) - criterion.values(behind)) / (2 * step)
    np.testing.assert_allclose(np.sum(criterion.gradient(logits) * direction, axis=1), slope, rtol=2e-2, atol=2e-3)
    bend = (criterion.gradient(ahead) - criterion.gradient(behind)) / (2 * step)
    rows = np.flatnonzero(generator.uniform(size=N) < 0.8)
    curve, middle = criterion.hessian(logits, rows), len(rows) // 3
    blocks = [slice(0, middle), slice(middle, len(rows))]
    bent = np.concatenate([curve(direction[rows[block]], block) for block in blocks])
    away = np.abs(bend[rows] - bent).max(axis=1)
    assert np.mean(away < 2e-2) > 0.9  # the squared hinge bends at single points, where no difference can follow
    assert (away < 2e-2).all() or name.startswith(("separation", "anchored"))


def test_separation_is_what_it_says(generator):
    logits, labels = generator.normal(size=(N, C)), generator.integers(0, C, N)
    criterion = Separation(RightClass(np.eye(C)[labels]), 0.5)
    wanted = [
        sum(max(0.0, 0.5 - (f[label] - f[j])) ** 2 for j in range(C) if j != label)
        for f, label in zip(logits, labels, strict=True)
    ]
    np.testing.assert_allclose(criterion.values(logits.astype(np.float32)), wanted, rtol=1e-4, atol=1e-5)
    assert (criterion.active(logits) == (np.array(wanted) > 0)).all()


def solve(problem, steps=60):
    best = None
    for best, _ in zip(problem.steps(), range(steps), strict=False):
        if best.gap <= 1e-9:
            break
    return best


@pytest.mark.parametrize("name", criteria())
def test_the_minimum_is_that_of_scipy(name, head, generator):
    criterion, features = criteria()[name], generator.normal(size=(N, M))
    weights, hold, ridge = generator.uniform(0.5, 2, N), generator.uniform(0, 1, N), 1e-2
    jacobian = CachedJacobian.of_head(head, features)
    whitening, start = Whitening(jacobian), generator.normal(size=(N, C)).astype(np.float32)
    dense = cases.head_jacobian(head, features)
    basis = np.stack([whitening.theta(unit) for unit in np.eye(head.num_parameters)], axis=1).astype(np.float64)

    def objective(phi):
        logits = start + dense @ (basis @ phi)
        cotangent = (weights[:, None] * criterion.gradient(logits) + 2 * hold[:, None] * (logits - start)) / N
        gradient = basis.T @ np.einsum("ncp,nc->p", dense, cotangent) + 2 * ridge * phi
        held = hold * np.sum((logits - start) ** 2, axis=1)
        return np.mean(weights * criterion.values(logits) + held) + ridge * phi @ phi, gradient

    zero = np.zeros(head.num_parameters)
    expected = optimize.minimize(objective, zero, jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9})
    found = solve(newton(jacobian, whitening, Anchored(criterion, weights / N, start, hold / N), ridge))
    assert found.objective == pytest.approx(expected.fun, rel=1e-4)
    assert found.objective - expected.fun <= found.gap + 1e-6


@pytest.mark.parametrize("name", criteria(arrays.TENSORS))
def test_tensors_of_an_accelerator_find_the_same_minimum(name, head, generator, monkeypatch):
    """In the same steps, and the arrays of both never meet."""
    monkeypatch.setattr(Accelerator, "block", 16)
    features, start = generator.normal(size=(N, M)), generator.normal(size=(N, C)).astype(np.float32)
    weights, hold = generator.uniform(0.5, 2, N) / N, generator.uniform(0, 1, N) / N
    found = []
    for on, xp in ((Host(), arrays.NUMPY), (Accelerator(), arrays.TENSORS)):
        jacobian = CachedJacobian.of_head(head, features, on=on)
        objective = Anchored(criteria(xp)[name], weights, xp.single(start), hold)
        found.append(solve(newton(jacobian, Whitening(jacobian), objective, 1e-1), steps=4))
    ours, theirs = found
    assert not isinstance(theirs.phi, np.ndarray)
    assert not isinstance(theirs.logits, np.ndarray)
    assert theirs.objective == pytest.approx(ours.objective, rel=1e-5)
    np.testing.assert_allclose(arrays.TENSORS.numpy(theirs.logits), ours.logits, rtol=1e-2, atol=1e-2)


def test_the_certified_gap_bounds_the_distance_to_the_minimum_at_every_step(generator):
    head, features = make("branch", generator), generator.normal(size=(N, M))
    jacobian = CachedJacobian.of_head(head, features)
    criterion = Separation(RightClass(one_hot(N, C)), 1.0)
    problem = newton(jacobian, Whitening(jacobian), mean_of(criterion), 1e-3)
    steps = [step for step, _ in zip(problem.steps(), range(15), strict=False)]
    least = min(step.objective for step in steps)
    assert all(step.objective - least <= step.gap + 1e-6 for step in steps)
    assert steps[-1].gap < 1e-3 * steps[0].gap


def test_the_gap_is_all_of_the_distance_where_the_ridge_alone_bends(generator):
    phi, ridge = generator.normal(size=7), 0.3
    assert gap_of(2 * ridge * phi, ridge) == pytest.approx(ridge * phi @ phi)


def test_a_step_is_watched_between_its_products(generator):
    """Where a product takes seconds, a limit of time cannot wait for the end of the step."""
    jacobian = CachedJacobian.of_head(make("dense", generator), generator.normal(size=(N, M)))

    def watch():
        raise TimeoutError

    whitening, objective = Whitening(jacobian), mean_of(WholeLoss(losses.SoftmaxCrossEntropy(), one_hot(N, C)))
    steps = NewtonCG(jacobian, whitening, objective, Quadratic(whitening, 1e-3, None, None), watch=watch).steps()
    next(steps)  # where it starts
    with pytest.raises(TimeoutError):
        next(steps)


def test_a_system_that_rounding_makes_singular_has_a_finite_solution():
    right = arrays.TENSORS.single(np.ones(3))
    found = conjugate_gradients(lambda vector: 0.0 * vector, right, 0.1, 5)
    np.testing.assert_array_equal(arrays.TENSORS.numpy(found), np.zeros(3))


def test_logistic_regression_is_that_of_scikit_learn(generator):
    features, labels = generator.normal(size=(300, M)), generator.integers(0, C, 300)
    labels[features[:, 0] > 0] = 0
    jacobian = CachedJacobian.of_head(heads.DenseHead(M, C), features)
    criterion = WholeLoss(losses.SoftmaxCrossEntropy(), np.eye(C)[labels])
    problem = newton(jacobian, Whitening(jacobian), mean_of(criterion, 300), 1e-9)
    steps = [step for step, _ in zip(problem.steps(), range(25), strict=False)]
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(features, labels)
    probabilities = theirs.predict_proba(features)
    expected = -np.mean(np.log(probabilities[np.arange(300), labels]))
    assert steps[-1].objective == pytest.approx(expected, abs=1e-5)


def test_least_squares_with_a_ridge_is_that_of_scikit_learn(generator):
    features, targets = generator.normal(size=(200, M)), generator.normal(size=(200, C))
    head = heads.DenseHead(M, C, use_bias=False)
    jacobian = CachedJacobian.of_head(head, features)
    whitening = Whitening(jacobian)
    criterion = WholeLoss(losses.SquaredError(), targets)
    found = solve(newton(jacobian, whitening, mean_of(criterion, 200), 1e-2))
    basis = np.stack([whitening.theta(unit) for unit in np.eye(M * C)], axis=1).reshape(M, C, M * C)[:, 0, ::C]
    theirs = Ridge(alpha=1e-2 * 200 * C, fit_intercept=False, tol=1e-12).fit(features @ basis, targets)
    np.testing.assert_allclose(found.logits, theirs.predict(features @ basis), atol=2e-3)


@pytest.mark.parametrize(("on", "xp"), [(Host, arrays.NUMPY), (Accelerator, arrays.TENSORS)])
def test_an_l2_penalty_is_part_of_what_is_minimized(on, xp, generator):
    """Of the parameters themselves, away from where the coordinates have their origin: least squares in closed form."""
    features, targets, start = (generator.normal(size=shape) for shape in ((200, M), (200, C), (M, C)))
    factors, ridge = generator.uniform(0.01, 0.1, M * C), 1e-2
    jacobian = CachedJacobian.of_head(heads.DenseHead(M, C, use_bias=False), features, on=on())
    whitening = Whitening(jacobian)
    criterion = WholeLoss(losses.SquaredError(), xp.single(targets))
    objective = Anchored(criterion, np.full(200, 1 / 200), xp.single(features @ start), np.zeros(200))
    found = solve(newton(jacobian, whitening, objective, ridge, factors, start.ravel()), steps=12)
    basis = np.stack([arrays.NUMPY.numpy(whitening.theta(unit)) for unit in np.eye(M * C)], axis=1).astype(np.float64)
    columns = np.einsum("nm,mcp->ncp", features, basis.reshape(M, C, -1)).reshape(200 * C, -1)
    # rows of the squared error, of the penalty and of the distance, to be solved for phi
    rows = np.vstack([columns / np.sqrt(200 * C), np.sqrt(factors)[:, None] * basis, np.sqrt(ridge) * np.eye(M * C)])
    there = [
        (targets - features @ start).ravel() / np.sqrt(200 * C),
        -np.sqrt(factors) * start.ravel(),
        np.zeros(M * C),
    ]
    expected = np.linalg.lstsq(rows, np.concatenate(there), rcond=None)
    np.testing.assert_allclose(xp.numpy(found.phi), expected[0], atol=2e-3)
    assert found.objective == pytest.approx(expected[1].item(), rel=1e-4)


@pytest.mark.parametrize("unit", [1e-12, 1e18])
def test_tensors_in_any_unit_take_the_steps_of_numpy(unit, generator):
    """Squares of what float32 holds are no numbers of float32."""
    features, objectives = generator.normal(size=(N, M)), []
    for on, xp in ((Host(), arrays.NUMPY), (Accelerator(), arrays.TENSORS)):
        jacobian = CachedJacobian.of_head(heads.DenseHead(M, C), features, on=on)
        loss = WholeLoss(losses.SoftmaxCrossEntropy(), xp.single(one_hot(N, C)))
        objective = Anchored(loss, np.full(N, unit / N), xp.single(np.zeros((N, C))), np.zeros(N))
        steps = newton(jacobian, Whitening(jacobian), objective, 1e-2 * unit).steps()
        objectives.append(next(itertools.islice(steps, 6, None)).objective / unit)
    assert objectives[1] == pytest.approx(objectives[0], rel=1e-5)
    assert objectives[0] < 0.999 * np.log(C)


@pytest.mark.parametrize(("one", "other"), [([np.nan, 1], [1, 2]), ([1, 2], [np.nan, 1]), ([0, 0], [1, np.nan])])
def test_a_product_of_tensors_that_are_not_finite_is_not_zero(one, other):
    factors = [arrays.TENSORS.single(np.array(each, np.float32)) for each in (one, other)]
    assert np.isnan(arrays.TENSORS.dot(*factors))
