"""A table as people read it: three digits, and each interval beside its value.

Knows how our tables name an interval. Ignorant of what the figures mean. Files keep all digits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

from benchlib.study.wording import number, span, words

if TYPE_CHECKING:
    import pandas as pd

INTERVAL = "interval"
Table = TypeVar("Table", bound="pd.DataFrame | pd.Series[Any]")


def readable(table: Table) -> Table:
    """The table with its numbers as text: "6.6 (6.4 to 6.8)" for a value and its interval.

    The interval of a column `a` is in `a_interval`, or in a column `interval` right after it. It
    becomes part of `a`. Numbers have three digits; whole numbers, words and dates stay as they are.
    A missing value is empty. Of a Series, the names are its index.
    """
    import pandas as pd

    if isinstance(table, pd.Series):
        row = _readable(pd.DataFrame([list(table)], columns=table.index)).iloc[0]
        row.name = table.name
        return cast("Table", row)
    return cast("Table", _readable(table))


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    intervals = _interval_columns(list(table.columns))
    shown: dict[Any, list[object]] = {}
    for name in table.columns:
        if name in intervals.values():
            continue
        ends: list[Any] = [None] * len(table)
        if name in intervals:
            ends = list(table[intervals[name]])
        shown[name] = [_cell(*pair) for pair in zip(table[name], ends, strict=True)]
    return pd.DataFrame(shown, index=table.index)


def _interval_columns(names: list[Any]) -> dict[Any, Any]:
    """The column with the interval, by the name of the value's column."""
    found = {}
    for position, name in enumerate(names):
        if f"{name}_{INTERVAL}" in names:
            found[name] = f"{name}_{INTERVAL}"
        elif names[position + 1 : position + 2] == [INTERVAL]:
            found[name] = INTERVAL
    return found


def _cell(value: object, interval: object) -> object:
    if isinstance(value, tuple | list) and _are_numbers(value):
        return span(value)
    if _is_missing(value):
        return ""
    if not isinstance(value, float):
        return value
    if isinstance(interval, tuple | list) and _are_numbers(interval):
        return words(value, interval)
    return number(value)


def _is_missing(value: object) -> bool:
    import pandas as pd

    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value is pd.NA or value is pd.NaT


def _are_numbers(values: tuple[Any, ...] | list[Any]) -> bool:
    return bool(values) and all(isinstance(value, int | float) for value in values)
