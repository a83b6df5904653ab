import numpy as np
import pytest

from keras_dal.finishing.history import Path, Point
from keras_dal.finishing.stopping import Ending


def point(loss, accuracy):
    return Point(0.0, 1.0, loss, accuracy, -1.0, 0.0, np.inf, None, np.zeros(1))


@pytest.mark.parametrize(
    ("ending", "kept"),
    [(Ending.SEPARATED, 3), (Ending.STALLED, 3), (Ending.EXHAUSTED, 1), (Ending.TIME, 1)],
)
def test_a_separation_that_leaves_some_is_not_given_up_for_an_earlier_point_of_a_larger_loss(ending, kept):
    path = Path()
    for loss, accuracy in ((0.59, 0.10), (0.68, 0.27), (0.59, 0.10), (0.57, 0.20)):
        path.add(point(loss, accuracy))
    path.end(ending)
    assert path.best() is path.points[kept]


@pytest.mark.parametrize("ending", [Ending.TIME, Ending.EXHAUSTED])
def test_a_regression_ends_at_its_least_validation_loss_where_it_was_cut_short_alone(ending):
    path = Path()
    for loss, validation in ((3.0, 2.0), (2.0, 1.0), (1.0, 3.0)):
        path.add(Point(0.0, 1.0, loss, None, None, 0.0, np.inf, validation, np.zeros(1)))
    (path.cut_short if ending == Ending.TIME else path.end)(ending)
    assert path.best() is path.points[1 if ending == Ending.TIME else 2]
