"""What a run's rows say: percentiles, throughput, where the time went, and whether the run may be believed.

Pure functions on frames and a run's record: no files, no clocks, nothing drawn. Ignorant of how the rows were made and,
beyond asking for them, of how intervals are found (estimates.py). A figure that the data can't support is None, never a
guess.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchlib.rows import PARTS, STAGES
from benchlib.study import intervals
from benchlib.study.intervals import Estimates, Interval

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)

OTHER = "server, other"
REST = "network and client"


def percentile(values: Iterable[float], q: float) -> float | None:
    """The smallest value that at least the share `q` of all values do not exceed: one that was measured, in its unit.

    A NaN stands for a value that is known only to be longer than all others (a request that was cut off, or failed).
    None where the rank falls among those, and where n(1-q) < 1: fewer than one value is expected beyond it. Raises
    ValueError for a q outside (0, 1). Source: definition 1 (the inverse of the empirical distribution function) in
    Hyndman & Fan, "Sample quantiles in statistical packages", The American Statistician 50 (1996).
    """
    if not 0 < q < 1:
        raise ValueError(
            f"q must be between 0 and 1, both excluded, not {q}: the 95th percentile is 0.95"
        )
    everything = list(values)
    n, share = len(everything), Fraction(str(q))  # exact: in floats, 10 * (1 - 0.9) is less than 1
    if n * (1 - share) < 1:
        return None
    known = sorted(float(value) for value in everything if not math.isnan(value))
    rank = math.ceil(n * share)
    return known[rank - 1] if rank <= len(known) else None


def carried_percentiles(n: int) -> tuple[float, ...]:
    """Those of PERCENTILES that a sample of `n` supports as a point: n(1-q) >= 1."""
    return tuple(q for q in PERCENTILES if n * (1 - Fraction(str(q))) >= 1)


def measured(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that were scheduled in the measuring window, not in the warm-up, in the order of their schedule."""
    return requests[requests["phase"] == "measure"].sort_values("scheduled_s", kind="stable")


def is_ok(requests: pd.DataFrame) -> pd.Series:
    """Which requests were answered with an image."""
    return requests["error"].isna() & requests["done_s"].notna()


def is_censored(requests: pd.DataFrame) -> pd.Series:
    """Which requests had not ended when the run was cut: how long they would have taken is not known."""
    return requests["done_s"].isna()


def latencies(requests: pd.DataFrame) -> pd.Series:
    """Seconds from the scheduled time to the image, one per request measured; NaN, for percentile() longer than all
    others, where no image came. So "95 % took at most x" is said of every request, also where many were refused."""
    asked = measured(requests)
    return asked["latency_s"].where(is_ok(asked))


def latency_parts(requests: pd.DataFrame) -> pd.DataFrame:
    """Seconds that each measured image spent in each of the server's PARTS, in the rest of the server's total (OTHER)
    and outside of the server (REST): together its latency. A part that the server does not tell is NaN. One row per
    image whose server told its total.
    """
    asked = measured(requests)
    told = asked[is_ok(asked) & asked["total_s"].notna()]
    parts = pd.DataFrame({part: told[f"{part}_s"] for part in PARTS})
    return parts.assign(
        **{
            OTHER: told["total_s"] - parts.sum(axis="columns"),
            REST: told["latency_s"] - told["total_s"],
        }
    )


def is_steady(record: dict[str, Any], requests: pd.DataFrame) -> bool | None:
    """False where latency still drifts in the measuring window, None where a ramp or fewer than 40 rows can't say."""
    return (
        None
        if record["spec"]["arrivals"]["kind"] == "ramp"
        else intervals.is_stable(latencies(requests))
    )


def summarise(record: dict[str, Any], requests: pd.DataFrame, telemetry: pd.DataFrame) -> pd.Series:
    """A run's figures by name; None where there is none.

    Counts are of requests scheduled in the measuring window, and `offered_images_per_s` is how many a second these
    were. `latency_pNN_s` are percentiles over all of them (see latencies); the mean, the maximum and the parts are of
    those that got an image. `throughput_images_per_s` counts images done inside the window, whenever they were
    scheduled. Each `_interval` is of 95 %, or None; then `latency_interval_note` says why. `state` is "steady", or
    "unstable" where latency still drifts in the window (then percentiles and mean are None), or None where fewer than
    40 rows or a ramp can't say. `mser5_warmup_s` is where MSER-5 would end the warm-up, to hold beside the fixed one.
    `queue_share` is the sum of time in the server's queue over the sum of latencies. `energy_per_image_j` is what the
    GPU took in the window (energy_j) over the images done in it; None without samples of its power. `rss_peak_gib` and
    the `cuda_` peaks are the highest samples of the whole run, `server_peak_gib` the highest that the server itself
    told.
    """
    asked = measured(requests)
    ok = asked[is_ok(asked)]
    outcome = record["outcome"] or {}
    series = latencies(requests)
    steady = is_steady(record, requests)
    shown = series if steady is not False else series[:0]
    ended = requests[is_ok(requests)].sort_values("scheduled_s", kind="stable")
    settled = ended["scheduled_s"].iloc[intervals.mser5(ended["latency_s"]) :]
    window = _window(outcome)
    throughput, throughput_interval = _throughput(requests, outcome)
    estimated = Estimates(shown)
    figures: dict[str, Any] = {
        "requests": len(asked),
        "ok": len(ok),
        "failed": int((asked["error"].notna() & ~is_censored(asked)).sum()),
        "censored": int(is_censored(asked).sum()),
        "offered_images_per_s": len(asked) / (window[1] - window[0]) if window else None,
        "throughput_images_per_s": throughput,
        "throughput_images_per_s_interval": throughput_interval,
    }
    for q in PERCENTILES:
        figures[f"latency_p{100 * q:g}_s"] = percentile(shown, q)
        figures[f"latency_p{100 * q:g}_s_interval"] = (
            estimated.percentile_interval(q) if steady else None
        )
    figures |= {
        "latency_mean_s": None if steady is False else _known(ok["latency_s"].mean()),
        "latency_mean_s_interval": Estimates(ok["latency_s"]).mean_interval() if steady else None,
        "latency_max_s": _known(ok["latency_s"].max()),
        "latency_interval_note": _interval_note(
            record, series, steady, figures["latency_p95_s_interval"]
        ),
        "state": {True: "steady", False: "unstable", None: None}[steady],
        "mser5_warmup_s": _known(settled.min()),
    }
    queued = ok[ok["queue_s"].notna()]
    figures["queue_share"] = (
        _known(queued["queue_s"].sum() / queued["latency_s"].sum()) if len(queued) else None
    )
    for part in (*STAGES, "service"):
        figures[f"{part}_mean_s"] = _known(ok[f"{part}_s"].mean())
    figures |= {
        "network_and_client_median_s": _known((ok["latency_s"] - ok["total_s"]).median()),
        "batch_size_mean": _known(ok["batch_size"].mean()),
        "energy_per_image_j": _energy_per_image_j(telemetry, outcome, throughput),
        "server_peak_gib": _known(ok["server_peak_gib"].max()),
        "rss_peak_gib": _known(telemetry["rss_gib"].max()),
        "cuda_allocated_peak_gib": _known(telemetry["cuda_allocated_gib"].max()),
        "cuda_reserved_peak_gib": _known(telemetry["cuda_reserved_gib"].max()),
        "server_cpu_cores": _known(telemetry["server_cpu_cores"].mean()),
        "generator_cpu_cores": outcome.get("generator_cpu_cores"),
        "send_lag_p99_s": outcome.get("send_lag_p99_s"),
        "in_flight_mean": outcome.get("in_flight_mean"),
        "max_in_flight_hits": outcome.get("max_in_flight_hits"),
        "errors": errors_by_kind(asked),
    }
    reason = _invalid_reason(record, asked, ok)
    return pd.Series(figures | {"valid": reason is None, "invalid_reason": reason}, dtype=object)


def energy_j(telemetry: pd.DataFrame, start_s: float, end_s: float) -> float | None:
    """Joules that the sampled GPU took from `start_s` to `end_s`: its power integrated by the trapezoidal rule.

    None where the power is not known from before the start until after the end, give or take a second.
    """
    known = telemetry.reindex(columns=["time_s", "gpu_power_w"]).dropna()
    time_s, power_w = known["time_s"].to_numpy(), known["gpu_power_w"].to_numpy()
    if not len(known) or not start_s < end_s or time_s[0] > start_s + 1 or time_s[-1] < end_s - 1:
        return None
    moments_s = np.array([start_s, *time_s[(start_s < time_s) & (time_s < end_s)], end_s])
    watts = np.interp(moments_s, time_s, power_w)
    return float((np.diff(moments_s) * (watts[1:] + watts[:-1]) / 2).sum())


def goodput(requests: pd.DataFrame, record: dict[str, Any], *, latency_s: float) -> float | None:
    """Requests per second that got their image within `latency_s`, of those scheduled in the measuring window; errors,
    refusals and late answers count against it. None where the window is not known."""
    window = _window(record["outcome"] or {})
    return (
        float((latencies(requests) <= latency_s).sum() / (window[1] - window[0]))
        if window
        else None
    )


@dataclass(frozen=True)
class Slo:
    """A promise: the share `q` of all requests gets its image within `latency_s`."""

    q: float
    latency_s: float

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Reads "p95 < 2 s", "p99.9 < 800 ms" or "99 % within 20 s"; ValueError for anything else."""
        number = r"(\d+(?:\.\d+)?)"
        found = re.fullmatch(
            rf"\s*(?:p{number}\s*<=?|{number}\s*%\s*within)\s*{number}\s*(ms|s)\s*", text
        )
        percent, limit = (found[1] or found[2], float(found[3])) if found else ("0", 0.0)
        if not (found and 0 < float(percent) < 100 and limit > 0):
            raise ValueError(
                f'slo: {text!r} is not understood; write "p95 < 2 s" or "99 % within 20 s"'
            )
        return cls(float(Fraction(percent) / 100), limit / 1000 if found[4] == "ms" else limit)

    def judge(self, latencies_s: Iterable[float]) -> Literal["met", "missed", "not shown"]:
        """Whether latencies in the order of their requests show, at 97.5 % confidence, that the promise is kept or that
        it is broken; NaN is a request that got no image, and is late.

        By the binomial for the share in time, with n over the correlation time (Estimates.effective_number) for
        dependent latencies: a shorter series than an interval asks for can be judged, if less surely. Latencies that
        still drift never show that it is kept. A promise to 90 % or more of the requests is broken, too, where of the
        last third none is in time: a backlog that only grows is worth one independent value, which could show nothing.
        """
        series = np.asarray(list(latencies_s), dtype=float)
        if not len(series):
            return "not shown"
        n = Estimates(series).effective_number()
        in_time = int(np.floor(np.mean(series <= self.latency_s) * n + 1e-9))
        if (
            1 - intervals.binomial_cdf(in_time - 1, n, self.q) <= 0.025
            and intervals.is_stable(series) is not False
        ):
            return "met"
        last = series[-(len(series) // 3) :]
        overloaded = self.q >= 0.9 and len(last) >= 10 and not (last <= self.latency_s).any()
        return (
            "missed"
            if overloaded or intervals.binomial_cdf(in_time, n, self.q) <= 0.025
            else "not shown"
        )


def checks(record: dict[str, Any], requests: pd.DataFrame, telemetry: pd.DataFrame) -> pd.DataFrame:
    """Whether the measurement agrees with itself: a row per check with `value`, `limit`, `passed` (None: not known) and
    a `note` that says what is compared.

    Little's law in its finite-window form (Little, Operations Research 59, 2011): the rows' time in flight over the
    window, against the gauge that was sampled beside them. The engine can't have worked longer than the window. A
    client can't have its answer before the server was done, and what lies between should be short. The generator should
    neither be busy nor, in an open loop, send late or hold anything back.
    """
    outcome, ok = record["outcome"] or {}, requests[is_ok(requests)]
    rows: list[tuple[str, float | None, float | None, bool | None, str]] = []

    def check(name: str, value: float | None, limit: float, note: str) -> None:
        rows.append((name, value, limit, None if value is None else bool(value <= limit), note))

    off = busy = None
    in_flight = edge = 0.0
    if window := _window(outcome):
        (start_s, end_s), gauge = window, outcome.get("in_flight_mean")
        inside = requests["done_s"].fillna(end_s).clip(*window) - requests["scheduled_s"].clip(
            *window
        )
        in_flight = float(inside.sum() / (end_s - start_s))
        off = None if gauge is None else abs(in_flight - gauge)
        served = ok[ok["done_s"].between(*window) & ok["service_s"].notna()]
        if len(served):
            shared = served["service_s"] / served["batch_size"].fillna(1).clip(lower=1)
            busy, edge = (
                float(shared.sum() / (end_s - start_s)),
                float(served["service_s"].max() / (end_s - start_s)),
            )
    gap = (ok["latency_s"] - ok["total_s"]).dropna()
    near_s = 0.01 + 0.05 * float(ok["latency_s"].median()) if len(ok) else 0.01
    cores, hits = outcome.get("generator_cpu_cores"), outcome.get("max_in_flight_hits")
    little = f"requests in flight on average: as counted at random moments, less {in_flight:.3g} by the rows"
    check("Little's law", off, max(0.1, 0.05 * in_flight), little)
    check(
        "engine busy",
        busy,
        1.01 + edge,
        "seconds that the model worked, in each second of the window",
    )
    check(
        "answer after server",
        _known(-gap.min()),
        0.001,
        "s; the server's own total less the latency, at most",
    )
    check(
        "network and client",
        _known(gap.median()),
        near_s,
        "s; the latency less the server's own total, median",
    )
    check(
        "send lag",
        outcome.get("send_lag_p99_s"),
        _lag_limit(ok),
        "s that a request left after it was due, p99",
    )
    check(
        "generator, cores",
        cores,
        GENERATOR_CORES,
        "CPU cores taken by what sends the requests; it can use one",
    )
    if _is_open(record):
        check(
            "in flight limit",
            hits,
            0,
            "requests held back because max_in_flight others were with the server",
        )
    check(
        "sampler",
        _known(telemetry["time_s"].diff().max()),
        2.0,
        "s between samples of memory and CPU, at most",
    )
    return pd.DataFrame(rows, columns=["check", "value", "limit", "passed", "note"]).astype(
        {"passed": object}
    )


def errors_by_kind(requests: pd.DataFrame) -> dict[str, int]:
    """How many of `requests` failed, by HTTP status or, where there was no answer, by the error's first words."""
    failed = requests[requests["error"].notna() & ~is_censored(requests)]
    kinds = [
        str(error).partition(":")[0].partition("(")[0].strip()
        if pd.isna(status)
        else f"HTTP {status}"
        for status, error in zip(failed["http_status"], failed["error"], strict=True)
    ]
    return dict(Counter(kinds))


GENERATOR_CORES = 0.8
"""An open loop whose generator took more than this of a core may have been held up by itself."""


def _window(outcome: dict[str, Any]) -> tuple[float, float] | None:
    start_s, end_s = outcome.get("window_start_s"), outcome.get("window_end_s")
    return None if start_s is None or end_s is None or end_s <= start_s else (start_s, end_s)


def _throughput(requests: pd.DataFrame, outcome: dict[str, Any]) -> tuple[float | None, Interval]:
    """Images per second of the window; its interval is that of the mean time between one image and the next, inverted
    and widened to hold the window's own count."""
    if not (window := _window(outcome)):
        return None, None
    # With a fixed number of requests the window ends at the last one's done_s, which counts: both ends are inside.
    done = requests["done_s"][is_ok(requests) & requests["done_s"].between(*window)].sort_values()
    rate = len(done) / (window[1] - window[0])
    between = Estimates(np.diff(done.to_numpy())).mean_interval()
    if between is None or between[0] <= 0:
        return rate, None
    return rate, (min(1 / between[1], rate), max(1 / between[0], rate))


def _energy_per_image_j(
    telemetry: pd.DataFrame, outcome: dict[str, Any], images_per_s: float | None
) -> float | None:
    if not images_per_s or not (window := _window(outcome)):
        return None
    energy = energy_j(telemetry, *window)
    return None if energy is None else energy / (images_per_s * (window[1] - window[0]))


def _interval_note(
    record: dict[str, Any], series: pd.Series, steady: bool | None, p95: Interval
) -> str | None:
    if record["spec"]["arrivals"]["kind"] == "ramp":
        return "none: the load changes while a ramp lasts, so there is no steady state to estimate"
    if steady is False:
        return "unstable: latency still drifts in the measuring window, so there is no steady state to estimate"
    if p95:
        return None
    n, needed = len(series), Estimates(series).rows_needed(0.95)
    needed = needed if needed > n else 3 * n // 2
    why = (
        "successive latencies depend on each other"
        if n >= intervals.MIN_ROWS
        else "too few to tell if they depend"
    )
    return f"none for p95 from {n} rows ({why}): about {needed} are needed, or 5 independent runs (repeat=5)"


def _is_open(record: dict[str, Any]) -> bool:
    arrivals = record["spec"]["arrivals"]
    return bool(arrivals["kind"] != "closed_loop" and arrivals.get("of") != "users")


def _lag_limit(ok: pd.DataFrame) -> float:
    return 0.005 + 0.01 * (float(ok["latency_s"].median()) if len(ok) else 0.0)


def _invalid_reason(record: dict[str, Any], asked: pd.DataFrame, ok: pd.DataFrame) -> str | None:
    if record["status"] == "running":
        return "the run is still going on, or was killed before it ended"
    if record["status"] != "finished":
        return f"the run was {record['status']}" + (
            f": {record['error']}" if record["error"] else ""
        )
    if not len(asked):
        return "no request was scheduled in the measuring window"
    if not len(ok):
        return f"none of {len(asked)} requests got an image"
    outcome = record["outcome"] or {}
    if graphs := outcome.get("graphs_made"):
        return f"the server compiled or recorded {graphs} graphs meanwhile; serve(sizes=...) makes it ready beforehand"
    if not _is_open(record):
        return None
    lag_s, cores = outcome.get("send_lag_p99_s"), outcome.get("generator_cpu_cores")
    if lag_s is not None and lag_s > _lag_limit(ok):
        return f"the generator fell behind: the p99 of its send lag is {lag_s:.3g} s, the limit {_lag_limit(ok):.3g} s"
    if cores is not None and cores > GENERATOR_CORES:
        return f"the generator took {cores:.2g} cores, over {GENERATOR_CORES}: it may have fallen behind unseen"
    return None


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
