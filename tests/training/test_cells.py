"""A sample of the combinations in `cells`; benchmarks/cells.py runs all of them."""

import cells
import pytest

SAMPLE = cells.pairwise()[:16]


@pytest.mark.parametrize("cell", SAMPLE, ids=", ".join)
def test_a_fit_of_two_lines(cell, tmp_path):
    if reason := cells.reason_to_skip(cell):
        pytest.skip(reason)
    cells.check(cell, tmp_path)
