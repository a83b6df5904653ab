"""Soft labels: alignment by least squares, infimum by SciPy, and what is claimed of them, and what is not."""

import cases
import keras
import labels
import numpy as np
import pytest
from scipy import optimize, special, stats

import keras_dal
from keras_dal import heads, losses
from keras_dal.analysis.alignment import alignment_from_moments
from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.certify import certify_head
from keras_dal.models.find_structure import find_structure
from keras_dal.solvers import duality
from keras_dal.solvers.duality import _Search
from keras_dal.solvers.factorized_jacobian import KroneckerJacobian
from keras_dal.solvers.jacobian import jacobian

N, C = 60, 3
ONE_HOT, MIXED, FULL = labels.one_hot(N, C), labels.mixed(N, C), labels.full(N, C)
SMOOTHED = {
    "classes": keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    "yes or no": keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1),
}
PLAIN = {name: type(loss)(from_logits=True) for name, loss in SMOOTHED.items()}


def inputs(width):
    return np.random.default_rng(4).standard_normal((N, width)).astype("float32")


def plain_model(width, loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(C)])
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("width", [5, 80], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", SMOOTHED)
def test_smoothed_labels_are_as_aligned_as_hard_ones(name, width):
    x, y = inputs(width), ONE_HOT
    hard = keras_dal.alignment(plain_model(width, PLAIN[name]), x, y)
    by_loss = keras_dal.alignment(plain_model(width, SMOOTHED[name]), x, y)
    q = (0.9 * y + 0.1 / (C if name == "classes" else 2)).astype("float32")
    by_hand = keras_dal.alignment(plain_model(width, PLAIN[name]), x, q)
    for report in (by_loss, by_hand):
        assert report.alignment == pytest.approx(hard.alignment, abs=1e-6)
        assert report.verdict == ("aligned" if width == 80 else "not aligned")
    network = keras_dal.alignment(plain_model(width, SMOOTHED[name]), x, y, parameters="all")
    assert network.alignment <= hard.alignment + 1e-6
    assert network.verdict == by_loss.verdict or (not network.exact and network.verdict == "undecided")


@pytest.mark.parametrize(("width", "verdict"), [(5, "not aligned"), (80, "undecided")], ids=["narrow", "wide"])
def test_mixed_labels_are_measured_as_they_are_and_decided_as_a_certificate_decides(width, verdict):
    x, q, model = inputs(width), MIXED, plain_model(width, PLAIN["classes"])
    report = keras_dal.alignment(model, x, q)
    columns, seen = np.column_stack([x.astype(float), np.ones(N)]), q - 1 / C
    residual = seen - columns @ np.linalg.lstsq(columns, seen, rcond=None)[0]
    assert report.residual_share == pytest.approx(
        np.sum(residual**2) / np.sum((seen - seen.mean(axis=0)) ** 2), abs=1e-9
    )
    assert report.verdict == keras_dal.certify(model, x, q, verbose=0).verdict == verdict
    assert keras_dal.alignment(model, x, q, decide_separability=False).verdict == "undecided"
    assert keras_dal.alignment(model, x, q, parameters="all").verdict == "undecided"
    rows = np.column_stack([x.astype(float), np.ones(N), q])
    structure, loss = find_structure(model), losses.SoftmaxCrossEntropy()
    assert alignment_from_moments(rows.T @ rows, N, structure, loss, eps=2.0**-52).alignment == pytest.approx(
        report.alignment, abs=1e-6
    )


@pytest.mark.parametrize(("q", "width", "said"), [(MIXED, 5, True), (FULL, 5, False), (MIXED, 80, False)])
def test_that_rounding_is_counted_to_first_order_is_said_where_it_is(q, width, said):
    """Beside zeros, and where the bound is not that of any model, which needs none."""
    certificate = keras_dal.certify(plain_model(width, PLAIN["classes"]), inputs(width), q, verbose=0)
    assert any("first order" in sentence for sentence in certificate.not_covered) == said


CASES = {
    "smoothed classes": (losses.SoftmaxCrossEntropy(0.1), ONE_HOT),
    "mixed classes": (losses.SoftmaxCrossEntropy(), MIXED),
    "mixed and smoothed classes": (losses.SoftmaxCrossEntropy(0.1), MIXED),
    "probabilities of classes": (losses.SoftmaxCrossEntropy(), FULL),
    "smoothed yes or no": (losses.SigmoidCrossEntropy(0.1), ONE_HOT),
    "probabilities of yes": (losses.SigmoidCrossEntropy(), FULL),
}


def probabilities(loss, y):
    return y * (1 - loss.label_smoothing) + loss.label_smoothing / (C if loss.activation == "softmax" else 2)


def entropies(loss, y):
    q = probabilities(loss, y)
    if loss.activation == "softmax":
        return stats.entropy(q, axis=1)
    return np.mean(stats.entropy(np.stack([q, 1 - q]), axis=0), axis=1)


def least(loss, y, head, x, weights):
    """SciPy's minimum over a head, from the definitions."""
    columns, q = cases.head_jacobian(head, x), probabilities(loss, y)

    def objective(theta):
        f = columns @ theta
        if loss.activation == "softmax":
            values, slope = special.logsumexp(f, axis=1) - np.sum(q * f, axis=1), special.softmax(f, axis=1) - q
        else:
            values, slope = np.mean(np.logaddexp(0, f) - q * f, axis=1), (special.expit(f) - q) / C
        return np.mean(weights * values), np.einsum("ncp,nc->p", columns, weights[:, None] * slope) / len(x)

    options = {"ftol": 1e-16, "gtol": 1e-11, "maxiter": 20_000, "maxfun": 40_000}
    start = np.zeros(head.num_parameters)
    return optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun


def certified(loss, y, head, x, weights=None, **more):
    return certify_head(head, loss, x, loss.targets(y, C), np.zeros(head.num_parameters), weights, **more)


@pytest.mark.parametrize("width", [5, 30, 80])
@pytest.mark.parametrize("name", CASES)
def test_the_infimum_is_that_of_scipy_and_never_below_the_entropy(name, width):
    (loss, y), x = CASES[name], inputs(width).astype(float)
    weights, head = np.random.default_rng(5).uniform(0.5, 2, N), heads.DenseHead(width, C)
    certificate = certified(loss, y, head, x, weights)
    expected, (lower, upper) = least(loss, y, head, x, weights), certificate.infimum
    assert certificate.floor == pytest.approx(np.mean(weights * entropies(loss, y)), rel=1e-12)
    assert certificate.floor <= lower <= upper
    assert lower - 1e-9 <= expected
    assert upper <= expected + 1e-6
    assert upper - lower < 1e-6
    reached = lower < certificate.floor + 1e-7
    assert reached == (width == 80)
    if "smoothed" in name and "mixed" not in name:
        assert certificate.verdict == ("aligned" if reached else "not aligned")
    else:
        assert certificate.verdict == ("undecided" if reached else "not aligned")
        assert any("no multiple" in sentence for sentence in certificate.not_covered)
    assert certificate.margin is None
    assert certificate.loss_at_scale(2.0) is None
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert "least loss of any model" in str(certificate)


@pytest.mark.parametrize("name", ["smoothed classes", "smoothed yes or no"])
def test_separable_samples_with_smoothed_labels_are_not_called_separable(name):
    loss, _ = CASES[name]
    rng = np.random.default_rng(1)
    x, truth = rng.normal(size=(N, 6)), rng.normal(size=(6, C))
    y = np.eye(C)[np.argmax(x @ truth, axis=1)] if loss.activation == "softmax" else (x @ truth > 0).astype(float)
    theta = np.concatenate([truth.ravel(), np.zeros(C)])
    head, hard = heads.DenseHead(6, C), type(loss)()
    assert certify_head(head, hard, x, hard.targets(y, C), theta).verdict == "separable"
    smoothed = certify_head(head, loss, x, loss.targets(y, C), theta)
    assert smoothed.verdict == "not aligned"
    assert smoothed.infimum[0] > smoothed.floor + 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_infimum_over_gated_units_is_that_of_scipy(name):
    (loss, y), x = CASES[name], inputs(5).astype(float)
    head = cases.HEADS["gated"](np.random.default_rng(0), 5, 8, C)
    certificate = certified(loss, y, head, x)
    lower, upper = certificate.infimum
    expected = least(loss, y, head, x, np.ones(N))
    assert certificate.verdict == "not aligned"
    assert certificate.floor + 1e-3 < lower <= expected + 1e-9
    assert upper == pytest.approx(expected, abs=1e-6)
    assert upper - lower < 1e-6


def test_an_iterative_certificate_of_mixed_labels_has_the_entropy_below():
    loss, y = CASES["mixed classes"]
    head = cases.HEADS["mixture"](np.random.default_rng(0), 5, 40, C)
    x, theta = inputs(5).astype(float), np.zeros(head.num_parameters)
    certificate = certify_head(head, loss, x, loss.targets(y, C), theta, max_jacobian_bytes=1)
    assert not certificate.exact
    assert certificate.infimum[0] == certificate.floor > 0
    assert certificate.infimum[1] <= certificate.loss
    assert certificate.verdict == "undecided"


@pytest.mark.parametrize("name", ["smoothed classes", "mixed classes"])
def test_gradient_descent_stays_below_the_bound_and_above_the_entropy(name):
    (loss, y), x = CASES[name], inputs(80).astype(float)
    certificate = certified(loss, y, heads.DenseHead(80, C), x, penalty=1e-4)
    columns, q = np.column_stack([x, np.ones(N)]), probabilities(loss, y)
    theta = np.zeros((81, C))
    for t in range(400):
        f = columns @ theta
        value = np.mean(special.logsumexp(f, axis=1) - np.sum(q * f, axis=1))
        assert certificate.infimum[0] <= value
        assert value + 1e-4 * np.sum(theta**2) <= certificate.bound(t) * (1 + 1e-12)
        theta = theta - certificate.step * (columns.T @ (special.softmax(f, axis=1) - q) / N + 2e-4 * theta)
    assert certificate.bound(400) < certificate.bound(0)
    assert certificate.steps_for(certificate.floor) is None


def test_the_certificate_says_the_loss_that_keras_computes():
    for name, loss in SMOOTHED.items():
        model = plain_model(5, loss)
        said = keras_dal.certify(model, inputs(5), ONE_HOT)
        assert said.loss == pytest.approx(model.evaluate(inputs(5), ONE_HOT, verbose=0), rel=1e-6), name


@pytest.mark.parametrize("name", ["probabilities of yes", "probabilities of classes", "mixed classes"])
def test_a_lower_bound_counts_how_far_the_basis_may_be_off_for_optimal_logits(name, monkeypatch):
    """The labels are optimal for columns at an angle to those known, so that their entropy is the infimum."""
    loss, angle, outputs = CASES[name][0], 1e-2, 1 if "yes" in name else C
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((N, 2)))[0]
    known, true = basis[:, :1], np.cos(angle) * basis[:, :1] + np.sin(angle) * basis[:, 1:]
    logits = 20 * true @ np.array([[1.0, -1.0, 0.0]])[:, :outputs]
    if name == "mixed classes":
        logits[:, 2] = -np.inf
    q = special.expit(logits) if outputs == 1 else special.softmax(logits, axis=1)
    targets = loss.targets(q, outputs)
    monkeypatch.setattr(KroneckerJacobian, "basis_error", np.sin(angle))
    columns = jacobian(heads.DenseHead(1, outputs, False), known, shift_invariant=loss.shift_invariant)
    search = _Search(columns, loss, targets, np.ones(N), 5.0)
    search.out_of_time = True
    assert search._conjugate_bound(np.zeros((N, outputs))) <= search.floor + 1e-12


def test_losses_grow_with_their_logits_as_they_say():
    generator = np.random.default_rng(0)
    for loss, y in CASES.values():
        targets = loss.targets(y, C)
        for size in (1e-2, 1.0, 1e2, 1e4):
            logits = size * generator.standard_normal((N, C))
            free = logits - logits.mean(axis=1, keepdims=True) * loss.shift_invariant
            norms = np.linalg.norm(free, axis=1)
            assert (loss.values(logits, targets) >= loss.growth(targets) * norms * (1 - 1e-12)).all()
    assert losses.SoftmaxCrossEntropy().growth(FULL).min() > 0


def test_a_search_that_ends_at_once_gives_bounds_all_the_same(monkeypatch):
    monkeypatch.setattr(duality, "SECONDS", -1.0)
    for name, (loss, y) in CASES.items():
        x, head = inputs(5).astype(float), heads.DenseHead(5, C)
        lower, upper = certified(loss, y, head, x).infimum
        expected = least(loss, y, head, x, np.ones(N))
        assert lower - 1e-9 <= expected <= upper + 1e-9, name
