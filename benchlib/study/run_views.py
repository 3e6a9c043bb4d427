"""What a notebook's cell shows of a run and of a study: the answer in words, and a small table.

Knows the summary of a run. Ignorant of HTML (cell_view.py), and of how a figure is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from benchlib.cell_view import MOST_ROWS, CellView
from benchlib.study.busy import UNWATCHED, cores_of, is_unwatched, taken_words
from benchlib.study.folders import run_words
from benchlib.study.validity import invalid_reason
from benchlib.study.wording import counted, number, per_second, words

if TYPE_CHECKING:
    from benchlib.study.store import Run, Study

_FIGURES = (
    ("throughput", "throughput_images_per_s", "images/s"),
    ("half took at most", "latency_p50_s", "s"),
    ("95 % took at most", "latency_p95_s", "s"),
    ("99 % took at most", "latency_p99_s", "s"),
    ("memory of the process, at most", "rss_peak_gib", "GiB"),
    ("memory reserved on the GPU, at most", "cuda_reserved_peak_gib", "GiB"),
)
"""The figures of a run's table: what a reader calls them, their names, and their units."""

_COLUMNS = (
    ("images/s", "throughput_images_per_s"),
    ("p50, s", "latency_p50_s"),
    ("p95, s", "latency_p95_s"),
    ("GiB", "rss_peak_gib"),
)
"""The figures of a study's table: the column's head, and the figure's name."""


def view_of_run(run: Run) -> CellView:
    """How the run went in a sentence, then its main figures."""
    summary = run.summary()
    rows = [("requests", _requests_words(summary))]
    for name, figure, unit in _FIGURES:
        if not pd.isna(summary[figure]):
            interval = summary.get(f"{figure}_interval")
            rows.append((name, words(summary[figure], interval, unit)))
    taken = taken_words(dict(summary), cores_of(run.record))
    if taken is None and is_unwatched(run.record):
        taken = UNWATCHED
    if taken is not None:
        rows.append(("beside it", taken))
    rows += [
        ("valid", _valid_words(summary)),
        ("server", _server_words(run)),
        ("folder", str(run.path)),
        ("more", "run.summary(), run.requests, run.checks(), run.plot.latency_over_time()"),
    ]
    return CellView(f"{_load_words(run)}: {_answer(run, summary)}", rows)


def view_of_study(study: Study) -> CellView:
    """How many runs there are and are valid, then a row for each run."""
    n = len(study.runs)
    valid = sum(_is_valid(run) for run in study.runs)
    answer = f"study {study.path.name}: {counted(n, 'run')}"
    if n:
        answer += f", {'all' if valid == n else valid} valid"
    head = ["run", "requests", *(name for name, _ in _COLUMNS), "valid"]
    # Each summary takes time, so the rest is counted alone.
    rows = [_row_of(run) for run in study.runs[:MOST_ROWS]]
    return CellView(answer, rows, head, left_out=n - len(rows))


def _is_valid(run: Run) -> bool:
    return invalid_reason(run.record, run.requests) is None


def _row_of(run: Run) -> tuple[str, ...]:
    summary = run.summary()
    figures = [_figure(summary[name]) for _, name in _COLUMNS]
    requests = f"{summary['requests']:,}"
    return (_load_words(run), requests, *figures, _valid_words(summary))


def _valid_words(summary: pd.Series) -> str:
    """Whether the run is valid, and what casts doubt on it."""
    if not summary["valid"]:
        return f"no: {summary['invalid_reason']}"
    if summary["suspect_reason"] is not None:
        return f"yes, but the machine was busy: {summary['suspect_reason']}"
    return "yes"


def _figure(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else number(value)


def _answer(run: Run, summary: pd.Series) -> str:
    """The run in a sentence: what is wrong with it, and what its users saw."""
    said = []
    if not summary["valid"]:
        said.append(f"not valid, as {summary['invalid_reason']}")
    if summary["suspect_reason"] is not None:
        said.append(f"the machine was busy, as {summary['suspect_reason']}")
    if not len(run.requests):
        return "; ".join([*said, "no request was sent"])
    if summary["throughput_images_per_s"]:
        said.append(per_second(summary["throughput_images_per_s"]))
    if summary["latency_p50_s"] is not None:
        said.append(f"half of the requests took at most {number(summary['latency_p50_s'])} s")
    elif summary["latency_max_s"] is not None:
        said.append(f"the slowest image took {number(summary['latency_max_s'])} s")
    if summary["ok"] < summary["requests"] or not said:
        said.append(_requests_words(summary))
    return "; ".join(said)


def _requests_words(summary: pd.Series) -> str:
    """How many requests counted, and how many of them got an image."""
    if summary["ok"] == summary["requests"]:
        return f"{counted(summary['requests'], 'request')}, each got an image"
    return f"{summary['ok']:,} of {counted(summary['requests'], 'request')} got an image"


def _load_words(run: Run) -> str:
    return run_words(run.spec)


def _server_words(run: Run) -> str:
    """The model and its device, or the address of a server that says nothing of its model."""
    target = run.spec["target"]
    known = [str(target[name]) for name in ("model", "dtype", "device") if target.get(name)]
    return " ".join(known) or str(target["url"])
