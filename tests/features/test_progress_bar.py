"""A bar follows a pass over data, and what takes seconds says so."""

import cases
import numpy as np
import pytest

import keras_dal
from keras_dal.features.progress_bar import progress_bar, watched
from keras_dal.solvers import duality


def test_a_bar_ends_at_the_number_of_samples_whether_it_was_known_or_not(capsys):
    x = np.zeros((5, 2), "float32")
    for data, known in ((x, 5), (iter([x[:3], x[3:]]), None)):
        bar = progress_bar("samples", data)
        assert bar.target == known
        assert [len(batch[0]) for batch in watched([(x[:3],), (x[3:],)], bar)] == [3, 2]
        printed = capsys.readouterr().out
        assert printed.startswith("keras_dal: features of the samples\n")
        assert "5/5" in printed
        assert "\x1b" not in printed


def test_without_a_bar_batches_are_what_they_are(capsys):
    assert list(watched([(1,), (2,)], None)) == [(1,), (2,)]
    assert not capsys.readouterr().out


@pytest.mark.parametrize("function", [keras_dal.alignment, keras_dal.certify])
def test_what_is_decided_says_so_unless_it_is_to_be_silent(function, capsys):
    case = cases.CASES[0]
    data = case.build(), case.inputs(12), case.labels(12)
    function(*data, loss=case.loss, verbose=0)
    assert not capsys.readouterr().out
    function(*data, loss=case.loss)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "keras_dal: features of the samples"
    assert "12/12" in lines[1]
    assert lines[2].startswith("keras_dal: deciding what ")
    assert lines[2].endswith(f" parameters can do for 12 samples; each solver has {duality.SECONDS:g} seconds")


def test_a_whole_network_says_how_many_products_it_takes(capsys):
    case = cases.CASES[0]
    keras_dal.alignment(case.build(), case.inputs(6), case.labels(6), loss=case.loss, parameters="all")
    assert "at most 613 products with the Jacobian of the whole network" in capsys.readouterr().out
