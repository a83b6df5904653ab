"""What is said of columns that float64 rounds, against integers and fractions."""

import fractions

import numpy as np
import pytest

from keras_dal._backend.arrays import EPS
from keras_dal.solvers.least_squares import StreamedQR


def projected(features, labels, weights=None, use_bias=True):
    qr = StreamedQR(features.shape[1], labels.shape[1], use_bias)
    qr.update(features, labels, weights)
    return qr.project(EPS)


@pytest.mark.parametrize("near", [1, 2**12, 2**24, 2**36])
@pytest.mark.parametrize("seed", range(4))
def test_labels_that_integers_put_into_the_span_are_never_said_to_be_outside(seed, near):
    rng = np.random.default_rng(seed)
    first = rng.integers(-8, 9, (40, 3)).astype(float)
    features = np.column_stack([first, near * first[:, :1] + rng.integers(-1, 2, (40, 1))])  # nearly dependent
    labels = features @ rng.integers(-3, 4, (4, 2)) + rng.integers(-3, 4, 2)  # exactly
    found = projected(features, labels)
    np.testing.assert_array_equal(found.least, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_lower_bound_of_what_is_left_holds_in_fractions(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(-4, 5, (9, 1)).astype(float)
    features = np.column_stack([base, 2.0**30 * base + rng.integers(-1, 2, (9, 1))])
    labels = rng.integers(0, 2, (9, 1)).astype(float)
    exact = float(residual_square(np.column_stack([features, np.ones(9)]), labels[:, 0]))
    assert projected(features, labels).least[0] <= exact * (1 + 1e-15)


@pytest.mark.parametrize("constant", [1 / 3, 1e6 / 7, 1e-20])
def test_a_constant_column_adds_no_direction_by_its_rounding(constant):
    rng = np.random.default_rng(0)
    features, labels, weights = rng.normal(size=(50, 3)), rng.normal(size=(50, 1)), rng.random(50)
    more = np.column_stack([features, np.full(50, constant)])
    assert projected(more, labels, weights).rank == projected(features, labels, weights).rank == 4


def residual_square(columns, label):
    """Return the least square in rational arithmetic, by Gram and Schmidt."""
    left, basis = list(map(fractions.Fraction, label)), []
    for column in columns.T:
        direction = without(list(map(fractions.Fraction, column)), basis)
        if any(direction):
            basis.append(direction)
    return sum(part * part for part in without(left, basis))


def without(vector, basis):
    for direction in basis:
        factor = dot(vector, direction) / dot(direction, direction)
        vector = [each - factor * part for each, part in zip(vector, direction, strict=True)]
    return vector


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))
