"""Whether other work on the machine may have slowed a run, and the one sentence that says so.

Knows a run's record, samples and row of the summary. Ignorant of how other work is read
(other_work.py), and of where the sentence is shown: figures, answers, the page of all results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchlib.machine import BUSY_SHARE
from benchlib.study.wording import agreeing, number

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.study.latency import Record
    from benchlib.study.store import Run

TAKEN = ("others_cpu_cores", "steal_cores")
"""The columns of the samples, and the keys of the outcome and the summary."""
LEAST_STEAL = 0.05
"""Cores: what a hypervisor takes for itself, all the time, needs no words."""
UNWATCHED = "other work on the server's machine is not known"
"""What is said of a server that is known by its URL alone: nobody samples its machine."""
MEANING = "Times may be too long."


def other_work_of(record: Record, telemetry: pd.DataFrame) -> dict[str, float | None]:
    """The cores that others took on average in the measuring window, by the names of TAKEN.

    Each sample stands for the time since the one before. None without a sample in the window, as in
    older runs, which have no such columns.
    """
    return {name: _mean_in_window(record, telemetry, name) for name in TAKEN}


def _mean_in_window(record: Record, telemetry: pd.DataFrame, name: str) -> float | None:
    from benchlib.study.latency import measuring_window

    window = measuring_window(record)
    if window is None or name not in telemetry:
        return None
    start_s, end_s = window
    time_s = telemetry["time_s"]
    span_s = time_s.diff()
    is_inside = (time_s > start_s) & (time_s <= end_s)
    counts = is_inside & telemetry[name].notna() & (span_s > 0)
    if not counts.any():
        return None
    taken_s = (telemetry[name] * span_s)[counts].sum()
    return float(taken_s / span_s[counts].sum())


def is_unwatched(record: Record) -> bool:
    """Whether the run's server is known by its URL alone."""
    return record["spec"]["target"]["model"] is None


def cores_of(record: Record) -> float:
    """The cores that the run could use: the container's limit, or else the CPUs."""
    machine = record["machine"]
    return float(machine.get("cpu_limit_cores") or machine["cores"])


def busy_limit(record: Record) -> float:
    """The most cores that others may take before a run is suspect."""
    return BUSY_SHARE * cores_of(record)


def taken_cores(taken: Mapping[str, Any]) -> float | None:
    """The cores that others and the hypervisor took together; None where unknown.

    `taken` has the names of TAKEN, as numbers or as a table's text.
    """
    others, steal = (_float_or_none(taken.get(name)) for name in TAKEN)
    if others is None:
        return None
    return others + (steal or 0.0)


def taken_words(taken: Mapping[str, Any], cores: float) -> str | None:
    """What others took, as a clause: "other processes took 1.3 of 2 cores"; None where unknown."""
    others, steal = (_float_or_none(taken.get(name)) for name in TAKEN)
    if others is None:
        return None
    all_cores = f"{number(cores)} {agreeing(cores, 'core', 'cores')}"
    clause = f"other processes took {number(others)} of {all_cores}"
    if steal is not None and steal >= LEAST_STEAL:
        clause += f" and the hypervisor {number(steal)}"
    return clause


def suspect_reason(record: Record, taken: Mapping[str, Any]) -> str | None:
    """Why the run's times may be too long; None where others took too little, or it is unknown."""
    cores = taken_cores(taken)
    if cores is None:
        return None
    limit = busy_limit(record)
    if cores <= limit:
        return None
    return f"{taken_words(taken, cores_of(record))} (limit: {number(limit)})"


def busy_sentence(runs: Iterable[Mapping[Any, Any]]) -> str | None:
    """What a reader must know of runs that are suspect; None where no run is.

    `runs` are rows of the summary, or of summary.csv. The busiest run's reason is given.
    """
    rows = list(runs)
    suspects = [row for row in rows if _text_or_none(row.get("suspect_reason"))]
    if not suspects:
        return None
    busiest = max(suspects, key=lambda row: taken_cores(row) or 0.0)
    reason = busiest["suspect_reason"]
    if len(rows) == 1:
        return f"The machine was busy: {reason}. {MEANING}"
    share = f"{len(suspects)} of {len(rows)} runs"
    return f"The machine was busy in {share}: {reason} in the busiest. {MEANING}"


def busy_sentence_of(runs: Iterable[Run]) -> str | None:
    """busy_sentence of runs, by their samples."""
    rows = []
    for run in runs:
        taken = other_work_of(run.record, run.telemetry)
        rows.append({**taken, "suspect_reason": suspect_reason(run.record, taken)})
    return busy_sentence(rows)


def record_of(runs: Sequence[Run]) -> Record:
    """The record that a figure of all these runs needs: the first one's, and the busiest's outcome.

    It has the name of the busiest run, too. Raises ValueError where there is no run.
    """
    if not runs:
        raise ValueError("runs: is empty; give the runs that a figure is made of")

    def taken(run: Run) -> float:
        return taken_cores(run.record["outcome"] or {}) or 0.0

    busiest = max(runs, key=taken).record
    return runs[0].record | {"run": busiest["run"], "outcome": busiest["outcome"]}


def busy_words(record: Record, *, one_of_many: bool = False) -> str | None:
    """The sentence for the run of a `record` alone, whose outcome says what others took.

    It says that this run was `one_of_many`, if so. `suspect_reason` in the summary finds the run.
    """
    reason = suspect_reason(record, record.get("outcome") or {})
    if reason is None:
        return None
    if one_of_many:
        return f"The machine was busy in at least one run: {reason} in the busiest. {MEANING}"
    return f"The machine was busy: {reason}. {MEANING}"


def _float_or_none(value: Any) -> float | None:
    if value is None or value == "" or math.isnan(float(value)):
        return None
    return float(value)


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
