"""Whether a run can be trusted: it agrees with itself, and nothing but the server slowed it down.

Pure functions on a run's record and frames. Ignorant of what the figures mean to a reader
(summary.py).
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchlib.study.busy import busy_limit, other_work_of, taken_cores
from benchlib.study.latency import (
    Record,
    errors_by_kind,
    has_failed,
    in_window,
    is_ok,
    measuring_window,
)
from benchlib.study.record_shape import MOST_FAILED
from benchlib.study.wording import counted, number

GENERATOR_CORES = 0.8
"""Above this share of a core, an open loop's generator may itself have held up requests."""

_COLUMNS = ["check", "value", "limit", "passed", "note"]


def checks(record: Record, requests: pd.DataFrame, telemetry: pd.DataFrame) -> pd.DataFrame:
    """Whether the measurement agrees with itself: a row per check.

    The columns are `check`, `value`, `limit`, `passed` and `note`. `passed` is None where the value
    is not known; `note` says what is compared. Little's law is taken in its finite-window form
    (Little, Operations Research 59, 2011).
    """
    # 1) The checks of every run.
    outcome = record["outcome"] or {}
    ok = requests[is_ok(requests)]
    outside_s = (ok["latency_s"] - ok["total_s"]).dropna()
    rows = [
        _check_littles_law(record, requests),
        _check_engine(record, ok),
        # A client can't have its answer before the server is done, and the time between should be
        # short.
        (
            "answer after server",
            -outside_s.min(),
            0.001,
            "s, at most: the server's own total minus the latency",
        ),
        (
            "network and client",
            outside_s.median(),
            0.01 + 0.05 * _median_latency_s(ok),
            "s, median: the latency minus the server's own total",
        ),
        # The generator should neither be busy nor, in an open loop, send late or hold anything
        # back.
        (
            "send lag",
            outcome.get("send_lag_p99_s"),
            _most_lag_s(ok),
            "s, p99: from the moment a request was due until it was sent",
        ),
        (
            "generator, cores",
            outcome.get("generator_cpu_cores"),
            GENERATOR_CORES,
            "CPU cores that the load generator's busiest process took; it can use one",
        ),
    ]

    # 2) Whether other work left the run its cores.
    others = taken_cores(other_work_of(record, telemetry))
    note = "CPU cores that other processes and the hypervisor took, on average in the window"
    rows.append(("other processes, cores", others, busy_limit(record), note))

    # 3) The check of an open loop, that of the images, and the sampler's.
    if _is_open(record):
        held_back = outcome.get("max_in_flight_hits")
        note = "requests held back because max_in_flight others were at the server"
        rows.append(("in flight limit", held_back, 0, note))
    broken = outcome.get("nonfinite_images")
    if broken is not None:
        note = "images of NaN or infinite numbers: they have no meaning"
        rows.append(("images not finite", broken, 0, note))
    longest_gap_s = telemetry["time_s"].diff().max()
    rows.append(
        ("sampler", longest_gap_s, 2.0, "s, at most: between two samples of memory and CPU")
    )
    rows += _checks_of_workers(outcome.get("workers"), _most_lag_s(ok))

    # 4) Judge each value by its limit.
    table = [(name, *_judged(value, limit), note) for name, value, limit, note in rows]
    return pd.DataFrame(table, columns=_COLUMNS).astype({"passed": object})


def invalid_reason(record: Record, requests: pd.DataFrame) -> str | None:
    """Why the run's figures can't be trusted, in words; None where they can."""
    if record["status"] != "finished":
        return how_it_ended(record)
    lost = _lost_workers(record)
    if lost:
        return lost[0]
    measured = in_window(requests)
    if not len(measured):
        return "no request was scheduled in the measuring window"
    ok = measured[is_ok(measured)]
    if not len(ok):
        none = f"none of {counted(len(measured), 'request')} got an image"
        return f"{none}{_kinds_of(measured)}{_targets_of(measured, measured)}"
    failure = _too_many_failures(record, measured)
    if failure is not None:
        return failure
    outcome = record["outcome"] or {}
    broken = outcome.get("nonfinite_images")
    if broken:
        return f"the server said of {counted(broken, 'image')}: NaN or infinite numbers"
    graphs = outcome.get("graphs_made")
    if graphs:
        made = counted(graphs, "graph")
        advice = "serve(sizes=...) makes the server ready beforehand"
        return f"the server compiled or recorded {made} during the run; {advice}"
    if _is_open(record):
        return _generator_fault(outcome, _most_lag_s(ok))
    return None


def _too_many_failures(record: Record, measured: pd.DataFrame) -> str | None:
    """Why so many failures make a run invalid; None if they are within its limit."""
    limit = record["spec"].get("most_failed")
    if limit is None:
        limit = MOST_FAILED
    failed = measured[has_failed(measured)]
    share = len(failed) / len(measured)
    if share <= limit:
        return None
    words = f"{number(100 * share)} % of {counted(len(measured), 'request')} failed"
    kinds = f"{_kinds_of(failed)}{_targets_of(failed, measured)}"
    return f"{words}, and the limit is {number(100 * limit)} %{kinds}"


def _kinds_of(requests: pd.DataFrame) -> str:
    """The kinds of the errors of `requests` in brackets, such as " (HTTP 401: 40)", or nothing."""
    kinds = [f"{kind}: {count}" for kind, count in errors_by_kind(requests).items()]
    return f" ({', '.join(kinds)})" if kinds else ""


def _targets_of(failed: pd.DataFrame, measured: pd.DataFrame) -> str:
    """Which of several servers failed, such as "; http://b: 40 of 41"; nothing for a single one."""
    requests = measured["target"].value_counts()
    if len(requests) < 2:
        return ""
    failures = failed["target"].value_counts()
    parts = [f"{url}: {count} of {requests[str(url)]}" for url, count in failures.items()]
    return f"; {', '.join(parts)}"


def how_it_ended(record: Record) -> str:
    """What became of a run, as a clause: "the run finished", "the run failed: no such model"."""
    status = record["status"]
    if status == "running":
        return "the run is still going on, or was killed before it ended"
    verb = "was interrupted" if status == "interrupted" else status
    cause = f": {record['error']}" if record.get("error") else ""
    return f"the run {verb}{cause}"


def _generator_fault(outcome: dict[str, Any], most_lag_s: float) -> str | None:
    lag_s = outcome.get("send_lag_p99_s")
    if lag_s is not None and lag_s > most_lag_s:
        lag = f"the p99 of its send lag is {lag_s:.3g} s, the limit {most_lag_s:.3g} s"
        return f"the generator fell behind: {lag}"
    cores = outcome.get("generator_cpu_cores")
    if cores is not None and cores > GENERATOR_CORES:
        took = f"the generator took {cores:.2g} cores, over {GENERATOR_CORES}"
        return f"{took}: it may have fallen behind unseen"
    return None


_Row = tuple[str, float | None, float, str]  # name, value, limit, note


def _check_littles_law(record: Record, requests: pd.DataFrame) -> _Row:
    """Compares the mean number in flight by the rows with the gauge's random samples."""
    in_flight = 0.0
    difference = None
    window = measuring_window(record)
    if window:
        start_s, end_s = window
        from_s = requests["scheduled_s"].clip(start_s, end_s)
        to_s = requests["done_s"].fillna(end_s).clip(start_s, end_s)
        in_flight = float((to_s - from_s).sum() / (end_s - start_s))
        gauge = record["outcome"].get("in_flight_mean")
        if gauge is not None:
            difference = abs(in_flight - gauge)
    note = "mean requests in flight: the difference between samples at random moments and"
    limit = max(0.1, 0.05 * in_flight)
    return "Little's law", difference, limit, f"{note} the rows' {in_flight:.3g}"


def _check_engine(record: Record, ok: pd.DataFrame) -> _Row:
    """Compares the time that the model worked for the window's images with the window's length.

    The limit allows for one image that was begun before the window.
    """
    busy = None
    limit = 1.01
    window = measuring_window(record)
    if window:
        start_s, end_s = window
        served = ok[ok["done_s"].between(start_s, end_s) & ok["service_s"].notna()]
        if len(served):
            batch_size = served["batch_size"].fillna(1).clip(lower=1)
            busy = float((served["service_s"] / batch_size).sum() / (end_s - start_s))
            limit += float(served["service_s"].max() / (end_s - start_s))
    return "engine busy", busy, limit, "seconds that the model worked, in each second of the window"


def _checks_of_workers(workers: dict[str, Any] | None, most_off_s: float) -> list[_Row]:
    """Whether several workers were as good as one; nothing where one sent the load."""
    if workers is None:
        return []
    error_s = workers["clock_error_s"]
    return [
        ("workers lost", float(len(workers["lost"])), 0, "workers that ended before the run did"),
        ("clocks", error_s, most_off_s, "s, at most: by which a worker's times may be off"),
    ]


def _lost_workers(record: Record) -> list[str]:
    outcome = record["outcome"] or {}
    workers = outcome.get("workers") or {}
    lost: list[str] = workers.get("lost", [])
    return lost


def _judged(value: float | None, limit: float) -> tuple[float | None, float, bool | None]:
    if value is None or pd.isna(value):
        return None, limit, None
    return value, limit, bool(value <= limit)


def _is_open(record: Record) -> bool:
    arrivals = record["spec"]["arrivals"]
    return bool(arrivals["kind"] != "closed_loop" and arrivals.get("of") != "users")


def _most_lag_s(ok: pd.DataFrame) -> float:
    return 0.005 + 0.01 * _median_latency_s(ok)


def _median_latency_s(ok: pd.DataFrame) -> float:
    """In seconds, and 0 where there is no image: then the limits are at their lowest."""
    if not len(ok):
        return 0.0
    return float(ok["latency_s"].median())
