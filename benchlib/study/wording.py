"""How a number is written in figures, answers and tables: digits, units, intervals and plurals.

Knows numbers and nouns. Ignorant of what they measure, and of drawing: a judge needs words and no
matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_DECIMALS = 6
"""A value that is smaller is written as 0.000000."""


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
    hold them: "1.2 times (no interval)". A value of None or NaN is "not known". Ends that differ
    are written so that they do: "0.0150 s (0.0147 to 0.0153)".
    """
    if value is None or math.isnan(value):
        return "not known"
    if interval is None or any(math.isnan(end) for end in interval):
        bracket = f" ({no_interval})" if no_interval else ""
        return f"{_with_unit(number(value), unit)}{bracket}"
    text, low, high = numbers([value, *interval])
    if low == high and interval[0] != interval[1] and not math.isinf(value):
        text, low, high = _three_digits([value, *interval])
    return f"{_with_unit(text, unit)} ({low} to {high})"


def _with_unit(text: str, unit: str) -> str:
    """A written value with its unit: one image is singular, and a ratio of 1 has decimals."""
    if text == "1" and unit == "images/s":
        return "1 image/s"
    if text == "1" and unit.startswith("times"):
        text = "1.00"
    return f"{text} {unit}".rstrip()


def numbers(values: Sequence[float]) -> list[str]:
    """Values that stand together: as `number` writes each, but none with fewer decimals for a zero.

    0.56 beside 0.654 is "0.560". 0.2 beside 120 stays "0.2", and 0 stays "0".
    """
    written = [number(value) for value in values]
    most = max(map(_decimals, written), default=0)
    return [_with_zeros(text, most) for text in written]


def numbers_apart(value: float, ends: Sequence[float]) -> list[str]:
    """A value outside an interval, and the ends, in as many decimals as show that it is outside."""
    group = [value, *ends]
    written = numbers(group)
    decimals = max(map(_decimals, written))
    while written[0] in written[1:] and decimals < MOST_DECIMALS:
        decimals += 1
        written = [f"{one:,.{decimals}f}" for one in group]
    return written


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _with_zeros(text: str, most: int) -> str:
    """A number with the zeros that `number` has cut, up to `most` decimals and three digits."""
    size = abs(float(text.replace(",", "")))
    if size == 0 or math.isinf(size):
        return text
    own = min(3, 2 - math.floor(math.log10(size)))
    missing = min(own, most) - _decimals(text)
    if missing <= 0:
        return text
    point = "" if "." in text else "."
    return f"{text}{point}{'0' * missing}"


def _three_digits(values: Sequence[float]) -> list[str]:
    """Values whose ends differ only beyond the thousandths, in three digits of the largest."""
    largest = max(map(abs, values))
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return [f"{value:,.{min(decimals, MOST_DECIMALS)}f}" for value in values]


def span(values: Sequence[float]) -> str:
    """The lowest and the highest of some values: "0.2 to 0.9".

    One number where both are written alike; "not known" where there is no value.
    """
    if not values:
        return "not known"
    low, high = numbers([min(values), max(values)])
    if low == high:
        return number(min(values))
    return f"{low} to {high}"


def in_time_words(share: float, foretold: Sequence[float]) -> str:
    """A share of requests in time, and what was foretold: "98 % in time, 94 to 100 % foretold"."""
    low, high = (f"{100 * end:.0f}" for end in foretold)
    span_of_it = low if low == high else f"{low} to {high}"
    return f"{100 * share:.0f} % in time, {span_of_it} % foretold"


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
