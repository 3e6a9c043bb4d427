"""A figure that a benchmark measures, its limits, and the printed table of many figures.

Knows numbers and words. Ignorant of the measurement.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchlib.study.intervals import order_ranks


def percentile(values: Iterable[float], q: float) -> float:
    """The smallest value that at least the share `q` of all values do not exceed.

    Unlike benchlib.study.latency.percentile, this one works for any number of values, because each
    benchmark fixes its number of values.
    """
    return float(np.quantile(list(values), q, method="inverted_cdf"))


@dataclass(frozen=True)
class Figure:
    """A figure's value in each repetition, and the limits, both included, of their median.

    With `by_interval` a limit is broken only if the whole interval is beyond the limit.
    `not_measured` is the reason why there are no values. `own_interval` is one that does not come
    from the repetitions.
    """

    case: str
    name: str
    values: list[float]
    low: float | None = None
    high: float | None = None
    by_interval: bool = False
    not_measured: str | None = None
    own_interval: tuple[float, float] | None = None

    @classmethod
    def once(
        cls,
        case: str,
        name: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        own_interval: tuple[float, float] | None = None,
    ) -> Figure:
        """A figure that is measured a single time."""
        return cls(case, name, [value], low, high, own_interval=own_interval)

    @property
    def value(self) -> float | None:
        """The median; None if nothing was measured."""
        if not self.values:
            return None
        return statistics.median(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The median's interval of at least 95 % for any distribution; None below six values."""
        if self.own_interval is not None:
            return self.own_interval
        low, high = order_ranks(len(self.values), 0.5)
        if low < 1:
            return None
        ordered = sorted(self.values)
        return ordered[low - 1], ordered[high - 1]

    @property
    def passed(self) -> bool | None:
        """Whether the limits are kept; None without limits, False with a limit and no value."""
        if self.low is None and self.high is None:
            return None
        if self.value is None:
            return False
        least = most = self.value
        if self.by_interval and self.interval:
            least, most = self.interval
        if self.low is not None and most < self.low:
            return False
        return self.high is None or least <= self.high

    def to_dict(self) -> dict[str, Any]:
        """All fields, with the value, the interval and `passed`, for JSON."""
        found = {"value": self.value, "interval": self.interval, "passed": self.passed}
        return asdict(self) | found


def print_table(figures: Iterable[Figure]) -> None:
    """Prints a line for each figure: whether it passed, its value, its interval and its limits."""
    print(f"{'':5}{'case':18}{'figure':58}{'value':>12}  {'interval':22}limits")
    for figure in figures:
        passed = {None: "", True: "ok", False: "FAIL"}[figure.passed]
        value = "not measured" if figure.value is None else f"{figure.value:.4g}"
        interval = _between(*figure.interval) if figure.interval else ""
        limits = "" if figure.passed is None else _between(figure.low, figure.high)
        print(f"{passed:5}{figure.case:18}{figure.name:58}{value:>12}  {interval:22}{limits}")


def _between(low: float | None, high: float | None) -> str:
    return f"{_words(low)} to {_words(high)}"


def _words(limit: float | None) -> str:
    return "-" if limit is None else f"{limit:.4g}"
