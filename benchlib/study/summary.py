"""The figures of a run: throughput, percentiles with intervals, parts, memory and energy.

Pure functions on frames and a run's record: no files, no clocks, nothing drawn. Ignorant of how the
rows came about, of how intervals are found (intervals.py), and of what makes a run invalid
(validity.py). A figure that the data can't support is None, never a guess.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchlib.rows import STAGES
from benchlib.study import intervals
from benchlib.study.busy import other_work_of, suspect_reason
from benchlib.study.intervals import Estimates, Interval
from benchlib.study.latency import (
    PERCENTILES,
    Record,
    errors_by_kind,
    in_window,
    is_censored,
    is_ok,
    is_refused,
    latencies,
    measuring_window,
    percentile,
)
from benchlib.study.validity import invalid_reason
from benchlib.study.wording import counted

Figures = dict[str, Any]


def summarise(record: Record, requests: pd.DataFrame, telemetry: pd.DataFrame) -> pd.Series:
    """A run's figures by name; None where there is none.

    Counts and percentiles (`latency_pNN_s`) are of all requests scheduled in the measuring window.
    The mean, the maximum and the parts are of those that got an image. `offered_images_per_s` is
    how many were scheduled in a second; `throughput_images_per_s` counts the images done inside the
    window, whenever they were scheduled. Each `_interval` is of 95 %, or None; then
    `latency_interval_note` says why.

    `state` is "steady" or "unstable" (latency still drifts in the window, so percentiles and mean
    are None). It is None for a ramp, and for fewer than 40 rows. `queue_share` is the time in the
    server's queue over all latency. `energy_per_image_j` is what the GPU took in the window over
    the images done in it. `rss_peak_gib` and the `cuda_` peaks are the highest samples of the whole
    run; `server_peak_gib` is the highest peak that the server itself sent. `suspect_reason` says in
    words that `others_cpu_cores` and `steal_cores` are above a limit: the run is valid, but its
    times may be too long (see busy.py).
    """
    ok = in_window(requests)
    ok = ok[is_ok(ok)]
    figures = _counts(record, requests)
    figures |= _throughput(record, requests)
    figures |= _latencies(record, requests)
    figures |= _where_time_went(ok)
    images_per_s = figures["throughput_images_per_s"]
    figures["energy_per_image_j"] = _energy_per_image_j(telemetry, record, images_per_s)
    figures["server_peak_gib"] = _number_or_none(ok["server_peak_gib"].max())
    for memory in ("rss", "cuda_allocated", "cuda_reserved"):
        figures[f"{memory}_peak_gib"] = _number_or_none(telemetry[f"{memory}_gib"].max())
    figures["server_cpu_cores"] = _number_or_none(telemetry["server_cpu_cores"].mean())
    taken = other_work_of(record, telemetry)
    figures |= taken
    outcome = record["outcome"] or {}
    for name in ("generator_cpu_cores", "send_lag_p99_s", "in_flight_mean", "max_in_flight_hits"):
        figures[name] = outcome.get(name)
    figures["errors"] = errors_by_kind(in_window(requests))
    reason = invalid_reason(record, requests)
    figures["valid"] = reason is None
    figures["invalid_reason"] = reason
    figures["suspect_reason"] = suspect_reason(record, taken)
    return pd.Series(figures, dtype=object)


def is_steady(record: Record, requests: pd.DataFrame) -> bool | None:
    """False where latency still drifts in the window; None for a ramp or fewer than 40 rows."""
    if record["spec"]["arrivals"]["kind"] == "ramp":
        return None
    return intervals.is_stable(latencies(requests))


def energy_j(telemetry: pd.DataFrame, start_s: float, end_s: float) -> float | None:
    """Joules that the sampled GPU took from `start_s` to `end_s`, by the trapezoidal rule.

    None where the samples of its power begin over a second after `start_s` or end over a second
    before `end_s`.
    """
    samples = telemetry.reindex(columns=["time_s", "gpu_power_w"]).dropna()
    time_s = samples["time_s"].to_numpy()
    power_w = samples["gpu_power_w"].to_numpy()
    if not len(time_s) or start_s >= end_s:
        return None
    if time_s[0] > start_s + 1 or time_s[-1] < end_s - 1:
        return None
    inside_s = time_s[(start_s < time_s) & (time_s < end_s)]
    moments_s = np.array([start_s, *inside_s, end_s])
    power_w = np.interp(moments_s, time_s, power_w)
    energy = np.trapezoid(power_w, moments_s)
    return float(energy)


def _counts(record: Record, requests: pd.DataFrame) -> Figures:
    measured = in_window(requests)
    window = measuring_window(record)
    censored = is_censored(measured)
    failed = measured["error"].notna() & ~censored
    offered = None
    if window:
        start_s, end_s = window
        offered = len(measured) / (end_s - start_s)
    return {
        "requests": len(measured),
        "ok": int(is_ok(measured).sum()),
        "failed": int(failed.sum()),
        "refused": int(is_refused(measured).sum()),
        "censored": int(censored.sum()),
        "offered_images_per_s": offered,
    }


def _throughput(record: Record, requests: pd.DataFrame) -> Figures:
    """Images per second in the window, and the interval.

    The interval is that of the mean time from one image to the next, inverted, and widened to hold
    the throughput itself.
    """
    name = "throughput_images_per_s"
    window = measuring_window(record)
    if window is None:
        return {name: None, f"{name}_interval": None}
    # With a fixed number of requests the window ends with the last answer. It counts: both ends are
    # inside.
    start_s, end_s = window
    done_s = requests["done_s"][is_ok(requests)]
    done_s = done_s[done_s.between(start_s, end_s)].sort_values()
    rate = len(done_s) / (end_s - start_s)
    between_s = np.diff(done_s.to_numpy())
    pair = Estimates(between_s).mean_interval()
    interval: Interval = None
    if pair and pair[0] > 0:
        shortest_s, longest_s = pair
        interval = min(1 / longest_s, rate), max(1 / shortest_s, rate)
    return {name: rate, f"{name}_interval": interval}


def _latencies(record: Record, requests: pd.DataFrame) -> Figures:
    latency_s = latencies(requests)
    steady = is_steady(record, requests)
    unstable = steady is False
    shown_s = latency_s[:0] if unstable else latency_s
    estimates = Estimates(shown_s)
    figures: Figures = {}
    for q in PERCENTILES:
        name = f"latency_p{100 * q:g}_s"
        figures[name] = percentile(shown_s, q)
        figures[f"{name}_interval"] = estimates.percentile_interval(q) if steady else None
    of_images_s = latency_s.dropna()
    figures["latency_mean_s"] = None if unstable else _number_or_none(of_images_s.mean())
    figures["latency_mean_s_interval"] = None
    if steady:
        figures["latency_mean_s_interval"] = Estimates(of_images_s).mean_interval()
    figures["latency_max_s"] = _number_or_none(of_images_s.max())
    note = _why_no_interval(record, latency_s, steady)
    figures["latency_interval_note"] = None if figures["latency_p95_s_interval"] else note
    figures["state"] = {True: "steady", False: "unstable", None: None}[steady]
    return figures


def _why_no_interval(record: Record, latency_s: pd.Series, steady: bool | None) -> str:
    no_steady_state = "so there is no steady state to estimate"
    if record["spec"]["arrivals"]["kind"] == "ramp":
        return f"none: the load changes while a ramp lasts, {no_steady_state}"
    if steady is False:
        return f"unstable: latency still drifts in the measuring window, {no_steady_state}"
    n = len(latency_s)
    needed = Estimates(latency_s).rows_needed(0.95)
    if needed <= n:
        needed = 3 * n // 2
    why = "too few to tell whether they depend on each other"
    if n >= intervals.MIN_ROWS:
        why = "successive latencies depend on each other"
    advice = f"about {needed} are needed, or 5 independent runs (repeat=5)"
    return f"none for p95 from {counted(n, 'row')} ({why}): {advice}"


def _where_time_went(ok: pd.DataFrame) -> Figures:
    queued = ok[ok["queue_s"].notna()]
    figures: Figures = {"queue_share": None}
    if len(queued):
        share = queued["queue_s"].sum() / queued["latency_s"].sum()
        figures["queue_share"] = _number_or_none(share)
    for part in (*STAGES, "service"):
        figures[f"{part}_mean_s"] = _number_or_none(ok[f"{part}_s"].mean())
    outside_s = ok["latency_s"] - ok["total_s"]
    figures["network_and_client_median_s"] = _number_or_none(outside_s.median())
    figures["batch_size_mean"] = _number_or_none(ok["batch_size"].mean())
    return figures


def _energy_per_image_j(
    telemetry: pd.DataFrame, record: Record, images_per_s: float | None
) -> float | None:
    window = measuring_window(record)
    if not images_per_s or window is None:
        return None
    start_s, end_s = window
    energy = energy_j(telemetry, start_s, end_s)
    if energy is None:
        return None
    return energy / (images_per_s * (end_s - start_s))


def _number_or_none(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
