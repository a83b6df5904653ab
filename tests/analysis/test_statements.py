"""What is said of a head is so, whatever its units, offsets, duplicates and weights are."""

import re
import warnings

import cases
import keras
import numpy as np
import pytest
from keras import layers

import keras_dal
from keras_dal.analysis.alignment import alignment_from_moments
from keras_dal.analysis.certify import certify_head
from keras_dal.finishing.stopping import Ending
from keras_dal.heads import DenseHead
from keras_dal.losses import SoftmaxCrossEntropy, SquaredError, resolve_loss
from keras_dal.models.find_structure import find_structure

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(num_features, num_outputs, loss=CROSS_ENTROPY, use_bias=True, dtype=None):
    """Return a last layer alone, compiled."""
    dense = layers.Dense(num_outputs, use_bias=use_bias, dtype=dtype)
    model = keras.Sequential([keras.Input((num_features,), dtype=dtype or "float32"), dense])
    model.compile(loss=loss)
    return model


def separable(seed, n=300, m=5):
    """Return samples that a hyperplane through the origin separates, and their classes."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, m)).astype("float32")
    return x, (x @ generator.standard_normal(m) > 0).astype(int)


def test_statistics_of_the_start_do_not_make_a_head_linear():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.BatchNormalization(center=False, scale=False)])
    with pytest.raises(ValueError, match="linear"):
        find_structure(model)


def test_a_deep_frozen_network_in_half_precision_is_understood():
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential([keras.Input((16,))], name="backbone")
    for _ in range(30):
        backbone.add(layers.Dense(16, kernel_initializer="he_normal", dtype="mixed_float16"))
        backbone.add(layers.BatchNormalization(dtype="mixed_float16"))
        backbone.add(layers.ReLU(dtype="mixed_float16"))
    backbone.trainable = False
    model = keras.Sequential([backbone, layers.Dense(3, dtype="mixed_float16")])
    model.build((None, 16))
    assert find_structure(model).num_outputs == 3


def test_indices_that_are_kept_as_numbers_stay_what_they_are():
    class Shuffle(layers.Layer):
        def build(self, shape):
            order = np.random.default_rng(0).permutation(shape[-1]).astype("float32")
            self.order = self.add_weight(shape=order.shape, trainable=False, initializer="zeros")
            self.order.assign(order)

        def call(self, x):
            return keras.ops.take(x, keras.ops.cast(self.order, "int32"), axis=1)

    assert find_structure(keras.Sequential([keras.Input((6,)), Shuffle(), layers.Dense(3)])).num_outputs == 3


def test_fixed_numbers_before_the_head_may_be_anything():
    x = np.random.default_rng(0).standard_normal((20, 6)).astype("float32")
    model = keras.Sequential(
        [keras.Input((6,)), layers.Normalization(mean=x.mean(0), variance=x.var(0)), layers.Dense(4, "relu")]
    )
    model.layers[-1].trainable = False
    model.add(layers.BatchNormalization())
    model.add(layers.Dense(3))
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]
    assert find_structure(model, x).num_outputs == 3
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


@pytest.mark.parametrize("seed", range(3))
def test_exact_duplicates_with_other_labels_are_not_a_matter_of_rounding(seed):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((100, 4)).astype("float32")
    y = generator.integers(0, 2, 100)
    x, y = np.concatenate([x, x[:6]]), np.concatenate([y, 1 - y[:6]])
    with pytest.warns(UserWarning, match="wrong side") as caught:
        result = keras_dal.converge(linear(4, 2), x, y, verbose=0)
    assert 6 <= len(result.left) < 20
    assert result.stopped_by == Ending.SEPARATED
    assert not [str(warning.message) for warning in caught if "rounding" in str(warning.message)]


@pytest.mark.parametrize("seed", range(6))
def test_a_head_that_separates_the_samples_needs_no_gates(seed):
    x, y = separable(seed)
    model = linear(5, 2)
    result = keras_dal.converge(model, x, y, verbose=0)
    assert result.model is model
    assert result.accuracy == 1.0


def test_labels_in_reach_of_a_direction_that_counts_as_rounding_are_undecided():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((20, 2)).astype("float32")
    x[0] = 1e20  # the two columns are equal, as far as float64 can add
    report = keras_dal.alignment(linear(2, 1, "mse"), x, np.float64(x[:, 0]) - x[:, 1], verbose=0)
    assert report.verdict == "undecided"


@pytest.mark.parametrize("more", ["none", "zeros", "constant", "duplicate"])
def test_columns_that_add_nothing_leave_what_is_not_aligned_decided(more):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((30, 3)).astype("float32")
    columns = {"none": x[:, :0], "zeros": 0 * x[:, :1], "constant": 0 * x[:, :1] + 3, "duplicate": x[:, :1]}
    x = np.hstack([x, columns[more]])
    model, y = linear(x.shape[1], 1, "mse"), generator.standard_normal(30)
    assert keras_dal.alignment(model, x, y, verbose=0).verdict == "not aligned"
    assert keras_dal.certify(model, x, y, verbose=0).verdict == "not aligned"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, "mse"])
def test_weights_of_a_training_that_diverged_prove_nothing(value, loss):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 3)).astype("float32")
    y = generator.integers(0, 2, 40) if loss is CROSS_ENTROPY else generator.standard_normal((40, 2))
    model = linear(3, 2, loss)
    known = keras_dal.certify(model, x, y, verbose=0).infimum
    model.layers[-1].kernel.assign(np.full((3, 2), value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        certificate = keras_dal.certify(model, x, y, verbose=0)
        assert "infimum of the loss" in str(certificate)
    np.testing.assert_allclose(certificate.infimum, known, rtol=1e-5)
    assert certificate.penalty == 0
    with pytest.raises(ValueError, match=r"no bound.*theta_S is not finite"):
        certificate.bound(10)
    for solve in (keras_dal.converge, keras_dal.finish):
        with pytest.raises(ValueError, match=r"The last layer must be finite.*Received"):
            solve(model, x, y, verbose=0)


@cases.needs_tensorflow(reason="Keras multiplies float64 in float32 elsewhere")
def test_features_that_were_rounded_are_said_to_be():
    x = 1e9 + 0.1 * np.arange(40.0)[:, None]  # float32 holds multiples of 64
    y = (np.arange(40) > 20).astype(int)
    curve = keras_dal.width_curve(linear(1, 2, dtype="float64"), x, y, widths=[0], draws=1, verbose=0)
    assert "rounded" in str(curve)
    x = np.float32(np.arange(40.0)[:, None])
    curve = keras_dal.width_curve(linear(1, 2), x, y, widths=[0], draws=1, verbose=0)
    assert "rounded" not in str(curve)


def moments(x, y):
    """Return the sums of a training step in float32."""
    rows = np.column_stack([x, np.ones(len(x)), y]).astype("float32")
    return np.float64(rows.T @ rows)


def of_sums(x, y, loss=CROSS_ENTROPY):
    """Return the report on sums in float32, as JAX and Metal have them."""
    arguments = find_structure(linear(x.shape[1], y.shape[1], loss)), resolve_loss(loss)
    return alignment_from_moments(moments(x, y), len(x), *arguments, eps=2.0**-23)


def test_sums_in_float32_do_not_tell_how_features_vary_beside_an_offset():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 4))
    y = np.eye(3)[(x @ generator.standard_normal((4, 3))).argmax(1)]
    exact = keras_dal.alignment(linear(4, 3), np.float32(x), y.argmax(1), verbose=0).alignment
    assert of_sums(x, y).alignment == pytest.approx(exact, abs=1e-4)
    assert np.isnan(of_sums(x + 1000, y).alignment)
    some = of_sums(x + np.array([1000, 0, 0, 0]), y)
    assert not some.exact
    assert 0 < some.alignment < exact


def test_sums_in_float32_may_have_a_constant_feature_and_an_output_of_zeros():
    generator = np.random.default_rng(0)
    x = np.hstack([generator.standard_normal((200, 4)), np.full((200, 1), 3.0)])
    y = np.hstack([x[:, :2] + 0.1 * generator.standard_normal((200, 2)), np.zeros((200, 1))])
    exact = keras_dal.alignment(linear(5, 3, "mse"), np.float32(x), y, verbose=0).alignment
    assert of_sums(x, y, keras.losses.MeanSquaredError()).alignment == pytest.approx(exact, abs=1e-4)


def test_labels_whose_squares_a_dtype_cannot_hold_are_not_called_aligned():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((50, 2)), generator.standard_normal(50)
    structure = find_structure(linear(2, 1, "mse"))
    report = alignment_from_moments(moments(x, 1e-30 * y), 50, structure, SquaredError(), eps=2.0**-23)
    assert np.isnan(report.alignment)
    for unit in (1e-200, 1e200):
        for measure in (keras_dal.alignment, keras_dal.certify, keras_dal.width_curve):
            with pytest.raises(ValueError, match=r"give them in another unit\. Received"):
                measure(linear(2, 1, "mse"), np.float32(x), unit * y, verbose=0)
    report = keras_dal.alignment(linear(2, 1, "mse"), np.float32(x), 1e-100 * y, verbose=0)
    assert report.alignment == pytest.approx(keras_dal.alignment(linear(2, 1, "mse"), np.float32(x), y).alignment)


def test_weights_may_come_with_some_batches_only():
    x, y = separable(0, n=20)
    batches = [(x[:10], y[:10]), (x[10:], y[10:], np.zeros(10))]
    model = linear(5, 2)
    assert keras_dal.alignment(model, batches, verbose=0).num_samples == 10
    assert keras_dal.certify(model, batches, verbose=0).num_samples == 10
    assert keras_dal.width_curve(model, batches, widths=[0], draws=1, verbose=0).num_samples == 10


def test_the_loss_is_what_is_proved_at_the_scale_that_is_printed():
    loss = resolve_loss(CROSS_ENTROPY)
    for seed in range(12):
        x, y = separable(seed, n=40)
        result = keras_dal.converge(linear(5, 2), x, y, verbose=0)
        said = re.search(r"the head times (\S+) the loss is (\S+)", "\n".join(result.proof()))
        logits = float(said[1].replace(",", "")) * result.logits(np.float64(x))
        assert np.mean(loss.values(logits, loss.targets(y, 2))) <= float(said[2])


def test_an_alignment_is_printed_as_one_only_where_labels_are_aligned():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((50, 3)).astype("float32")
    y = x.sum(1) + 2e-4 * generator.standard_normal(50)
    report = keras_dal.alignment(linear(3, 1, "mse"), x, y, verbose=0)
    assert 1e-8 < report.residual_share < 5e-7
    assert report.summary().startswith("alignment 0.999999,")
    curve = keras_dal.width_curve(linear(3, 1, "mse"), x, y, widths=[0], draws=1, verbose=0)
    assert not re.search(r"^0 +0\.000000", str(curve), re.MULTILINE)


def test_one_probability_of_a_softmax_depends_on_nothing():
    x = np.random.default_rng(0).standard_normal((10, 3)).astype("float32")
    certificate = certify_head(DenseHead(3, 1), SoftmaxCrossEntropy(), x, np.ones((10, 1)), np.zeros(4))
    assert (certificate.rank, certificate.full_rank) == (0, 0)


def test_a_loss_that_no_parameter_moves_has_a_certificate():
    x = np.zeros((30, 3), "float32")
    x[0] = 1.0
    weights = np.ones(30)
    weights[0] = 0
    y = np.random.default_rng(0).integers(0, 2, 30)
    certificate = keras_dal.certify(linear(3, 2, use_bias=False), x, y, weights, verbose=0)
    assert certificate.step == np.inf
    assert "not separable" in str(certificate)
