"""No verdict may contradict the truth, in any units: compared with problems that are decided exactly."""

import os
from fractions import Fraction
from unittest import mock

import cases
import false_numbers
import keras
import numpy as np
import pytest
import verdict_problems
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_dal
from keras_dal import heads, losses
from keras_dal.analysis.alignment import alignment
from keras_dal.analysis.certify import certify, certify_head
from keras_dal.analysis.misses import misses_some
from keras_dal.analysis.width import width_curve
from keras_dal.heads.norms import SAFETY, sigma_max_bound
from keras_dal.solvers import duality, exact_dual
from keras_dal.solvers.exact_dual import rank_modulo, residues_modulo
from keras_dal.solvers.factorized_jacobian import FactorizedJacobian
from keras_dal.solvers.jacobian import jacobian
from keras_dal.solvers.label_squares import safe_mean
from keras_dal.solvers.nested_columns import NestedColumns

EXAMPLES = int(os.environ.get("KERAS_DAL_EXAMPLES", "100"))
SOFTMAX, SIGMOID = losses.SoftmaxCrossEntropy(), losses.SigmoidCrossEntropy()
PRIME = 2147483629


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_no_verdict_contradicts_the_truth(seed):
    wrong, _ = verdict_problems.draw(seed).false_statements()
    assert not wrong


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_no_verdict_of_soft_labels_contradicts_the_truth(seed):
    wrong, _ = verdict_problems.draw_soft(seed).false_statements()
    assert not wrong


@settings(max_examples=EXAMPLES // 5, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
@pytest.mark.parametrize("draw", [verdict_problems.draw, verdict_problems.draw_soft])
def test_no_number_of_a_certificate_contradicts_exact_arithmetic(draw, seed):
    assert not false_numbers.of_certificate(draw(seed))


@settings(max_examples=EXAMPLES // 5, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
@pytest.mark.parametrize("draw", [verdict_problems.draw, verdict_problems.draw_soft])
def test_no_point_is_further_from_the_minimum_than_its_gap(draw, seed):
    assert false_numbers.beyond_gap(draw(seed), seed) <= 0


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_no_verdict_of_a_squared_error_contradicts_the_truth(seed):
    wrong, _ = verdict_problems.draw_regression(seed).false_statements()
    assert not wrong


@pytest.mark.parametrize("seed", [119, 6260])
def test_labels_that_are_nearly_reached_are_not_called_aligned_because_they_are_faint(seed):
    """Of 10,000 problems the two about which statements were false: misses of half a per cent, under weights of one."""
    assert verdict_problems.draw_regression(seed).false_statements()[0] == []


def test_labels_that_are_missed_by_less_than_rounding_may_hide_are_not_called_aligned():
    """Of 10,000 problems the one with a false statement: nearly equal columns, and labels of 10^6 beside 10^12."""
    wrong, undecided = verdict_problems.draw_regression(7549).false_statements()
    assert (wrong, undecided) == ([], 2)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("opened", [3.0, 5.0, 12.0])
def test_a_gate_that_is_always_open_leaves_a_verdict(loss, opened):
    """Its column is that of a bias but for rounding, which the search for an exact dual point must not divide by."""
    generator, outputs = np.random.default_rng(0), 3 if loss == "softmax" else 1
    x = generator.standard_normal((60, 2)).astype("float32")
    keras.utils.set_random_seed(0)
    gated = keras_dal.GatedDense(3, sharpness=10.0)
    model = keras.Sequential([keras.Input((2,)), gated, keras.layers.Dense(outputs)])
    losses_by_name = {
        "softmax": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "sigmoid": keras.losses.BinaryCrossentropy(from_logits=True),
    }
    model.compile("sgd", losses_by_name[loss])
    gated.bias.assign([opened, 0.0, 0.0])
    y = generator.integers(0, 3, 60) if outputs == 3 else generator.integers(0, 2, (60, 1)).astype("float32")
    found = certify(model, x, y, verbose=0), alignment(model, x, y, verbose=0)
    assert {each.verdict for each in found} <= {"not separable", "undecided"}


@pytest.mark.parametrize("size", [1e-320, 1.0, 1e300])
def test_columns_of_any_size_are_factorized_in_a_unit_of_theirs(size):
    columns = size * np.array([[1.0, 1.0], [-1.0, 2.0], [1.0, 2.0]])
    metric = exact_dual._Metric(columns, np.abs(columns), np.ones(3))
    assert np.isfinite(metric.weighted).all()
    assert metric.rank == 2


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_even_noise_that_is_small_beside_all_labels_is_none_of_these(n):
    generator = np.random.default_rng(n)
    z, noise = generator.standard_normal((n, 3)), generator.standard_normal((n, 1))
    y = z @ np.ones((3, 1)) + 1e-4 * noise
    certificate = certify_head(heads.DenseHead(3, 1), losses.SquaredError(), z, y, np.zeros(4))
    assert 1e-9 < certificate.residual_share < 1e-8
    assert "missed" not in certificate.decided_by


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("smoothing", [None, 0.1])
def test_an_output_whose_labels_are_all_equal_is_reached(offset, smoothing):
    generator = np.random.default_rng(0)
    z = offset + generator.standard_normal((8, 12))
    y = np.column_stack([generator.integers(0, 2, 8), np.ones(8)]).astype(float)
    loss = losses.SigmoidCrossEntropy(label_smoothing=0.1) if smoothing else losses.SquaredError()
    head = heads.DenseHead(12, 2)
    certificate = certify_head(head, loss, z, loss.targets(y, 2), np.zeros(head.num_parameters))
    assert certificate.verdict == "aligned"


def test_the_unit_of_one_output_does_not_hide_another_that_is_out_of_reach():
    generator = np.random.default_rng(0)
    z = generator.integers(-50, 51, (30, 3)).astype(float)
    features = np.column_stack([z, z[:, 0], z[:, 1] + 2.0**-23 * z[:, 2]])  # exactly
    y = np.column_stack([2.0**30 * z[:, 0], generator.integers(-3, 4, 30)])
    problem = verdict_problems.Regression(features, y, np.ones(30), 2, True, losses.SquaredError(), False)
    assert {each.verdict for each in problem.verdicts()} == {"not aligned"}


@pytest.mark.parametrize("heavy", [1e5, 1e9, 1e13])
@pytest.mark.parametrize("smoothing", [None, 0.1])
def test_labels_that_half_of_the_samples_outweigh_are_not_called_aligned(heavy, smoothing):
    """By hand: heavy samples that are fitted, and as many with equal features and opposite labels."""
    x = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0], [0, 1], [0, 1], [0, 1], [0, 1]], "float32")
    y = np.array([1, 0, 1, 0, 0, 1, 0, 1], "float32")[:, None]
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing) if smoothing else "mse"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=bool(not smoothing))])
    model.compile("sgd", loss)
    data = x, y, np.repeat([heavy, 1.0], 4)
    certificate, report = certify(model, *data, verbose=0), alignment(model, *data, verbose=0)
    assert "aligned" not in (certificate.verdict, report.verdict)
    assert width_curve(model, *data, widths=[0], draws=1, verbose=0).settled is None
    if not smoothing:
        assert certificate.infimum == (pytest.approx(0.125, rel=1e-3), pytest.approx(0.125, rel=1e-3))


def test_weights_add_nothing_to_a_rank():
    """By hand: the first two columns are equal and the third is another multiple of them."""
    z = np.array([[-3], [2], [-3], [-3], [2]]) * np.array([[2.0**33, 2.0**33, 2.0**78]])
    y = np.array([[-2.0, 6], [3, -6], [-2, 4], [-2, 4], [3, -6]])
    weights = np.array([1, 1, 1e4, 1e4, 1])
    problem = verdict_problems.Regression(z, y, weights, 2, True, losses.SquaredError(), False)
    projection = problem.projection()
    certificate = certify_head(problem.head, problem.loss, z, problem.targets, np.zeros(8), weights)
    assert 2 * projection.rank == certificate.rank == 4
    assert projection.residual_share == pytest.approx(certificate.residual_share, rel=1e-9)


def test_smoothed_labels_that_are_missed_beside_much_heavier_ones_are_not_called_aligned():
    """Of 10,000 problems the one about which a statement was false: weights of 1e-4 and 1e9 on contradicting labels."""
    wrong, undecided = verdict_problems.draw_soft(5197).false_statements()
    assert (wrong, undecided) == ([], 2)


@pytest.mark.parametrize(
    ("labels", "fitted", "missed"),
    [
        ([1.0], [1.0], False),
        ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0004], False),
        ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.01], True),
        ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.1], True),
        ([1e6, 0.0, 1.0, 2.0], [1e6, 0.5, 1.0, 2.0], True),  # one large label
        ([1e5, -1e5, 1e5, -1e5, 0.05, -0.05], [1e5, -1e5, 1e5, -1e5, 0.0, 0.0], True),  # most of them
        ([5.0, 5.0, 5.0], [5.0, 5.0, 6.0], False),  # a constant, which a bias reaches
        ([0.0, 0.0, 0.0, 7.0], [0.0, 0.0, 1e-3, 7.0], False),
    ],
)
def test_labels_are_missed_by_what_is_much_beside_nearly_all_of_their_output(labels, fitted, missed):
    columns = [np.column_stack([each, np.zeros(len(each))]) for each in (labels, fitted)]
    for unit in (1e-20, 1.0, 1e20):
        assert misses_some(*(unit * column for column in columns), 0.0, True) == missed
    assert not misses_some(*columns, np.full_like(columns[0], 1.0), True)  # which rounding explains


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
    assert (certificate.rank, report.rank) == (3, 3)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
def test_report_and_certificate_agree_on_rank_and_share(noise):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 24)).astype("float32")
    x[:, 12:] = x[:, :12] @ generator.standard_normal((12, 12)) + noise * x[:, 12:]
    x = x * 10.0 ** generator.integers(-12, 12, 24) + 5.0
    x, y = x.astype("float32"), generator.integers(0, 3, 200)
    report, certificate = alignment(model_of(24, 3), x, y), certify(model_of(24, 3), x, y)
    assert (report.rank, report.full_rank) == (certificate.rank, certificate.full_rank)
    assert report.tolerance == pytest.approx(certificate.tolerance)
    assert report.residual_share == pytest.approx(certificate.residual_share, abs=1e-9)
    assert report.verdict == certificate.verdict


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
def test_units_change_nothing(scale):
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((50, 4)), generator.integers(0, 3, 50)
    head, units = heads.DenseHead(4, 3), np.array([scale, 1.0, 1.0, 1.0])
    plain, scaled = (certify_head(head, SOFTMAX, each, np.eye(3)[y], np.zeros(15)) for each in (z, z * units))
    assert plain.verdict == scaled.verdict == "not separable"
    assert scaled.rank == plain.rank
    assert scaled.residual_share == pytest.approx(plain.residual_share, rel=1e-9)
    assert scaled.infimum == pytest.approx(plain.infimum, abs=1e-6)


def test_columns_that_depend_on_each_other_exactly_do_not_prevent_a_proof():
    generator = np.random.default_rng(2)
    groups = np.eye(3)[generator.integers(0, 3, 60)]  # sums to one, as the bias is
    z = np.column_stack([groups, generator.integers(-3, 4, (60, 2)), np.full(60, 0.1), np.zeros(60)])
    y = generator.integers(0, 2, 60)
    certificate = certify_head(heads.DenseHead(7, 2), SOFTMAX, z, np.eye(2)[y], np.zeros(16))
    assert certificate.verdict == "not separable"
    assert certificate.infimum[1] - certificate.infimum[0] < 1e-6


def test_a_direction_that_rounding_may_have_made_is_not_ruled_out():
    """The second column is the first up to its last bits, and those bits are the labels."""
    generator = np.random.default_rng(3)
    first, y = generator.uniform(1.0, 2.0, 80), generator.integers(0, 2, 80)
    z = np.column_stack([first, np.where(y == 1, np.nextafter(first, 3.0), first)])
    certificate = certify_head(heads.DenseHead(2, 2), SOFTMAX, z, np.eye(2)[y], np.zeros(6))
    assert certificate.verdict in ("undecided", "separable")
    assert certificate.infimum[0] == 0.0


def test_samples_that_contradict_each_other_are_proved_to():
    generator = np.random.default_rng(4)
    z = generator.standard_normal((40, 3))
    z[:2] = [0.0, 0.3, 0.7]  # twice, on the border between the others
    y = (z[:, 0] > 0).astype(int)
    y[1] = 1
    certificate = certify_head(heads.DenseHead(3, 2), SOFTMAX, z, np.eye(2)[y], np.zeros(8))
    assert certificate.verdict == "not separable"
    assert certificate.infimum[0] == pytest.approx(2 * np.log(2) / 40, abs=1e-6)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("use_bias", [True, False])
def test_labels_of_one_class_are_separable(n, use_bias):
    z = np.random.default_rng(5).uniform(0.1, 1.0, (n, 2))
    head = heads.DenseHead(2, 3, use_bias)
    certificate = certify_head(head, SOFTMAX, z, np.eye(3)[np.ones(n, int)], np.zeros(head.num_parameters))
    assert certificate.verdict in ("aligned", "separable")
    assert certificate.infimum == (0.0, 0.0)


def test_a_class_without_samples_is_separated_from_the_others():
    generator = np.random.default_rng(6)
    z, y = generator.standard_normal((60, 2)), generator.integers(0, 2, 60)
    two, three = (certify_head(heads.DenseHead(2, c), SOFTMAX, z, np.eye(c)[y], np.zeros(3 * c)) for c in (2, 3))
    assert two.verdict == three.verdict == "not separable"
    assert three.infimum == pytest.approx(two.infimum, abs=1e-6)


def test_a_direction_near_the_rounding_may_explain_a_squared_error():
    generator = np.random.default_rng(12)
    first, second = generator.integers(-3, 4, (2, 40)).astype(float)
    z = np.column_stack([first, first + 2.0**-48 * second])  # exactly; their difference is the target
    certificate = certify_head(heads.DenseHead(2, 1), losses.SquaredError(), z, second[:, None], np.zeros(3))
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
    certificate = certify_head(heads.DenseHead(1, 2), SOFTMAX, z, targets, np.zeros(4), weights)
    assert certificate.verdict == "not separable"
    assert 0 < certificate.infimum[0] <= 2e-12 * np.log(2) / 4


def test_a_search_that_runs_out_of_time_says_so(monkeypatch):
    generator = np.random.default_rng(7)
    z = generator.standard_normal((200, 30))
    y = (z @ generator.standard_normal(30) + 0.1 * generator.standard_normal(200) ** 3 > 0).astype(int)
    monkeypatch.setattr(duality._Search, "_last_bound", lambda self, logits: 0.0)
    certificate = certify_head(heads.DenseHead(30, 2), SOFTMAX, z, np.eye(2)[y], np.zeros(62), seconds=1e-9)
    assert certificate.verdict == "undecided"
    assert "within 1e-09 seconds" in certificate.decided_by


def test_a_time_limit_of_certify_is_the_solvers(capsys):
    z, y = np.random.default_rng(0).standard_normal((20, 3)).astype("float32"), np.arange(20) % 2
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with mock.patch.object(duality, "_Search", wraps=duality._Search) as search:
        keras_dal.certify(model, z, y, time_limit=30)
    assert search.call_args.args[-1] == 30
    assert "each solver has 30 seconds" in capsys.readouterr().out
    with pytest.raises(ValueError, match="time_limit must be a positive number. Received: time_limit=0"):
        keras_dal.certify(model, z, y, time_limit=0)


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
        assert sigma <= sigma_max_bound(matrix * scale) <= sigma * (1 + 1e-8)


@pytest.mark.parametrize("shape", [(2**18, 1), (1, 2**18)], ids=["tall", "wide"])
def test_a_bound_of_a_norm_has_room_for_the_rounding_of_every_product_that_is_summed(shape):
    """Of ones, whose norm is exact: a sum of n products may lose n units of rounding (Higham, 2002, section 3.1)."""
    lost = shape[0] * shape[1] * 2.0**-53
    assert sigma_max_bound(np.ones(shape)) / SAFETY >= 2.0**9 * (1 + lost / 2)


def test_one_number_is_printed_where_both_bounds_read_the_same():
    generator = np.random.default_rng(11)
    z, y = generator.standard_normal((50, 2)), generator.integers(0, 3, 50)
    certificate = certify_head(heads.DenseHead(2, 3), SOFTMAX, z, np.eye(3)[y], np.zeros(9))
    low, high = (f"{each:.6g}" for each in certificate.infimum)
    assert certificate.infimum[0] < certificate.infimum[1]
    assert ("between" in str(certificate)) == (low != high)


@pytest.mark.parametrize("smoothing", [None, 0.2])
def test_labels_that_a_faint_direction_reaches_are_not_called_out_of_reach(smoothing):
    """By hand: the kernel `(-2^22, 2^22)` gives the logits `(0, 1)`, and `(-2^23 - 1, 2^23)` gives `(-1, 1)`."""
    x = np.array([[1, 1], [1, 1 + 2**-22]], "float32")
    y, kernel, loss = np.array([[0.0], [1.0]]), [[-(2.0**22)], [2.0**22]], "mse"
    if smoothing:
        loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing)
        kernel = np.multiply(np.log(9.0), [[-(2.0**23) - 1], [2.0**23]])  # labels 0.1 and 0.9 are sigmoid(+-log 9)
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile("sgd", loss)
    dense.kernel.assign(kernel)
    certificate, report = certify(model, x, y), alignment(model, x, y)
    for verdict in (certificate.verdict, report.verdict):
        assert verdict in ("aligned", "undecided")
    if not smoothing:
        assert certificate.loss == 0.0
        assert certificate.infimum[0] <= certificate.infimum[1] <= 1e-12
    else:
        assert certificate.infimum[0] <= -0.9 * np.log(0.9) - 0.1 * np.log(0.1) + 1e-9


def test_labels_beside_a_large_offset_of_the_features_are_not_called_out_of_reach():
    f = 1e12 + np.random.default_rng(0).random((50, 1))
    y = 0.3 * (f - 1e12)
    certificate = certify_head(heads.DenseHead(1, 1), losses.SquaredError(), f, y, np.zeros(2))
    assert certificate.verdict in ("aligned", "undecided")
    assert certificate.infimum[0] == 0.0


@pytest.mark.parametrize("use_bias", [False, True])
def test_labels_out_of_reach_are_still_called_so(use_bias):
    """By hand: the columns are equal, so that the least squares are those of the mean of each pair of samples."""
    z = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    y = np.array([[0.0], [1.0], [1.0]])
    certificate = certify_head(heads.DenseHead(2, 1, use_bias), losses.SquaredError(), z, y, np.zeros(2 + use_bias))
    assert certificate.verdict == "not aligned"
    kernel = 0.5 if not use_bias else None  # sum z y / sum z z = 3 / 6
    least = np.mean((np.array([0.0, 1.0, 1.0]) - kernel * z[:, 0]) ** 2) if kernel else 0.5 / 3
    assert certificate.infimum == pytest.approx((least, least), rel=1e-9)


@pytest.mark.parametrize(("outputs", "large"), [(1, 1e6), (2, 1e6), (1, 1e8)])
def test_a_large_label_does_not_make_a_regression_aligned(outputs, large):
    """By hand: the indicator of a sample and a bias leave the deviations of the other labels from their mean."""
    n, rest = 1000, np.random.default_rng(0).standard_normal((999, outputs))
    x, y = np.zeros((n, 1), "float32"), np.vstack([np.full((1, outputs), large), rest])
    x[0] = 1.0
    least = np.sum((rest - rest.mean(axis=0)) ** 2) / (n * outputs)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(outputs)])
    model.compile("sgd", "mse")
    certificate, curve = certify(model, x, y), width_curve(model, x, y, widths=[0], draws=1, verbose=0)
    assert certificate.infimum == pytest.approx((least, least), rel=max(1e-5, 1e-12 * large))
    assert certificate.verdict == "not aligned"
    for parameters in ("head", "all"):
        report = alignment(model, x, y, parameters=parameters, verbose=0)
        assert report.verdict == "undecided"
        assert "of all labels together, which may hide that some are missed" in report.decided_by
    assert curve.settled is None
    assert "to a share of 1e-08" in str(curve)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_labels_that_are_rounded_are_aligned_still(offset):
    """The labels are those of a linear map in float64, and then rounded to float32 like the features."""
    generator = np.random.default_rng(0)
    z = offset + generator.standard_normal((300, 20))
    y = (z @ generator.standard_normal((20, 2))).astype("float32")
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    z = z.astype("float32")
    certificate, curve = certify(model, z, y), width_curve(model, z, y, widths=[0], draws=1, verbose=0)
    assert certificate.verdict == alignment(model, z, y).verdict == "aligned"
    assert curve.settled == 0


def products_of_moved_inputs():
    """Return features, a mixture of gates, and the products of inputs and gates as fractions `(n, (m + 1) K)`."""
    generator = np.random.default_rng(0)
    kernel, bias = 1e-6 * generator.standard_normal((3, 4)), generator.standard_normal(4)
    head = heads.MixtureHead(np.zeros(3), np.ones(3), kernel, bias, 1.0, 1)
    z = 1e6 + generator.uniform(-1, 1, (30, 3))
    inputs, gates = (np.vectorize(Fraction)(part) for part in (np.column_stack([z, np.ones(30)]), head.gates(z)))
    return z, head, (inputs[:, :, None] * gates[:, None, :]).reshape(30, -1)


def assert_within(logits, exact, errors):
    """Assert that logits `(n, 1)` are within their errors of exact ones `(n,)`, up to one constant."""
    differences = np.vectorize(Fraction)(logits[:, 0]) - exact
    assert max(differences - errors[:, 0]) <= min(differences + errors[:, 0])


def test_errors_of_logits_count_that_products_are_rounded_before_they_are_centred():
    z, head, products = products_of_moved_inputs()
    columns = jacobian(heads.SumHead([head, heads.DenseHead(3, 1)]), z)
    coefficients = np.random.default_rng(1).standard_normal(columns.size)
    logits, errors = columns.evaluate(coefficients)
    entries = np.column_stack([products, np.vectorize(Fraction)(z)])
    assert_within(logits, entries @ np.vectorize(Fraction)(columns.theta(coefficients)[:-1]), errors)


def test_errors_of_nested_fits_count_that_products_are_rounded_before_they_are_centred():
    z, head, products = products_of_moved_inputs()
    columns, y = NestedColumns(16, np.ones(30), True, 2.0**-23), np.random.default_rng(1).standard_normal((30, 1))
    columns.append(head.kronecker_factor(z), products=True)
    columns.solve(y)
    found = columns.descend(losses.SquaredError(), y)
    theta = np.vectorize(Fraction)(found.theta[:, 0] / np.linalg.norm(products.astype(float), axis=0))
    assert_within(found.logits, products @ theta, found.errors)
