"""What a run's rows say: percentiles, throughput, where the time went, and whether the run may be believed.

Pure functions on frames and a run's record: no files, no clocks, nothing drawn. Ignorant of how the rows were made. A
figure that the data can't support is None, never a guess.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import pandas as pd

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)

PARTS = ("queue", "wait", "encode", "denoise", "decode", "image")
"""The server's parts of a request, in the order in which they happen; each is a column with `_s` behind it."""

OTHER = "server, other"
REST = "network and client"

NO_INTERVAL = (
    "none: one run's successive latencies depend on each other, so its rows alone carry no interval; "
    "independent runs of the same load are needed"
)


def percentile(values: Iterable[float], q: float) -> float | None:
    """The smallest value that at least the share `q` of all values do not exceed: one that was measured, in its unit.

    A NaN stands for a value that is known only to be longer than all others (a request that was cut off, or failed).
    None where the rank falls among those, and where n(1-q) < 1: fewer than one value is expected beyond it. Raises
    ValueError for a q outside (0, 1). Source: definition 1 (the inverse of the empirical distribution function) in
    Hyndman & Fan, "Sample quantiles in statistical packages", The American Statistician 50 (1996).
    """
    if not 0 < q < 1:
        raise ValueError(f"q must be between 0 and 1, both excluded, not {q}: the 95th percentile is 0.95")
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
    """The requests that were scheduled in the measuring window, the warm-up left out."""
    return requests[requests["phase"] == "measure"]


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
        **{OTHER: told["total_s"] - parts.sum(axis="columns"), REST: told["latency_s"] - told["total_s"]}
    )


def summarise(record: dict[str, Any], requests: pd.DataFrame, telemetry: pd.DataFrame) -> pd.Series:
    """A run's figures by name; None where there is none.

    Counts are of requests scheduled in the measuring window. `latency_pNN_s` are percentiles over all of these (see
    latencies); the mean, the maximum and the parts are of those that got an image. `throughput_images_per_s` counts
    images done inside the window, whenever they were scheduled. `queue_share` is the sum of time in the server's queue
    over the sum of latencies. Each `_interval` is None and `latency_interval_note` says why. `rss_peak_gib` and the
    `cuda_` peaks are the highest samples of the whole run, `server_peak_gib` the highest that the server itself told.
    """
    asked = measured(requests)
    ok = asked[is_ok(asked)]
    censored = int(is_censored(asked).sum())
    outcome = record["outcome"] or {}
    latency_s = latencies(requests)
    figures: dict[str, Any] = {
        "requests": len(asked),
        "ok": len(ok),
        "failed": len(asked) - len(ok) - censored,
        "censored": censored,
        "throughput_images_per_s": _throughput(requests, outcome),
        "throughput_images_per_s_interval": None,
    }
    for q in (0.5, 0.9, 0.95, 0.99):
        figures[f"latency_p{100 * q:g}_s"] = percentile(latency_s, q)
        figures[f"latency_p{100 * q:g}_s_interval"] = None
    figures |= {
        "latency_mean_s": _known(ok["latency_s"].mean()),
        "latency_mean_s_interval": None,
        "latency_max_s": _known(ok["latency_s"].max()),
        "latency_interval_note": NO_INTERVAL,
    }
    queued = ok[ok["queue_s"].notna()]
    figures["queue_share"] = _known(queued["queue_s"].sum() / queued["latency_s"].sum()) if len(queued) else None
    for part in ("encode", "denoise", "decode", "service"):
        figures[f"{part}_mean_s"] = _known(ok[f"{part}_s"].mean())
    figures |= {
        "network_and_client_median_s": _known((ok["latency_s"] - ok["total_s"]).median()),
        "batch_size_mean": _known(ok["batch_size"].mean()),
        "server_peak_gib": _known(ok["server_peak_gib"].max()),
        "rss_peak_gib": _known(telemetry["rss_gib"].max()),
        "cuda_allocated_peak_gib": _known(telemetry["cuda_allocated_gib"].max()),
        "cuda_reserved_peak_gib": _known(telemetry["cuda_reserved_gib"].max()),
        "server_cpu_cores": _known(telemetry["server_cpu_cores"].mean()),
        "generator_cpu_cores": outcome.get("generator_cpu_cores"),
        "errors": errors_by_kind(asked),
    }
    reason = _invalid_reason(record, asked, ok)
    return pd.Series(figures | {"valid": reason is None, "invalid_reason": reason}, dtype=object)


def errors_by_kind(requests: pd.DataFrame) -> dict[str, int]:
    """How many of `requests` failed, by HTTP status or, where there was no answer, by the error's first words."""
    failed = requests[requests["error"].notna() & ~is_censored(requests)]
    kinds = [
        str(error).partition(":")[0].partition("(")[0].strip() if pd.isna(status) else f"HTTP {status}"
        for status, error in zip(failed["http_status"], failed["error"], strict=True)
    ]
    return dict(Counter(kinds))


def _throughput(requests: pd.DataFrame, outcome: dict[str, Any]) -> float | None:
    start_s, end_s = outcome.get("window_start_s"), outcome.get("window_end_s")
    if start_s is None or end_s is None or end_s <= start_s:
        return None
    # With a fixed number of requests the window ends at the last one's done_s, which counts: both ends are inside.
    return float((is_ok(requests) & requests["done_s"].between(start_s, end_s)).sum() / (end_s - start_s))


def _invalid_reason(record: dict[str, Any], asked: pd.DataFrame, ok: pd.DataFrame) -> str | None:
    if record["status"] == "running":
        return "the run is still going on, or was killed before it ended"
    if record["status"] != "finished":
        return f"the run was {record['status']}" + (f": {record['error']}" if record["error"] else "")
    if not len(asked):
        return "no request was scheduled in the measuring window"
    if not len(ok):
        return f"none of {len(asked)} requests got an image"
    return None


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
