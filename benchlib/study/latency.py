"""The requests of a run that count, how long each one took, and the percentiles of these times.

Pure functions on a run's frame of requests. Ignorant of files, of how the rows came about, and of
how sure a percentile is (intervals.py).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import pandas as pd

from benchlib.server_timing import PARTS

Record = dict[str, Any]
"""A run's run.json: its specification, machine, packages, status and outcome."""

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)

REFUSALS = (429, 503, 504)
"""The statuses by which a server sheds load: too many requests, a full queue, a passed deadline."""

OTHER = "server, other"
REST = "network and client"


def percentile(values: Iterable[float], q: float) -> float | None:
    """The smallest value that at least the share `q` of all values do not exceed, in their unit.

    A NaN stands for a request that failed or was cut off, and ranks after all other values. None
    where the percentile falls on a NaN, and where n(1-q) < 1: less than one value is expected
    beyond the percentile. Raises ValueError for a q outside (0, 1). Source: definition 1 (the
    inverse of the empirical distribution function) in Hyndman & Fan, "Sample quantiles in
    statistical packages", The American Statistician 50 (1996).
    """
    if not 0 < q < 1:
        raise ValueError(
            f"q must be between 0 and 1, both excluded, not {q}: the 95th percentile is 0.95"
        )
    everything = list(values)
    n = len(everything)
    if not _is_carried(n, q):
        return None
    ordered = sorted(value for value in everything if not math.isnan(value))
    rank = math.ceil(n * _exact(q))
    if rank > len(ordered):
        return None
    return float(ordered[rank - 1])


def carried_percentiles(n: int) -> tuple[float, ...]:
    """The members of PERCENTILES that a sample of `n` supports as a point: n(1-q) >= 1."""
    return tuple(q for q in PERCENTILES if _is_carried(n, q))


def in_window(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests scheduled in the measuring window, after the warm-up, in schedule order."""
    counted = requests[requests["phase"] == "measure"]
    return counted.sort_values("scheduled_s", kind="stable")


def is_ok(requests: pd.DataFrame) -> pd.Series:
    """True for each request that was answered with an image."""
    has_ended = requests["done_s"].notna()
    return requests["error"].isna() & has_ended


def is_censored(requests: pd.DataFrame) -> pd.Series:
    """True for each request that had not ended when the run was cut: its latency is unknown."""
    return requests["done_s"].isna()


def is_refused(requests: pd.DataFrame) -> pd.Series:
    """True for each request that the server refused in an orderly way, to protect the others.

    It answered 429, 503 or 504, and said in Server-Timing how long that took. A proxy before a dead
    server sends no such header.
    """
    is_refusal = requests["http_status"].isin(REFUSALS).fillna(False).astype(bool)
    return is_refusal & requests["total_s"].notna()


def has_failed(requests: pd.DataFrame) -> pd.Series:
    """True for each request that ended without an image and was not refused."""
    has_error = requests["error"].notna() & ~is_censored(requests)
    return has_error & ~is_refused(requests)


def errors_by_kind(requests: pd.DataFrame) -> dict[str, int]:
    """How many of `requests` failed, by a bad HTTP status, or else by the error's first words."""
    failed = requests[requests["error"].notna() & ~is_censored(requests)]
    kinds = Counter[str]()
    for status, error in zip(failed["http_status"], failed["error"], strict=True):
        kind = f"HTTP {status}"
        if pd.isna(status) or status == 200:
            first_words, *_ = re.split("[:(]", str(error))
            kind = first_words.strip()
        kinds[kind] += 1
    return dict(kinds)


def latencies(requests: pd.DataFrame) -> pd.Series:
    """Seconds from the scheduled time to the image, for each request in the window.

    NaN where no image came. `percentile` ranks NaN last, so "95 % took at most 2 s" covers the
    failed requests too.
    """
    counted = in_window(requests)
    return counted["latency_s"].where(is_ok(counted))


def breakdown(requests: pd.DataFrame) -> pd.DataFrame:
    """The parts of each image's latency, in seconds: a row per image with the server's total time.

    The columns add up to the latency: the server's PARTS, the rest of the server's total (OTHER),
    and the time outside of the server (REST). A part that the server did not send is NaN.
    """
    counted = in_window(requests)
    is_timed = is_ok(counted) & counted["total_s"].notna()
    timed = counted[is_timed]
    columns = {f"{part}_s": part for part in PARTS}
    parts = timed[list(columns)].rename(columns=columns)
    sum_s = parts.sum(axis="columns")
    parts[OTHER] = timed["total_s"] - sum_s
    parts[REST] = timed["latency_s"] - timed["total_s"]
    return parts


def measuring_window(record: Record) -> tuple[float, float] | None:
    """Start and end of the measuring window, in seconds from the run's start; None if unknown."""
    outcome = record["outcome"] or {}
    start_s = outcome.get("window_start_s")
    end_s = outcome.get("window_end_s")
    if start_s is None or end_s is None:
        return None
    if end_s <= start_s:
        return None
    return start_s, end_s


def _exact(q: float) -> Fraction:
    """The share as it is written: in floats, 10 * (1 - 0.9) is less than 1."""
    return Fraction(str(q))


def _is_carried(n: int, q: float) -> bool:
    return n * (1 - _exact(q)) >= 1
