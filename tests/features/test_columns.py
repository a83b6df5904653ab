"""How many columns of features are independent, against problems made with a known number of them."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dal.features.columns import num_independent

SINGLE = float(np.finfo(np.float32).eps)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    live=st.integers(1, 12),
    constant=st.integers(0, 6),
    combined=st.integers(0, 12),
    units=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_constant_repeated_and_combined_columns_do_not_count(live, constant, combined, units, seed):
    generator = np.random.default_rng(seed)
    free = np.maximum(generator.normal(size=(400, live)), 0) + 0.1 * generator.normal(size=(400, live))
    others = free @ generator.normal(size=(live, combined)) + generator.normal(size=combined)
    fixed = np.broadcast_to(generator.normal(size=constant), (400, constant))
    columns = np.concatenate([free, others, fixed], axis=1)
    columns *= 10.0 ** generator.uniform(-units, units, columns.shape[1])
    assert num_independent(columns.astype("float32")[:, generator.permutation(columns.shape[1])], SINGLE) == live


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_half_precision_counts_what_its_numbers_are(dtype):
    features = np.maximum(np.random.default_rng(0).normal(size=(400, 12)), 0)
    features[:, 3], features[:, 7] = 0.0, features[:, 8]
    assert num_independent(features.astype(dtype), float(ml_dtypes.finfo(dtype).eps)) == 10


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_the_rounding_of_half_precision_is_no_column(dtype):
    generator = np.random.default_rng(0)
    features = (generator.normal(size=(800, 10)) @ generator.normal(size=(10, 24))).astype(dtype).astype("float32")
    assert num_independent(features, float(ml_dtypes.finfo(dtype).eps)) == 10
    assert num_independent(features, SINGLE) == 24


def test_columns_that_are_seldom_active_count():
    features = np.random.default_rng(0).normal(size=(20_000, 8)).astype("float32")
    features[:, 5] = 0.0
    features[17, 5] = 1.0  # a row that is not among those that are looked at
    assert num_independent(features, SINGLE) == 8


def test_very_wide_features_are_not_factorized():
    assert num_independent(np.zeros((2100, 2060), "float32"), SINGLE) == 2060


def test_few_samples_cannot_tell():
    assert num_independent(np.ones((5, 4), "float32"), SINGLE) == 4


def test_features_that_are_all_dead_still_have_gates():
    assert num_independent(np.zeros((50, 4), "float32"), SINGLE) == 1
