"""The sums of the training step on labels of every kind, against the measurement of arrays."""

import collections

import keras
import numpy as np
import pytest
from keras import ops

import keras_dal
from keras_dal import _backend
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_dal.training.kernel_change import NUM_PROBES
from keras_dal.training.moments import BadLabels, StepMoments

Shape = collections.namedtuple("Shape", "num_features num_outputs")
N, M, C = 96, 5, 3
CLASSES = np.random.default_rng(1).integers(0, C, N)
HARD = np.eye(C)[CLASSES]
MIXED = 0.7 * HARD + 0.3 * np.roll(HARD, 1, axis=1)
SOFTMAX, SIGMOID = keras.losses.CategoricalCrossentropy, keras.losses.BinaryCrossentropy


def model_and_inputs(loss):
    """A model whose features are its inputs, which training leaves as they are."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((M,)), keras.layers.Dense(C)])
    model.compile("sgd", loss)
    return model, np.random.default_rng(0).standard_normal((N, M)).astype("float32")


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (SOFTMAX(from_logits=True), HARD),
        (SOFTMAX(from_logits=True), MIXED),
        (SOFTMAX(from_logits=True), 0.9 * HARD + 0.1 / C),
        (SOFTMAX(from_logits=True, label_smoothing=0.2), MIXED),
        (SIGMOID(from_logits=True), MIXED),
        (SIGMOID(from_logits=True, label_smoothing=0.2), HARD),
    ],
)
def test_labels_that_flow_through_fit_are_measured_as_arrays_are(loss, y):
    model, x = model_and_inputs(loss)
    weights = np.random.default_rng(2).uniform(0.5, 2, N)
    expected = keras_dal.alignment(model, x, y, weights).alignment
    callback = keras_dal.AlignmentMonitor()
    history = model.fit(x, y, sample_weight=weights, batch_size=40, callbacks=[callback], verbose=0).history
    assert history["alignment"] == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (SoftmaxCrossEntropy(), 1.5 * HARD[:2]),
        (SoftmaxCrossEntropy(0.1), [[4.0], [-1.0]]),
        (SoftmaxCrossEntropy(), [[np.nan, 1.0, 0.0], [-0.5, 1.5, 0.0]]),
        (SigmoidCrossEntropy(), [[2.0, 0.0, 1.0], [0.0, 0.0, -0.1]]),
    ],
)
def test_what_is_no_label_is_counted_unless_its_weight_is_zero(loss, wrong):
    moments = StepMoments(Shape(M, C), loss)
    features = ops.ones((2, M))
    moments.add(None, ops.convert_to_tensor(np.array(wrong, "float32")), features)
    with pytest.raises(BadLabels, match="Received: 2 samples with other labels"):
        moments.read()
    moments.clear()
    labels = ops.convert_to_tensor(np.array(np.nan_to_num(wrong), "float32"))
    moments.add(None, labels, features, ops.convert_to_tensor(np.zeros(2, "float32")))
    assert moments.read()[1] == 0


def test_a_negative_weight_is_refused_as_a_wrong_label_is():
    moments = StepMoments(Shape(M, C), SoftmaxCrossEntropy())
    moments.add(None, ops.convert_to_tensor(np.float32(HARD[:2])), ops.ones((2, M)), ops.convert_to_tensor([1.0, -0.5]))
    with pytest.raises(BadLabels, match="Received: 1 samples with other labels or weights"):
        moments.read()


def test_labels_of_another_size_than_the_outputs_are_refused():
    labels = ops.ones((2, C - 1))
    with pytest.raises(ValueError, match=rf"one or {C} numbers.*Received: labels of shape \(2, {C - 1}\)"):
        StepMoments(Shape(M, C), SoftmaxCrossEntropy()).add(None, labels, ops.ones((2, M)))


def test_products_of_a_step_are_as_precise_as_the_sums():
    moments = StepMoments(Shape(M, C), SoftmaxCrossEntropy())
    features = np.random.default_rng(0).standard_normal((N, M)).astype("float32")
    weights = np.random.default_rng(2).uniform(0.5, 2, N).astype("float32")
    moments.add(None, *map(ops.convert_to_tensor, (HARD.astype("float32"), features, weights)))
    rows = np.column_stack([features, np.ones(N), HARD]).astype(np.float64)
    expected = rows.T @ (weights[:, None] * rows)
    spacing = np.finfo(_backend.statistics_dtype()).eps
    np.testing.assert_allclose(moments.read()[0], expected, rtol=0, atol=8 * spacing * np.abs(expected).max())


@pytest.mark.parametrize("size", [1, 24, 32, 80])
def test_the_inputs_that_are_kept_are_the_first_each_about_as_often(size):
    moments = StepMoments(Shape(M, C), SoftmaxCrossEntropy(), keras.KerasTensor((None, M)))
    x = np.arange(size * M, dtype="float32").reshape(size, M)
    labels = ops.convert_to_tensor(np.resize(HARD, (size, C)).astype("float32"))
    for inputs in (x, x + 1000):
        moments.add(ops.convert_to_tensor(inputs), labels, ops.ones((size, M)))
    kept, counts = np.unique(moments.samples(), axis=0, return_counts=True)
    np.testing.assert_array_equal(kept, x[:NUM_PROBES])
    assert counts.max() - counts.min() <= 1


def test_the_sums_of_an_epoch_are_not_in_those_of_the_next():
    moments = StepMoments(Shape(M, C), SoftmaxCrossEntropy())
    features = np.random.default_rng(0).standard_normal((N, M)).astype("float32")
    batch = None, *map(ops.convert_to_tensor, (HARD.astype("float32"), features))
    found = []
    for measuring in (True, True, False, True):
        moments.clear(measuring)
        moments.add(*batch)
        found.append(moments.read())
    for sums, count in (found[1], found[3]):
        np.testing.assert_array_equal(sums, found[0][0])
        assert count == N
    assert not found[2][0].any()


def test_what_does_not_count_is_neither_counted_nor_checked():
    moments = StepMoments(Shape(M, C), SoftmaxCrossEntropy())
    wrong = ops.convert_to_tensor(np.float32([[np.nan, 1.0, 0.0], [-0.5, 1.5, 0.0]]))
    moments.clear(measuring=False, counting=False)
    moments.add(None, wrong, ops.ones((2, M)))
    assert moments.read(with_sums=False) == (None, 0)
    moments.clear()
    moments.add(None, wrong, ops.ones((2, M)))
    with pytest.raises(BadLabels, match="Received: 2 samples"):
        moments.read()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_the_rounding_of_half_precision_is_no_direction_while_training_either(policy):
    generator, one_run = np.random.default_rng(0), keras_dal.AlignmentMonitor()
    x = generator.standard_normal((600, 8)).astype("float32")
    y = generator.standard_normal((600, 2)).astype("float32")
    spread = keras.layers.Dense(30, use_bias=False, dtype=policy)  # 30 features in 8 directions
    model = keras.Sequential([keras.Input((8,)), spread, keras.layers.Dense(2, dtype="float32")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(x, y, batch_size=200, verbose=0, callbacks=[one_run]).history
    report = keras_dal.alignment(model, x, y, verbose=0)
    assert logs["alignment_rank"] == [report.rank] == [2 * 9]
    assert logs["alignment"][0] == pytest.approx(report.alignment, rel=1e-3)
