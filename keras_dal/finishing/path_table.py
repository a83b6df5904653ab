"""The table of a path, a row for each point as it comes."""

import numpy as np

from keras_dal.tables import percent


def show(number, point):
    """Print the row of a point, after the table's head where it is the first, of number 0."""
    classifies = point.accuracy is not None
    columns = [("step", f"{number:d}"), ("seconds", f"{point.seconds:.2f}"), ("loss", f"{point.loss:.4g}")]
    if classifies:
        columns += [("accuracy", percent(point.accuracy)), ("margin", f"{point.margin:.3g}")]
    columns += [("moved", f"{point.moved:.3g}"), ("gap", f"{point.gap:.2g}" if np.isfinite(point.gap) else "")]
    if point.validation is not None:
        columns.append(("validation", percent(point.validation) if classifies else f"{point.validation:.4g}"))
    rows = [] if number else [[name for name, _ in columns]]
    for row in [*rows, [value for _, value in columns]]:
        print(" ".join(f"{value:>10}" for value in row), flush=True)
