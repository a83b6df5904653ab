"""What is larger than `max_bytes` is not begun."""

import gc
import sys
import tracemalloc
from unittest import mock

import cases
import keras
import numpy as np
import pytest

import keras_dal
from keras_dal import alignment, certify
from keras_dal.analysis import misses, width
from keras_dal.analysis.certify import certify_head
from keras_dal.analysis.misses import middles
from keras_dal.analysis.widths import num_bytes
from keras_dal.features import store
from keras_dal.features.cache import CachedFeatures
from keras_dal.heads import DenseHead
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from keras_dal.solvers.jacobian import jacobian

N = 40
PLAIN, GATED = cases.CASES[0], next(case for case in cases.CASES if case.gated)
SIZE = 8 * N * cases.NUM_FEATURES  # of the features in float64; there are fewer outputs


def measured(call, case, max_bytes):
    return call(case.build(), case.inputs(N), case.labels(N), loss=case.loss, max_bytes=max_bytes, verbose=0)


@pytest.mark.parametrize("call", [certify, alignment])
def test_a_gated_head_whose_features_do_not_fit_is_refused(call):
    with pytest.raises(MemoryError, match=rf"{SIZE:,} bytes.*raise max_bytes=.*Received: at least {N} samples"):
        measured(call, GATED, SIZE - 1)
    assert measured(call, GATED, 16 * SIZE).num_samples == N


def test_features_are_refused_before_all_of_them_were_read():
    read = []

    def batches():
        for start in range(0, N, 8):
            read.append(start)
            yield PLAIN.inputs(N)[start : start + 8], PLAIN.labels(N)[start : start + 8]

    with pytest.raises(MemoryError, match="Received: at least 16 samples"):
        certify(PLAIN.build(), batches(), loss=PLAIN.loss, max_bytes=SIZE / 4, verbose=0)
    assert len(read) <= 3


def test_a_plain_head_is_measured_and_least_squares_decide():
    model, generator = PLAIN.build(), np.random.default_rng(0)
    x, y = generator.standard_normal((N, 5)).astype("float32"), generator.integers(0, 3, N)
    loss = PLAIN.loss
    whole, little = (alignment(model, x, y, loss=loss, max_bytes=size, verbose=0) for size in (2**20, SIZE))
    assert whole.verdict == "not separable"
    assert little.verdict == "undecided"
    assert "may need 20,480 bytes, above max_bytes=1,280" in little.decided_by
    assert little.residual_share == whole.residual_share


def test_logits_count_where_there_are_more_of_them():
    model, generator = cases.sequential(cases.layers.Dense(30)), np.random.default_rng(0)
    x, y = generator.standard_normal((N, 5)).astype("float32"), generator.integers(0, 30, N)
    loss = PLAIN.loss
    with pytest.raises(MemoryError, match=rf"{8 * N * 30:,} bytes"):
        certify(model, x, y, loss=loss, max_bytes=2 * SIZE, verbose=0)
    assert "153,600 bytes" in alignment(model, x, y, loss=loss, max_bytes=20 * SIZE, verbose=0).decided_by


def test_samples_without_a_weight_take_no_memory():
    few, generator = np.arange(1000) < 4, np.random.default_rng(0)
    x, y = generator.standard_normal((1000, 5)).astype("float32"), np.arange(1000) % 3
    model = PLAIN.build()
    found = certify(model, x, y, few.astype(float), loss=PLAIN.loss, max_bytes=SIZE, batch_size=100, verbose=0)
    alone = certify(model, x[few], y[few], loss=PLAIN.loss, verbose=0)
    assert (found.num_samples, found.rank, found.verdict) == (4, alone.rank, alone.verdict)
    assert found.loss == pytest.approx(alone.loss * 4 / 1000)  # the sum over the samples divided by their number


def test_a_factor_beyond_the_limit_is_not_made():
    """What a head with many gates is solved by, where memory has room for it."""
    x = PLAIN.inputs(N)
    large = keras_dal.add_gated_head(PLAIN.build(), x, num_samples=4 * N, loss=PLAIN.loss, verbose=False)
    options = {"loss": PLAIN.loss, "verbose": 0, "max_jacobian_bytes": 1, "time_limit": 1.0}
    methods = [certify(large, x, PLAIN.labels(N), max_bytes=size, **options).method for size in (2**30, 4 * N * N - 1)]
    assert "Cholesky" in methods[0]
    assert methods[1].startswith("LSQR")


def large_head():
    """Return a model whose gates interpolate N samples, by a factor where one is made."""
    model = keras_dal.add_gated_head(PLAIN.build(), PLAIN.inputs(N), num_samples=4 * N, loss=PLAIN.loss, verbose=0)
    model.compile("sgd", PLAIN.loss)
    return model


@pytest.mark.parametrize(("limit", "method"), [(2**30, "Cholesky"), (4 * N * N - 1, "LSQR")])
def test_a_monitor_without_a_limit_refuses_nothing_and_makes_no_factor_beyond_the_default(monkeypatch, limit, method):
    monkeypatch.setattr("keras_dal.features.samples.MAX_BYTES", limit)
    made, module = [], sys.modules["keras_dal.analysis.alignment"]

    def kept(*arguments, **options):
        made.append(jacobian(*arguments, **options | {"max_jacobian_bytes": 1}))
        return made[-1]

    monkeypatch.setattr(module, "jacobian", kept)
    model, data = large_head(), (PLAIN.inputs(N), PLAIN.labels(N))
    monitor = keras_dal.AlignmentMonitor(data=data, max_bytes=np.inf)
    logs = model.fit(*data, callbacks=[monitor], epochs=1, verbose=0).history
    assert method in made[0].method
    monkeypatch.setattr(module, "jacobian", jacobian)
    whole = alignment(model, *data, verbose=0)
    assert whole.exact
    assert whole.alignment - 0.01 <= logs["alignment"][0] <= whole.alignment + 1e-6  # a bound from below


@pytest.mark.parametrize(("limit", "method"), [(2**30, "Cholesky"), (4 * N * N - 1, "LSQR")])
def test_a_certificate_without_a_limit_makes_no_factor_beyond_the_default(monkeypatch, limit, method):
    monkeypatch.setattr("keras_dal.features.samples.MAX_BYTES", limit)
    options = {"max_bytes": np.inf, "verbose": 0, "max_jacobian_bytes": 1, "time_limit": 1.0}
    assert method in certify(large_head(), PLAIN.inputs(N), PLAIN.labels(N), **options).method


def test_a_result_makes_no_certificate_beyond_the_limit_it_was_found_with():
    model = PLAIN.build()
    model.compile("sgd", PLAIN.loss)
    with pytest.warns(UserWarning, match="is too large"):
        result = keras_dal.converge(model, PLAIN.inputs(N), PLAIN.labels(N), max_bytes=SIZE - 1, verbose=0)
    with pytest.raises(MemoryError, match="Received: at least"):
        _ = result.certificate


def test_the_network_is_measured_by_products_that_fit():
    model, x, y = PLAIN.build(), PLAIN.inputs(N), PLAIN.labels(N)
    with pytest.raises(MemoryError, match="Products with this Jacobian"):
        alignment(model, x, y, loss=PLAIN.loss, parameters="all", max_bytes=100)


def peak_of(function, *arguments):
    """Return the largest number of bytes that NumPy held at a time in a call, and what that raised, or None."""
    raised = None
    tracemalloc.start()
    try:
        function(*arguments)
    except MemoryError as error:
        raised = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, raised


SIZES = [(4_000, 20, 20, 3), (4_000, 400, 2, 3), (2_000, 10, 2, 400), (1_000, 20, 40, 400)]
MANY_OUTPUTS = {
    "softmax": (SoftmaxCrossEntropy(), lambda generator, n, c: generator.integers(0, c, n)),
    "sigmoid": (SigmoidCrossEntropy(), lambda generator, n, c: generator.integers(0, 2, (n, c)).astype(float)),
    "squared error": (SquaredError(), lambda generator, n, c: generator.standard_normal((n, c))),
}


@pytest.mark.parametrize("name", MANY_OUTPUTS)
@pytest.mark.parametrize(("n", "features", "gates", "outputs"), SIZES)
def test_columns_of_gates_take_what_is_counted_before_they_are_made(n, features, gates, outputs, name):
    """With the labels, of which there may be many columns, too."""
    (loss, labels), generator = MANY_OUTPUTS[name], np.random.default_rng(0)
    z, y = generator.standard_normal((n, features)), labels(generator, n, outputs)

    def one_draw():
        targets = loss.targets(y, outputs)
        problem = width._WidthData(z, targets, np.ones(n), loss, True, np.finfo(np.float32).eps)
        width._one_draw(problem, (0, gates), 0, 0, 0)

    peak, counted = peak_of(one_draw)[0], num_bytes(gates, n, features, outputs)
    assert peak <= 1.05 * counted
    assert peak >= counted / 3  # a descent that separates the samples at once keeps no steps


def test_columns_of_gates_are_refused_before_features_are_widened():
    model, n = PLAIN.build(), 20_000
    x, y = np.random.default_rng(0).standard_normal((n, 5)).astype("float32"), np.zeros(n, int)
    data = CachedFeatures(np.ones((n, 50), "float32"), y, np.ones(n), np.arange(n), True)
    with mock.patch.object(width, "cached_features", return_value=data):
        peak, raised = peak_of(
            lambda: keras_dal.width_curve(model, x, y, loss=PLAIN.loss, max_bytes=data.features.nbytes, verbose=0)
        )
    assert "Raise max_bytes" in str(raised)
    assert peak < data.features.nbytes / 2


@pytest.mark.parametrize("place", ["beside", "before"])
def test_features_to_which_gates_are_adapted_are_mapped_beyond_the_limit(place):
    generator, n, m = np.random.default_rng(0), 100_000, 60
    x = generator.standard_normal((n, m)).astype("float32")
    model = keras.Sequential([keras.Input((m,)), keras.layers.Dense(3)])
    options = {"place": place, "loss": PLAIN.loss, "batch_size": 1000, "oversample": 1.0, "verbose": 0}
    copies = []

    def gated(max_bytes):
        keras.utils.set_random_seed(0)  # of units before the head, and of the last layer
        copies.append(keras_dal.add_gated_head(model, x, max_bytes=max_bytes, **options))

    gated(2**32)  # once before, for what a first call compiles
    gc.enable()  # batches are part of cycles on some backends
    try:
        whole, mapped = (peak_of(gated, size)[0] for size in (2**32, x.nbytes // 10))
    finally:
        gc.disable()
    assert whole >= 2 * x.nbytes
    assert mapped <= 0.75 * x.nbytes
    for one, other in zip(copies[1].get_weights(), copies[2].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("missed", [False, True])
def test_labels_are_looked_at_some_outputs_at_a_time_with_the_same_answer(missed):
    generator, loss, head = np.random.default_rng(0), SquaredError(), DenseHead(3, 5)
    features, theta = generator.standard_normal((30, 3)), generator.standard_normal(head.num_parameters)
    labels = head.logits(features, theta)
    labels[7, 3] += 0.5 * missed
    rows = [(features[some], labels[some], np.ones(len(features[some]))) for some in (slice(0, 20), slice(20, 30))]
    for max_bytes in (1, 2 * 32 * 30, 2**20):
        assert misses.any_missed(head, loss, rows, theta, 1e-7, max_bytes) == missed


def test_a_certificate_looks_at_labels_within_its_own_limit():
    """Whether any are missed, for which quantiles copy the labels of some outputs."""
    n, outputs, loss, generator = 400, 300, SquaredError(), np.random.default_rng(0)
    head = DenseHead(3, outputs)
    features, theta = generator.standard_normal((n, 3)), generator.standard_normal(head.num_parameters)
    labels = head.logits(features, theta)
    for max_bytes in (2**20, 2**30):
        with mock.patch.object(misses, "middles", wraps=middles):
            found = certify_head(head, loss, features, labels, theta, max_bytes=max_bytes)
            columns = [call.args[0].shape[1] for call in misses.middles.call_args_list]
        assert found.verdict == "aligned"
        assert sum(columns) == outputs
        assert max(columns) == min(outputs, max_bytes // (32 * n))


@pytest.mark.parametrize("max_bytes", [0, 2**20, np.inf])
def test_what_waits_keeps_to_the_limit_and_is_labels_not_targets(max_bytes, monkeypatch):
    made, append, sizes = [], store.SpooledRows.append, []

    def noted(self, *arrays):
        append(self, *arrays)
        made.append(self._file)
        sizes.append(sum(array.nbytes for array in arrays))

    monkeypatch.setattr(store.SpooledRows, "append", noted)
    n, classes, x = 2_000, 50, np.ones((2_000, 3), "float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(classes)])
    labels, loss = np.arange(n) % classes, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"decide_separability": False, "max_bytes": max_bytes, "batch_size": 100, "verbose": 0}
    found = alignment(model, x, labels, loss=loss, **options)
    np.testing.assert_allclose(found.residual_share, 1.0, atol=1e-6)
    assert sizes == [100 * (4 * 3 + labels.itemsize + 8)] * 20
    assert made[-1]._rolled == (max_bytes == 0)
    assert made[-1]._max_size <= 2**28
