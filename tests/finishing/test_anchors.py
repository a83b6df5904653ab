"""Which training samples are the anchors, where none are given and there are many."""

import keras
import numpy as np
import pytest

import keras_dal
from keras_dal.features.samples import some_rows
from keras_dal.finishing import task

N, ANCHORS = 60, 10


@pytest.fixture
def anchors(monkeypatch):
    """Let there be few, and collect the rows of each task."""
    found, make = [], task.Task.__init__

    def noted(self, *arguments, **options):
        make(self, *arguments, **options)
        found.append(self.anchors)

    monkeypatch.setattr(task, "ANCHORS", ANCHORS)
    monkeypatch.setattr(task.Task, "__init__", noted)
    return found


@pytest.mark.parametrize("max_bytes", [100, 2**32], ids=["block by block", "whole"])
@pytest.mark.parametrize("function", [keras_dal.converge, keras_dal.finish])
def test_a_seed_draws_the_anchors_and_the_default_one_draws_those_of_before(function, max_bytes, anchors):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, 4)).astype("float32")
    y = generator.integers(0, 2, N)
    options = {"ridge": 1e-2} if function is keras_dal.converge else {}
    for seed in ({}, {"seed": 0}, {"seed": 7}):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="zeros")])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        function(model, x, y, max_bytes=max_bytes, verbose=0, **options, **seed)
    before, same, other = anchors
    np.testing.assert_array_equal(before, np.sort(np.random.default_rng(0).permutation(N)[:ANCHORS]))
    np.testing.assert_array_equal(before, same)
    np.testing.assert_array_equal(other, some_rows(N, ANCHORS, 7))
    assert not np.array_equal(before, other)


def test_a_copy_with_gates_has_the_same_anchors(anchors):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras_dal.converge(model, x, generator.integers(0, 2, N), gated=True, seed=7, verbose=0)
    assert len(anchors) == 2
    np.testing.assert_array_equal(*anchors)
