"""Batch statistics as means over batches, and what of a model they are not."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_dal
from keras_dal.features.tracing import to_numpy
from keras_dal.training.statistics import BatchStatistics, UnknownStatistics, have_moved, statistics_of

X = np.random.default_rng(0).normal(3.0, 2.0, (24, 4)).astype("float32")


def network(*before):
    norm = layers.BatchNormalization(momentum=0.5, name="norm")
    return keras.Sequential([keras.Input((4,)), *before, norm, layers.Dense(2)])


def means(model, *batches, **options):
    statistics = BatchStatistics(model, **options)
    for batch in batches:
        statistics.add((batch,))
    statistics.settle()
    return [to_numpy(variable) for variable in statistics_of(model)]


def test_a_replica_without_samples_counts_for_nothing():
    model = network()
    statistics = BatchStatistics(model)
    found = [np.array([[float(index)] * 4, [np.nan] * 4]) for index, _ in enumerate(statistics_of(model))]
    statistics._step = lambda batch: (np.array([24.0, 0.0]), found)
    statistics.add((X,))
    statistics.settle()
    for index, variable in enumerate(statistics_of(model)):
        np.testing.assert_array_equal(to_numpy(variable), float(index))


def test_calls_that_prepare_the_inputs_are_not_among_them():
    model = network()

    def prepared(batch):
        model(3.0 * batch[0], training=True)
        return batch[0]

    mean, variance = means(model, X, inputs_of=prepared)
    np.testing.assert_allclose(mean, X.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, X.var(axis=0), rtol=1e-4)


def test_a_layer_that_is_not_called_keeps_what_it_has():
    class Forked(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.spare = layers.BatchNormalization(), layers.BatchNormalization()
            self.top = layers.Dense(2)

        def build(self, shape):
            for layer in (self.used, self.spare, self.top):
                layer.build(shape)

        def call(self, x, training=False):
            return self.top(self.used(x, training=training))

    model = Forked()
    model.build((None, 4))
    model.spare.moving_mean.assign(np.full(4, 7.0))
    means(model, X)
    np.testing.assert_allclose(to_numpy(model.used.moving_mean), X.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(to_numpy(model.spare.moving_mean), 7.0)


@keras.saving.register_keras_serializable("tests of statistics")
class Counting(layers.Layer):
    """A layer with a momentum, a moving mean, and a count that is no statistic."""

    momentum = 0.9

    def build(self, shape):
        self.moving = self.add_weight(shape=shape[1:], initializer="zeros", trainable=False, name="moving_mean")
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x, training=False):
        if training:
            self.moving.assign(self.momentum * self.moving + (1 - self.momentum) * keras.ops.mean(x, axis=0))
            self.count.assign(self.count + 1.0)
        return x - self.moving


def test_a_count_of_a_layer_with_a_momentum_is_no_statistic():
    model = network(counting := Counting())
    means(model, X[:12], X[12:])
    np.testing.assert_allclose(to_numpy(counting.moving), X.mean(axis=0), rtol=1e-5)
    assert to_numpy(counting.count) == 0.0


def test_whether_training_moves_statistics_is_known_before_a_step():
    assert have_moved(network())
    assert not have_moved(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))


def test_statistics_that_were_loaded_and_that_training_leaves_alone_are_kept_by_finish():
    class Frozen(keras.Model):  # Keras runs it in inference mode
        def __init__(self):
            super().__init__()
            self.trunk, self.head = network(), layers.Dense(2)

        def call(self, inputs):
            return self.head(self.trunk(inputs))

    keras.utils.set_random_seed(0)
    model, y = Frozen(), np.arange(len(X)) % 2
    model(X[:2])
    loaded = [np.full(variable.shape, 0.5, "float32") for variable in statistics_of(model)]
    for variable, value in zip(statistics_of(model), loaded, strict=True):
        variable.assign(value)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=4), loss)
    model.fit(X, y, epochs=4, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=0)])
    assert model.optimizer.averaged_steps > 0
    model.fit(X, y, initial_epoch=4, epochs=4, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=0)])
    assert model.optimizer.averaged_steps > 0
    keras_dal.finish(model, X, y, verbose=0)
    for variable, value in zip(statistics_of(model), loaded, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_statistics_that_are_no_numbers_and_stay_so_have_not_moved():
    model = network()
    for variable in statistics_of(model):
        variable.assign(np.full(4, np.nan))
    since = [to_numpy(variable).copy() for variable in statistics_of(model)]
    assert not have_moved(model, since)
    statistics_of(model)[0].assign(np.zeros(4))
    assert have_moved(model, since)


@pytest.mark.parametrize("trainable", [True, False])
def test_state_of_a_frozen_layer_is_nobodys_matter(trainable):
    model = network(counting := Counting())
    counting.trainable = trainable
    unknown = UnknownStatistics(model)
    counting.count.assign(1.0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        unknown.warn()
    assert any(counting.count.path in str(each.message) for each in seen) == trainable


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only PyTorch has modules with buffers")
def test_buffers_that_a_module_gives_another_tensor_are_put_back():
    import torch

    class Running(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x):
            self.total = self.total + x.mean(0)
            return x - self.total

    module = Running()
    model = network(layers.TorchModuleWrapper(module, output_shape=(None, 4)))
    before = module.total.clone()
    means(model, X)
    assert torch.equal(module.total, before)


def finished(batch_size, **options):
    """Return a small averaged model after `finish` on flat features, and what it warned of."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((96, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(2)])
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.05), explore=None)
    model.compile(wrap, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, x[:, 0] > 0, verbose=0)
    wrap.begin_average()
    model.fit(x, x[:, 0] > 0, verbose=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        keras_dal.finish(model, x, (x[:, 0] > 0).astype(int), batch_size=batch_size, verbose=0, **options)
    return model, [str(each.message) for each in said if "no spread" in str(each.message)]


def test_few_samples_in_an_evaluation_are_no_reason_for_statistics_of_few():
    (few, said), (many, _) = finished(1), finished(32)
    assert not said
    for variable, expected in zip(statistics_of(few), statistics_of(many), strict=True):
        np.testing.assert_allclose(to_numpy(variable), to_numpy(expected), rtol=1e-4, atol=1e-5)


def test_statistics_of_one_sample_are_warned_of():
    sample = np.ones((1, 6), "float32")
    _, said = finished(32, statistics_from=sample)
    assert len(said) == 1
    assert "moving_variance" in said[0]


def test_inputs_for_statistics_are_of_the_kind_of_the_others():
    with pytest.raises(ValueError, match="statistics_from must have shapes .*as x has"):
        finished(32, statistics_from=np.zeros(96))
