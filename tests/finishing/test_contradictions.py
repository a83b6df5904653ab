"""Which samples are left: those that account for most of the cost, over all rounds, and were wrong at the start."""

import numpy as np

from keras_dal.finishing.contradictions import Moves
from keras_dal.losses.sides import RightSides
from keras_dal.solvers.objectives import Separation

START = np.array([[-1.0], [1.0], [1.0]])  # the first is wrong


class Solver:
    """Moves nothing, and says that each sample that it moves has cost the same, as much in every round."""

    def __init__(self, cost):
        self.cost = cost

    def clear(self):
        self.chosen = np.zeros(0, int)

    def hold(self, held):
        pass

    def extend(self, rows):
        self.chosen = np.append(self.chosen, rows).astype(int)

    def change(self, residuals):
        return np.zeros(1), np.full(residuals.shape, self.cost)


def moves(cost):
    def margins(logits):
        return logits[:, 0]

    return Moves(Solver(cost), None, Separation(RightSides(np.ones((3, 1))), 2.0), margins, START, 1.0, num_free=3)


def test_the_cost_of_a_sample_is_that_of_all_rounds():
    made = moves(cost=2.0)  # times the way to the wanted margin, which is 3: ten are dear
    assert made.change(START) is not None
    assert not made.spared.any()
    assert made.change(START) is None
    np.testing.assert_array_equal(made.spared, [True, False, False])


def test_samples_that_were_right_at_the_start_are_never_left():
    made = moves(cost=20.0)  # the others have a way of one to go
    assert made.change(START) is None
    np.testing.assert_array_equal(made.spared, [True, False, False])
