"""How far to go along a direction in which a function is convex, by its slopes: values near a minimum are rounding."""

import functools

import numpy as np
from scipy import optimize

_ENOUGH = 0.2  # of the slope at the start: a length of one that leaves no more is taken
_LITTLE = 1e-2  # of it: a longer way is not worth it; and the relative precision of a length
_LONGEST, _SHORTEST = 1e6, 1e-30


def minimizing_length(slope, start):
    """Return about the least length at which nearly nothing of the slope is left, 0 where none is seen to lower it.

    One is taken where it is nearly that, and the function no larger there than at the start. Newton's steps can be
    1e8 times too long: second derivatives are nearly zero at samples that are far on their wrong side.

    Args:
        slope: function of a positive length; it does not fall.
        start: the slope at 0.
    """
    if not start < 0:
        return 0.0
    slope = functools.cache(slope)

    def rest(length):
        return slope(length) - _LITTLE * start

    if abs(slope(1.0)) <= -_ENOUGH * start and rest(0.5) < 0 and _lowers(slope, 1.0):
        return 1.0
    low, high = _shorter(rest) if not rest(1.0) < 0 else _longer(rest)
    if not (low < high and np.isfinite(slope(high))):
        return low
    length = float(optimize.root_scalar(rest, bracket=(low, high), xtol=_LITTLE * low, rtol=_LITTLE).root)
    return length if _lowers(slope, length) else low


def _shorter(rest):
    """Return lengths that the wanted one is between, down from one in steps that grow; zeros where it is none."""
    low, high, factor = 0.5, 1.0, 0.25
    while not rest(low) < 0:  # nor where it is not a number
        low, high, factor = low * factor, low, factor**2
        if low < _SHORTEST:
            return 0.0, 0.0
    return low, high


def _longer(rest):
    """Return the same, up from one; the longest twice, if it is no longer than the wanted one."""
    low, high = 1.0, 2.0
    while rest(high) < 0:
        low, high = high, 2 * high
        if low >= _LONGEST:
            return low, low
    return low, high


def _lowers(slope, length):
    """Return whether a convex function with these slopes is surely no larger at a length than at 0."""
    return slope(length) <= 0 or slope(length) + slope(length / 2) <= 0
