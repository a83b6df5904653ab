"""Reports as tables of (name, value): as text for a terminal, as HTML for a notebook; and as JSON."""

import dataclasses
import decimal
import html
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Row = tuple[str, object]
NOT_PLAIN = {"plain": False}  # metadata of a field of a record that JSON is to leave out


def as_text(rows: Iterable[Row], title: Row | None = None, width: int = 0) -> str:
    """Return a table whose values begin in one column.

    Args:
        rows: pairs of a name and a value; a value of None is left out.
        title: a first row.
        width: least width of the names, where other lines are to go with the table.
    """
    kept = _kept(rows, title)
    width = max([width, *(len(name) for name, _ in kept)])
    return "\n".join(f"{name:<{width}}  {value}" for name, value in kept)


def as_html(rows: Iterable[Row], title: Row | None = None) -> str:
    """Return the same table for `_repr_html_`, with everything in it escaped.

    Args:
        rows: pairs of a name and a value; a value of None is left out.
        title: a first row, as the head of the table.
    """
    head = "" if title is None else f"<thead>{_row(title, 'th')}</thead>"
    body = "".join(_row(row, "td") for row in _kept(rows))
    return f"<table>{head}<tbody>{body}</tbody></table>"


def at_most(bound: float, digits: int, form: str = "g") -> str:
    """Return an upper bound in so many digits, or decimals with the form "f", that is one still."""
    return _rounded(bound, digits, form, decimal.ROUND_CEILING)


def at_least(bound: float, digits: int, form: str = "g") -> str:
    """Return a lower bound in so many digits, or decimals with the form "f", that is one still."""
    return _rounded(bound, digits, form, decimal.ROUND_FLOOR)


def apart(bound: float, below: float, digits: int) -> tuple[str, str]:
    """Return a lower bound, and what it is above, in so many digits or as many more as show that it is."""
    least, most = at_least(bound, digits), at_most(below, digits)
    return (least, most) if float(least) > float(most) or digits > 16 else apart(bound, below, digits + 1)


def known_decimals(error: float, most: int) -> int:
    """Return how many decimals, `most` at most and one at least, an error leaves of a number up to one."""
    if error <= 10.0**-most:
        return most
    return max(1, math.floor(-math.log10(error))) if error < 1 else 1


def counted(number: int, noun: str) -> str:
    """Return a number with a noun, in the plural but for one."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def percent(share: float) -> str:
    """Return a share as a percentage with two decimals, "100.00%" only where it is all."""
    return "99.99%" if share < 1 and f"{share:.2%}" == "100.00%" else f"{share:.2%}"


def one_number(lower: float, upper: float, digits: int) -> str | None:
    """Return what both bounds round to in so many digits, or None."""
    low, high = f"{lower:.{digits}g}", f"{upper:.{digits}g}"
    return high if low == high else None


def plain(value) -> Any:
    """Return what JSON has for a value: objects for records, lists for arrays, null for numbers that are not finite.

    Private fields of records, and those marked by `NOT_PLAIN`, are left out.
    """
    if dataclasses.is_dataclass(value):
        shown = (field.name for field in dataclasses.fields(value) if field.metadata.get("plain", True))
        value = {name: getattr(value, name) for name in shown if name[0] != "_"}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(bound, digits, form, rounding):
    number = decimal.Decimal(repr(float(bound)))
    if form == "f":
        return f"{number.quantize(decimal.Decimal(1).scaleb(-digits), rounding):f}"
    number = decimal.Context(prec=digits, rounding=rounding).create_decimal(number)
    return f"{float(number):.{digits - (form == 'e')}{form}}"


def _kept(rows, title=None):
    return [(name, value) for name, value in (*([] if title is None else [title]), *rows) if value is not None]


def _row(row, cell):
    name, value = (html.escape(str(part)) for part in row)
    left = "text-align: left"
    value = f'<{cell} style="{left}">{value}</{cell}>'
    return f'<tr><th scope="row" style="{left}; white-space: nowrap">{name}</th>{value}</tr>'
