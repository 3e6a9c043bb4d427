"""Plots of one server under many loads: throughput, latency, goodput and queueing.

The load is a number of users, or the offered rate. Knows a study's `summary` (a row for each run)
and the `record` of any of its runs. If a promise is judged, the summary has Study.judge's verdicts.
Ignorant of how loads are chosen and of how a capacity is found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.study import figure, intervals
from benchlib.study.figure import whole_ticks
from benchlib.study.latency import PERCENTILES
from benchlib.study.slo import Slo
from benchlib.study.wording import counted, number

FEW_ROWS = "too few requests for an interval"
FEW_RUNS = "an interval takes 5 runs at a load"
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
FORETOLD = {
    "throughput_images_per_s": "images_per_s",
    "latency_p95_s": "p95_s",
    "latency_p50_s": "p50_s",
}
"""The column of foretold users for each column of the summary."""
LATENCIES = (
    PlottedColumn("latency_p95_s", "95 % within this", figure.RED, "s"),
    PlottedColumn("latency_p50_s", "half within this", figure.BLUE, "o"),
)


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
        return _foretold_load_curve(upper, summary, record, predicted)
    by = "users" if "users" in summary and summary["users"].notna().any() else "rate"
    runs, left_out = _valid_runs(summary, by, THROUGHPUT.name)
    if not len(runs):
        no_run = "no valid run at a known load"
        return figure.no_data(upper, record, "throughput and latency by load", no_run)
    lower = figure.panel_below(upper)

    # 1) Marks and lines.
    images_per_s = _draw_runs(upper, runs, by, THROUGHPUT)
    labels = []
    for column in LATENCIES:
        means_s = _draw_runs(lower, runs, by, column)
        if means_s:
            _, last_s = max(means_s.items())
            labels.append((last_s, column.label, column.colour))

    # 2) Axes and labels.
    highest_load = float(runs[by].max())
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
    points = [f"{number(images_per_s[load])} images/s with {at_load[load]}" for load in at_load]
    alt = f"Throughput over latency, by load: {'; '.join(points)}."
    source = figure.study_of(record, len(runs), "run")
    finding = _throughput_words(images_per_s, at_load) + left_out
    return figure.finish(upper, record, finding, alt, source=source, lowest=lower)


def _foretold_load_curve(
    upper: Axes, summary: pd.DataFrame, record: Record, predicted: pd.DataFrame
) -> Axes:
    """Draws load_curve with lines of what is predicted for users, and a mark for each run."""
    runs, left_out = _valid_runs(summary, "users", THROUGHPUT.name)
    lower = figure.panel_below(upper)
    users = predicted["users"].astype(float)

    # 1) Lines of what is foretold, and the runs' marks.
    labels = []
    for ax, column in ((upper, THROUGHPUT), *((lower, column) for column in LATENCIES)):
        foretold = predicted[FORETOLD[column.name]].astype(float)
        ax.plot(users, foretold, color=column.colour, linewidth=1.5)
        if len(runs):
            _draw_runs(ax, runs, "users", column, line=False)
        if column.label:
            labels.append((float(foretold.iloc[-1]), column.label, column.colour))

    # 2) Axes and labels.
    upper.plot([], [], color="black", linewidth=1.5, label="foretold (lines)")
    if len(runs):
        upper.plot([], [], "D", color="black", markersize=5, label="measured in a run (marks)")
    lower.set_xlim(0, 1.08 * users.max())
    lower.set_xlabel(USERS)
    whole_ticks(lower.xaxis)
    for ax, label in ((upper, "throughput, images/s"), (lower, "latency, s")):
        _, top = ax.get_ylim()
        ax.set_ylim(0, 1.1 * top)
        ax.set_ylabel(label)
    figure.label_at_right(lower, labels)
    pad = figure.legend_above(upper)

    # 3) Words.
    most = predicted.iloc[-1]
    people = counted(most["users"], "user")
    finding = f"{people} get {number(most['images_per_s'])} images/s (foretold)"
    points = [
        f"{number(row['images_per_s'])} images/s with {counted(row['users'], 'user')}"
        for _, row in predicted.iterrows()
    ]
    alt = f"Foretold throughput over latency, by users: {'; '.join(points)}."
    source = figure.study_of(record, len(runs), "run")
    return figure.finish(
        upper, record, finding + left_out, alt, pad=pad, source=source, lowest=lower
    )


def _draw_runs(
    ax: Axes, runs: pd.DataFrame, by: str, column: PlottedColumn, *, line: bool = True
) -> Means:
    """Draws each run's value with its interval and, with `line`, a line through the means.

    Returns the means by load.
    """
    values = runs[column.name].astype(float)
    if values.isna().all():
        return {}
    load = runs[by].astype(float)
    found = runs[f"{column.name}_interval"]
    figure.whiskers(ax, load, values, found, colour=column.colour, marker=column.marker)
    means = values.groupby(load).mean().dropna()
    if line:
        ax.plot(means.index, means, color=column.colour, linewidth=1.5)
    return dict(zip(means.index, means, strict=True))


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
        return f"{number(load)} requests/s"
    return counted(load, "user")


def _throughput_words(images_per_s: Means, at_load: Mapping[float, str]) -> str:
    flat = _plateau(images_per_s)
    if flat:
        mean = sum(images_per_s[load] for load in flat) / len(flat)
        return f"throughput levels off at {number(mean)} images/s from {at_load[flat[0]]} on"
    best = max(images_per_s, key=lambda load: images_per_s[load])
    return f"throughput was at most {number(images_per_s[best])} images/s, with {at_load[best]}"


def _plateau(images_per_s: Means) -> list[float]:
    """Returns the loads, in rising order, from which on throughput stays within 5 % of its highest.

    There are none if throughput did not grow before. There are none either if the highest of these
    loads is less than 1.25 times the lowest: the data then show no levelling off.
    """
    most = max(images_per_s.values())
    growing = [load for load, images in images_per_s.items() if images < 0.95 * most]
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
    foretold for that run's own arrivals. Without `predicted`, the line goes through the runs' own percentiles.

    A rate has no percentile if one of its runs has none. Rates with drifting latency, beyond the
    last rate with a percentile, are shaded. Raises ValueError for an `slo` whose percentile no
    summary has.
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
    runs, left_out = _valid_runs(summary, "rate")
    foretold = _stable(predicted)
    if not len(runs) and not len(foretold):
        return figure.no_data(ax, record, f"{name} by offered load", "no valid run of an open loop")

    # 1) Reduce to a curve, and each run's own percentile.
    curve = _curve(runs, "rate", f"latency_{name}_s")
    known_s = _known_means(curve)
    took_s = _floats(runs, f"latency_{name}_s")
    took_s = took_s[took_s.index[_floats(runs, "rate").isin(known_s)]]
    highest_s = np.nanmax([*took_s, *curve["high"], goal.latency_s])
    last_rate = 1.08 * max([*curve.index, *foretold["rate"]])
    if len(foretold):
        # The curve rises without end; twice the promise shows where it passes.
        highest_s = max(highest_s, 2 * goal.latency_s)

    # 2) Draw.
    ax.set_xlim(0, last_rate)
    ax.set_ylim(0, 1.2 * highest_s)
    if len(foretold):
        _draw_foretold(
            ax, foretold, "promised_s", f"foretold: {100 * goal.q:g} % take at most this"
        )
        _draw_own_arrivals(ax, comparison)
    else:
        _draw_curve(ax, curve, figure.BLUE, f"{100 * goal.q:g} % took at most this")
    _draw_verdicts(ax, runs, took_s, "offered_images_per_s" if len(foretold) else "rate")
    silent = [rate for rate in curve.index if rate not in known_s]
    if silent:
        ax.scatter(
            silent,
            [0.03 * highest_s] * len(silent),
            marker="x",
            color=figure.GREY,
            label=f"no {name}: latency drifted, or too few images",
        )
    if not len(foretold):
        _shade_unstable(ax, runs, beyond=max(known_s, default=0), last_rate=last_rate)
    _draw_capacity(ax, capacity)
    ax.axhline(goal.latency_s, color=figure.RED, linestyle="--", linewidth=1)
    figure.label_at_right(ax, [(goal.latency_s, f"promised:\n{slo}", figure.RED)])

    # 3) Words.
    finding = _capacity_words(capacity, name, f"{number(goal.latency_s)} s")
    if len(foretold):
        finding = f"foretold: {finding}"
    points = [f"{number(took)} s at {number(rate)}/s" for rate, took in known_s.items()]
    alt = f"{name} by offered load: {'; '.join(points) or 'none'}."
    return _finish(ax, record, runs, finding + left_out, alt)


def _stable(predicted: pd.DataFrame | None) -> pd.DataFrame:
    """The predicted rates that the server keeps up with; without rows where nothing is foretold."""
    if predicted is None or not len(predicted):
        return pd.DataFrame({"rate": []})
    is_known = predicted["stable"].astype(bool) & predicted["promised_s"].notna()
    return predicted[is_known].sort_values("rate")


def _draw_foretold(ax: Axes, foretold: pd.DataFrame, column: str, label: str) -> None:
    """Draws a line of what is foretold at each rate, and its band."""
    missing = (math.nan, math.nan)
    pairs = [pair or missing for pair in foretold[f"{column}_interval"]]
    low, high = np.array(pairs, dtype=float).T
    rate = foretold["rate"].astype(float)
    ax.fill_between(rate, low, high, color=figure.BLUE, alpha=0.2, linewidth=0)
    ax.plot(
        rate,
        foretold[column].astype(float),
        color=figure.BLUE,
        linewidth=1.8,
        label=f"{label}, with 95 % interval",
    )


def _draw_own_arrivals(ax: Axes, comparison: pd.DataFrame | None) -> None:
    """Draws a bar for each run: what was foretold for the arrivals that it happened to have."""
    if comparison is None or not len(comparison):
        return
    judged = comparison[comparison["foretold_s"].notna()]
    if not len(judged):
        return
    ends_s = np.array(judged["foretold_s"].tolist(), dtype=float)
    middle_s = ends_s.mean(axis=1)
    lengths_s = figure.whisker_lengths(middle_s, ends_s)
    ax.errorbar(
        judged["offered_images_per_s"],
        middle_s,
        yerr=lengths_s,
        fmt="none",
        ecolor=figure.PURPLE,
        elinewidth=4,
        capsize=9,
        capthick=2,
        label="foretold for the run's own arrivals (99 %)",
    )


def _draw_verdicts(ax: Axes, runs: pd.DataFrame, took_s: pd.Series, load: str) -> None:
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


def _draw_capacity(ax: Axes, capacity: Ends) -> None:
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


def _capacity_words(capacity: Ends, name: str, limit: str) -> str:
    low, high = capacity
    if low and high:
        return f"{name} passes {limit} between {number(low)} and {number(high)} images/s"
    if low:
        up_to = f"{name} stays within {limit} up to {number(low)} images/s"
        return f"{up_to}; where it passes is not shown"
    if high:
        past = f"{name} is past {limit} from {number(high)} images/s on"
        return f"{past}; what keeps within is not shown"
    return f"where {name} passes {limit} is not shown"


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

    By chance, an open loop offers more or fewer images than its rate says. `summary` is from
    `Study.judge(slo)`. `predicted` is a Calibration's curve: the line is then what is foretold, and
    each run is a mark. On the dashed line every image comes in time.
    """
    ax = figure.axes(ax)
    within = f"within {number(Slo.parse(slo).latency_s)} s"
    ax.set_xlabel("offered load: images that were in fact asked for, 1/s")
    ax.set_ylabel(f"goodput: images {within}, 1/s")
    runs, left_out = _valid_runs(summary, "rate")
    foretold = _stable(predicted)
    if not len(runs) and not len(foretold):
        return figure.no_data(ax, record, f"images {within}", "no valid run of an open loop")

    # 1) Reduce to a curve over the rates that were in fact offered.
    offered = _floats(runs, "offered_images_per_s")
    good = _floats(runs, "goodput_images_per_s")
    curve = pd.DataFrame({"mean": [], "low": [], "high": []})
    if len(runs):
        offered_means = offered.groupby(runs["rate"]).mean()
        curve = _curve(runs, "rate", "goodput_images_per_s").set_axis(offered_means.to_numpy())
    last_rate = 1.08 * max([*offered, *foretold["rate"]])

    # 2) Draw.
    line = [0, last_rate]
    all_in_time = f"all of them came {within}"
    ax.plot(line, line, "--", color=figure.GREY, linewidth=1, label=all_in_time)
    if len(foretold):
        _draw_foretold(ax, foretold, "goodput_images_per_s", "foretold")
    else:
        _draw_curve(ax, curve, figure.GREEN, "goodput", FEW_RUNS)
    if len(runs):
        label = "measured in a run" if len(foretold) else None
        ax.scatter(offered, good, s=30, marker="D", color=figure.GREEN, label=label, zorder=3)
    top = max([*good, 0.5 * last_rate])
    ax.set_xlim(0, last_rate)
    ax.set_ylim(0, 1.15 * top)

    # 3) Words.
    if len(foretold):
        finding, points = _foretold_goodput_words(foretold, within)
    else:
        finding, points = _goodput_words(_known_means(curve), within)
    alt = f"Images/s {within}: {'; '.join(points)}/s."
    return _finish(ax, record, runs, finding + left_out, alt)


def _floats(runs: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats; empty where there is no run."""
    return runs[column].astype(float) if len(runs) else pd.Series(dtype=float)


def _foretold_goodput_words(foretold: pd.DataFrame, within: str) -> tuple[str, list[str]]:
    """The finding, and what is foretold at each rate."""
    good = foretold["goodput_images_per_s"].astype(float)
    best = foretold.iloc[int(good.argmax())]
    most = f"{number(best['goodput_images_per_s'])} images/s come {within}"
    finding = f"foretold: at most {most}, of {number(best['rate'])} asked for"
    pairs = zip(good, foretold["rate"], strict=True)
    return finding, [f"{number(mean)} of {number(rate)}" for mean, rate in pairs]


def _goodput_words(means: Means, within: str) -> tuple[str, list[str]]:
    """The finding, and the goodput at each rate that was offered."""
    best = max(means, key=lambda rate: means[rate])
    last = max(means)
    finding = f"at most {number(means[best])} images/s came {within}, of {number(best)} asked for"
    if last != best:
        finding += f"; of {number(last)} asked for, {number(means[last])} came in time"
    return finding, [f"{number(mean)} of {number(rate)}" for rate, mean in means.items()]


@figure.styled
def queue_share(
    *,
    summary: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws how much of all latency was waiting in the server's queue, against the users.

    The share is in percent. The users are those of closed loops.
    """
    ax = figure.axes(ax)
    ax.set_xlabel(USERS)
    ax.set_ylabel("share of latency in the queue, %")
    runs, left_out = _valid_runs(summary, "users", "queue_share")
    if not len(runs):
        no_run = "no valid run of users whose server reports its queue"
        return figure.no_data(ax, record, "waiting in the queue", no_run)

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
    return _finish(ax, record, runs, finding + left_out, f"By load: {'; '.join(shares)}.")


def _users(count: float) -> str:
    """Returns the number and its noun, joined so that a title does not part them."""
    return counted(count, "user").replace(" ", "\u00a0")


def _valid_runs(summary: pd.DataFrame, by: str, known: str = "valid") -> tuple[pd.DataFrame, str]:
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
    return runs, f"; {left_out} of {len(at_load)} runs left out as not valid"


def _curve(runs: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Returns `mean`, `low` and `high` of `column` for each load; NaN if there is none.

    The interval is one run's own, or that of the mean of 5 runs and more. A load has no mean if one
    of its runs has no figure: the other runs may be its luckier ones.
    """
    rows = {}
    for load, group in runs.groupby(by) if len(runs) else ():
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


def _finish(
    ax: Axes,
    record: Record,
    runs: pd.DataFrame,
    finding: str,
    alt: str,
) -> Axes:
    """Returns figure.finish with the legend between plot and title, three entries a line."""
    pad = figure.legend_above(ax, columnspacing=1.2)
    source = figure.study_of(record, len(runs), "run")
    return figure.finish(ax, record, finding, alt, source=source, pad=pad)
