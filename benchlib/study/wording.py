"""How a number is written in figures, answers and tables: digits, units, intervals and plurals.

Knows numbers and nouns. Ignorant of what they measure, and of drawing: a judge needs words and no
matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """A value in three digits, none beyond the thousandths: nobody needs more. Never "-0".

    It is rounded once: 6.6251 is 6.63. Rounded to 6.625 first, it would become 6.62.
    """
    size = abs(value)
    if size >= 999.5:
        return f"{value:,.0f}"
    if size >= 1:
        return f"{value:.3g}"
    thousandths = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if thousandths == "-0" else thousandths


def words(
    value: float | None,
    interval: Sequence[float] | None = None,
    unit: str = "",
    *,
    no_interval: str = "",
) -> str:
    """A value with its unit and its interval: "1.2 times (1.1 to 1.3)", "40 % (35 to 45)", "0.5 s".

    `unit` may be any words that follow the number: "s a step", "times serial's". An interval of
    None, or with a NaN end, leaves the brackets out; where `no_interval` has words, the brackets
    hold them: "1.2 times (no interval)". A value of None or NaN is "not known".
    """
    if value is None or math.isnan(value):
        return "not known"
    text = f"{number(value)} {unit}".rstrip()
    if text.startswith("1 times"):
        text = f"1.00 {unit}"
    if unit == "images/s":
        text = per_second(value)
    if interval is not None and not any(math.isnan(end) for end in interval):
        low, high = interval
        return f"{text} ({number(low)} to {number(high)})"
    if no_interval:
        return f"{text} ({no_interval})"
    return text


def span(values: Sequence[float]) -> str:
    """The lowest and the highest of some values: "0.2 to 0.9".

    One number where both are written alike; "not known" where there is no value.
    """
    if not values:
        return "not known"
    low, high = number(min(values)), number(max(values))
    if low == high:
        return low
    return f"{low} to {high}"


def counted(count: float, noun: str) -> str:
    """A count with its noun in singular or plural: "1 user", "2 users", "1,500 requests"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,.0f} {noun}s"


def per_second(rate: float, noun: str = "image") -> str:
    """A rate in words: "0.5 images/s", "1 request/s"."""
    written = number(rate)
    return f"1 {noun}/s" if written == "1" else f"{written} {noun}s/s"


def agreeing(count: float, one: str, many: str) -> str:
    """The verb that agrees with a count: "1 image shows", "2 images show"."""
    return one if count == 1 else many
