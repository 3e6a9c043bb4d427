"""What the plots of many loads share: which runs are drawn, their marks, the capacity, the end.

Knows a study's `summary`, a row for each run. Ignorant of what a line through or beside the marks
means (plots.py, foretold_plots.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from benchlib.study import figure
from benchlib.study.busy import busy_sentence
from benchlib.study.intervals import MIN_RUNS
from benchlib.study.wording import counted, number, numbers, per_second

USERS = "users, each waiting for an image before asking again"
VERDICTS = {  # label, marker, fill and edge of a run
    "met": ("a run that shows the promise kept", "o", figure.GREEN, figure.GREEN),
    "not shown": ("a run too short to show kept or broken", "o", "white", figure.BLUE),
    "missed": ("a run that shows it broken", "X", figure.RED, figure.RED),
}
Record = dict[str, Any]
Ends = tuple[float | None, float | None]
Means = dict[float, float]  # by load


class PlottedColumn(NamedTuple):
    """A column of the summary, and how it is drawn."""

    name: str
    label: str
    colour: str
    marker: str


THROUGHPUT = PlottedColumn("throughput_images_per_s", "", figure.GREEN, "D")
LATENCIES = (
    PlottedColumn("latency_p95_s", "95 % within this", figure.RED, "s"),
    PlottedColumn("latency_p50_s", "half within this", figure.BLUE, "o"),
)


def valid_runs(summary: pd.DataFrame, by: str, known: str = "valid") -> tuple[pd.DataFrame, str]:
    """Returns the valid runs that have a load and the figure `known`, lightest first.

    The second value says in words how many runs are left out.
    """
    if by not in summary or summary[by].isna().all():
        return summary[:0], ""
    at_load = summary[summary[by].notna()]
    is_valid = at_load["valid"].astype(bool) & at_load[known].notna()
    runs = at_load[is_valid].sort_values(by, kind="stable")
    left_out = len(at_load) - len(runs)
    if not left_out:
        return runs, ""
    return runs, f"; {left_out} of {counted(len(at_load), 'run')} left out as not valid"


def carried_loads(runs: pd.DataFrame, by: str) -> tuple[pd.DataFrame, str]:
    """Returns the runs at loads that have MIN_RUNS images, which carry a mean.

    The second value says in words how many loads are left out.
    """
    images = runs.groupby(by)["ok"].transform("sum")
    carried = runs[images >= MIN_RUNS]
    few = runs[by].nunique() - carried[by].nunique()
    if not few:
        return carried, ""
    return carried, f"; {counted(few, 'load')} with fewer than {MIN_RUNS} images left out"


def known_floats(runs: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats; empty where there is no run."""
    return runs[column].astype(float) if len(runs) else pd.Series(dtype=float)


def draw_run_marks(
    ax: Axes, runs: pd.DataFrame, by: str, column: PlottedColumn, *, line: bool = True
) -> Means:
    """Draws each run's value with its interval and, with `line`, a line through the means.

    Returns the means by load. Runs of fewer than MIN_RUNS images are marks, and in no mean.
    """
    values = runs[column.name].astype(float)
    if values.isna().all():
        return {}
    load = runs[by].astype(float)
    found = runs[f"{column.name}_interval"]
    figure.whiskers(ax, load, values, found, colour=column.colour, marker=column.marker)
    carried = values[runs["ok"] >= MIN_RUNS]
    means = carried.groupby(load).mean().dropna()
    if line:
        ax.plot(means.index, means, color=column.colour, linewidth=1.5)
    return dict(zip(means.index, means, strict=True))


def draw_verdicts(ax: Axes, runs: pd.DataFrame, took_s: pd.Series, load: str) -> None:
    """Draws a mark for each run whose percentile is known, at the rate in the column `load`.

    The mark depends on what the run shows of the promise.
    """
    verdicts = runs["verdict"] if len(runs) else pd.Series(dtype=object)
    for verdict, (label, marker, fill, edge) in VERDICTS.items():
        of_verdict = took_s[verdicts.eq(verdict)].dropna()
        if not len(of_verdict):
            continue
        ax.scatter(
            runs[load][of_verdict.index].astype(float),
            of_verdict,
            36,
            fill,
            marker=marker,
            edgecolor=edge,
            label=label,
            zorder=3,
        )


def draw_capacity(ax: Axes, capacity: Ends) -> None:
    """Draws a band between both ends of the capacity, or a line at the one that is known."""
    low, high = capacity
    if low and high:
        ax.axvspan(
            low,
            high,
            color=figure.ORANGE,
            alpha=0.3,
            linewidth=0,
            hatch="//",
            label="capacity: in this band",
        )
        return
    end = low or high
    if end:
        limit = "at least" if low else "less than"
        ax.axvline(
            end,
            color=figure.ORANGE,
            linestyle="-.",
            linewidth=2,
            label=f"capacity: {limit} this",
        )


def where_it_breaks(
    capacity: Ends, name: str, limit_s: float, runs: pd.DataFrame, took_s: pd.Series
) -> str:
    """Returns the capacity in words; where it is not known, how far all runs stayed within.

    `took_s` has the percentile of each of `runs`, or None.
    """
    limit = f"{number(limit_s)} s"
    low, high = capacity
    if low and high:
        lowest, highest = numbers([low, high])
        return f"{name} passes {limit} between {lowest} and {highest} images/s"
    if low:
        up_to = f"{name} stays within {limit} up to {per_second(low)}"
        return f"{up_to}; where it passes is not shown"
    if high:
        past = f"{name} is past {limit} from {per_second(high)} on"
        return f"{past}; what keeps within is not shown"
    known = took_s.notna()
    if known.any() and (took_s[known] <= limit_s).all():
        rate = runs["rate"][known].astype(float).max()
        seen = f"{name} of {counted(known.sum(), 'run')} up to {per_second(rate)}"
        return f"{seen} stayed within {limit}; where it passes is not shown"
    return f"where {name} passes {limit} is not shown"


def finish_load_plot(
    ax: Axes,
    record: Record,
    runs: pd.DataFrame,
    finding: str,
    alt: str,
) -> Axes:
    """Returns figure.finish with the legend between plot and title, three entries a line."""
    pad = figure.legend_above(ax, columnspacing=1.2)
    images = counted(known_floats(runs, "ok").sum(), "image")
    source = f"{figure.study_of(record, len(runs), 'run')}, {images}"
    busy = busy_sentence(runs.to_dict("records"))
    return figure.finish(ax, record, finding, alt, source=source, pad=pad, busy=busy)
