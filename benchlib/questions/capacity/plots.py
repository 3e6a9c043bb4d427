"""Plots of one server under many loads: throughput, latency, goodput and queueing against users or the offered rate.

Knows what a reader must be told of each. Takes a study's `summary`, a row per run, or `Study.judge`'s where a promise
is judged, and the `record` of any of its runs. Ignorant of how loads are chosen and of how a capacity is found.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.study import figure, intervals
from benchlib.study.figure import number, whole_ticks
from benchlib.study.latency import PERCENTILES
from benchlib.study.slo import Slo

FEW_ROWS, FEW_RUNS = "too few requests for an interval", "an interval takes 5 runs at a load"
VERDICTS = {
    "met": ("a run that shows the promise kept", "o", figure.GREEN, figure.GREEN),
    "not shown": ("a run that shows neither", "o", "white", figure.BLUE),
    "missed": ("a run that shows it broken", "X", figure.RED, figure.RED),
}
Ends = tuple[float | None, float | None]


@figure.styled
def load_curve(*, summary: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """Throughput and, in a panel below it, latency against the users of closed loops, or else the rate of open ones.

    `summary` is a Study's, a row per run, and `record` that of any of its runs. Each valid run is a mark, with its 95 %
    intervals where it has them; lines go through the means of runs at the same load. The upper panel is returned. An
    `ax` that is given makes room for the lower one, so it must be of a grid, as pyplot.subplots makes it.
    """
    upper = figure.axes(ax, height=6)
    by = "users" if "users" in summary and summary["users"].notna().any() else "rate"
    runs, left_out = _valid(summary, by, "throughput_images_per_s")
    if not len(runs):
        return figure.no_data(
            upper, record, "throughput and latency by load", "no valid run at a known load"
        )
    lower = figure.panel_below(upper)
    load, labels = runs[by].astype(float), []
    for panel, name, label, colour, marker in (
        (upper, "throughput_images_per_s", "", figure.GREEN, "D"),
        (lower, "latency_p95_s", "95 % within this", figure.RED, "s"),
        (lower, "latency_p50_s", "half within this", figure.BLUE, "o"),
    ):
        values = runs[name].astype(float)
        if values.notna().any():
            beyond = figure.beyond(values, runs[f"{name}_interval"])
            panel.errorbar(load, values, beyond, fmt=marker, color=colour, capsize=3, markersize=5)
            means = values.groupby(load).mean().dropna()
            panel.plot(means.index, means, color=colour, linewidth=1.5)
            labels += [(float(means.iloc[-1]), label, colour)] * (panel is lower)
    for drifted in load[runs["state"] == "unstable"].unique():
        place: Any = lower.get_xaxis_transform()
        lower.text(
            drifted,
            0.03,
            "latency drifted,\nno percentile",
            transform=place,
            ha="center",
            fontsize="small",
        )
    for panel, label in ((upper, "throughput, images/s"), (lower, "latency, s")):
        panel.set(ylabel=label, ylim=(0, 1.1 * panel.get_ylim()[1]))
    lower.set_xlabel(
        "users, each waiting for an image before asking again"
        if by == "users"
        else "requests sent, 1/s"
    )
    lower.set_xlim(0, 1.08 * load.max())
    if by == "users":
        whole_ticks(lower.xaxis)
    figure.label_at_right(lower, labels)
    if not (labels or (runs["state"] == "unstable").any()):
        lower.text(
            0.5,
            0.5,
            "too few requests for a percentile",
            transform=lower.transAxes,
            ha="center",
            va="center",
        )
    means = runs["throughput_images_per_s"].astype(float).groupby(load).mean()
    images_per_s: dict[float, float] = dict(zip(means.index, means, strict=True))
    words = {
        at: f"{number(at)} user{'s' * (at != 1)}" if by == "users" else f"{number(at)} requests/s"
        for at in load
    }
    if flat := _plateau(images_per_s):
        mean = sum(images_per_s[at] for at in flat) / len(flat)
        finding = f"throughput levels off at {number(mean)} images/s from {words[flat[0]]} on"
    else:
        best = max(images_per_s, key=lambda at: images_per_s[at])
        finding = (
            f"throughput was at most {number(images_per_s[best])} images/s, with {words[best]}"
        )
    points = "; ".join(
        f"{number(images)} images/s with {words[at]}" for at, images in images_per_s.items()
    )
    alt, of = (
        f"Throughput over latency, by load: {points}.",
        figure.study_of(record, len(runs), "run"),
    )
    return figure.finish(upper, record, finding + left_out, alt, of=of, lowest=lower)


@figure.styled
def hockey_stick(
    *,
    summary: pd.DataFrame,
    record: dict[str, Any],
    slo: str,
    capacity: Ends = (None, None),
    ax: Axes | None = None,
) -> Axes:
    """The percentile that `slo` is about, in seconds, against the rate of open loops, and where it passes the promise.

    `summary` is `Study.judge(slo)`'s, `capacity` a Capacity's interval in images/s. A rate has no percentile where one
    of its runs has none; beyond the last one that has, those at which latency drifted are shaded. Raises ValueError for
    an `slo` whose percentile no summary has.
    """
    ax, goal = figure.axes(ax), Slo.parse(slo)
    name = f"p{100 * goal.q:g}"
    if goal.q not in PERCENTILES:
        raise ValueError(
            f"slo: no summary has the {name} of {slo!r}; take a share of {PERCENTILES}"
        )
    ax.set(xlabel="offered load: images asked for per second, whether the server keeps up or not")
    ax.set(ylabel="latency (from request to image), s")
    runs, left_out = _valid(summary, "rate")
    if not len(runs):
        return figure.no_data(ax, record, f"{name} by offered load", "no valid run of an open loop")
    curve = _curve(runs, "rate", f"latency_{name}_s")
    told = _draw(ax, curve, figure.BLUE, f"{100 * goal.q:g} % took at most")
    took_s = runs[f"latency_{name}_s"].astype(float).where(runs["rate"].isin(told))
    last, highest_s = (
        1.08 * runs["rate"].max(),
        np.nanmax([*took_s, *curve["high"], goal.latency_s]),
    )
    ax.set(xlim=(0, last), ylim=(0, 1.2 * highest_s))
    for verdict, (label, marker, face, edge) in VERDICTS.items():
        some = took_s[runs["verdict"].eq(verdict)].dropna()
        if len(some):
            ax.scatter(
                runs["rate"][some.index],
                some,
                36,
                face,
                marker=marker,
                edgecolor=edge,
                label=label,
                zorder=3,
            )
    if silent := [rate for rate in curve.index if rate not in told]:
        label = f"no {name}: latency drifted, or too few images"
        ax.scatter(
            silent, [0.03 * highest_s] * len(silent), marker="x", color=figure.GREY, label=label
        )
    drifted = runs["rate"][runs["state"].eq("unstable") & (runs["rate"] > max(told, default=0))]
    if len(drifted):
        ax.axvspan(
            drifted.min(),
            last,
            color=figure.GREY,
            alpha=0.2,
            lw=0,
            label="unstable: latency kept rising",
        )
    (low, high), limit = capacity, f"{number(goal.latency_s)} s"
    finding = f"where {name} passes {limit} is not shown"
    if low and high:
        finding = f"{name} passes {limit} between {number(low)} and {number(high)} images/s"
        ax.axvspan(
            low,
            high,
            color=figure.ORANGE,
            alpha=0.3,
            linewidth=0,
            hatch="//",
            label="capacity: in this band",
        )
    elif end := low or high:
        finding = f"{name} {'stays within' if low else 'is past'} {limit} {'up to' if low else 'from'} {number(end)} "
        finding += (
            "images/s; where it passes is not shown"
            if low
            else "images/s on; what keeps within is not shown"
        )
        label = f"capacity: {'at least' if low else 'less than'} this"
        ax.axvline(end, color=figure.ORANGE, linestyle="-.", linewidth=2, label=label)
    ax.axhline(goal.latency_s, color=figure.RED, linestyle="--", linewidth=1)
    figure.label_at_right(ax, [(goal.latency_s, f"promised:\n{slo}", figure.RED)])
    seen = (
        "; ".join(f"{number(took)} s at {number(rate)}/s" for rate, took in told.items()) or "none"
    )
    return _finish(ax, record, runs, finding + left_out, f"{name} by offered load: {seen}.")


@figure.styled
def goodput_curve(
    *, summary: pd.DataFrame, record: dict[str, Any], slo: str, ax: Axes | None = None
) -> Axes:
    """Images per second that came within what `slo` promises, against those that an open loop asked for.

    Chance makes these more or fewer than its rate says. `summary` is `Study.judge(slo)`'s. The dashed line is where
    every image that is asked for comes in time.
    """
    ax = figure.axes(ax)
    within = f"within {number(Slo.parse(slo).latency_s)} s"
    ax.set(
        xlabel="offered load: images that were in fact asked for, 1/s",
        ylabel=f"goodput: images {within}, 1/s",
    )
    runs, left_out = _valid(summary, "rate")
    if not len(runs):
        return figure.no_data(ax, record, f"images {within}", "no valid run of an open loop")
    offered, good = (runs[f"{name}_images_per_s"].astype(float) for name in ("offered", "goodput"))
    curve = _curve(runs, "rate", "goodput_images_per_s").set_axis(
        offered.groupby(runs["rate"]).mean().to_numpy()
    )
    last = 1.08 * offered.max()
    ax.plot(
        [0, last],
        [0, last],
        "--",
        color=figure.GREY,
        linewidth=1,
        label=f"all of them came {within}",
    )
    ax.scatter(offered, good, s=30, marker="D", color=figure.GREEN)
    told = _draw(ax, curve, figure.GREEN, "goodput", FEW_RUNS)
    ax.set(xlim=(0, last), ylim=(0, 1.15 * max(good.max(), 0.5 * last)))
    best, end = max(told, key=lambda rate: told[rate]), max(told)
    finding = f"at most {number(told[best])} images/s came {within}, with {number(best)} asked for"
    finding += f"; with {number(end)}, {number(told[end])}" * (end != best)
    seen = "; ".join(f"{number(good)} of {number(rate)}" for rate, good in told.items())
    return _finish(ax, record, runs, finding + left_out, f"Images/s {within}: {seen}/s.")


@figure.styled
def queue_share(*, summary: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """How much of all latency, in percent, was waiting in the server's queue, against the users of closed loops."""
    ax = figure.axes(ax)
    ax.set(
        xlabel="users, each waiting for an image before asking again",
        ylabel="share of latency in the queue, %",
    )
    runs, left_out = _valid(summary, "users", "queue_share")
    if not len(runs):
        return figure.no_data(
            ax, record, "waiting in the queue", "no valid run of users whose server told its queue"
        )
    runs = runs.assign(percent=100 * runs["queue_share"].astype(float))
    ax.scatter(
        runs["users"],
        runs["percent"],
        s=30,
        color=figure.ORANGE,
        edgecolor="black",
        linewidth=0.5,
        zorder=3,
    )
    told = _draw(
        ax, _curve(runs, "users", "percent"), figure.ORANGE, "waiting in the queue", FEW_RUNS
    )
    ax.set(xlim=(0, 1.08 * runs["users"].max()), ylim=(0, 105))
    whole_ticks(ax.xaxis)
    seen = [f"{share:.0f} % with {n:g}\u00a0user{'s' * (n != 1)}" for n, share in told.items()]
    finding = (
        f"of all latency, {' and '.join([*seen[:1], *seen[1:][-1:]])} was waiting in the queue"
    )
    return _finish(ax, record, runs, finding + left_out, f"By load: {'; '.join(seen)}.")


def _plateau(images_per_s: dict[float, float]) -> list[float]:
    """The loads, rising, from which on throughput stays within 5 % of its highest; none where it did not grow before,
    or where they span less than a quarter more load, for then the data show no levelling off."""
    high = max(images_per_s.values())
    last_below = max(
        (at for at, images in images_per_s.items() if images < 0.95 * high), default=math.inf
    )
    flat = sorted(at for at in images_per_s if at > last_below)
    return flat if flat and flat[-1] >= 1.25 * flat[0] else []


def _valid(summary: pd.DataFrame, by: str, known: str = "valid") -> tuple[pd.DataFrame, str]:
    """The valid runs at a known load that have a figure `known`, lightest first, and the words for those left out."""
    asked = summary[summary[by].notna()] if by in summary else summary[:0]
    if not len(asked):
        return asked, ""
    runs = asked[asked["valid"].astype(bool) & asked[known].notna()].sort_values(by, kind="stable")
    return runs, f"; {len(asked) - len(runs)} of {len(asked)} runs left out as not valid" * (
        len(runs) < len(asked)
    )


def _curve(runs: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Per load `mean`, `low` and `high` of `column`: one run's own interval, or that of the mean of 5 and more; NaN
    where there is none, and for a load of which one run has no figure, for the others may be its luckier ones."""
    rows = {}
    for load, group in runs.groupby(by):
        values = group[column].astype(float)
        one = (
            group[f"{column}_interval"].iloc[0]
            if len(values) == 1 and f"{column}_interval" in group
            else None
        )
        interval = (one or intervals.runs_interval(list(values))) if values.notna().all() else None
        rows[load] = (values.mean(skipna=False), *(interval or (math.nan, math.nan)))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def _draw(
    ax: Axes, curve: pd.DataFrame, colour: str, label: str, unless: str = FEW_ROWS
) -> dict[float, float]:
    """A line through the means and a band between the intervals; where there are none, the legend says so. Returns the
    means that are known, by load."""
    beyond = figure.beyond(curve["mean"], curve[["low", "high"]].to_numpy())
    ax.fill_between(curve.index, curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
    ax.errorbar(curve.index, curve["mean"], beyond, fmt="none", color=colour, capsize=3)
    label += ", with 95 % interval" if curve["low"].notna().any() else f" ({unless})"
    ax.plot(curve.index, curve["mean"], color=colour, linewidth=1.5, label=label)
    means = curve["mean"].dropna()
    return dict(zip(means.index, means, strict=True))


def _finish(ax: Axes, record: dict[str, Any], runs: pd.DataFrame, finding: str, alt: str) -> Axes:
    """With the legend between plot and title, three entries a line."""
    entries = len(ax.get_legend_handles_labels()[0])
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=3, fontsize="small", columnspacing=1.2
    )
    of = figure.study_of(record, len(runs), "run")
    return figure.finish(ax, record, finding, alt, of=of, pad=10 + 13 * math.ceil(entries / 3))
