"""Rules say how a path or a minimization ends; the path asks its own, and notes what they say."""

from typing import NamedTuple

import numpy as np
import pytest

from keras_dal.finishing.history import Path, Point
from keras_dal.finishing.proof import Proof
from keras_dal.finishing.stopping import (
    Ending,
    Gap,
    MaxSteps,
    Patience,
    Progress,
    Stall,
    Stopped,
    TimeLimit,
    Tolerance,
    ending_by,
)


def at(loss=1.0, objective=1.0, gap=np.inf):
    return Progress(loss, objective, gap)


def point(loss=1.0, validation=None, accuracy=0.5):
    return Point(0.0, 1.0, loss, accuracy, -1.0, 0.0, np.inf, validation, np.zeros(1))


@pytest.mark.parametrize(("loss", "ends"), [(0.76, False), (0.75, True), (0.5, True), (np.nan, False)])
def test_a_tolerance_counts_from_the_floor(loss, ends):
    assert Tolerance(0.25, 0.5).ending(at(loss=loss)) == (Ending.TOLERANCE if ends else None)


@pytest.mark.parametrize(("gap", "ends"), [(0.26, False), (0.25, True), (np.inf, False), (np.nan, False)])
def test_a_gap_is_reached_at_the_wanted_one(gap, ends):
    assert Gap(0.25).ending(at(gap=gap)) == (Ending.GAP if ends else None)


@pytest.mark.parametrize(
    ("objectives", "endings"),
    [
        ((9.0, 8.0, 7.5), (None, None, Ending.STALLED)),
        ((9.0, 9.5), (None, Ending.STALLED)),
        ((9.0, 8.0, 7.0), (None, None, None)),
        ((9.0, np.nan), (None, None)),
    ],
)
def test_a_step_that_gains_less_than_wanted_is_a_stall_and_the_start_is_no_step(objectives, endings):
    rule = Stall(1.0)
    assert tuple(rule.ending(at(objective=each)) for each in objectives) == endings


def test_steps_are_counted_from_the_start_on():
    rule = MaxSteps(2)
    assert [rule.ending(at()) for _ in range(3)] == [None, None, Ending.MAX_STEPS]


def test_the_first_rule_that_has_an_ending_says_it():
    assert ending_by((), at()) is None
    assert ending_by((Tolerance(0.5, 0.0), Gap(0.5)), at()) is None
    assert ending_by((Tolerance(0.5, 0.0), Gap(0.5), MaxSteps(0)), at(loss=0.5, gap=0.5)) == Ending.TOLERANCE
    assert ending_by((Tolerance(0.5, 0.0), Gap(0.5), MaxSteps(0)), at(gap=0.5)) == Ending.GAP


def test_only_a_tolerance_is_enough():
    assert [ending for ending in Ending if ending.is_enough] == [Ending.TOLERANCE]


def test_a_path_is_stopped_by_its_rule_after_the_point_that_it_sees():
    class Second(NamedTuple):
        said: Ending

        def ending(self, path):
            return self.said if len(path.points) == 2 else None

    path = Path([Second(Ending.PATIENCE)])
    path.add(point())
    with pytest.raises(Stopped) as stop:
        path.add(point())
    assert stop.value.ending == Ending.PATIENCE
    assert len(path.points) == 2


def test_a_time_limit_is_in_seconds(monkeypatch):
    path = Path()
    for elapsed, ending in ((1.9, None), (2.0, None), (2.1, Ending.TIME)):
        monkeypatch.setattr(path, "elapsed", lambda elapsed=elapsed: elapsed)
        assert TimeLimit(2.0).ending(path) == ending


@pytest.mark.parametrize(
    ("accuracy", "values", "ending"),
    [
        (0.5, (), None),
        (0.5, (0.7, 0.6), None),
        (0.5, (0.7, 0.6, 0.7), Ending.PATIENCE),
        (0.5, (0.7, 0.6, 0.8), None),
        (None, (0.7, 0.8, 0.9), Ending.PATIENCE),
        (None, (0.7, 0.6, 0.5), None),
    ],
)
def test_patience_counts_points_without_a_better_value_of_this_stage(accuracy, values, ending):
    path = Path()
    path.add(point(validation=1.0, accuracy=accuracy))
    path.begin()
    for value in values:
        path.add(point(validation=value, accuracy=accuracy))
    assert Patience(2).ending(path) == ending
    path.begin(patient=False)
    assert Patience(2).ending(path) is None


def test_nobody_else_writes_the_points_of_a_path():
    path, shown = Path([MaxSteps(0)]), []
    path.ensure_one(lambda: shown.append("asked") or point(2.0))
    assert [each.loss for each in path.points] == [2.0]  # which no rule saw
    path.ensure_one(lambda: shown.append("asked again") or point(3.0))
    assert [each.loss for each in path.points] == [2.0]
    assert shown == ["asked"]
    assert isinstance(path.points, tuple)


@pytest.mark.parametrize(
    ("came_to", "proof", "ending"),
    [
        (Ending.GAP, Proof(0.25, True, 3, 1), Ending.CERTIFIED),
        (Ending.STALLED, Proof(0.25, True, 3, 1), Ending.CERTIFIED),
        (Ending.GAP, Proof(0.25, False, None, 1), Ending.GAP),
        (Ending.GAP, None, Ending.STALLED),
        (Ending.MAX_STEPS, None, Ending.MAX_STEPS),
    ],
)
def test_what_float64_says_of_a_minimum_settles_how_it_ended(came_to, proof, ending):
    path = Path()
    path.end(came_to)
    path.settle(proof)
    assert path.stopped_by == ending
