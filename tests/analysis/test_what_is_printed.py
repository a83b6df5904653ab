"""What is called proved, where rounding, units or weights could have made it false."""

import dataclasses
import re
import tracemalloc

import cases
import keras
import numpy as np
import pytest
from keras import layers

import keras_dal
from keras_dal.analysis.reports import AlignmentReport, WidthCurve
from keras_dal.features.cache import CachedFeatures
from keras_dal.finishing import newton
from keras_dal.finishing.evaluation import FittedHead
from keras_dal.finishing.solve import solve_head
from keras_dal.finishing.stopping import Ending
from keras_dal.heads import DenseHead
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from keras_dal.models.find_structure import find_structure
from keras_dal.output.tables import at_least, at_most, percent
from keras_dal.solvers.nested_columns import NestedColumns

CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIDES = keras.losses.BinaryCrossentropy(from_logits=True)


def head(m, outputs, loss, use_bias=True, dtype="float32", **options):
    keras.utils.set_random_seed(0)
    dense = layers.Dense(outputs, use_bias=use_bias, dtype=dtype, **options)
    model = keras.Sequential([keras.Input((m,), dtype=dtype), dense])
    model.compile(loss=loss)
    return model


def cached(x, y, weights=None):
    return CachedFeatures(
        np.asarray(x, np.float32), y, np.ones(len(x)) if weights is None else weights, np.arange(len(x))
    )


def test_soft_labels_on_nearly_dependent_columns_are_in_reach():
    x, q = np.array([[1, 1], [1, 1 + 2**-22]], "float32"), np.array([[0.9], [0.3]])
    certificate = keras_dal.certify(head(2, 1, SIDES, use_bias=False, kernel_initializer="zeros"), x, q)
    floor = np.mean(-q * np.log(q) - (1 - q) * np.log1p(-q))  # reached, as the determinant of x is 2^-22
    assert certificate.verdict != "not aligned"
    assert certificate.infimum[0] <= floor * (1 + 1e-12)


def test_weights_far_apart_do_not_move_the_infimum():
    model, weights = head(1, 2, CLASSES, use_bias=False, kernel_initializer="zeros"), np.array([1e12, 6e-5])
    low, high = keras_dal.certify(model, np.ones((2, 1)), np.array([0, 1]), sample_weight=weights).infimum
    share = weights[1] / weights.sum()
    entropy = -share * np.log(share) - (1 - share) * np.log1p(-share)
    assert low * (1 - 1e-12) <= weights.mean() * entropy <= high * (1 + 1e-12)


def test_slopes_of_sure_logits_keep_their_digits():
    logits, targets = np.array([[45.0, *[0.0] * 9]]), np.eye(10)[:1]
    slope = SoftmaxCrossEntropy().gradient(logits, targets)[0, 0]
    assert slope == pytest.approx(-9 * np.exp(-45) / (1 + 9 * np.exp(-45)), rel=1e-12)
    assert SoftmaxCrossEntropy().values(logits, targets)[0] == pytest.approx(np.log1p(9 * np.exp(-45)), rel=1e-12)


def test_a_gap_of_float32_is_not_called_proved(monkeypatch):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((50, 3)).astype("float32"), generator.integers(0, 3, 50)
    result = keras_dal.converge(head(3, 3, CLASSES), x, y, gated=False, ridge=0.1, tol=1e-3, verbose=0)
    assert "above the minimum" in next(result.proof())
    monkeypatch.setattr(newton, "prove", lambda *arguments: None)
    result = keras_dal.converge(head(3, 3, CLASSES), x, y, gated=False, ridge=0.1, tol=1e-3, verbose=0)
    assert result.stopped_by == Ending.STALLED  # where float32 saw the wanted gap, and float64 does not
    assert not result.reached
    assert list(result.proof()) == []
    assert re.search("gap to the minimum +at most about", str(result))


def test_a_regression_that_is_solved_exactly_has_a_gap_all_the_same():
    x = np.random.default_rng(0).standard_normal((40, 3)).astype("float32")
    y = np.zeros((40, 2))
    model = head(3, 2, "mse", kernel_initializer="zeros")
    result = solve_head(find_structure(model), SquaredError(), cached(x, y))
    assert result.stopped_by == Ending.CERTIFIED
    noisy = solve_head(find_structure(model), SquaredError(), cached(x, y + 1.0))
    assert 0 < noisy.point.gap <= 1e-4


def test_numbers_that_the_head_cannot_hold_do_not_reach_the_model():
    x = np.random.default_rng(0).uniform(0, 1, (40, 3)).astype("float16")
    model = head(3, 1, "mse", dtype="float16", use_bias=False)
    before = model.get_weights()
    y = (x.astype(float) @ [[1e6], [1e6], [1e6]]).astype("float64")
    with pytest.raises(ValueError, match="not finite in the dtype"), pytest.warns(UserWarning, match="in float16"):
        keras_dal.converge(model, x, y, gated=False, ridge=1e-8, verbose=0)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("gated", [False, True])
def test_numbers_that_are_infinite_where_the_head_computes_do_not_reach_the_model(gated):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 3)).astype("float32"), generator.integers(0, 3, 40)
    x[:, 1], x[5, 1] = 0.0, 4e-7
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, dtype="mixed_float16")])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    with pytest.raises(ValueError, match="not finite in the dtype"), pytest.warns(UserWarning, match="in float16"):
        keras_dal.converge(model, x, y, gated=gated, verbose=0)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def fitted(features, targets, kernel, logits):
    """Return a biasless head with these features, whose logits are those of a sum from left to right."""
    head = FittedHead(DenseHead(4, 1, use_bias=False), SigmoidCrossEntropy(), features, targets, kernel, np.ones(2), 0)
    head._logits = [(slice(index, index + 1), np.array([[value]])) for index, value in enumerate(logits)]
    return head


def test_margins_count_what_rounding_may_have_done():
    x = np.array([[2.0**30, 129.0, 2.0**30, -200.0]])
    features, targets = np.concatenate([x, 3 * x]), SigmoidCrossEntropy().targets(np.array([[1.0], [0.0]]), 1)
    kernel = np.array([2.0**30, 1.0, -(2.0**30), 1.0])  # f(x) = -71, so that the first sample is wrong
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        assert fitted(features[:, order], targets, kernel[order], [56.0, -88.0]).least_margin() < 0


def test_the_loss_that_is_proved_at_a_scale_counts_what_rounding_may_have_done():
    x = np.array([[2.0**30, 129.0, 2.0**30, -200.0]])
    features, targets = np.concatenate([x, 3 * x]), SigmoidCrossEntropy().targets(np.array([[1.0], [0.0]]), 1)
    kernel = np.array([2.0**30, 1.0, -(2.0**30), 1.0])  # f(x) = -71: the losses at scale 2 are about 142 and 0
    assert fitted(features, targets, kernel, [56.0, -88.0]).largest_loss(2.0) >= 71.0


def test_the_loss_at_a_scale_has_the_weights_in_it():
    model, x = head(2, 2, CLASSES, use_bias=False, kernel_initializer=keras.initializers.Identity()), np.eye(2)
    certificate = keras_dal.certify(model, x, np.array([0, 1]), sample_weight=np.array([10.0, 10.0]))
    assert certificate.loss_at_scale(1.0) >= certificate.loss * (1 - 1e-9)


def test_mixed_labels_are_not_settled_by_their_residual_share():
    x = np.random.default_rng(0).uniform(-1, 1, (60, 1)).astype("float32")
    curve = keras_dal.width_curve(head(1, 1, SIDES), x, 0.5 + 0.3 * x, widths=[0], verbose=0)
    assert curve.residual_share[0] < 1e-8
    assert curve.settled is None  # logit(q) is not linear in x, and gates would gain something


def test_printed_bounds_are_rounded_outwards():
    y = np.array([0, 0, 0, 0, 0, 1])
    text = str(keras_dal.certify(head(1, 2, CLASSES), np.ones((6, 1)), y))
    (least,) = re.findall(r"no parameters have a loss below ([\d.e+-]+)", text)
    assert float(least) <= -(5 / 6) * np.log(5 / 6) - np.log(1 / 6) / 6
    assert (at_most(0.4505, 3), at_least(0.4505, 3)) == ("0.451", "0.45")
    assert (at_most(1.49e-6, 2, "e"), at_least(-0.123, 2)) == ("1.5e-06", "-0.13")


def test_a_bound_of_an_alignment_below_one_is_not_printed_as_one():
    fields = {
        "num_samples": 4,
        "num_features": 2,
        "num_outputs": 1,
        "num_parameters": 3,
        "full_rank": 4,
        "decided_by": "LSQR",
        "loss_name": "squared error",
    }
    report = AlignmentReport(4e-7, np.array([4e-7]), verdict="undecided", exact=False, **fields)
    assert "at least 0.999999," in report.summary()
    assert "at least 0.999999<" in report._repr_html_()
    assert (at_least(0.99, 6, "f"), at_most(0.1234561, 6, "f")) == ("0.990000", "0.123457")


@pytest.mark.parametrize("share", [1e-8, 1e-12, 1e-17, 0.0])
@pytest.mark.parametrize("exact", [False, True])
def test_an_alignment_is_printed_as_one_only_where_labels_are_aligned(share, exact):
    """Of all labels together next to nothing may be left where some are missed."""
    sizes = {"num_samples": 4, "num_features": 2, "num_outputs": 1, "num_parameters": 3, "full_rank": 4}
    sure = keras_dal.certify(head(1, 1, "mse"), np.array([[-1.0], [1.0]]), np.array([[0.0], [2.0]]), verbose=0)
    assert sure.verdict == "aligned"
    for verdict in ("aligned", "undecided", "not aligned", "separable"):
        fields = {"verdict": verdict, "decided_by": "", "loss_name": "squared error", "exact": exact, **sizes}
        report = AlignmentReport(share, np.array([share]), **fields)
        certificate = dataclasses.replace(sure, residual_share=share, verdict=verdict, exact=exact)
        printed = report.summary().split()[1 if exact else 3].strip(",")
        row = re.search(r"\nalignment +(?:at least )?(\S+) ", str(certificate))[1]
        for number in (printed, row):
            assert 0.99999 <= float(number) <= (1 if verdict == "aligned" else 0.99999999)
            if verdict == "aligned" and share <= (1e-12 if exact else 0):
                assert float(number) == 1


def test_labels_that_may_be_missed_beside_others_do_not_read_as_aligned():
    x, y = np.zeros((1000, 1), "float32"), np.random.default_rng(0).standard_normal((1000, 1))
    x[0], y[0] = 1.0, 1e9
    report = keras_dal.alignment(head(1, 1, "mse"), x, y, verbose=0)
    assert report.verdict == "undecided"
    assert report.residual_share < 1e-14
    assert report.summary().startswith("alignment 0.999999, rank")


def test_bounds_of_the_curvature_and_the_step_are_bounds_as_printed():
    generator = np.random.default_rng(0)
    for seed in range(5):
        x, y = generator.standard_normal((20, 2)), generator.integers(0, 2, 20)
        certificate = keras_dal.certify(head(2, 2, CLASSES, kernel_initializer="zeros"), (seed + 1) * x, y)
        beta, step = (float(part) for part in re.findall(r"beta, step +(\S+), (\S+)", str(certificate))[0])
        assert beta >= certificate.beta
        assert step <= certificate.step


def test_one_number_stands_for_two_bounds_only_where_it_is_both():
    certificate = keras_dal.certify(head(1, 2, CLASSES), np.ones((6, 1)), np.array([0, 0, 0, 0, 0, 1]))
    close = dataclasses.replace(certificate, infimum=(4.0e-8, 4.4e-8))
    assert "between 4e-08 and 4.4e-08" in str(close)
    assert re.search("infimum of the loss +0.5\n", str(dataclasses.replace(certificate, infimum=(0.5, 0.5 + 1e-9))))
    fields = {"widths": (0,), "residual_share": (0.5,), "residual_share_spread": (0.0,), "rank": (2,), "bytes": (8,)}
    counts = {"samples_fitted": 1, "num_samples": 6, "num_features": 1, "num_outputs": 2, "draws": 1}
    curve = WidthCurve(infimum=((0.45005, 0.45016),), settled=None, loss_name="", **fields, **counts)
    assert "0.45 to 0.4502," in str(curve)


def test_offsets_of_targets_leave_the_least_residual_a_lower_bound():
    x, y = np.array([[1.0], [-1.0], [0.0]]), 1e12 + np.array([[0.0], [0.0], [2.0**-13]])
    columns = NestedColumns(1, np.ones(3), constant=True, eps=2.0**-23)
    columns.append(x)
    assert columns.solve(y).least <= (2 / 3) * 2.0**-26 * (1 + 1e-9)


@pytest.mark.parametrize("max_bytes", [100, 2**32])
def test_a_head_that_is_at_its_minimum_is_proved_to_be(max_bytes):
    model = head(2, 2, CLASSES, use_bias=False, kernel_initializer=keras.initializers.Identity(gain=300.0))
    x, y = np.tile(np.eye(2), (200, 1)), np.tile([0, 1], 200)
    result = solve_head(find_structure(model), SoftmaxCrossEntropy(), cached(x, y), max_bytes)
    assert result.stopped_by == Ending.CERTIFIED
    assert len(result.path) == 1


def test_targets_of_many_classes_take_what_they_are():
    tracemalloc.start()
    SoftmaxCrossEntropy().targets(np.arange(10), 20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 8 * 10 * 20_000


@pytest.mark.parametrize("units", [[1e19, 1.0, 1.0], [1.0, 1e-25, 1e10]])
def test_units_of_features_do_not_change_the_solution(units):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((80, 3)), generator.integers(0, 2, 80)

    def solved(x):
        model = head(3, 2, CLASSES, kernel_initializer="zeros")
        return solve_head(find_structure(model), SoftmaxCrossEntropy(), cached(x, y))

    expected, found = solved(x), solved(x * units)
    assert found.stopped_by == Ending.CERTIFIED
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)


def test_equal_targets_have_no_unit_of_their_own():
    x = np.random.default_rng(0).standard_normal((10, 2))
    result = solve_head(find_structure(head(2, 1, "mse")), SquaredError(), cached(x, np.full((10, 1), 0.1)))
    assert result.stopped_by == Ending.CERTIFIED


def test_a_result_has_the_precision_of_the_head():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 3)).astype("float16"), generator.integers(0, 2, 60)
    model = head(3, 2, CLASSES, dtype="float16")
    result = solve_head(find_structure(model), SoftmaxCrossEntropy(), cached(x, y))
    assert result.certificate.tolerance == keras_dal.certify(model, x, y).tolerance > 1e-4


def test_a_percentage_is_whole_only_where_all_are_right():
    assert [percent(share) for share in (1.0, 49_999 / 50_000, 0.4102, 0.0)] == ["100.00%", "99.99%", "41.02%", "0.00%"]


@pytest.mark.parametrize("clips", [False, pytest.param(True, marks=cases.HAS_FLOAT64)])
def test_a_proof_says_where_keras_clips_probabilities(clips, monkeypatch):
    """TensorFlow finds the logits behind probabilities of the default dtype; the other backends do not."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 3)).astype("float32"), generator.integers(0, 3, 40)
    dtype = "float64" if clips else "float32"
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, "softmax"), keras.layers.Activation("linear", dtype=dtype)]
    )
    model.compile(loss="sparse_categorical_crossentropy")
    result = keras_dal.converge(model, x, y, gated=False, ridge=1e-2, verbose=0)
    for epsilon, named in ((1e-7, "1e-7"), (2.5e-5, "2.5e-5")):
        monkeypatch.setattr(keras.config, "epsilon", lambda value=epsilon: value)
        said = f"Keras clips probabilities at {named})" in next(result.proof())
        assert said == (clips or keras.backend.backend() != "tensorflow")


def test_a_regressor_is_told_that_gates_may_fit_noise():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 3)).astype("float32"), generator.standard_normal((40, 1))
    model = head(3, 1, "mse")
    report = str(keras_dal.alignment(model, x, y))
    assert "gates raise it by fitting what may be noise" in report
    assert "by chance   about" in report


def test_as_many_parameters_as_labels_may_be_aligned_by_chance():
    fields = {"verdict": "aligned", "decided_by": "", "residual_share_per_class": np.zeros(1), "full_rank": 40}
    sizes = {"num_samples": 40, "num_features": 3, "num_outputs": 1, "loss_name": "squared error"}
    for number, is_said in ((39, False), (40, True)):
        report = AlignmentReport(0.0, num_parameters=number, exact=False, **fields, **sizes)
        assert ("by chance   perhaps 1: 40 parameters may reach any labels of 40 numbers" in str(report)) == is_said


def test_a_weighted_loss_is_called_so():
    x, y = np.random.default_rng(0).standard_normal((40, 3)).astype("float32"), np.arange(40) % 3
    for weights, is_said in ((None, False), (np.where(y, 1.0, 2.0), True)):
        for function in (keras_dal.finish, keras_dal.certify):
            text = str(function(head(3, 3, CLASSES), x, y, weights, verbose=0))
            assert ("(softmax cross-entropy, times the sample weights)" in text) == is_said


def test_the_change_of_a_regressor_stands_beside_the_deviation_of_its_labels():
    x, y = np.random.default_rng(0).standard_normal((2, 40, 2)).astype("float32")
    text = str(keras_dal.finish(head(2, 2, "mse"), x, 1e5 + 20 * y, verbose=0))
    deviation = re.search(r"moved by +\S+ without their mean error, where labels deviate by (\S+) \(", text)
    assert float(deviation[1]) == pytest.approx(20 * y.var(axis=0).sum() ** 0.5, rel=1e-3)
    assert "where labels deviate by 0 (" in str(
        keras_dal.finish(head(2, 2, "mse"), x, np.full((40, 2), 7.0), verbose=0)
    )


@pytest.mark.parametrize(("labels", "advises"), [("contradicting", True), ("separated", False)])
def test_a_certificate_says_what_may_help_where_labels_are_out_of_reach(labels, advises):
    x = np.random.default_rng(0).standard_normal((40, 3)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    if labels == "contradicting":
        x[20:], y[20:] = x[:20], 1 - y[:20]
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    certificate = keras_dal.certify(model, x, y, verbose=0)
    row = "next                        gates, which converge adds to a plain head"
    assert (row in str(certificate)) == advises
    assert ("gates, which converge adds" in certificate._repr_html_()) == advises
