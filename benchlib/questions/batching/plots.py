"""Plots of how requests share the model: what a batch costs, who waits, and what sharing gains.

Knows the names of the policies and their look. Ignorant of how a policy decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.batching.disturbance import disturbance, measured_curves
from benchlib.questions.batching.judge import NOT_SHOWN, ForetoldGains, gain_words
from benchlib.rows import PARTS_IN_TIME
from benchlib.study import figure, latency
from benchlib.study.intervals import MIN_RUNS
from benchlib.study.wording import counted, number, per_second

POLICY_STYLES: dict[str, dict[str, Any]] = {
    "serial": {
        "color": figure.GREY,
        "linestyle": ":",
        "marker": "o",
    },
    "dynamic": {
        "color": figure.RED,
        "linestyle": "--",
        "marker": "s",
    },
    "continuous": {
        "color": figure.BLUE,
        "linestyle": "-",
        "marker": "D",
    },
}

NO_GAIN = 1.05
"""Batches that make less than this many times the images/s gain next to nothing."""

NO_PAIRS = "no two valid runs of the same requests"

MOST_FORETOLD = 3.0
LEAST_FORETOLD = 0.05
"""A foretold line may leave the plot above and below so many times serial's latency."""

PERCENTILE_MARKER = "^"
GLYPHS = {"o": "●", "s": "■", "D": "◆", PERCENTILE_MARKER: "▲"}
"""The marks of a plot as letters, for its labels."""

MIN_STAIR = 20
"""The fewest requests of a policy's stair: fewer have no 95th percentile."""

LEAST_SHARE = 0.005
"""A part of less than this share of all latencies is not drawn."""


# -- what a batch costs


class BatchCost(NamedTuple):
    """What batches of each size cost, by the step times that a server measured.

    The arrays have one value for each size.
    """

    sizes: list[int]
    step_s: np.ndarray[Any, Any]
    images_per_s: np.ndarray[Any, Any]


@figure.styled
def step_time_curve(
    *,
    step_times: Mapping[str, Any],
    record: dict[str, Any],
    ax: Axes | None = None,
) -> Axes:
    """Draws images/s and, in a panel below, milliseconds per step, against the images in a batch.

    `step_times` is from a server's spec. Each of its values is the least of a few calls, so there
    is no interval. Where other work disturbed them, they are drawn as measured and show no gain.
    Only the showcase of `record` is drawn, with images that begin together. The upper panel is
    returned. A given `ax` must belong to a grid, as pyplot.subplots makes it.
    """
    # 1) Reduce.
    upper = figure.axes(ax, height=6)
    showcase = record["spec"]["target"]["showcase"] or {"width": None, "height": None}
    curves = step_times.get("{width}x{height}".format(**showcase))
    if not curves:
        reason = "the server measured no step times of its showcase"
        return figure.no_data(upper, record, "what a batch costs", reason)
    steps = showcase["num_inference_steps"]
    cost = batch_cost(measured_curves(curves), steps)
    disturbed = disturbance(record, curves)

    # 2) Draw the lines.
    lower = figure.panel_below(upper)
    step_ms = 1000 * cost.step_s
    no_gain_ms = step_ms[0] * np.array(cost.sizes)
    upper.plot(
        cost.sizes,
        cost.images_per_s,
        "o-",
        color=figure.BLUE,
        linewidth=2,
    )
    lower.plot(
        cost.sizes,
        step_ms,
        "o-",
        color=figure.BLUE,
        linewidth=2,
    )
    lower.plot(cost.sizes, no_gain_ms, ":", color=figure.GREY)

    # 3) Name the axes and the lines, and say what was found.
    upper.set_ylabel(f"images/s, of {steps} steps")
    lower.set_ylabel("one denoising step, ms")
    lower.set_xlabel("images in the batch, each with guidance (two rows in the UNet)")
    for panel in (upper, lower):
        _, top = panel.get_ylim()
        panel.set(ylim=(0, 1.1 * top), xticks=cost.sizes)
    ends = [
        (step_ms[-1], "measured, disturbed" if disturbed else "measured", figure.BLUE),
        (no_gain_ms[-1], "if batches gained nothing", figure.GREY),
    ]
    figure.label_at_right(lower, ends)

    source = "the least of up to six calls each, when the server started"
    alt = (
        "Lines over the number of images in a batch: "
        "images per second above, the time of one step below."
    )
    finding = _cost_finding(cost)
    if disturbed:
        finding = f"what a batch gains is not shown: {disturbed} while steps were timed"
    return figure.finish(
        upper,
        record,
        finding,
        alt,
        source=source,
        lowest=lower,
    )


def batch_cost(curves: Mapping[str, Mapping[str, float]], steps: int) -> BatchCost:
    """Returns what batches of images with `steps` steps cost.

    Each image has guidance, which is two rows in the UNet.
    """
    sizes = sorted(map(int, curves["encode_s"]))
    rows = sorted(map(int, curves["step_s"]))
    rows_s = [curves["step_s"][str(n)] for n in rows]
    step_s = np.interp([2 * size for size in sizes], rows, rows_s)
    encode_s = np.array([curves["encode_s"][str(size)] for size in sizes])
    decode_s = np.array([curves["decode_s"][str(size)] for size in sizes])
    batch_s = encode_s + steps * step_s + decode_s
    return BatchCost(sizes, step_s, np.array(sizes) / batch_s)


def _cost_finding(cost: BatchCost) -> str:
    if len(cost.sizes) == 1:
        return "only one image at a time was measured: what a batch would gain is not known"
    best = int(cost.images_per_s.argmax())
    gain = cost.images_per_s[best] / cost.images_per_s[0]
    times = f"{number(gain)} times the images/s of one image at a time"
    if gain < NO_GAIN:
        return f"batches gain next to nothing: at most {times}"
    return f"a batch of {cost.sizes[best]} makes {times}"


# -- who waits for whom


class Lanes(NamedTuple):
    """The first requests of a run, each in a lane.

    `lanes` is how many there are. `requests` has those with an image, and `parts` the seconds of
    each of their parts. The index of both is the lane.
    """

    lanes: int
    requests: pd.DataFrame
    parts: pd.DataFrame


@figure.styled
def gantts(
    *,
    requests: Mapping[str, pd.DataFrame],
    record: dict[str, Any],
    lanes: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draws the first `lanes` measured requests under each policy, in panels one above the other.

    A lane is one request, from its moment to its image. `requests` has the rows of one run for each
    policy, by its name. All runs had the same requests at the same moments, so a lane is the same
    request in all panels. All panels have one time scale. `record` is that of any of the runs.

    A server says how long each part took, but not when it began. So waiting between the steps is
    drawn after the steps. The lane of a request without an image is empty. Fewer than MIN_RUNS
    images have no mean. The Axes around the panels is returned. A given `ax` must belong to a grid,
    as pyplot.subplots makes it.
    """
    ax = figure.axes(ax, height=7.6)
    drawn = _from_first_request({name: first_lanes(one, lanes) for name, one in requests.items()})
    if not any(len(one.requests) for one in drawn.values()):
        reason = "no image came with the server's times"
        return figure.no_data(ax, record, "when each image was made", reason)

    # 1) A panel for each policy.
    panels = figure.panels_below(ax, len(drawn), above=0.25)
    ax.set_axis_off()
    keys: dict[str, Any] = {}
    ends_s: list[float] = [0.0]
    for panel, (name, one) in zip(panels, drawn.items(), strict=True):
        panel.set_title(f"{name}: {_waiting_words(one)}", size=10)
        panel.set_ylabel("requests")
        panel.tick_params(labelbottom=panel is panels[-1])
        if len(one.requests):
            ends_s.append(_draw_lanes(panel, one))
        handles, labels = panel.get_legend_handles_labels()
        keys |= dict(zip(labels, handles, strict=True))
    panels[-1].set(
        xlim=(0, 1.01 * max(ends_s)),
        xlabel="time since the first of these requests, s",
    )

    # 2) One legend for all panels, in the order in which the parts happen.
    order = [name for name, *_ in figure.PART_STYLES.values() if name in keys]
    handles = [keys[name] for name in order]
    ax.legend(
        handles,
        order,
        loc="upper left",
        bbox_to_anchor=(-0.01, 1.2),
        ncols=4,
    )

    # 3) What was found.
    n = max(one.lanes for one in drawn.values())
    means = _sorted_means(drawn)
    finding = f"{counted(n, 'request')} took on average {means}"
    if not means:
        finding = (
            f"how long {counted(n, 'request')} took is not shown: a mean takes {MIN_RUNS} images"
        )
    return figure.finish(
        ax,
        record,
        finding,
        f"A panel each for {', '.join(requests)}: "
        f"a bar for each of {counted(n, 'request')} over time, coloured by part.",
        source=f"study {record['study']}, a run of each",
        lowest=panels[-1],
    )


def first_lanes(requests: pd.DataFrame, lanes: int) -> Lanes:
    """Returns the first measured requests of a run as lanes.

    Its `parts` say where the time of the requests with an image went.
    """
    first = latency.in_window(requests).head(lanes).reset_index(drop=True)
    parts = latency.breakdown(first).fillna(0).clip(lower=0)
    return Lanes(len(first), first.loc[parts.index], parts)


def _from_first_request(drawn: Mapping[str, Lanes]) -> dict[str, Lanes]:
    """Returns the lanes with times since the first request that got an image under any policy."""
    firsts_s = [one.requests["scheduled_s"].min() for one in drawn.values() if len(one.requests)]
    zero_s = min(firsts_s, default=0.0)
    moved = {}
    for name, one in drawn.items():
        since_s = one.requests["scheduled_s"] - zero_s
        moved[name] = one._replace(requests=one.requests.assign(scheduled_s=since_s))
    return moved


def _draw_lanes(ax: Axes, one: Lanes) -> float:
    """Draws a bar for each part of each request, and returns in seconds where the last one ends."""
    start_s = one.requests["scheduled_s"].to_numpy()
    left_s = start_s
    all_s = one.parts.sum(axis=None)
    for part in (*PARTS_IN_TIME, latency.OTHER, latency.REST):
        part_s = one.parts[part]
        if part_s.sum() >= LEAST_SHARE * all_s:
            name, *_ = figure.PART_STYLES[part]
            lane = one.parts.index + 1
            ax.barh(
                lane,
                part_s,
                0.8,
                left_s,
                label=name,
                **figure.bar_style(part),
            )
        left_s = left_s + part_s.to_numpy()
    ax.set(ylim=(one.lanes + 0.6, 0.4))
    figure.whole_ticks(ax.yaxis)
    return float(left_s.max())


def _waiting_words(one: Lanes) -> str:
    """Returns the mean latency of the requests drawn, and how much of it was waiting."""
    images = len(one.requests)
    if not images:
        return "no image"
    if images < MIN_RUNS:
        return f"{counted(images, 'image')}, too few for a mean"
    latency_s = one.requests["latency_s"]
    waited_s = one.parts["queue"] + one.parts["wait"]
    waited = 100 * waited_s.sum() / latency_s.sum()
    return f"{number(latency_s.mean())} s on average, {waited:.0f} % of it waiting"


def _sorted_means(drawn: Mapping[str, Lanes]) -> str:
    """Returns the mean latency under each policy that has MIN_RUNS images, the shortest first."""
    means_s = []
    for name, one in drawn.items():
        if len(one.requests) >= MIN_RUNS:
            means_s.append((one.requests["latency_s"].mean(), name))
    return ", ".join(f"{number(mean_s)} s {name}" for mean_s, name in sorted(means_s))


# -- how long requests took


@figure.styled
def latency_cdf(
    *,
    requests: Mapping[str, pd.DataFrame],
    record: dict[str, Any],
    ax: Axes | None = None,
) -> Axes:
    """Draws which share of the measured requests had their image within a time, by policy.

    Each policy has a stair, but not of fewer than MIN_STAIR requests. `requests` has the rows of
    one or several runs by the policy's name. `record` is that of any of the runs. A request without
    an image keeps its stair below 100 %.
    """
    ax = figure.axes(ax)
    ax.set(xlabel=figure.LATENCY, ylabel="share of the requests that had their image, %")
    series = _slowest_first(requests)
    if not series:
        return figure.no_data(ax, record, "how long requests took", "no request got an image")
    few = {name: len(series.pop(name)) for name in list(series) if len(series[name]) < MIN_STAIR}
    if not series:
        reason = f"a stair takes {MIN_STAIR} requests, and a policy has fewer: {_counts(few)}"
        return figure.no_data(ax, record, "how long requests took", reason)

    right_s = 1.03 * max(latency_s.max() for latency_s in series.values())
    for place, (name, latency_s) in enumerate(series.items()):
        # The slowest policy comes first, and its mark stands lowest.
        _draw_stair(ax, name, latency_s, right_s, mark_percent=(25, 50, 75)[place % 3])
    ax.set(xlim=(0, right_s), ylim=(0, 103))
    pad = figure.legend_above(ax, reverse=True)

    count = sum(len(latency_s) for latency_s in series.values())
    finding = _median_finding(series)
    if few:
        finding += f"; too few requests for a stair: {_counts(few)}"
    return figure.finish(
        ax,
        record,
        finding,
        f"A stair from 0 to 100 % over latency for each of {', '.join(series)}.",
        pad=pad,
        source=figure.study_of(record, count, "request"),
    )


def _counts(requests: Mapping[str, int]) -> str:
    """Returns the requests of each policy in words: "12 of serial, 9 of dynamic"."""
    return ", ".join(f"{count} of {name}" for name, count in requests.items())


def _slowest_first(requests: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """Returns the latencies of each policy that made an image, by descending mean.

    The latency of a request without an image is NaN.
    """
    series = {}
    for name, frame in requests.items():
        latency_s = latency.latencies(frame)
        if latency_s.notna().any():
            series[name] = latency_s
    order = sorted(series, key=lambda name: -series[name].mean())
    return {name: series[name] for name in order}


def _draw_stair(
    ax: Axes,
    name: str,
    latency_s: pd.Series,
    right_s: float,
    mark_percent: float,
) -> None:
    """Draws a policy's stair to `right_s`, with its mark on the upright at `mark_percent`."""
    # 1) The stair
    style = POLICY_STYLES[name]
    n = len(latency_s)
    known_s = np.sort(latency_s.dropna())
    percent = 100 * np.arange(len(known_s) + 1) / n
    x = [0, *known_s, right_s]
    y = [*percent, percent[-1]]
    line = style | {"marker": ""}
    ax.step(
        x,
        y,
        where="post",
        linewidth=2,
        **line,
    )

    # 2) The mark, lower where the stair ends below its place, and both in the legend
    height = min(mark_percent, 0.9 * percent[-1])
    spot = known_s[int(height * n / 100)], height
    ax.plot(*spot, style["marker"], color=style["color"])
    label = f"{name}, mean {number(known_s.mean())} s"
    ax.plot([], [], **style, linewidth=2, label=label)


def _median_finding(series: Mapping[str, pd.Series]) -> str:
    """Returns the median of each policy that has one, the fastest first."""
    halves = []
    for name, latency_s in reversed(list(series.items())):
        half_s = latency.percentile(latency_s, 0.5)
        if half_s is not None:
            halves.append(f"{number(half_s)} s {name}")
    if not halves:
        return "fewer than half of the requests got an image"
    return f"half of the requests took at most {', '.join(halves)}"


# -- what is gained at which load


@figure.styled
def gain(
    *,
    gains: pd.DataFrame,
    record: dict[str, Any],
    predicted: pd.DataFrame | None = None,
    foretold: ForetoldGains | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws latency as a multiple of serial's at the same rate, with 95 % intervals.

    `gains` is as judge.gains() returns it. Means have the policy's mark, and 95th percentiles a
    triangle. A hollow mark is a difference that is not shown. `foretold` becomes lines of mean
    latencies with bands. A policy of which nothing is foretold gets a thin line of `predicted`
    instead: mean latencies by rate (its index, requests/s), with a column for each policy, "serial"
    among them. An infinite mean is not drawn. `record` is that of any of the runs.
    """
    ax = figure.axes(ax)
    hollow = ""
    if (gains["verdict"] == NOT_SHOWN).any():
        hollow = " (hollow marks: a difference is not shown)"
    ax.set(xlabel=f"requests sent, 1/s{hollow}", ylabel="latency, in multiples of serial's")
    means = _foretold_means(foretold)
    if not len(gains) and not len(means) and predicted is None:
        return figure.no_data(ax, record, "gain by rate", NO_PAIRS)

    # 1) What was measured, foretold and predicted.
    labels = _draw_gains(ax, gains)
    labels += _draw_foretold(ax, means)
    rates = [*gains["rate"], *means["rate"]]
    lines = _without_foretold(predicted, means)
    if lines is not None:
        labels += _draw_predicted(ax, lines)
        rates += lines.index.tolist()
    ax.axhline(1, color="black", linewidth=1.2)
    at_left: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "bottom"}
    ax.text(0.005, 1, "as serial", fontsize="small", **at_left)

    # 2) The limits: a wide interval must not press all marks onto the axis.
    foretold_top = min(MOST_FORETOLD, means["ratio"].max()) if len(means) else 0.0
    top = 1.15 * max([1.3, foretold_top, *gains["ratio"]])
    ends = [height for height, _, _ in labels]
    lowest = max(LEAST_FORETOLD, min([1.0, *means["ratio"], *ends]))
    bottom = min([1 / 1.3, lowest, *gains["ratio"]]) / 1.15
    ax.set(xlim=(0, 1.05 * max(rates)), ylim=(bottom, top))
    figure.ratio_axis(ax, "y", "better", "worse")
    pairs = [pair for pair in [*gains["interval"], *means["interval"]] if pair is not None]
    if any(low < bottom or high > top for low, high in pairs):
        ax.set_ylabel("latency, in multiples of serial's\n(intervals cut at the edge)")
    figure.label_at_right(ax, labels)

    # 3) What was found.
    return figure.finish(
        ax,
        record,
        _gain_finding(gains, means),
        _all_gains(gains, means),
        source=f"study {record['study']}, {_source_words(gains, means)}",
    )


def _foretold_means(foretold: ForetoldGains | None) -> pd.DataFrame:
    """Returns the rows of mean latencies that have a finite line: both policies keep up."""
    rows = (foretold or ForetoldGains.none()).rows
    ratio = rows["ratio"].astype(float)
    is_drawn = (ratio > 0) & np.isfinite(ratio)
    return rows[is_drawn & (rows["figure"] == "latency_mean_s")]


def _without_foretold(
    predicted: pd.DataFrame | None, foretold: pd.DataFrame
) -> pd.DataFrame | None:
    """Returns the columns of the policies of which nothing is foretold; None if there are none."""
    if predicted is None:
        return None
    others = predicted.drop(columns=set(foretold["batching"]))
    return others if set(others) > {"serial"} else None


def _source_words(gains: pd.DataFrame, foretold: pd.DataFrame) -> str:
    """Returns how many runs and images are behind the marks and lines."""
    words = NO_PAIRS
    if len(gains):
        pairs = gains["pairs"].max()
        words = "one run of each, so no bars"
        if pairs > 1:
            words = f"at most {counted(pairs, 'short run')} of each; bars: 95 %"
    if len(foretold):
        images = counted(foretold["images"].max(), "image")
        words += f"; bands: 95 %, of {images}"
    return words


def _draw_foretold(ax: Axes, means: pd.DataFrame) -> list[tuple[float, str, str]]:
    """Draws a line with its band for each policy, and returns their labels."""
    labels = []
    for name, rows in means.groupby("batching"):
        style = POLICY_STYLES[str(name)] | {"marker": ""}
        lows, highs = _ends(rows)
        ax.fill_between(
            rows["rate"],
            lows,
            highs,
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )
        ax.plot(rows["rate"], rows["ratio"], **style, linewidth=1.6)
        words = f"{name}, mean in the long run"
        labels.append((rows["ratio"].iloc[-1], words, style["color"]))
    return labels


def _draw_gains(ax: Axes, gains: pd.DataFrame) -> list[tuple[float, str, str]]:
    """Draws marks and bars of each policy and figure, and returns their labels.

    The labels belong into the right margin.
    """
    labels = []
    kinds = gains.groupby(["batching", "figure"], sort=True)
    shift = 0.01 * gains["rate"].max()  # marks stand side by side, so that none hides another
    for place, (kind, rows) in enumerate(kinds):
        name, latency_name = map(str, kind)
        style = POLICY_STYLES[name]
        colour = style["color"]
        is_mean = latency_name == "latency_mean_s"
        marker = style["marker"] if is_mean else PERCENTILE_MARKER
        x = rows["rate"] + shift * (place - (len(kinds) - 1) / 2)
        lows, highs = _ends(rows)
        ax.vlines(
            x,
            lows,
            highs,
            color=colour,
            linewidth=2 if is_mean else 1,
            alpha=0.7,
        )
        ax.plot(
            x,
            rows["ratio"],
            color=colour,
            linestyle=style["linestyle"],
            linewidth=1.2,
        )
        for at, ratio, verdict in zip(x, rows["ratio"], rows["verdict"], strict=True):
            ax.plot(
                at,
                ratio,
                marker,
                color=colour,
                markersize=7,
                markerfacecolor="white" if verdict == NOT_SHOWN else colour,
            )
        words = "mean, short runs" if is_mean else "95 % took at most, short runs"
        labels.append((rows["ratio"].iloc[-1], f"{GLYPHS[marker]} {name}, {words}", colour))
    return labels


def _ends(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Returns the low ends and the high ends of the intervals.

    A ratio without an interval is its own end.
    """
    lows, highs = [], []
    for ratio, interval in zip(rows["ratio"], rows["interval"], strict=True):
        low, high = interval or (ratio, ratio)
        lows.append(low)
        highs.append(high)
    return lows, highs


def _draw_predicted(ax: Axes, predicted: pd.DataFrame) -> list[tuple[float, str, str]]:
    """Draws thin lines, and returns their labels for the right margin."""
    labels = []
    ratios = predicted.div(predicted["serial"], axis="index").drop(columns="serial")
    for name in map(str, ratios):
        style = POLICY_STYLES[name] | {"marker": ""}
        # Where a policy can't keep up with the rate, its line ends.
        finite = ratios[name][np.isfinite(ratios[name])]
        ax.plot(finite, **style, linewidth=0.8)
        words = f"{name}, mean by warm-up's step times"
        if len(finite):
            labels.append((finite.iloc[-1], words, style["color"]))
    return labels


def _gain_finding(gains: pd.DataFrame, foretold: pd.DataFrame) -> str:
    """Returns what the means at the highest rate say: those foretold, else those measured.

    The highest rate is that of the runs, if there are any.
    """
    if not len(gains) and not len(foretold):
        return f"{NO_PAIRS}; the lines are predicted"
    rates = gains["rate"] if len(gains) else foretold["rate"]
    highest = rates.max()
    means = foretold[foretold["rate"] == highest]
    source = "foretold for the long run "
    if not len(means):
        means = gains[(gains["rate"] == highest) & (gains["figure"] == "latency_mean_s")]
        source = ""
    if not len(means):
        return "no run carries a mean at the highest rate"
    found = "; ".join(gain_words(row) for row in means.to_dict("records"))
    return f"{source}at {per_second(highest, 'request')}, {found}"


def _all_gains(gains: pd.DataFrame, foretold: pd.DataFrame) -> str:
    """Returns the alt text: every gain in words."""
    sentences = [f"Foretold: {_at_rate(row)}." for row in foretold.to_dict("records")]
    sentences += [f"{_at_rate(row)}." for row in gains.to_dict("records")]
    if not sentences:
        return "Lines of predicted ratios, by rate."
    return f"Marks with bars, and lines with bands, by rate. {' '.join(sentences)}"


def _at_rate(gain: Mapping[Any, Any]) -> str:
    return f"At {number(gain['rate'])}/s {gain_words(gain)}"
