"""Plots of one server under many loads: latency and goodput against the offered rate, queueing against users or rate.

Knows what a reader must be told of each. Takes a study's `summary`, a row per run, or `Study.judge`'s where a promise
is judged, and the `record` of any of its runs. Ignorant of how loads are chosen and of how a capacity is found.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.study import estimates, figure, statistics
from benchlib.study.figure import number, whole_ticks

OFFERED = "offered load: images asked for per second, whether the server keeps up or not"
FEW_ROWS, FEW_RUNS = "too few requests for an interval", "an interval takes 5 runs at a load"
VERDICTS = {
    "met": ("a run that shows the promise kept", "o", figure.GREEN, figure.GREEN),
    "not shown": ("a run that shows neither", "o", "white", figure.BLUE),
    "missed": ("a run that shows it broken", "X", figure.RED, figure.RED),
    "": ("one run", "o", figure.BLUE, figure.BLUE),
}


@figure.styled
def hockey_stick(
    *,
    summary: pd.DataFrame,
    record: dict[str, Any],
    slo: str | None = None,
    capacity: tuple[float | None, float | None] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A percentile of latency, in seconds, against the rate of open loops, and where it passes what `slo` promises.

    The percentile is the promise's, or p95. `capacity` is a Capacity's interval, in images/s; without it what the runs'
    own verdicts show is told. A rate has no percentile where one of its runs has none; those beyond the last one that
    has are shaded where latency drifted. Raises ValueError for an `slo` whose percentile no summary has.
    """
    ax = figure.axes(ax)
    goal = statistics.Slo.parse(slo) if slo else None
    q = goal.q if goal else 0.95
    if q not in statistics.PERCENTILES:
        known = ", ".join(f"p{100 * one:g}" for one in statistics.PERCENTILES)
        raise ValueError(f"slo: {slo!r} is of a percentile that no summary has; take one of {known}")
    name, column = f"p{100 * q:g}", f"latency_p{100 * q:g}_s"
    ax.set(xlabel=OFFERED, ylabel="latency (from request to image), s")
    runs, left_out = _valid(summary, "rate")
    if not len(runs):
        return figure.no_data(ax, record, f"{name} by offered load", "no valid run of an open loop")
    curve = _curve(runs, "rate", column)
    told, last = _told(curve), runs["rate"].max()
    highest_s = np.nanmax([*curve["mean"], *curve["high"], goal.latency_s if goal else 1e-3])
    ax.set(xlim=(0, 1.08 * last), ylim=(0, 1.2 * highest_s))
    _draw(ax, curve, figure.BLUE, f"{100 * q:g} % took at most")
    verdicts = runs["verdict"] if goal and "verdict" in runs else pd.Series("", runs.index)
    for verdict, (label, marker, face, edge) in VERDICTS.items():
        some = runs[verdicts.eq(verdict) & runs["rate"].isin(told)]
        if len(some):
            style: dict[str, Any] = {"marker": marker, "facecolor": face, "edgecolor": edge, "zorder": 3}
            ax.scatter(some["rate"], some[column].astype(float), s=36, label=label, **style)
    if silent := [rate for rate in curve.index if rate not in told]:
        label = f"no {name}: latency drifted, or too few images"
        ax.scatter(silent, np.full(len(silent), 0.03 * highest_s), marker="x", color=figure.GREY, label=label)
    drifted = runs["rate"][runs["state"].eq("unstable") & (runs["rate"] > max(told, default=0))]
    if len(drifted):
        shade: dict[str, Any] = {"color": figure.GREY, "alpha": 0.2, "linewidth": 0}
        ax.axvspan(drifted.min(), 1.08 * last, label="unstable: latency kept rising", **shade)
    low, high = ends = capacity or _shown(runs["rate"], verdicts)
    if low and high:
        label = f"capacity: between {number(low)} and {number(high)}/s"
        ax.axvspan(low, high, color=figure.ORANGE, alpha=0.3, linewidth=0, hatch="//", label=label)
    elif one := low or high:
        label = f"capacity: {'above' if low else 'below'} {number(one)}/s"
        ax.axvline(one, color=figure.ORANGE, linestyle="-.", linewidth=2, label=label)
    if goal:
        ax.axhline(goal.latency_s, color=figure.RED, linestyle="--", linewidth=1)
        figure.label_at_right(ax, [(goal.latency_s, f"promised:\n{slo}", figure.RED)])
        finding = _crossing(name, f"{number(goal.latency_s)} s", *ends)
    elif told:
        finding = (
            f"{name} was {number(told[max(told)])} s at {number(max(told))} images/s, the highest rate that has one"
        )
    else:
        finding = f"no rate had a {name}"
    pad = _legend_above(ax)
    seen = "; ".join(f"{number(p95)} s at {number(rate)}/s" for rate, p95 in told.items()) or "at no rate"
    return figure.finish(
        ax, record, finding + left_out, f"{name} by offered load: {seen}.", of=_of(record, runs), pad=pad
    )


@figure.styled
def goodput_curve(*, summary: pd.DataFrame, record: dict[str, Any], slo: str, ax: Axes | None = None) -> Axes:
    """Images per second that came within what `slo` promises, against those that an open loop asked for.

    Chance makes these more or fewer than its rate says. `summary` is `Study.judge(slo)`'s. The dashed line is where
    every image that is asked for comes in time.
    """
    ax = figure.axes(ax)
    within = f"within {number(statistics.Slo.parse(slo).latency_s)} s"
    ax.set(xlabel="offered load: images that were in fact asked for, 1/s", ylabel=f"goodput: images {within}, 1/s")
    runs, left_out = _valid(summary, "rate")
    if not len(runs):
        return figure.no_data(ax, record, f"images {within}", "no valid run of an open loop")
    offered, good = (runs[f"{name}_images_per_s"].astype(float) for name in ("offered", "goodput"))
    curve = _curve(runs, "rate", "goodput_images_per_s").set_axis(offered.groupby(runs["rate"]).mean().to_numpy())
    last = 1.08 * offered.max()
    ax.plot([0, last], [0, last], "--", color=figure.GREY, linewidth=1, label=f"all of them came {within}")
    ax.scatter(offered, good, s=30, marker="D", color=figure.GREEN)
    _draw(ax, curve, figure.GREEN, "goodput", FEW_RUNS)
    ax.set(xlim=(0, last), ylim=(0, 1.15 * max(good.max(), 0.5 * last)))
    pad = _legend_above(ax)
    told = _told(curve)
    best, end = max(told, key=lambda rate: told[rate]), max(told)
    finding = f"at most {number(told[best])} images/s came {within}, with {number(best)} asked for"
    if end != best:
        finding += f"; with {number(end)}, {number(told[end])}"
    seen = "; ".join(f"{number(good)} of {number(rate)}" for rate, good in told.items())
    return figure.finish(ax, record, finding + left_out, f"Images/s {within}: {seen}/s.", of=_of(record, runs), pad=pad)


@figure.styled
def queue_share(*, summary: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """How much of all latency, in percent, was waiting in the server's queue, against the users of closed loops, or
    else the rate of open ones."""
    ax = figure.axes(ax)
    by = "users" if "users" in summary and summary["users"].notna().any() else "rate"
    ax.set(xlabel="users, each waiting for an image before asking again" if by == "users" else OFFERED)
    ax.set(ylabel="share of latency spent in the queue, %")
    runs, left_out = _valid(summary, by)
    runs = runs.assign(percent=100 * runs["queue_share"].astype(float)) if len(runs) else runs
    if not len(runs) or runs["percent"].isna().all():
        return figure.no_data(ax, record, "waiting in the queue", "no valid run whose server told its queue")
    curve = _curve(runs, by, "percent")
    ax.scatter(runs[by], runs["percent"], s=30, color=figure.ORANGE, edgecolor="black", linewidth=0.5, zorder=3)
    _draw(ax, curve, figure.ORANGE, "waiting in the queue", FEW_RUNS)
    ax.set(xlim=(0, 1.08 * runs[by].max()), ylim=(0, 105))
    if by == "users":
        whole_ticks(ax.xaxis)
    pad = _legend_above(ax)
    unit = {True: "\u00a0user", False: "\u00a0users"} if by == "users" else {True: "/s", False: "/s"}
    seen = [f"{share:.0f} % with {number(at)}{unit[at == 1]}" for at, share in _told(curve).items()]
    finding = f"of all latency, {' and '.join([*seen[:1], *seen[1:][-1:]])} was waiting in the queue"
    return figure.finish(ax, record, finding + left_out, f"By load: {'; '.join(seen)}.", of=_of(record, runs), pad=pad)


def _valid(summary: pd.DataFrame, by: str) -> tuple[pd.DataFrame, str]:
    """The valid runs at a known load, lightest first, and the words for those that are left out."""
    asked = summary[summary[by].notna()] if by in summary else summary[:0]
    runs = asked[asked["valid"].astype(bool)].sort_values(by, kind="stable") if len(asked) else asked
    return runs, f"; {len(asked) - len(runs)} of {len(asked)} runs left out as not valid" * (len(runs) < len(asked))


def _curve(runs: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Per load `mean`, `low` and `high` of `column`: one run's own interval, or that of the mean of 5 and more; NaN
    where there is none, and for a load of which one run has no figure, for the others may be its luckier ones."""
    rows = {}
    for load, group in runs.groupby(by):
        values = group[column].astype(float)
        interval = estimates.runs_interval(list(values))
        if len(values) == 1 and f"{column}_interval" in group:
            interval = group[f"{column}_interval"].iloc[0]
        whole = values.notna().all()
        rows[load] = (values.mean() if whole else math.nan, *(interval if interval and whole else (math.nan, math.nan)))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def _told(curve: pd.DataFrame) -> dict[float, float]:
    means = curve["mean"].dropna()
    return dict(zip(means.index, means, strict=True))


def _draw(ax: Axes, curve: pd.DataFrame, colour: str, label: str, unless: str = FEW_ROWS) -> None:
    """A line through the means and a band between the intervals; where there are none, the legend says so."""
    if curve["low"].notna().any():
        beyond = curve[["low", "high"]].sub(curve["mean"], axis="index").abs().to_numpy().T
        ax.fill_between(curve.index, curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
        ax.errorbar(curve.index, curve["mean"], beyond, fmt="none", color=colour, capsize=3)
        label += ", with 95 % interval"
    else:
        label += f" ({unless})"
    ax.plot(curve.index, curve["mean"], color=colour, linewidth=1.5, label=label)


def _legend_above(ax: Axes) -> float:
    """Three entries a line, between plot and title; returns the title's distance, in points."""
    entries = len(ax.get_legend_handles_labels()[0])
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=3, fontsize="small", columnspacing=1.2)
    return 10 + 13 * math.ceil(entries / 3)


def _shown(rates: pd.Series, verdicts: pd.Series) -> tuple[float | None, float | None]:
    """The highest rate of which all runs kept the promise, below the lowest of which all broke it; None: no such."""
    said = verdicts.groupby(rates).agg(set)
    missed = [float(rate) for rate in rates if said[rate] == {"missed"}]
    met = [float(rate) for rate in rates if said[rate] == {"met"} and rate < min(missed, default=math.inf)]
    return max(met, default=None), min(missed, default=None)


def _crossing(name: str, limit: str, low: float | None, high: float | None) -> str:
    if low and high:
        return f"{name} passes {limit} between {number(low)} and {number(high)} images/s"
    if low:
        return f"{name} stays within {limit} up to {number(low)} images/s; where it passes is not shown"
    if high:
        return f"{name} is past {limit} from {number(high)} images/s on; how much keeps within is not shown"
    return f"where {name} passes {limit} is not shown"


def _of(record: dict[str, Any], runs: pd.DataFrame) -> str:
    return f"study {record['study']}, {len(runs)} run{'s' * (len(runs) > 1)}"
