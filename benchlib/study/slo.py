"""A promise about latency (a service level objective), read from words and judged by latencies.

Knows series of latencies, and the frame of requests for goodput. Ignorant of loads and of servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchlib.study.intervals import Estimates, binomial_cdf, is_stable
from benchlib.study.latency import Record, latencies, measuring_window

_NUMBER = r"(\d+(?:\.\d+)?)"
_PROMISE = re.compile(rf"\s*(?:p{_NUMBER}\s*<=?|{_NUMBER}\s*%\s*within)\s*{_NUMBER}\s*(ms|s)\s*")

MOST_CHANCE = 0.025
"""The highest probability with which chance alone may bring about a verdict."""
PROMISED_IMAGES = 4
"""The usual promise: 95 % within so many times the time of an image alone."""


def promise_for(image_s: float) -> str:
    """A promise that suits a model whose image takes `image_s` seconds alone, in three digits.

    95 % of the images must take less than PROMISED_IMAGES times as long.
    """
    limit_s = max(0.001, PROMISED_IMAGES * image_s)
    text = f"{limit_s:.3g}" if limit_s < 999 else f"{limit_s:.0f}"
    return f"p95 < {text} s"


@dataclass(frozen=True)
class Slo:
    """A promise: the share `q` of all requests gets its image within `latency_s`."""

    q: float
    latency_s: float

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Reads "p95 < 2 s", "p99.9 < 800 ms" or "99 % within 20 s". Raises ValueError."""
        found = _PROMISE.fullmatch(str(text))
        if found:
            percent = Fraction(found[1] or found[2])
            latency_s = float(found[3])
            if found[4] == "ms":
                latency_s /= 1000
            if 0 < percent < 100 and latency_s > 0:
                return cls(float(percent / 100), latency_s)
        raise ValueError(
            f'slo: {text!r} is not understood; write "p95 < 2 s" or "99 % within 20 s"'
        )

    def judge(self, latencies_s: Iterable[float]) -> Literal["met", "missed", "not shown"]:
        """Whether latencies show, at 97.5 % confidence, that the promise is kept or broken.

        The latencies are in the order of their requests; NaN is a request that got no image, and
        counts as late. The share in time is judged by the binomial. For dependent latencies, n is
        divided by their correlation time (see Estimates.effective_number). So a series too short
        for an interval can still be judged, though less surely.

        Latencies that still drift never show that the promise is kept. A growing backlog shows that
        it is broken: none of the last third of the requests is in time. This rule holds for a
        promise to 90 % or more of the requests. The binomial could show nothing here, as such a
        series is worth one independent value.
        """
        series = np.asarray(list(latencies_s), dtype=float)
        if not len(series):
            return "not shown"
        n = Estimates(series).effective_number()
        in_time = int(np.floor(np.mean(series <= self.latency_s) * n + 1e-9))
        chance_of_as_many = 1 - binomial_cdf(in_time - 1, n, self.q)
        if chance_of_as_many <= MOST_CHANCE and is_stable(series) is not False:
            return "met"
        chance_of_as_few = binomial_cdf(in_time, n, self.q)
        if chance_of_as_few <= MOST_CHANCE or self._is_backlog(series):
            return "missed"
        return "not shown"

    def _is_backlog(self, series: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
        last_third = series[-(len(series) // 3) :]
        none_in_time = not (last_third <= self.latency_s).any()
        return self.q >= 0.9 and len(last_third) >= 10 and none_in_time


def goodput(requests: pd.DataFrame, record: Record, *, latency_s: float) -> float | None:
    """Images per second within `latency_s`, for requests scheduled in the measuring window.

    Errors, refusals and late answers count against it. None where the window is unknown.
    """
    window = measuring_window(record)
    if window is None:
        return None
    start_s, end_s = window
    in_time = (latencies(requests) <= latency_s).sum()
    return float(in_time / (end_s - start_s))
