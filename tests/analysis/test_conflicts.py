"""How many samples no function of their features puts on their right side, against counting them by hand."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dal.analysis.conflicts import num_conflicting
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30))
def test_all_but_the_most_frequent_label_of_equal_features_are_wrong(samples):
    rows, labels = (np.array(part) for part in zip(*samples, strict=True))
    values = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 1e-30], [2.0, 0.0]], np.float32)  # the first two are equal
    loss = SoftmaxCrossEntropy()
    found = num_conflicting(values[rows], loss.targets(labels, 3), loss)
    counted = collections.defaultdict(collections.Counter)
    for row, label in samples:
        counted[max(row, 1)][label] += 1
    assert found == sum(sum(labels.values()) - max(labels.values()) for labels in counted.values())


@pytest.mark.parametrize(("labels", "expected"), [([[0, 1], [0, 1]], 0), ([[0, 1], [1, 1], [1, 1]], 1)])
def test_each_output_has_its_side_where_labels_are_not_exclusive(labels, expected):
    loss = SigmoidCrossEntropy()
    targets = loss.targets(np.array(labels, float), 2)
    assert num_conflicting(np.ones((len(labels), 5), np.float32), targets, loss) == expected


def test_soft_labels_conflict_where_their_most_probable_classes_do():
    loss = SoftmaxCrossEntropy()
    targets = loss.targets(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), 2)
    assert num_conflicting(np.zeros((3, 1), np.float32), targets, loss) == 1


def test_an_answer_that_none_of_the_labels_is_may_be_right_for_all():
    features = np.ones((2, 3))
    for loss, labels in (
        (SigmoidCrossEntropy(), [[1.0, 0.5], [0.5, 1.0]]),
        (SoftmaxCrossEntropy(), [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]),
    ):
        labels = np.array(labels)
        assert num_conflicting(features, loss.targets(labels, labels.shape[1]), loss) == 0
