"""No verdict may contradict the truth, in any units: compared with problems that are decided exactly."""

import os

import cases
import keras
import numpy as np
import pytest
import verdict_problems
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dal import heads, losses
from keras_dal.analysis.alignment import alignment
from keras_dal.analysis.certificate import certify, certify_head
from keras_dal.heads.norms import largest_singular_value
from keras_dal.solvers import duality
from keras_dal.solvers.exact_dual import rank_modulo, residues_modulo
from keras_dal.solvers.jacobian import FactorizedJacobian
from keras_dal.solvers.label_squares import safe_mean

EXAMPLES = int(os.environ.get("KERAS_DAL_EXAMPLES", "250"))
SOFTMAX, SIGMOID = losses.SoftmaxCrossEntropy(), losses.SigmoidCrossEntropy()
PRIME = 2147483629


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_no_verdict_contradicts_the_truth(seed):
    wrong, _ = verdict_problems.draw(seed).false_statements()
    assert not wrong


def test_most_verdicts_are_decided():
    undecided = sum(verdict_problems.draw(seed).false_statements()[1] for seed in range(40))
    assert undecided <= 8  # of 80


def model_of(num_features, num_outputs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(num_outputs)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_threshold_on_a_share_is_found_beside_timestamps():
    generator = np.random.default_rng(0)
    share = generator.random(1000)
    x = np.column_stack([1.6e12 + generator.integers(0, 10**11, 1000), share]).astype("float32")
    y = (share > 0.5).astype(int)
    certificate, report = certify(model_of(2, 2), x, y), alignment(model_of(2, 2), x, y)
    assert (certificate.verdict, report.verdict) == ("separable", "separable")
    assert certificate.infimum == (0.0, 0.0)
    assert (certificate.rank, report.rank) == (3, 6)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
def test_report_and_certificate_agree_on_rank_and_share(noise):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 24)).astype("float32")
    x[:, 12:] = x[:, :12] @ generator.standard_normal((12, 12)) + noise * x[:, 12:]
    x = x * 10.0 ** generator.integers(-12, 12, 24) + 5.0
    x, y = x.astype("float32"), generator.integers(0, 3, 200)
    report, certificate = alignment(model_of(24, 3), x, y), certify(model_of(24, 3), x, y)
    assert report.rank * 2 == certificate.rank * 3  # a certificate leaves out constants per sample
    assert report.tolerance == pytest.approx(certificate.tolerance)
    assert report.residual_share == pytest.approx(certificate.residual_share, abs=1e-9)
    assert report.verdict == certificate.verdict


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
def test_units_change_nothing(scale):
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((50, 4)), generator.integers(0, 3, 50)
    head, units = heads.DenseHead(4, 3), np.array([scale, 1.0, 1.0, 1.0])
    plain, scaled = (certify_head(head, each, np.eye(3)[y], SOFTMAX, np.zeros(15)) for each in (z, z * units))
    assert plain.verdict == scaled.verdict == "not separable"
    assert scaled.rank == plain.rank
    assert scaled.residual_share == pytest.approx(plain.residual_share, rel=1e-9)
    assert scaled.infimum == pytest.approx(plain.infimum, abs=1e-6)


def test_columns_that_depend_on_each_other_exactly_do_not_prevent_a_proof():
    generator = np.random.default_rng(2)
    groups = np.eye(3)[generator.integers(0, 3, 60)]  # sums to one, as the bias is
    z = np.column_stack([groups, generator.integers(-3, 4, (60, 2)), np.full(60, 0.1), np.zeros(60)])
    y = generator.integers(0, 2, 60)
    certificate = certify_head(heads.DenseHead(7, 2), z, np.eye(2)[y], SOFTMAX, np.zeros(16))
    assert certificate.verdict == "not separable"
    assert certificate.infimum[1] - certificate.infimum[0] < 1e-6


def test_a_direction_that_rounding_may_have_made_is_not_ruled_out():
    """The second column is the first up to its last bits, and those bits are the labels."""
    generator = np.random.default_rng(3)
    first, y = generator.uniform(1.0, 2.0, 80), generator.integers(0, 2, 80)
    z = np.column_stack([first, np.where(y == 1, np.nextafter(first, 3.0), first)])
    certificate = certify_head(heads.DenseHead(2, 2), z, np.eye(2)[y], SOFTMAX, np.zeros(6))
    assert certificate.verdict in ("undecided", "separable")
    assert certificate.infimum[0] == 0.0


def test_samples_that_contradict_each_other_are_proved_to():
    generator = np.random.default_rng(4)
    z = generator.standard_normal((40, 3))
    z[:2] = [0.0, 0.3, 0.7]  # twice, on the border between the others
    y = (z[:, 0] > 0).astype(int)
    y[1] = 1
    certificate = certify_head(heads.DenseHead(3, 2), z, np.eye(2)[y], SOFTMAX, np.zeros(8))
    assert certificate.verdict == "not separable"
    assert certificate.infimum[0] == pytest.approx(2 * np.log(2) / 40, abs=1e-6)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("use_bias", [True, False])
def test_labels_of_one_class_are_separable(n, use_bias):
    z = np.random.default_rng(5).uniform(0.1, 1.0, (n, 2))
    head = heads.DenseHead(2, 3, use_bias)
    certificate = certify_head(head, z, np.eye(3)[np.ones(n, int)], SOFTMAX, np.zeros(head.num_parameters))
    assert certificate.verdict in ("aligned", "separable")
    assert certificate.infimum == (0.0, 0.0)


def test_a_class_without_samples_is_separated_from_the_others():
    generator = np.random.default_rng(6)
    z, y = generator.standard_normal((60, 2)), generator.integers(0, 2, 60)
    two, three = (certify_head(heads.DenseHead(2, c), z, np.eye(c)[y], SOFTMAX, np.zeros(3 * c)) for c in (2, 3))
    assert two.verdict == three.verdict == "not separable"
    assert three.infimum == pytest.approx(two.infimum, abs=1e-6)


def test_a_direction_near_the_rounding_may_explain_a_squared_error():
    generator = np.random.default_rng(12)
    first, second = generator.integers(-3, 4, (2, 40)).astype(float)
    z = np.column_stack([first, first + 2.0**-48 * second])  # exactly; their difference is the target
    certificate = certify_head(heads.DenseHead(2, 1), z, second[:, None], losses.SquaredError(), np.zeros(3))
    assert certificate.infimum[0] < 1e-6


@pytest.mark.parametrize("name", ["gated before", "gated branch"])
def test_a_gated_head_is_factorized_once(name, monkeypatch):
    made, begin = [], FactorizedJacobian.__init__

    def counted(self, *arguments):
        made.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(FactorizedJacobian, "__init__", counted)
    case = next(case for case in cases.CASES if case.name == name)
    report = alignment(case.build(), case.inputs(80), case.labels(80), loss=case.loss)  # 75 parameters at most
    assert report.verdict in ("separable", "not separable")
    assert len(made) == 1


def test_faint_samples_count_as_much_for_what_is_separable():
    z = np.array([[0.0], [1.0], [0.5], [0.5]])
    targets, weights = np.eye(2)[[0, 1, 0, 1]], np.array([1.0, 1.0, 1e-12, 1e-12])
    certificate = certify_head(heads.DenseHead(1, 2), z, targets, SOFTMAX, np.zeros(4), weights)
    assert certificate.verdict == "not separable"
    assert 0 < certificate.infimum[0] <= 2e-12 * np.log(2) / 4


def test_a_search_that_runs_out_of_time_says_so(monkeypatch):
    generator = np.random.default_rng(7)
    z = generator.standard_normal((200, 30))
    y = (z @ generator.standard_normal(30) + 0.1 * generator.standard_normal(200) ** 3 > 0).astype(int)
    monkeypatch.setattr(duality, "SECONDS", 0.0)
    monkeypatch.setattr(duality._Search, "_last_bound", lambda self, logits: 0.0)
    certificate = certify_head(heads.DenseHead(30, 2), z, np.eye(2)[y], SOFTMAX, np.zeros(62))
    assert certificate.verdict == "undecided"
    assert "within" in certificate.decided_by


def test_rank_modulo_a_prime_equals_the_rank():
    generator = np.random.default_rng(8)
    for rank in range(1, 6):
        matrix = generator.integers(-5, 6, (12, rank)) @ generator.integers(-5, 6, (rank, 7))
        scaled = np.ldexp(matrix.astype(float), generator.integers(-300, 300, 7))
        assert rank_modulo(residues_modulo(scaled, PRIME), PRIME) == np.linalg.matrix_rank(matrix)


def test_residues_are_those_of_the_fractions():
    values = np.array([[0.1, -3.75], [2.0**-80, 1e300]])
    for value, residue in zip(values.flat, residues_modulo(values, PRIME).flat, strict=True):
        top, bottom = value.as_integer_ratio()
        assert residue == top * pow(bottom, -1, PRIME) % PRIME


@pytest.mark.parametrize("kind", ["plain", "gated", "mixture", "sum"])
def test_rounding_bounds_the_errors_of_logits(kind):
    generator = np.random.default_rng(9)
    m, units, outputs = 6, 10, 3
    gates = (
        np.zeros(m),
        np.ones(m),
        generator.standard_normal((m, units)).astype("float32").astype(float),
        generator.standard_normal(units),
        2.0,
    )
    head = {
        "plain": heads.DenseHead(m, outputs),
        "gated": heads.GatedHead(*gates, generator.standard_normal((units, outputs)), True),
        "mixture": heads.MixtureHead(*gates, outputs),
        "sum": heads.SumHead([heads.MixtureHead(*gates, outputs), heads.DenseHead(m, outputs)]),
    }[kind]
    z, theta = generator.standard_normal((20, m)), generator.standard_normal(head.num_parameters)
    theta[: m * outputs] *= 1e8  # sums that cancel
    rows = np.array([[head.adjoint(row[None], unit[None]) for unit in np.eye(outputs)] for row in z])
    exact = (rows.astype(np.longdouble) @ theta.astype(np.longdouble)).astype(float)
    errors, bound = np.abs(head.logits(z, theta) - exact), head.rounding(z, theta)
    assert np.all(errors <= bound)
    assert np.all(bound <= 1e-13 * np.abs(rows) @ np.abs(theta) * head.num_parameters)


def test_means_of_constants_are_exact_and_norms_bound_from_above():
    assert np.all(safe_mean(np.full((7, 2), 0.1)) == 0.1)
    matrix = np.random.default_rng(10).standard_normal((30, 5))
    for scale in (1e-200, 1.0, 1e200):
        sigma = np.linalg.norm(matrix, 2) * scale
        assert sigma <= largest_singular_value(matrix * scale) <= sigma * (1 + 1e-8)


def test_one_number_is_printed_where_both_bounds_read_the_same():
    generator = np.random.default_rng(11)
    z, y = generator.standard_normal((50, 2)), generator.integers(0, 3, 50)
    certificate = certify_head(heads.DenseHead(2, 3), z, np.eye(3)[y], SOFTMAX, np.zeros(9))
    low, high = (f"{each:.6g}" for each in certificate.infimum)
    assert certificate.infimum[0] < certificate.infimum[1]
    assert ("between" in str(certificate)) == (low != high)
