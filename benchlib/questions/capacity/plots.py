"""Plots of one server under many loads: throughput, latency, goodput and queueing.

The load is a number of users, or the offered rate. Knows a study's `summary` (a row for each run)
and the `record` of any of its runs. If a promise is judged, the summary has Study.judge's verdicts.
Ignorant of how loads are chosen and of how a capacity is found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.capacity.foretold_plots import (
    draw_foretold_goodput,
    draw_foretold_stick,
    draw_foretold_users,
    foretold_rates,
)
from benchlib.questions.capacity.load_marks import (
    LATENCIES,
    THROUGHPUT,
    USERS,
    Ends,
    Record,
    carried_loads,
    draw_capacity,
    draw_run_marks,
    draw_verdicts,
    finish_load_plot,
    valid_runs,
    where_it_breaks,
)
from benchlib.study import figure, intervals
from benchlib.study.busy import busy_sentence
from benchlib.study.figure import whole_ticks
from benchlib.study.intervals import MIN_RUNS
from benchlib.study.latency import PERCENTILES
from benchlib.study.slo import Slo
from benchlib.study.wording import counted, number, per_second

FEW_ROWS = "too few requests for an interval"
FEW_RUNS = "an interval takes 5 runs at a load"
FLAT = 0.95
"""Throughputs differ by chance; from this share of the highest on, they are alike."""
NO_LOAD = f"no load has {MIN_RUNS} images"
Means = dict[float, float]  # by load


@figure.styled
def load_curve(
    *,
    summary: pd.DataFrame,
    record: Record,
    predicted: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws throughput and, in a panel below it, latency, against the load.

    The load is the users of closed loops, or else the rate of open ones. `summary` is a Study's,
    with a row for each run, and `record` that of any of its runs. Each valid run is a mark, with
    its 95 % interval if it has one. Lines go through the means of the runs at one load, or are
    what is `predicted` (see LoadTest.foretold_users).

    The upper panel is returned. A given `ax` must belong to a grid, as pyplot.subplots makes it.
    """
    upper = figure.axes(ax, height=6)
    if predicted is not None and len(predicted):
        return draw_foretold_users(upper, summary, record, predicted)
    by = "users" if "users" in summary and summary["users"].notna().any() else "rate"
    runs, left_out = valid_runs(summary, by, THROUGHPUT.name)
    if not len(runs):
        no_run = "no valid run at a known load"
        return figure.no_data(upper, record, "throughput and latency by load", no_run)
    lower = figure.panel_below(upper)

    # 1) Marks and lines.
    images_per_s = draw_run_marks(upper, runs, by, THROUGHPUT)
    highest_load = float(runs[by].max())
    labels = []
    for column in LATENCIES:
        means_s = draw_run_marks(lower, runs, by, column)
        if means_s:
            last_load, last_s = max(means_s.items())
            label = column.label
            if last_load < highest_load:
                label += f"\n(up to {_load_words(last_load, by)})"
            labels.append((last_s, label, column.colour))

    # 2) Axes and labels.
    lower.set_xlim(0, 1.08 * highest_load)
    lower.set_xlabel(USERS if by == "users" else "requests sent, 1/s")
    if by == "users":
        whole_ticks(lower.xaxis)
    for panel, label in ((upper, "throughput, images/s"), (lower, "latency, s")):
        _, top = panel.get_ylim()
        panel.set_ylim(0, 1.1 * top)
        panel.set_ylabel(label)
    figure.label_at_right(lower, labels)
    _say_why_no_percentile(lower, runs, by, any_percentile=bool(labels))

    # 3) Words.
    at_load = {load: _load_words(load, by) for load in images_per_s}
    points = [f"{per_second(images_per_s[load])} with {at_load[load]}" for load in at_load]
    alt = f"Throughput over latency, by load: {'; '.join(points)}."
    images = counted(runs["ok"].sum(), "image")
    source = f"{figure.study_of(record, len(runs), 'run')}, {images}"
    finding = _throughput_words(images_per_s, at_load) + left_out
    busy = busy_sentence(runs.to_dict("records"))
    return figure.finish(upper, record, finding, alt, source=source, lowest=lower, busy=busy)


def _say_why_no_percentile(
    ax: Axes,
    runs: pd.DataFrame,
    by: str,
    *,
    any_percentile: bool,
) -> None:
    drifted = runs[runs["state"] == "unstable"]
    for load in drifted[by].astype(float).unique():
        ax.text(
            load,
            0.03,
            "latency drifted,\nno percentile",
            transform=ax.get_xaxis_transform(),
            ha="center",
            fontsize="small",
        )
    if not any_percentile and not len(drifted):
        ax.text(
            0.5,
            0.5,
            "too few requests for a percentile",
            transform=ax.transAxes,
            ha="center",
            va="center",
        )


def _load_words(load: float, by: str) -> str:
    if by == "rate":
        return per_second(load, "request")
    return counted(load, "user")


def _throughput_words(images_per_s: Means, at_load: Mapping[float, str]) -> str:
    if not images_per_s:
        return f"what throughput is at a load is not shown: it takes {MIN_RUNS} images there"
    flat = _plateau(images_per_s)
    if flat:
        mean = sum(images_per_s[load] for load in flat) / len(flat)
        return f"throughput levels off at {per_second(mean)} from {at_load[flat[0]]} on"
    loads = sorted(images_per_s)
    fewest, most = loads[0], loads[-1]
    if most > fewest and min(images_per_s.values()) >= FLAT * max(images_per_s.values()):
        mean = sum(images_per_s.values()) / len(loads)
        ends = f"from {at_load[fewest]} to {at_load[most]}"
        return f"throughput hardly grows {ends}: {per_second(mean)}, within 5 %"
    best = max(images_per_s, key=lambda load: images_per_s[load])
    return f"throughput was at most {per_second(images_per_s[best])}, with {at_load[best]}"


def _plateau(images_per_s: Means) -> list[float]:
    """Returns the loads, in rising order, from which on throughput stays within 5 % of its highest.

    There are none if throughput did not grow before. There are none either if the highest of these
    loads is less than 1.25 times the lowest: the data then show no levelling off.
    """
    most = max(images_per_s.values())
    growing = [load for load, images in images_per_s.items() if images < FLAT * most]
    last_growing = max(growing, default=math.inf)
    flat = sorted(load for load in images_per_s if load > last_growing)
    if not flat or flat[-1] < 1.25 * flat[0]:
        return []
    return flat


@figure.styled
def hockey_stick(
    *,
    summary: pd.DataFrame,
    record: Record,
    slo: str,
    capacity: Ends = (None, None),
    predicted: pd.DataFrame | None = None,
    comparison: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the percentile that `slo` is about, in seconds, against the rate of open loops.

    `summary` is from `Study.judge(slo)`, and `capacity` an interval in images/s. `predicted` is a
    Calibration's curve: the line is then what is foretold, with its band, and each run is a mark
    at the rate that it in fact offered. `comparison` is LoadTest's: a bar beside a mark is what was
    foretold for that run's own arrivals.

    Without `predicted`, the line goes through the runs' own percentiles. A rate has no percentile
    if one of its runs has none. Rates with drifting latency, beyond the last rate with a
    percentile, are shaded. Raises ValueError for an `slo` whose percentile no summary has.
    """
    ax = figure.axes(ax)
    goal = Slo.parse(slo)
    name = f"p{100 * goal.q:g}"
    if goal.q not in PERCENTILES:
        raise ValueError(
            f"slo: no summary has the {name} of {slo!r}; take a share of {PERCENTILES}"
        )
    ax.set_xlabel("offered load: images asked for per second, whether the server keeps up or not")
    ax.set_ylabel("latency (from request to image), s")
    foretold = foretold_rates(predicted)
    if len(foretold):
        return draw_foretold_stick(
            ax, foretold, summary, record, slo=slo, capacity=capacity, comparison=comparison
        )
    runs, left_out = valid_runs(summary, "rate")
    if not len(runs):
        return figure.no_data(ax, record, f"{name} by offered load", "no valid run of an open loop")

    # 1) Reduce to a curve, and each run's own percentile.
    curve = _curve(runs, "rate", f"latency_{name}_s")
    known_s = _known_means(curve)
    took_s = runs[f"latency_{name}_s"].astype(float).where(runs["rate"].isin(known_s))
    highest_s = np.nanmax([*took_s, *curve["high"], goal.latency_s])
    last_rate = 1.08 * runs["rate"].max()

    # 2) Draw.
    ax.set_xlim(0, last_rate)
    ax.set_ylim(0, 1.2 * highest_s)
    _draw_curve(ax, curve, figure.BLUE, f"{100 * goal.q:g} % took at most this")
    draw_verdicts(ax, runs, took_s, "rate")
    silent = [rate for rate in curve.index if rate not in known_s]
    if silent:
        ax.scatter(
            silent,
            [0.03 * highest_s] * len(silent),
            marker="x",
            color=figure.GREY,
            label=f"no {name}: latency drifted, or too few images",
        )
    _shade_unstable(ax, runs, beyond=max(known_s, default=0), last_rate=last_rate)
    draw_capacity(ax, capacity)
    ax.axhline(goal.latency_s, color=figure.RED, linestyle="--", linewidth=1)
    figure.label_at_right(ax, [(goal.latency_s, f"promised:\n{slo}", figure.RED)])

    # 3) Words.
    finding = where_it_breaks(capacity, name, goal.latency_s, runs, took_s)
    points = [f"{number(took)} s at {number(rate)}/s" for rate, took in known_s.items()]
    alt = f"{name} by offered load: {'; '.join(points) or 'none'}."
    return finish_load_plot(ax, record, runs, finding + left_out, alt)


def _shade_unstable(ax: Axes, runs: pd.DataFrame, *, beyond: float, last_rate: float) -> None:
    unstable = runs["state"].eq("unstable")
    drifted = runs["rate"][unstable & (runs["rate"] > beyond)]
    if len(drifted):
        ax.axvspan(
            drifted.min(),
            last_rate,
            color=figure.GREY,
            alpha=0.2,
            lw=0,
            label="unstable: latency kept rising",
        )


@figure.styled
def goodput_curve(
    *,
    summary: pd.DataFrame,
    record: Record,
    slo: str,
    predicted: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the images/s that came within what `slo` promises, against the images/s offered.

    By chance, an open loop offers more or fewer images than its rate says. Rates with fewer than
    MIN_RUNS images are left out. `summary` is from
    `Study.judge(slo)`. `predicted` is a Calibration's curve: the line is then what is foretold, and
    each run is a mark. On the dashed line every image comes in time.
    """
    ax = figure.axes(ax)
    within = f"within {number(Slo.parse(slo).latency_s)} s"
    ax.set_xlabel("offered load: images that were in fact asked for per second")
    ax.set_ylabel(f"goodput: images/s {within}")
    foretold = foretold_rates(predicted)
    if len(foretold):
        return draw_foretold_goodput(ax, foretold, summary, record, within)
    runs, left_out = valid_runs(summary, "rate")
    if not len(runs):
        return figure.no_data(ax, record, f"images {within}", "no valid run of an open loop")
    runs, few = carried_loads(runs, "rate")
    if not len(runs):
        return figure.no_data(ax, record, f"images {within}", NO_LOAD)

    # 1) Reduce to a curve over the rates that were in fact offered.
    offered = runs["offered_images_per_s"].astype(float)
    good = runs["goodput_images_per_s"].astype(float)
    offered_means = offered.groupby(runs["rate"]).mean()
    curve = _curve(runs, "rate", "goodput_images_per_s").set_axis(offered_means.to_numpy())

    # 2) Draw.
    last_rate = 1.08 * offered.max()
    line = [0, last_rate]
    all_in_time = f"all of them came {within}"
    ax.plot(line, line, "--", color=figure.GREY, linewidth=1, label=all_in_time)
    ax.scatter(offered, good, s=30, marker="D", color=figure.GREEN)
    _draw_curve(ax, curve, figure.GREEN, "goodput", FEW_RUNS)
    top = max(good.max(), 0.5 * last_rate)
    ax.set_xlim(0, last_rate)
    ax.set_ylim(0, 1.15 * top)

    # 3) Words.
    means = _known_means(curve)
    best = max(means, key=lambda rate: means[rate])
    last = max(means)
    in_time = f"at most {per_second(means[best])} came {within}"
    finding = f"{in_time}, of {number(best)} asked for"
    if number(means[best]) == number(best):
        finding = f"up to {per_second(best)} all images came {within}"
    if last != best:
        finding += f"; of {number(last)} asked for, {number(means[last])} came in time"
    points = [f"{number(mean)} of {number(rate)}" for rate, mean in means.items()]
    alt = f"Images/s {within}: {'; '.join(points)}/s."
    return finish_load_plot(ax, record, runs, finding + few + left_out, alt)


@figure.styled
def queue_share(
    *,
    summary: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws how much of all latency was waiting in the server's queue, against the users.

    The share is in percent. The users are those of closed loops. Loads with fewer than MIN_RUNS
    images are left out.
    """
    ax = figure.axes(ax)
    ax.set_xlabel(USERS)
    ax.set_ylabel("share of latency in the queue, %")
    runs, left_out = valid_runs(summary, "users", "queue_share")
    if not len(runs):
        no_run = "no valid run of users whose server reports its queue"
        return figure.no_data(ax, record, "waiting in the queue", no_run)
    runs, few = carried_loads(runs, "users")
    if not len(runs):
        return figure.no_data(ax, record, "waiting in the queue", NO_LOAD)

    # 1) Reduce to a curve.
    runs = runs.assign(percent=100 * runs["queue_share"].astype(float))
    curve = _curve(runs, "users", "percent")

    # 2) Draw.
    ax.scatter(
        runs["users"],
        runs["percent"],
        s=30,
        color=figure.ORANGE,
        edgecolor="black",
        linewidth=0.5,
        zorder=3,
    )
    _draw_curve(ax, curve, figure.ORANGE, "waiting in the queue", FEW_RUNS)
    ax.set_xlim(0, 1.08 * runs["users"].max())
    ax.set_ylim(0, 105)
    whole_ticks(ax.xaxis)

    # 3) Words, with the fewest and the most users in the title.
    means = _known_means(curve)
    shares = [f"{share:.0f} % of latency with {_users(load)}" for load, share in means.items()]
    ends = shares if len(shares) == 1 else [shares[0], shares[-1]]
    finding = f"waiting in the queue is {' and '.join(ends)}"
    alt = f"By load: {'; '.join(shares)}."
    return finish_load_plot(ax, record, runs, finding + few + left_out, alt)


def _users(count: float) -> str:
    """Returns the number and its noun, joined so that a title does not part them."""
    return counted(count, "user").replace(" ", "\u00a0")


def _curve(runs: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Returns `mean`, `low` and `high` of `column` for each load; NaN if there is none.

    The interval is one run's own, or that of the mean of 5 runs and more. A load has no mean if one
    of its runs has no figure: the other runs may be its luckier ones.
    """
    rows = {}
    for load, group in runs.groupby(by):
        values = group[column].astype(float)
        interval = None
        if values.notna().all():
            interval = _interval(group, column)
        low, high = interval or (math.nan, math.nan)
        rows[load] = (values.mean(skipna=False), low, high)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def _interval(runs: pd.DataFrame, column: str) -> intervals.Interval:
    own = f"{column}_interval"
    if len(runs) == 1 and own in runs:
        interval: intervals.Interval = runs[own].iloc[0]
        return interval
    return intervals.runs_interval([float(value) for value in runs[column]])


def _known_means(curve: pd.DataFrame) -> Means:
    means = curve["mean"].dropna()
    return dict(zip(means.index, means, strict=True))


def _draw_curve(
    ax: Axes,
    curve: pd.DataFrame,
    colour: str,
    label: str,
    why_none: str = FEW_ROWS,
) -> None:
    """Draws a line through the means and a band between the intervals.

    Without any interval, the legend says `why_none`.
    """
    ends = curve[["low", "high"]].to_numpy()
    low, high = ends.T
    ax.fill_between(curve.index, low, high, color=colour, alpha=0.2, linewidth=0)
    figure.whiskers(ax, curve.index, curve["mean"], ends, colour=colour)
    has_interval = curve["low"].notna().any()
    label += ", with 95 % interval" if has_interval else f" ({why_none})"
    ax.plot(curve.index, curve["mean"], color=colour, linewidth=1.5, label=label)
