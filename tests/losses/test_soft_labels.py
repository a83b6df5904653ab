"""Every loss on labels of every kind, in float64: Keras' own values, finite differences and SciPy's minimization."""

import keras
import labels
import numpy as np
import pytest
from keras import ops
from scipy import optimize, special

from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError, common_scale, resolve_loss

N, C = 6, 4
ONE_HOT, MIXED, FULL = labels.one_hot(N, C), labels.mixed(N, C), labels.full(N, C)
DTYPE = "float64" if keras.backend.backend() == "tensorflow" else "float32"  # in which others compute some losses


def logits():
    return 2 * np.random.default_rng(0).standard_normal((N, C))


def binary():
    return np.random.default_rng(1).integers(0, 2, (N, C)).astype(float)


def unit():
    return np.random.default_rng(4).uniform(0, 1, (N, C))


def options(**more):
    return {"reduction": None, "dtype": DTYPE, **more}


SOFTMAX, SIGMOID = keras.losses.CategoricalCrossentropy, keras.losses.BinaryCrossentropy
CASES = {
    "squared error": (keras.losses.MeanSquaredError(**options()), logits() - 1),
    "classes": (SOFTMAX(from_logits=True, **options()), ONE_HOT),
    "smoothed classes": (SOFTMAX(from_logits=True, label_smoothing=0.2, **options()), ONE_HOT),
    "mixed classes": (SOFTMAX(from_logits=True, **options()), MIXED),
    "mixed and smoothed classes": (SOFTMAX(from_logits=True, label_smoothing=0.3, **options()), MIXED),
    "probabilities of classes": (SOFTMAX(from_logits=True, **options()), FULL),
    "yes or no": (SIGMOID(from_logits=True, **options()), binary()),
    "smoothed yes or no": (SIGMOID(from_logits=True, label_smoothing=0.2, **options()), binary()),
    "probabilities of yes": (SIGMOID(from_logits=True, **options()), unit()),
}
ATTAINED = ["squared error", "smoothed classes", "smoothed yes or no"]
APPROACHED = ["classes", "yes or no"]


@pytest.fixture(params=CASES)
def case(request):
    """The loss as Keras has it, as we have it, and its targets."""
    theirs, y = CASES[request.param]
    averaged = type(theirs).from_config({**theirs.get_config(), "reduction": "sum_over_batch_size"})
    ours = resolve_loss(averaged)
    return request.param, theirs, ours, y, ours.targets(y, C)


def test_values_are_those_of_keras(case):
    _, theirs, ours, y, targets = case
    expected = ops.convert_to_numpy(theirs(y.astype(DTYPE), logits().astype(DTYPE)))
    assert expected.dtype == DTYPE
    np.testing.assert_allclose(ours.values(logits(), targets), expected, rtol=1e-12 if DTYPE == "float64" else 1e-5)


def test_derivatives_are_those_of_finite_differences(case):
    _, _, ours, _, targets = case
    direction, step = np.random.default_rng(5).standard_normal((N, C)), 1e-5
    ahead, behind = logits() + step * direction, logits() - step * direction
    slope = (ours.values(ahead, targets) - ours.values(behind, targets)) / (2 * step)
    np.testing.assert_allclose(
        np.sum(ours.gradient(logits(), targets) * direction, axis=1), slope, rtol=1e-7, atol=1e-9
    )
    bend = (ours.gradient(ahead, targets) - ours.gradient(behind, targets)) / (2 * step)
    product = ours.hessian(logits(), targets)
    np.testing.assert_allclose(product(direction, slice(None)), bend, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(product(direction[2:5], slice(2, 5)), bend[2:5], rtol=1e-6, atol=1e-9)


def test_small_slopes_of_single_precision_are_exact(case):
    _, _, ours, _, targets = case
    far = np.float32(30 * np.sign(logits()))
    single = ours.gradient(far, targets.astype("float32"))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, ours.gradient(far.astype(float), targets), rtol=1e-4, atol=1e-7)


def least(function, start):
    """SciPy's minimum of a smooth convex function of one row of logits."""
    return optimize.minimize(function, start, method="BFGS", options={"gtol": 1e-9}).fun


def test_infimum_is_that_of_scipy(case):
    name, _, ours, _, targets = case
    for i, infimum in enumerate(ours.infimum(targets)):
        row = targets[i : i + 1]
        found = least(lambda f, row=row: ours.values(f[None], row)[0], np.zeros(C))
        assert infimum - 1e-12 <= found <= infimum + 1e-4, name


def test_a_label_that_favours_nothing_is_where_any_factor_leaves_it():
    softmax, sigmoid = SoftmaxCrossEntropy(), SigmoidCrossEntropy()
    q = softmax.targets(np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]), 2)
    scale = common_scale(softmax.scales(q))
    np.testing.assert_allclose(special.softmax(scale * q, axis=1), q, rtol=1e-12)
    t = sigmoid.targets(np.array([[0.9, 0.5], [0.1, 0.9], [0.5, 0.5]]), 2)
    scale = common_scale(sigmoid.scales(t))
    np.testing.assert_allclose(special.expit(scale * t), 0.5 + 0.5 * t, rtol=1e-12)
    assert common_scale(softmax.scales(softmax.targets(np.eye(2)[[0, 0]] * 0.0 + 0.5, 2))) == 1.0


def test_a_label_that_favours_nothing_is_not_where_what_separates_others_tends_to():
    hard_and_even = np.array([[1.0, 0.0], [0.5, 0.5]])
    for loss in (SoftmaxCrossEntropy(), SigmoidCrossEntropy()):
        assert common_scale(loss.scales(loss.targets(hard_and_even, 2))) is None


def test_faint_smoothings_that_differ_are_not_one():
    loss = SigmoidCrossEntropy()
    assert common_scale(loss.scales(loss.targets(np.array([[1e-7, 5e-7], [5e-7, 1e-7]]), 2))) is None
    alike = np.array([[1e-3, 1 - 1e-3], [1 - 1e-3, 1e-3]], "float32")
    assert common_scale(loss.scales(loss.targets(alike, 2))) == pytest.approx(2 * np.arctanh(0.998) / 0.998, rel=1e-4)


def test_scales_say_where_the_infimum_is(case):
    name, _, ours, _, targets = case
    scale, matrix = common_scale(ours.scales(targets)), ours.label_matrix(targets)
    assert ours.are_hard(targets) == (name in APPROACHED)
    if name in ATTAINED:
        np.testing.assert_allclose(ours.values(scale * matrix, targets), ours.infimum(targets), rtol=1e-12, atol=1e-15)
        assert (ours.values(1.1 * scale * matrix, targets) > ours.infimum(targets)).all()
    elif name in APPROACHED:
        assert scale == np.inf
        np.testing.assert_allclose(ours.values(1e3 * matrix, targets), 0, atol=1e-12)
        assert (ours.infimum(targets) == 0).all()
    else:
        assert scale is None


def test_conjugate_is_the_supremum(case):
    _, _, ours, _, targets = case
    elsewhere = 2 * np.random.default_rng(6).standard_normal((N, C))
    slopes = ours.gradient(elsewhere, targets)
    conjugate = ours.conjugate(slopes, targets)
    reached = np.sum(slopes * elsewhere, axis=1) - ours.values(elsewhere, targets)  # a gradient's supremum is there
    np.testing.assert_allclose(conjugate, reached, rtol=1e-10, atol=1e-12)
    for i in range(N):
        row, slope = targets[i : i + 1], 0.5 * slopes[i]
        found = -least(lambda f, row=row, slope=slope: ours.values(f[None], row)[0] - slope @ f, np.zeros(C))
        assert ours.conjugate(slope[None], row)[0] == pytest.approx(found, abs=1e-6)
    np.testing.assert_allclose(ours.conjugate(0 * slopes, targets), -ours.infimum(targets), atol=1e-12)


def test_conjugate_is_infinite_beyond_probabilities():
    for ours, y in ((SoftmaxCrossEntropy(0.2), ONE_HOT), (SigmoidCrossEntropy(0.2), binary())):
        targets = ours.targets(y, C)
        slopes = np.zeros((N, C))
        slopes[0, :2] = [2.0, -2.0]
        conjugate = ours.conjugate(slopes, targets)
        assert np.isposinf(conjugate[0])
        assert np.isfinite(conjugate[1:]).all()
    assert np.isposinf(SoftmaxCrossEntropy().conjugate(0.1 * np.ones((N, C)), FULL)).all()  # constants lead away


def test_label_matrix_of_the_training_step_is_the_same(case):
    _, _, ours, y, targets = case
    matrix, known = ours.step_targets(ops.cast(y, "float32"), C)
    np.testing.assert_allclose(ops.convert_to_numpy(matrix), ours.label_matrix(targets), rtol=1e-6, atol=1e-7)
    assert ops.convert_to_numpy(known).all()


@pytest.mark.parametrize(
    ("ours", "rows"),
    [
        (SquaredError(), [[np.nan] * 3 + [0.0], [np.inf] * 4, [1.0] * 4]),
        (SoftmaxCrossEntropy(), [[0.9, 0.2, 0, 0], [1.2, -0.2, 0, 0], [np.nan, 1, 0, 0], [0.5, 0.5, 0, 0]]),
        (SoftmaxCrossEntropy(0.1), [[4.0], [-1.0], [0.5], [np.nan], [3.0]]),
        (SigmoidCrossEntropy(), [[0, 1, 1.5, 0], [0, -1, 0, 0], [np.nan, 0, 0, 0], [0, 0.5, 1, 1]]),
    ],
    ids=repr,
)
def test_rows_that_are_no_labels_are_known_in_the_training_step(ours, rows):
    known = ops.convert_to_numpy(ours.step_targets(ops.convert_to_tensor(np.array(rows, "float32")), C)[1])
    assert known.tolist() == [False] * (len(rows) - 1) + [True]
    for row in rows[:-1]:
        with pytest.raises(ValueError, match="Received: "):
            ours.targets([row], C)
    ours.targets([rows[-1]], C)


def test_margins_of_soft_labels_are_those_of_the_most_probable_classes():
    softmax, f = SoftmaxCrossEntropy(), np.array([[1.0, 3.0, 0.0]])
    for q, margin in (([0.2, 0.7, 0.1], 2.0), ([0.7, 0.2, 0.1], -2.0), ([0.5, 0.5, 0], 3.0), ([1 / 3] * 3, np.inf)):
        assert softmax.margins(f, np.array([q]))[0] == margin
        assert softmax.confidence(f, np.array([q]))[1][0] == (margin > 0)
    sigmoid, f = SigmoidCrossEntropy(), np.array([[1.0, -3.0]])
    for q, margin in (([0.9, 0.2], 1.0), ([0.9, 0.7], -3.0), ([0.5, 0.1], 3.0), ([0.5, 0.5], np.inf)):
        targets = sigmoid.targets([q], 2)
        assert sigmoid.margins(f, targets)[0] == margin
        assert sigmoid.confidence(f, targets)[1].all() == (margin > 0)


def test_labels_in_low_precision_are_smoothed_ones_still():
    for dtype in ("float32", "float64"):
        q = (0.9 * ONE_HOT + 0.1 / C).astype(dtype)
        scale = common_scale(SoftmaxCrossEntropy().scales(SoftmaxCrossEntropy().targets(q, C)))
        assert scale == pytest.approx(np.log(0.925 / 0.025) / 0.9, rel=1e-5)


def test_rows_that_do_not_sum_to_one_are_refused_as_keras_does_not_divide_by_their_sums():
    """The least loss of labels q with the sum s is that of s times q / s: of thirds in half precision 0.99976 log 3."""
    thirds = np.full((1, 3), 1 / 3, "float16")
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True)(thirds.astype("float32"), np.zeros((1, 3)))
    assert float(keras_loss) == pytest.approx(float(thirds.sum(dtype="float64")) * np.log(3), rel=1e-6)
    with pytest.raises(ValueError, match="within 1e-05, so in float32 or finer. Received: .* with the sum 0.999756"):
        SoftmaxCrossEntropy().targets(thirds, 3)
    _, known = SoftmaxCrossEntropy().step_targets(ops.convert_to_tensor(thirds.astype("float32")), 3)
    assert not ops.convert_to_numpy(known).any()
    np.testing.assert_allclose(SoftmaxCrossEntropy().targets(np.full((1, 3), 1 / 3, "float32"), 3).sum(), 1, rtol=1e-15)
    teacher = np.random.default_rng(0).standard_normal((5, 1000)).astype("float32")
    SoftmaxCrossEntropy().targets(ops.convert_to_numpy(ops.softmax(teacher)), 1000)
