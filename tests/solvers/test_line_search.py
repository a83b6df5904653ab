"""Lengths of steps along convex functions, against SciPy's minimum of their values."""

import numpy as np
import pytest
from scipy import optimize, special

from keras_dal.solvers.line_search import minimizing_length


def line(slopes, shifts):
    """The mean of logistic losses `log(1 + exp(shift + slope t))`: its value and its slope at t."""
    slopes, shifts = np.asarray(slopes, float), np.asarray(shifts, float)
    return (
        lambda t: np.mean(np.logaddexp(0.0, shifts + slopes * t)),
        lambda t: np.mean(slopes * special.expit(shifts + slopes * t)),
    )


@pytest.mark.parametrize("unit", [1.0, 1e4, 1e8, 1e16], ids="{:.0e} times too long".format)
@pytest.mark.parametrize("few", [0.02, 0.1, 0.5])
def test_a_step_that_is_much_too_long_is_shortened_to_the_minimum(unit, few):
    """Beyond it the slope stays small beside that at the start, and values rise without end."""
    value, slope = line(unit * np.array([-3.0, -1.0, few]), [40.0, 20.0, -3.0])
    length = minimizing_length(slope, slope(0.0))
    least = optimize.minimize_scalar(lambda t: value(t / unit), bounds=(0.0, 1e3), method="bounded").fun
    assert value(length) - least < 0.05 * (value(0.0) - least)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e8])
def test_without_a_minimum_a_step_is_no_longer_than_it_gains(unit):
    value, slope = line([-1.0 * unit, -2.0 * unit], [0.0, 0.0])
    length = minimizing_length(slope, slope(0.0))
    assert value(length) < 0.02 * value(0.0)
    assert length * unit < 10


@pytest.mark.parametrize("least", [0.9, 1.0, 1.1])
def test_one_is_taken_where_it_is_nearly_the_minimum(least):
    assert minimizing_length(lambda t: t - least, -least) == 1.0


@pytest.mark.parametrize("least", [1e-12, 1e-3, 0.3, 3.0, 1e5])
def test_another_minimum_is_found_to_a_hundredth(least):
    assert minimizing_length(lambda t: t - least, -least) == pytest.approx(least, rel=0.03)


@pytest.mark.parametrize("start", [0.0, 1.0, np.nan])
def test_no_step_is_taken_where_none_lowers(start):
    assert minimizing_length(lambda t: t + start, start) == 0.0
    assert minimizing_length(lambda t: 1.0, -1.0) == 0.0


@pytest.mark.parametrize("beyond", [np.nan, np.inf])
def test_slopes_that_are_not_finite_are_beyond_the_length(beyond):
    assert 0.1 < minimizing_length(lambda t: -1.0 if t < 0.3 else beyond, -1.0) < 0.3
    assert 100 < minimizing_length(lambda t: -1.0 if t < 300 else beyond, -1.0) < 300


def test_what_falls_for_ever_is_followed_far_and_not_for_ever():
    assert 1e5 < minimizing_length(lambda t: -1.0, -1.0) < 1e7
