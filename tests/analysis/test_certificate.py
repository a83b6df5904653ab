"""Certificates against dense float64 algebra, real gradient descent and independent solvers."""

import dataclasses
import json
import re

import cases
import keras
import numpy as np
import pytest
from cases import KERAS_LOSSES, LOSSES
from scipy import optimize, special

from keras_dal import heads, losses
from keras_dal.analysis.alignment import alignment
from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.certify import certify, certify_head
from keras_dal.analysis.descent_bound import Objective
from keras_dal.analysis.width import width_curve
from keras_dal.finishing.converge import converge
from keras_dal.solvers.duality import Enclosure
from keras_dal.solvers.factorized_jacobian import DenseJacobian, KroneckerJacobian
from keras_dal.solvers.iterative_jacobian import IterativeJacobian
from keras_dal.solvers.jacobian import jacobian


def make_head(kind, rng, m, units, outputs):
    """Return a head with as many gated units, or with gates of about as many parameters."""
    count = max(1, units // outputs) if kind == "branch" else units
    return cases.HEADS[kind](rng, m, count, outputs)


KINDS = ("dense", "dense without bias", "gated", "gated beside", "branch")


def dense_jacobian(head, z):
    """J_S written down from its formula, shape (n, C, P), with no use of the head's own maps."""
    n, identity = len(z), np.eye(head.num_outputs)
    if isinstance(head, heads.SumHead):
        return np.concatenate([dense_jacobian(part, z) for part in head.parts], axis=2)
    if isinstance(head, heads.DenseHead):
        blocks = [np.einsum("im,jc->ijmc", z, identity).reshape(n, head.num_outputs, -1)]
    else:
        u = (z - head.mean) / head.scale
        gates = cases.gate(head.sharpness * (u @ head.gate_kernel + head.gate_bias))
        rows = np.einsum("hj,ih->ijh", head.output_kernel, gates) if hasattr(head, "output_kernel") else None
        if rows is None:
            rows = np.einsum("jc,ih->ijhc", identity, gates).reshape(n, head.num_outputs, -1)
        blocks = [np.einsum("im,ijh->ijmh", u, rows).reshape(n, head.num_outputs, -1), rows]
    if head.use_bias:
        blocks.append(np.broadcast_to(identity, (n, *identity.shape)))
    return np.concatenate(blocks, axis=2)


SIZES = {12: 2000, 49: 2000, 27: 1000}  # of J_S in rows, where not drawn: two plain heads and a gated one


def make_problem(seed, rows=None):
    """A random head and random labels; a third of the features are low-rank, as those of networks are."""
    rng = np.random.default_rng(seed)
    outputs = int(rng.integers(2, 7))
    n = max(8, int(rows or 10 ** rng.uniform(1.4, 2.5)) // outputs)
    m = int(rng.integers(2, 40))
    z = rng.normal(size=(n, m))
    if seed % 3 == 0:
        z[:, m // 2 :] = z[:, : m - m // 2] @ rng.normal(size=(m - m // 2, m - m // 2))
    units = max(outputs, int(rng.uniform(0.5, 1.6) * n * outputs / (m + 1)))
    head = make_head("branch" if seed % 8 == 7 else KINDS[seed % 4], rng, m, units, outputs)
    name = tuple(LOSSES)[seed % 5 % 3]
    y = rng.integers(0, outputs, n) if name == "softmax" else rng.integers(0, 2, (n, outputs))
    return head, z, LOSSES[name].targets(y, outputs), LOSSES[name]


def oracle_rank_and_share(head, z, targets, loss):
    matrix, right = dense_jacobian(head, z), targets
    if loss.activation == "softmax":
        matrix, right = matrix - matrix.mean(axis=1, keepdims=True), right - right.mean(axis=1, keepdims=True)
    raw, has_bias = matrix.reshape(-1, matrix.shape[2]), not (isinstance(head, heads.DenseHead) and not head.use_bias)
    if has_bias:  # the last columns, one for each output
        matrix = np.dstack([matrix[:, :, : -head.num_outputs], matrix[:, :, -head.num_outputs :]])
        matrix[:, :, : -head.num_outputs] -= matrix[:, :, : -head.num_outputs].mean(axis=0)
    columns = matrix.reshape(raw.shape)
    left, values, _ = np.linalg.svd(columns / np.linalg.norm(columns, axis=0), full_matrices=False)
    rank = int(np.sum(values > values[0] * max(matrix.shape) * np.finfo(float).eps))
    residual = right.ravel() - left[:, :rank] @ (left[:, :rank].T @ right.ravel())
    share = np.sum(residual**2) / np.sum((right - right.mean(axis=0) * has_bias) ** 2)
    return rank, share, values[:rank], np.linalg.norm(raw, 2)


def certified(head, z, targets, loss, **kwargs):
    return certify_head(head, loss, z, targets, np.zeros(head.num_parameters), **kwargs)


@pytest.mark.parametrize("block", range(10))
def test_rank_and_alignment_equal_a_dense_svd(block, monkeypatch):
    def skipped(jac, *_):  # the infimum is tested below; here it would only cost time
        return Enclosure(0.0, 1.0, np.zeros(jac.shape[1]), None)

    monkeypatch.setattr("keras_dal.analysis.descent_bound.enclose_infimum", skipped)
    monkeypatch.setattr("keras_dal.analysis.descent_bound._SCALES", np.ones(1))
    for seed in range(10 * block, 10 * block + 10):
        head, z, targets, loss = make_problem(seed, SIZES.get(seed))
        rank, share, sigmas, sigma_max = oracle_rank_and_share(head, z, targets, loss)
        certificate = certified(head, z, targets, loss)
        assert certificate.rank == rank, seed
        rounding = 100 * np.finfo(float).eps * sigmas[0] / sigmas[-1]  # of the last left singular vectors
        assert certificate.residual_share == pytest.approx(share, abs=max(1e-8, rounding)), seed
        if rounding < 1e-6:
            assert (certificate.verdict == "aligned") == (share < 1e-8), seed
        expected = loss.curvature(head.num_outputs) * sigma_max**2 / len(z)
        assert certificate.beta == pytest.approx(expected, rel=1e-6)


def loss_and_gradient(name, f, targets):
    """The three losses once more, from their definitions; the sigmoid's targets are -1 and 1."""
    n, outputs = f.shape
    if name == "softmax":
        p = np.exp(f - f.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return -np.mean(np.log(np.sum(p * targets, axis=1))), (p - targets) / n
    if name == "sigmoid":
        return np.mean(np.log1p(np.exp(-targets * f))), -targets / (1 + np.exp(targets * f)) / (n * outputs)
    return np.mean((f - targets) ** 2), 2 * (f - targets) / (n * outputs)


@pytest.mark.parametrize("penalty", [0.0, 1e-3])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["dense", "gated beside", "branch"])
def test_gradient_descent_stays_below_the_bound_at_every_step(kind, name, penalty):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        n, m, outputs = 40, 6, 3
        z, y = rng.normal(size=(n, m)), rng.integers(0, outputs, n)
        loss, head = LOSSES[name], make_head(kind, rng, m, 26, outputs)
        targets = loss.targets(y if name == "softmax" else np.eye(outputs)[y], outputs)
        theta = 0.3 * seed * rng.normal(size=head.num_parameters)
        certificate = certify_head(head, loss, z, targets, theta, penalty=penalty)
        matrix = dense_jacobian(head, z).reshape(n * outputs, -1)
        for t in range(400):
            value, gradient = loss_and_gradient(name, (matrix @ theta).reshape(n, outputs), targets)
            value += penalty * np.sum(theta**2)
            assert value <= certificate.bound(t) * (1 + 1e-12), (seed, t)
            theta = theta - certificate.step * (matrix.T @ gradient.ravel() + 2 * penalty * theta)
        assert certificate.bound(400) < certificate.bound(0)


def test_the_curvature_of_a_penalty_is_twice_its_largest_factor():
    head, z, targets, loss = make_problem(0)
    factors = np.random.default_rng(0).uniform(0.0, 5.0, head.num_parameters)
    penalized = certified(head, z, targets, loss, penalty=factors)
    assert penalized.beta == pytest.approx(certified(head, z, targets, loss).beta + 2 * factors.max())


def test_points_between_theta_and_a_witness_have_the_errors_of_both(monkeypatch):
    head, z, targets, loss = make_problem(0)
    objective = Objective(jacobian(head, z), loss, targets, np.ones(len(z)), penalty=0.0)
    theta, witness = np.random.default_rng(0).normal(size=(2, head.num_parameters))
    off = {id(theta): 0.1, id(witness): -0.1}
    monkeypatch.setattr(
        Objective, "evaluate", lambda _, at: (head.logits(z, at) + off[id(at)], np.full(targets.shape, 0.1))
    )
    seen = []
    monkeypatch.setattr(Objective, "_along", lambda *arguments: seen.append(arguments[-2:]) or [])
    objective.comparisons(theta, [witness])
    for direction, (logits, errors) in seen:
        assert np.all(np.abs(logits - head.logits(z, direction)) <= errors + 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_keras_training_stays_below_the_bound(name):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 5)).astype("float32"), rng.integers(0, 3, 60)
    y = labels if name == "softmax" else np.eye(3)[labels]
    keras_loss = KERAS_LOSSES[name]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile("sgd", keras_loss)
    certificate = certify(model, x, y)
    model.compile(keras.optimizers.SGD(certificate.step), keras_loss)
    history = model.fit(x, y, batch_size=60, epochs=40, verbose=0).history["loss"]  # history[t]: before step t + 1
    assert all(value <= certificate.bound(t) * (1 + 1e-5) for t, value in enumerate(history))
    assert history[0] == pytest.approx(certificate.loss, rel=1e-5)


def test_fewer_points_of_comparison_loosen_the_bound_and_nothing_else(monkeypatch):
    rng = np.random.default_rng(0)
    head, z = make_head("dense", rng, 6, 26, 3), rng.normal(size=(40, 6))
    samples = LOSSES["softmax"], z, LOSSES["softmax"].targets(rng.integers(0, 3, 40), 3), rng.normal(size=21)
    whole = certify_head(head, *samples)
    monkeypatch.setattr("keras_dal.analysis.descent_bound._ENTRIES", 1)
    fewer = certify_head(head, *samples)
    assert (fewer.verdict, fewer.infimum) == (whole.verdict, whole.infimum)
    assert 1 < len(fewer.comparisons) < len(whole.comparisons)
    for step in (1, 10, 1000, 10**6):
        assert whole.bound(step) <= fewer.bound(step) <= 2 * whole.bound(step)


def test_steps_for_is_the_first_step_at_which_the_bound_is_reached():
    head, z, targets, loss = make_problem(7)
    certificate = certified(head, z, targets, loss)
    for wanted in np.linspace(certificate.infimum[1] + 0.01, certificate.loss - 1e-6, 7):
        t = certificate.steps_for(wanted)
        assert certificate.bound(t) <= wanted < certificate.bound(t - 1)
    assert certificate.steps_for(certificate.loss) == 0
    assert certificate.steps_for(certificate.infimum[0] - 1e-3) is None


@pytest.mark.parametrize("name", LOSSES)
def test_infimum_of_an_unaligned_head_equals_that_of_an_independent_solver(name):
    for seed in (0, 3):
        rng = np.random.default_rng(seed)
        n, m, outputs = 100, 6, 4
        z, y = rng.normal(size=(n, m)), rng.integers(0, outputs, n)
        loss, head = LOSSES[name], make_head("gated" if seed == 3 else "dense", rng, m, 4, outputs)
        targets = loss.targets(y if name == "softmax" else np.eye(outputs)[y], outputs)
        certificate = certified(head, z, targets, loss)
        matrix = dense_jacobian(head, z).reshape(n * outputs, -1)

        def objective(theta, matrix=matrix, targets=targets):
            value, gradient = loss_and_gradient(name, (matrix @ theta).reshape(targets.shape), targets)
            return value, matrix.T @ gradient.ravel()

        options = {"maxiter": 5_000, "maxfun": 10_000, "ftol": 1e-16, "gtol": 1e-10}
        found = optimize.minimize(objective, np.zeros(matrix.shape[1]), jac=True, method="L-BFGS-B", options=options)
        lower, upper = certificate.infimum
        assert lower - 1e-9 <= found.fun <= upper + 1e-6
        assert upper - lower < 1e-6
        assert upper == pytest.approx(found.fun, abs=1e-6)
        assert certificate.verdict == ("not aligned" if name == "squared error" else "not separable")
        assert lower > 0.01


def test_infimum_that_no_parameters_attain_is_enclosed():
    """Class 0 can be separated from the others, which overlap: the loss falls for ever, to a limit above zero."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(90, 5))
    y = np.where(z[:, 0] > 0, 0, rng.integers(1, 4, 90))
    certificate = certified(heads.DenseHead(5, 4), z, np.eye(4)[y], LOSSES["softmax"])
    others = y > 0
    limit = certified(heads.DenseHead(5, 3), z[others], np.eye(3)[y[others] - 1], LOSSES["softmax"]).infimum[1]
    assert certificate.verdict == "not separable"
    assert certificate.infimum[0] <= limit * others.mean() + 1e-9
    assert certificate.infimum[1] == pytest.approx(limit * others.mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_separable_is_proved_by_parameters_and_not_confused_with_aligned(name):
    rng = np.random.default_rng(1)
    z, truth = rng.normal(size=(150, 6)), rng.normal(size=(6, 3))
    y = np.argmax(z @ truth, axis=1) if name == "softmax" else (z @ truth > 0).astype(int)
    certificate = certified(heads.DenseHead(6, 3), z, LOSSES[name].targets(y, 3), LOSSES[name])
    assert certificate.verdict == "separable"
    assert certificate.alignment < 0.9
    assert certificate.margin > 0
    assert certificate.infimum == (0.0, 0.0)
    losses_at_scale = [certificate.loss_at_scale(scale / certificate.margin) for scale in (1, 10, 30)]
    assert losses_at_scale[-1] < 1e-12
    assert losses_at_scale == sorted(losses_at_scale, reverse=True)
    assert certificate.steps_for(1e-3) is not None


def test_loss_at_scale_bounds_the_loss_of_the_scaled_witness():
    rng = np.random.default_rng(2)
    z, head = rng.normal(size=(40, 5)), heads.DenseHead(5, 3)
    theta = rng.normal(size=head.num_parameters)
    y = np.argmax(head.logits(z, theta), axis=1)
    certificate = certify_head(head, LOSSES["softmax"], z, np.eye(3)[y], theta)
    assert certificate.witness_norm == pytest.approx(np.linalg.norm(theta))  # theta itself separates
    for scale in (1.0, 5.0, 50.0):
        assert np.mean(special.logsumexp(scale * head.logits(z, theta), axis=1)) - scale * np.mean(
            head.logits(z, theta)[np.arange(40), y]
        ) <= certificate.loss_at_scale(scale)


@pytest.mark.parametrize("shift_invariant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_spectral_norm_bound_holds_and_is_not_far_off(kind, shift_invariant):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        z, weights = rng.normal(size=(30, 5)), rng.uniform(0.1, 3.0, 30)
        head = make_head(kind, rng, 5, 12, 3)
        matrix = dense_jacobian(head, z)
        matrix = (matrix - matrix.mean(axis=1, keepdims=True) * shift_invariant) * np.sqrt(weights)[:, None, None]
        sigma_max = np.linalg.norm(matrix.reshape(90, -1), 2)
        assert sigma_max <= head.spectral_norm_bound(z, weights, shift_invariant) <= 1.7 * sigma_max


@pytest.mark.parametrize("kind", ["gated", "gated beside", "branch"])
@pytest.mark.parametrize("shut", [True, False], ids=["gates that are shut", "inputs that are zero"])
def test_spectral_norm_bound_holds_where_gated_units_have_little_but_their_biases(kind, shut):
    rng = np.random.default_rng(0)
    z, weights, head = rng.normal(size=(30, 5)), rng.uniform(0.1, 3.0, 30), make_head(kind, rng, 5, 12, 3)
    gates = head.parts[0] if isinstance(head, heads.SumHead) else head
    if shut:
        gates.gate_bias = gates.gate_bias - 100.0
    else:
        z = np.broadcast_to(gates.mean, z.shape).astype(float)
    rows = (dense_jacobian(head, z) * np.sqrt(weights)[:, None, None]).reshape(90, -1)
    assert np.linalg.norm(rows, 2) <= head.spectral_norm_bound(z, weights)


@pytest.mark.parametrize(
    ("kind", "method", "factorized"),
    [("gated beside", "LSQR", DenseJacobian), ("branch", "Cholesky", KroneckerJacobian)],
)
def test_iterative_certificate_is_weaker_and_says_so(kind, method, factorized):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(50, 7)), rng.integers(0, 3, 50)
    head, targets = make_head(kind, rng, 7, 25, 3), np.eye(3)[y]
    assert isinstance(jacobian(head, z), factorized)
    exact = certified(head, z, targets, LOSSES["softmax"])
    iterative = certified(head, z, targets, LOSSES["softmax"], max_jacobian_bytes=1)
    assert isinstance(jacobian(head, z, max_jacobian_bytes=1), IterativeJacobian)
    assert method in iterative.method
    assert (iterative.rank, iterative.tolerance, iterative.exact) == (None, None, False)
    assert exact.residual_share <= iterative.residual_share < 1e-8
    assert exact.beta <= iterative.beta
    assert iterative.verdict == "aligned"
    assert "not decided" in str(iterative)
    assert "at least" in str(iterative)


def test_samples_that_are_nearly_equal_are_left_to_lsqr():
    rng = np.random.default_rng(0)
    z, y = np.maximum(rng.normal(size=(100, 16)), 0), rng.integers(0, 3, 100)
    z[1], y[1] = z[0] * (1 + 1e-4), (y[0] + 1) % 3
    certificate = certified(
        make_head("branch", rng, 16, 90, 3), z, np.eye(3)[y], LOSSES["softmax"], max_jacobian_bytes=1
    )
    assert certificate.verdict == "aligned"
    assert "then LSQR" in certificate.method


@pytest.mark.parametrize("kind", ["gated beside", "branch"])
def test_iterative_certificate_of_an_unaligned_head_claims_nothing(kind):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(80, 3)), rng.integers(0, 3, 80)
    head = make_head(kind, rng, 3, 3, 3)
    certificate = certified(head, z, np.eye(3)[y], LOSSES["softmax"], max_jacobian_bytes=1)
    assert certificate.verdict == "undecided"
    assert certificate.infimum[0] == 0.0
    assert certificate.infimum[1] < certificate.loss


def test_weights_count_as_repeated_samples():
    rng = np.random.default_rng(3)
    z, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    weights = rng.integers(0, 4, 30)
    repeated = np.repeat(np.arange(30), weights)
    head, loss = heads.DenseHead(4, 3), LOSSES["softmax"]
    weighted = certified(head, z, np.eye(3)[y], loss, weights=weights)
    copied = certified(head, z[repeated], np.eye(3)[y[repeated]], loss)
    ratio = len(repeated) / 30
    assert weighted.rank == copied.rank
    assert weighted.residual_share == pytest.approx(copied.residual_share, rel=1e-9)
    assert weighted.loss == pytest.approx(ratio * copied.loss)
    assert weighted.beta == pytest.approx(ratio * copied.beta)
    assert weighted.infimum[1] == pytest.approx(ratio * copied.infimum[1], abs=1e-6)


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e6])
@pytest.mark.parametrize("name", LOSSES)
def test_weights_in_another_unit_change_no_verdict_and_scale_the_bounds(name, unit):
    rng = np.random.default_rng(3)
    z, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    head, loss, weights = heads.DenseHead(4, 3), LOSSES[name], rng.uniform(0.5, 2.0, 30)
    separable, targets = np.argmax(z[:, :3], axis=1), loss.targets(y if name == "softmax" else np.eye(3)[y], 3)
    plain, scaled = (certified(head, z, targets, loss, weights=factor * weights) for factor in (1.0, unit))
    assert scaled.verdict == plain.verdict
    assert np.divide(scaled.infimum, unit) == pytest.approx(plain.infimum, abs=4e-7)
    assert scaled.infimum[1] <= scaled.infimum[0] * (1 + 1e-5)
    if name == "softmax":
        certificate = certified(head, z, np.eye(3)[separable], loss, weights=unit * weights)
        assert (certificate.verdict, certificate.infimum) == ("separable", (0.0, 0.0))


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_mixed_labels_are_decided_in_any_unit_of_the_weights(unit):
    rng = np.random.default_rng(3)
    z, q = rng.normal(size=(30, 2)), rng.dirichlet(np.ones(3), 30)
    certificates = [
        certified(heads.DenseHead(2, 3), z, q, LOSSES["softmax"], weights=np.full(30, factor)) for factor in (1.0, unit)
    ]
    assert [each.verdict for each in certificates] == ["not aligned"] * 2


def test_a_certificate_of_weights_that_diverged_is_valid_json():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([np.full((3, 2), np.inf), np.zeros(2)])
    x, loss = np.random.default_rng(0).random((20, 3)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    certificate = certify(model, x, np.arange(20) % 2, loss=loss, verbose=0)
    fields = json.loads(certificate.to_json(), parse_constant=pytest.fail)
    assert fields["loss"] is None
    again = Certificate.from_json(certificate.to_json())
    assert np.isnan(again.loss)
    assert dataclasses.replace(again, loss=0.0) == dataclasses.replace(certificate, loss=0.0)


def test_json_keeps_a_certificate_whose_numbers_float64_hardly_holds():
    rng = np.random.default_rng(0)
    z, classes, loss = 1e-200 * rng.normal(size=(20, 3)), rng.integers(0, 3, 20), losses.SoftmaxCrossEntropy()
    for theta in (np.zeros(12), np.full(12, 1e300)):
        certificate = certify_head(heads.DenseHead(3, 3), loss, z, loss.targets(classes, 3), theta)
        again = Certificate.from_json(certificate.to_json())
        assert again.to_json() == certificate.to_json()
        assert (again.margin, again.comparisons) == (certificate.margin, certificate.comparisons)


def test_json_round_trip_and_table():
    head, z, targets, loss = make_problem(11)
    certificate = certified(head, z, targets, loss)
    again = Certificate.from_json(certificate.to_json())
    assert again == certificate
    assert again.bound(10) == certificate.bound(10)
    assert json.loads(certificate.to_json())["num_samples"] == len(z)
    for words in (certificate.verdict, loss.name, f"{certificate.rank:,}, which reaches any labels", "full-batch"):
        assert words in str(certificate)


@dataclasses.dataclass(frozen=True)
class Longer(Certificate):
    """A certificate with one more tuple."""

    shapes: tuple[tuple[int, ...], ...] = ((3, 2), (4,), ())


def test_fields_of_every_kind_come_back_from_json_as_they_were():
    head, z, targets, loss = make_problem(11)
    longer = Longer(**vars(certified(head, z, targets, loss)))
    unknown = dataclasses.replace(longer, rank=None, tolerance=None, margin=None, beta=None, comparisons=())
    for certificate in (longer, unknown):
        assert Longer.from_json(certificate.to_json()) == certificate
    read = Longer.from_json(longer.to_json())  # whose numbers are those of Python
    infinite, lost = (
        dataclasses.replace(read, loss=value, infimum=(0.5, value), comparisons=((value, 1.0),))
        for value in (np.inf, np.nan)
    )
    assert repr(Longer.from_json(infinite.to_json())) == repr(lost)  # no NaN equals another


def test_a_certificate_saved_before_there_were_some_fields_still_loads():
    certificate = certified(*make_problem(11))
    fields = json.loads(certificate.to_json())
    for name in ("floor", "mean_weight", "share_error", "weighted"):
        del fields[name]
    old = json.dumps(fields | {"witness_norm": np.inf})  # Infinity, as it was written
    expected = {"floor": 0.0, "mean_weight": 1.0, "share_error": 0.0, "weighted": False, "witness_norm": np.inf}
    assert Certificate.from_json(old) == dataclasses.replace(certificate, **expected)


@pytest.mark.parametrize("text", ["[]", "{}", '{"loss": 1.0}', '{"verdict": null}', "no JSON"])
def test_text_that_is_no_certificate_is_refused(text):
    with pytest.raises((ValueError, TypeError)):
        Certificate.from_json(text)


def classifier(regularizer=None):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(10, activation="relu"),
            keras.layers.Dropout(0.5, name="noisy"),
            keras.layers.Dense(3, activation="softmax", kernel_regularizer=regularizer),
        ]
    )


def data(n=50):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)


def test_certify_reads_the_model():
    (x, y), model = data(), classifier()
    model.compile("sgd", "sparse_categorical_crossentropy")
    certificate = certify(model, x, y)
    assert certificate.loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    assert certificate.loss_name == "softmax cross-entropy"
    assert (certificate.num_samples, certificate.num_features, certificate.num_outputs) == (50, 10, 3)
    assert any("dropout" in sentence and "noisy" in sentence for sentence in certificate.not_covered)
    assert certify(model, x, np.eye(3)[y], loss="categorical_crossentropy").rank == certificate.rank


def test_samples_of_weight_zero_may_have_any_label():
    (x, y), model = data(), classifier()
    ignored, weights = y.copy(), np.ones(len(y))
    ignored[:5], weights[:5] = -1, 0
    loss = "sparse_categorical_crossentropy"
    found, expected = certify(model, x, ignored, weights, loss=loss), certify(model, x, y, weights, loss=loss)
    assert found == expected
    assert found.num_samples == len(y) - 5


@pytest.mark.parametrize("layer", [keras.layers.Dropout, keras.layers.GaussianNoise, keras.layers.SpatialDropout1D])
@pytest.mark.parametrize("rate", [0.0, 0.3, np.float32(0.3)])
def test_noise_is_named_where_there_is_some(layer, rate):
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(layer(rate, name="noisy")(inputs))))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = np.random.default_rng(0).normal(size=(9, 3, 2)), np.arange(9) % 2
    said = [each for each in certify(model, x, y, loss=loss, verbose=0).not_covered if "dropout or noise" in each]
    assert bool(said) == (rate > 0)


def test_attention_without_dropout_names_none():
    inputs = keras.Input((3, 2))
    attended = keras.layers.MultiHeadAttention(1, 2)(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(attended)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = np.random.default_rng(0).normal(size=(9, 3, 2)), np.arange(9) % 2
    assert not [each for each in certify(model, x, y, loss=loss, verbose=0).not_covered if "dropout or noise" in each]


def test_a_penalty_that_is_not_l2_leaves_no_comparisons_which_would_be_without_it():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L1(0.1))])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    certificate = certify(model, np.eye(3), np.arange(3) % 2, loss=loss, verbose=0)
    assert certificate.penalty > 0
    assert (certificate.beta, certificate.comparisons) == (None, ())


def test_a_share_is_never_above_one():
    """Of one constant feature, beside a bias, rounding left a little more than there was."""
    generator, x = np.random.default_rng(0), np.full((50, 1), 0.7, "float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    for _ in range(20):
        y = generator.integers(0, 3, 50)
        certificate = certify(model, x, y, loss=keras.losses.SparseCategoricalCrossentropy(True), verbose=0)
        assert certificate.residual_share <= 1
        assert "alignment -" not in str(certificate)


def test_what_the_objective_leaves_out_is_said():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activity_regularizer="l2", name="busy"), keras.layers.Dense(2)]
    )
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.zeros(20, int)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, loss_weights=0.5)
    said = certify(model, x, y).not_covered
    assert any("activity regularizers (busy)" in sentence for sentence in said)
    assert any("loss_weights" in sentence for sentence in said)
    model.compile("sgd", loss)
    assert not any("loss_weights" in sentence for sentence in certify(model, x, y).not_covered)


def test_constraints_and_frozen_parameters_of_the_head_are_not_covered():
    """By hand: without a bias, kernels that are not negative give label 0 at input 1 at best the loss log 2."""
    x, y, loss = np.ones((1, 1)), np.zeros((1, 1)), keras.losses.BinaryCrossentropy(from_logits=True)

    def said(**options):
        dense = keras.layers.Dense(1, name="top", **options)
        model = keras.Sequential([keras.Input((1,)), dense])
        if dense.use_bias:
            dense.bias.trainable = False
        certificate = certify(model, x, y, loss=loss)
        assert certificate.infimum == (0.0, 0.0)
        return [each for each in certificate.not_covered if "top/" in each]

    (bound,) = said(use_bias=False, kernel_constraint="non_neg")
    assert re.match(r"constraints on theta_S .*kernel.: ", bound)
    (fixed,) = said()
    assert re.match(r"parameters of theta_S that are not trained .*bias.: ", fixed)
    assert said(use_bias=False) == []


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_probabilities_that_keras_clips_are_not_covered(activation, dtype):
    dense = keras.layers.Dense(1, activation=activation, use_bias=False, dtype=dtype)
    model = keras.Sequential([keras.Input((1,)), dense])
    loss = keras.losses.BinaryCrossentropy(from_logits=activation == "linear")
    model.compile("sgd", loss)
    dense.kernel.assign([[-15.0]] if dtype == "float16" else [[-20.0]])
    x, y = np.ones((1, 1)), np.ones((1, 1))
    certificate, theirs = certify(model, x, y), model.evaluate(x, y, verbose=0)
    is_said = any("clipping" in sentence for sentence in certificate.not_covered)
    assert is_said or theirs == pytest.approx(certificate.loss, rel=1e-5)
    assert is_said == (activation != "linear" and (keras.config.backend() != "tensorflow" or dtype == "float16"))


def test_dropout_inside_recurrent_layers_is_not_covered():
    x, y = np.random.default_rng(0).normal(size=(10, 3, 2)), np.zeros(10, int)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for rates, is_said in (({}, False), ({"dropout": 0.2}, True), ({"recurrent_dropout": 0.2}, True)):
        model = keras.Sequential(
            [keras.Input((3, 2)), keras.layers.LSTM(4, name="memory", **rates), keras.layers.Dense(2)]
        )
        said = [each for each in certify(model, x, y, loss=loss).not_covered if "dropout" in each]
        assert bool(said) == is_said
        assert all("memory" in each for each in said)


def test_features_of_half_precision_keep_its_spacing_in_a_head_that_casts_them():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), rng.integers(0, 3, 60)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for policy, spacing in (("mixed_float16", 2.0**-10), ("mixed_bfloat16", 2.0**-7), ("float32", 2.0**-23)):
        keras.utils.set_random_seed(0)
        body = keras.layers.Dense(12, dtype=policy)
        model = keras.Sequential([keras.Input((4,)), body, keras.layers.Dense(3, dtype="float32")])
        certificate, report = certify(model, x, y, loss=loss), alignment(model, x, y, loss=loss)
        result = converge(model, x, y, loss=loss, gated=False, ridge=0.1, verbose=0)
        curve = width_curve(model, x, y, loss=loss, widths=[0], draws=1, verbose=0)
        assert certificate.tolerance == report.tolerance == result.certificate.tolerance
        assert certificate.tolerance == pytest.approx(spacing * np.sqrt(13), rel=1e-6)
        assert (report.rank, certificate.rank, curve.rank) == (2 * 5, 2 * 5, (2 * 5,))  # 4 inputs and a constant


def test_whole_numbers_in_a_model_of_float32_are_exact():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    x, y = np.array([[1.0, 0], [0, 1], [1, 1], [2, 1]]), np.array([0, 1, 0, 1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert certify(model, x, y, loss=loss).tolerance < 1e-6


def test_certify_adds_an_l2_penalty_to_the_objective():
    (x, y), model = data(), classifier(keras.regularizers.L2(0.01))
    model.compile("sgd", "sparse_categorical_crossentropy")
    certificate = certify(model, x, y)
    assert certificate.objective == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    assert certificate.penalty == pytest.approx(0.01 * np.sum(model.layers[-1].get_weights()[0] ** 2), rel=1e-5)


def test_bounds_are_printed_where_they_say_something():
    (x, y), model = data(), classifier()
    certificate = certify(model, x, y, loss="sparse_categorical_crossentropy", verbose=0)
    far = dataclasses.replace(certificate, comparisons=((certificate.bound(0), 0.0), (0.0, 1e30)))
    assert "no decrease that shows is proved within 1,000,000 steps" in str(far)
    near = dataclasses.replace(certificate, comparisons=((certificate.bound(0), 0.0), (0.0, 1e-6)))
    assert str(near).count(" after ") == 3


def test_a_penalty_without_curvature_bound_leaves_no_rate():
    (x, y), model = data(), classifier(keras.regularizers.L1(0.01))
    certificate = certify(model, x, y, loss="sparse_categorical_crossentropy")
    assert certificate.beta is None
    assert "objective at most" not in str(certificate)
    with pytest.raises(ValueError, match="L2 regularizer.*Received"):
        certificate.bound(10)


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e170, 1e300])
def test_features_whose_squares_float64_does_not_hold_leave_no_rate_or_one_that_is_true(size):
    rng = np.random.default_rng(0)
    head, z, labels = make_head("dense", rng, 4, 0, 3), size * rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    certificate = certified(head, z, labels, LOSSES["squared error"])
    if size > 1:
        assert certificate.beta is None
        with pytest.raises(ValueError, match="too large to square.*Received"):
            certificate.bound(1)
    else:
        assert certificate.beta > 0
        assert certificate.bound(1) <= certificate.objective * (1 + 1e-9)
    assert np.isfinite(certificate.objective)


def test_bad_input_gets_one_clear_sentence():
    (x, y), model = data(), classifier()
    with pytest.raises(ValueError, match="Labels are needed.*Received"):
        certify(model, x, loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="Received"):
        certify(model, x, y)  # neither compiled nor given a loss
    certificate = certify(model, x, y, loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="must not be negative.*Received: t=-1"):
        certificate.bound(-1)
    with pytest.raises(ValueError, match="positive weight.*Received"):
        certify_head(
            heads.DenseHead(6, 3), LOSSES["softmax"], x.astype(float), np.eye(3)[y], np.zeros(21), np.zeros(50)
        )


def test_smoothed_labels_that_reach_the_least_loss_by_what_counts_as_rounding_are_undecided():
    x = np.array([[1, 1], [1, 1 + 2**-22]], "float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    certificate = certify(model, x, np.array([[1.0], [0.0]]), loss=loss)
    assert certificate.infimum == pytest.approx((certificate.floor, np.log(2.0)), abs=1e-6)  # of what counts: nothing
    assert certificate.verdict == "undecided"


@pytest.mark.parametrize("size", [0.0, 2.0**20])
def test_a_head_that_has_learned_what_counts_as_rounding_is_no_witness(size):
    first = np.linspace(1, 2, 12).astype("float32")
    y = np.arange(12) % 2
    x = np.stack([first, np.nextafter(first, np.where(y, np.float32(9), np.float32(0)))], axis=1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[-1].set_weights([np.array([[-size], [size]])])
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    assert (np.sign(x.astype("float64") @ [-1.0, 1.0]) == 2 * y - 1).all()
    certificate = certify(model, x, y[:, None])
    assert certificate.verdict == "undecided"
    assert "count as rounding" in certificate.decided_by
    assert certificate.infimum[1] > 0.6
    assert alignment(model, x, y[:, None], verbose=0).verdict == "undecided"


@pytest.mark.parametrize("bend", [None, "relu"])
def test_what_counts_as_rounding_separates_nothing_and_lowers_no_infimum(bend):
    """Of features that are dependent but for what float32 left: a layer of more units than it has inputs, or a norm."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(120, 12)).astype("float32"), generator.integers(0, 4, 120)
    layers = (
        [keras.layers.Dense(64)] if bend is None else [keras.layers.Dense(16, bend), keras.layers.LayerNormalization()]
    )
    model = keras.Sequential([keras.Input((12,)), *layers, keras.layers.Dense(4)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if bend is None:
        z = x.astype("float64")  # of which these are affine
    else:
        kernel, bias, *_ = (w.astype("float64") for w in model.get_weights())
        z = np.maximum(x @ kernel + bias, 0)
        z = (z - z.mean(axis=1, keepdims=True)) / np.sqrt(z.var(axis=1, keepdims=True) + 1e-3)
        z = z[:, :-1]  # whose sum is 0

    def of(theta):
        logits = np.c_[z, np.ones(120)] @ theta.reshape(-1, 4)
        p = special.softmax(logits, axis=1)
        slope = np.c_[z, np.ones(120)].T @ (p - np.eye(4)[y]) / 120
        return -np.mean(np.log(p[np.arange(120), y])), slope.ravel()

    least = optimize.minimize(of, np.zeros(4 * (z.shape[1] + 1)), jac=True, method="BFGS", tol=1e-9).fun
    certificate = certify(model, x, y)
    assert certificate.infimum[0] <= least + 1e-6
    assert certificate.infimum[1] == pytest.approx(least, abs=1e-5)
    assert certificate.margin < 0
    assert certificate.verdict != "separable"
    assert alignment(model, x, y, verbose=0).verdict == certificate.verdict


def test_a_bound_counts_what_rounding_does_to_the_objective():
    z = np.array([[2.0**30, 129.0, 2.0**30, -200.0]])
    theta = np.array([2.0**30, 1.0, -(2.0**30), 1.0, 0.0])
    logits = heads.DenseHead(4, 1).logits(z, theta)
    certificate = certify_head(heads.DenseHead(4, 1), losses.SquaredError(), z, logits, theta)
    assert certificate.objective == 0.0
    exact = sum(int(a) * int(b) for a, b in zip(z[0], theta[:4], strict=True))
    assert certificate.bound(0) >= 0.5 * (exact - logits.item()) ** 2
    assert certificate.steps_for(1e-3) != 0


def test_a_negative_scale_is_no_scale():
    with pytest.raises(ValueError, match="must not be negative. Received: scale=-1"):
        certify_head(
            heads.DenseHead(1, 1), losses.SquaredError(), np.ones((2, 1)), np.ones((2, 1)), np.zeros(2)
        ).loss_at_scale(-1)


def test_a_penalty_that_is_not_l2_is_in_the_objective_all_the_same():
    class Halved(keras.regularizers.L2):
        def __call__(self, x):
            return 0.5 * super().__call__(x)

    x, y = np.random.default_rng(0).standard_normal((12, 3)).astype("float32"), np.arange(12) % 3
    for regularizer in (keras.regularizers.L1L2(1e-2, 1e-1), Halved(0.1)):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, kernel_regularizer=regularizer)])
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        certificate = certify(model, x, y)
        assert certificate.objective == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
        assert certificate.beta is None


@pytest.mark.parametrize("bent", [0.0, 2e-3])
def test_an_offset_hides_nothing_of_what_is_left(bent):
    z = np.array([[0.0], [1.0], [2.0], [3.0 + bent]])
    labels = 1e12 + 2.0**-13 * np.array([[0.0], [80.0], [160.0], [240.0]])
    certificate = certify_head(heads.DenseHead(1, 1), losses.SquaredError(), z, labels, np.zeros(2))
    columns = np.hstack([z, np.ones((4, 1))])
    small = labels - 1e12
    left = small - columns @ np.linalg.lstsq(columns, small)[0]
    expected = np.sum(left**2) / np.sum((small - small.mean()) ** 2)
    assert certificate.residual_share == pytest.approx(expected, rel=1e-4, abs=1e-15)
    assert certificate.verdict == ("not aligned" if bent else "aligned")


@pytest.mark.parametrize(("value", "far", "wanted"), [(0.3, 1.1, 0.85), (0.6, 2.2, 1.7)])
def test_steps_that_are_a_whole_number_up_to_rounding_are_not_one_too_few(value, far, wanted):
    """After one step the bound is `value + far / 2`, in float64 the number after the wanted one."""
    certificate = certified(*make_problem(7))
    given = dataclasses.replace(certificate, loss=9.0, beta=1.0, comparisons=((9.0, 0.0), (value, far)))
    assert given.bound(1) > wanted
    assert given.bound(given.steps_for(wanted)) <= wanted
