"""Knows how a number in a plan is checked and what the error says. Ignorant of what the numbers mean."""

from __future__ import annotations

import math
from typing import Any


def check_number(
    field: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Raise ValueError, naming `field` and the fix, unless `low <= value <= high` (`above`: `low < value`).

    Booleans, NaN, infinities and anything but int or float (`whole`: anything but int) are refused.
    """
    number = (
        isinstance(value, int if whole else int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
    if not number or not low <= value <= high or (above and value == low):
        noun = "a whole number" if whole else "a finite number"
        limits = (
            f"above {low}"
            if above
            else f"of {low} or more"
            if high == math.inf
            else f"from {low} to {high}"
        )
        raise ValueError(f"{field} must be {noun} {limits}, got {value!r}")
