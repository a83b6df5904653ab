"""Tables of reports: what is printed lines up, and what a notebook shows is what was said."""

import re
from xml.etree import ElementTree

import keras
import numpy as np
import pytest

import keras_dal
from keras_dal.output.tables import apart, as_html, as_text, counted, known_decimals

ROWS = [("loss", 0.5), ("penalty", None), ("training accuracy", "<b>100 %</b> & more"), ("left", 0)]


def cells(table):
    return [["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(table).iter("tr")]


def test_values_begin_in_one_column():
    assert as_text(ROWS, title=("Result", "reached")).splitlines() == [
        "Result             reached",
        "loss               0.5",
        "training accuracy  <b>100 %</b> & more",
        "left               0",
    ]


def test_html_shows_every_value_as_it_is():
    expected = [["loss", "0.5"], ["training accuracy", "<b>100 %</b> & more"], ["left", "0"]]
    assert cells(as_html(ROWS)) == expected
    assert cells(as_html(iter(ROWS), title=("A <title>", "aligned"))) == [["A <title>", "aligned"], *expected]


def test_html_has_one_head_for_the_title_and_names_as_heads_of_rows():
    table = ElementTree.fromstring(as_html(ROWS, title=("Result", "reached")))
    assert len(list(table.iter("thead"))) == 1
    assert [row[0].get("scope") for row in table.iter("tr")] == ["row"] * 4


def test_no_rows_are_an_empty_table():
    assert as_text([]) == ""
    assert cells(as_html([])) == []


@pytest.mark.parametrize("made", [keras_dal.certify, keras_dal.alignment])
def test_a_notebook_shows_of_a_report_what_is_printed(made):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    generator = np.random.default_rng(0)
    report = made(model, generator.standard_normal((30, 4)), generator.integers(0, 3, 30))
    shown = " ".join(text for row in cells(report._repr_html_()) for text in row)
    printed = " ".join(str(report).split())
    assert report.verdict in shown
    assert report.decided_by in shown
    assert set(re.findall(r"\d\.\d{4,}", shown)) <= set(re.findall(r"\d\.\d{4,}", printed))


@pytest.mark.parametrize(("number", "text"), [(0, "0 samples"), (1, "1 sample"), (1234, "1,234 samples")])
def test_a_noun_is_in_the_plural_but_for_one(number, text):
    assert counted(number, "sample") == text


@pytest.mark.parametrize(
    ("bound", "below", "expected"),
    [(0.5, 0.25, ("0.5", "0.25")), (0.33333385, 0.3333336, ("0.3333338", "0.3333336"))],
)
def test_bounds_beside_each_other_are_printed_apart(bound, below, expected):
    assert apart(bound, below, 6) == expected


@pytest.mark.parametrize(
    ("error", "decimals"), [(0.0, 8), (1e-9, 8), (2e-5, 4), (0.5, 1), (3.0, 1), (np.inf, 1), (np.nan, 1)]
)
def test_an_error_leaves_some_decimals(error, decimals):
    assert known_decimals(error, 8) == decimals
