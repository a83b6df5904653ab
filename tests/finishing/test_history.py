import numpy as np
import pytest

from keras_dal.finishing import path_table
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


@pytest.mark.parametrize("ending", [Ending.STALLED, Ending.EXHAUSTED, Ending.TIME])
@pytest.mark.parametrize("validated", [False, True])
def test_a_path_without_the_parameters_of_most_points_has_the_same_best_one(ending, validated):
    generator = np.random.default_rng(0)
    for _ in range(20):
        whole, thin = Path(), Path()
        for step in range(50):
            loss, accuracy, validation = generator.uniform(size=3).round(1)  # so that some are alike
            each = Point(
                step, 1.0, loss, accuracy, -1.0, 0.0, np.inf, validation if validated else None, np.full(3, step)
            )
            for path in (whole, thin):
                path.add(each)
            thin.thin_out()
            assert sum(point.theta is not None for point in thin.points) <= 4
        for path in (whole, thin):
            (path.cut_short if ending == Ending.TIME else path.end)(ending)
        np.testing.assert_array_equal(thin.best().theta, whole.best().theta)
        assert thin.points[0].theta is not None
        assert [point.loss for point in thin.points] == [point.loss for point in whole.points]


def test_a_point_without_parameters_is_not_the_best_where_the_kept_one_turned_out_worse():
    path = Path()
    for step, loss in enumerate((0.9, 0.5, 0.4, 0.3)):
        path.add(Point(step, 1.0, loss, 0.5, -1.0, 0.0, np.inf, None, np.full(3, step)))
        path.thin_out()
    path.replace_last(Point(3, 1.0, 0.45, 0.5, -1.0, 0.0, np.inf, None, np.full(3, 3.5)))  # as rounded by a model
    path.cut_short(Ending.TIME)
    assert path.best().loss == 0.45


def test_what_float64_makes_of_a_point_is_no_step_of_the_table(capsys):
    path = Path(on_point=path_table.show)
    for loss in (0.9, 0.5):
        path.add(point(loss, 0.5))
    path.replace_last(point(0.4, 0.75), shown=False)
    path.replace_last(point(0.3, 0.75))
    rows = [row.split()[:4] for row in capsys.readouterr().out.splitlines()]
    names = ["step", "seconds", "loss", "accuracy"]
    assert rows == [
        names,
        ["0", "0.00", "0.9", "50.00%"],
        ["1", "0.00", "0.5", "50.00%"],
        ["float64", "0.00", "0.3", "75.00%"],
    ]
