"""The table of a path, a row for each point as it comes."""

import numpy as np

from keras_dal.output.tables import percent


def show(number, point, refined=False):
    """Print the row of a point, after the table's head where it is the first, of number 0.

    Args:
        number: of the point on the path.
        point: the point.
        refined: whether this number was shown, and the point is where float64 took it.
    """
    classifies = point.accuracy is not None
    step = "float64" if refined else f"{number:d}"
    columns = [("step", step), ("seconds", f"{point.seconds:.2f}"), ("loss", f"{point.loss:.4g}")]
    if classifies:
        columns += [("accuracy", percent(point.accuracy)), ("margin", f"{point.margin:.3g}")]
    columns += [("moved", f"{point.moved:.3g}"), ("gap", f"{point.gap:.2g}" if np.isfinite(point.gap) else "")]
    if point.validation is not None:
        columns.append(("validation", percent(point.validation) if classifies else f"{point.validation:.4g}"))
    rows = [] if number or refined else [[name for name, _ in columns]]
    for row in [*rows, [value for _, value in columns]]:
        print(" ".join(f"{value:>10}" for value in row), flush=True)
