"""A sample of the combinations in `cells`, and all of them behind a marker: `pytest -m whole`."""

import cells
import pytest

SAMPLE = cells.pairwise()[:16]


@pytest.mark.parametrize("cell", SAMPLE, ids=", ".join)
def test_a_fit_of_two_lines(cell, tmp_path):
    if reason := cells.reason_to_skip(cell):
        pytest.skip(reason)
    cells.check(cell, tmp_path)


@pytest.mark.whole
@pytest.mark.parametrize("cell", [cell for name in cells.OPTIMIZERS for cell in cells.whole(name)], ids=", ".join)
def test_every_fit_of_two_lines(cell, tmp_path):
    if reason := cells.reason_to_skip(cell):
        pytest.skip(reason)
    cells.check(cell, tmp_path)
