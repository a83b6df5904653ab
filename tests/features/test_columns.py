"""How many columns of features are independent, against problems made with a known number of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dal.features.columns import num_independent


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
    assert num_independent(columns.astype("float32")[:, generator.permutation(columns.shape[1])]) == live


def test_few_samples_cannot_tell():
    assert num_independent(np.ones((5, 4), "float32")) == 4


def test_features_that_are_all_dead_still_have_gates():
    assert num_independent(np.zeros((50, 4), "float32")) == 1
