"""Numbers of gradient steps where there is nothing to do, or nothing to see."""

import numpy as np
import pytest

from keras_dal.heads import DenseHead
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.solvers import gap
from keras_dal.solvers.whitening import Whitening


def steps(features, use_bias=True, excess=1.0, wanted=1e-4):
    head = DenseHead(features.shape[1], 3, use_bias)
    coordinates = Whitening(CachedJacobian(head, features.astype(np.float32)))
    everything = np.arange(len(features))
    arguments = features, use_bias, 0.5, np.ones(len(features)), everything, 0.01, coordinates, None
    return gap.gradient_steps(*arguments, excess, wanted)


def test_none_are_needed_where_the_gap_is_small_already():
    assert steps(np.ones((5, 2)), excess=1e-5) == 0


def test_features_that_are_all_zero_need_one():
    assert steps(np.zeros((5, 2)), use_bias=False) == 1


def test_what_would_take_long_to_find_is_not_looked_for(monkeypatch):
    monkeypatch.setattr(gap, "_AFFORDABLE", 10)
    assert steps(np.random.default_rng(0).standard_normal((9, 2))) is None


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e15])
def test_units_do_not_change_the_number(unit):
    features = np.random.default_rng(0).standard_normal((50, 4))
    assert steps(features * unit, use_bias=False) == steps(features, use_bias=False)
