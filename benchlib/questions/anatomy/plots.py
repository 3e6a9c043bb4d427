"""Plots of images made one at a time: time, memory, share of the arithmetic, and leaks.

Knows the rows and samples of such a run and the figures of judge.py. Ignorant of how they were
measured. Whiskers are 95 % intervals; a value without an interval has no whisker.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.anatomy import judge
from benchlib.questions.anatomy.judge import (
    LEAK_KIB,
    MEMORIES,
    OWN_MEMORIES,
    STAGE_NAMES,
    finished_images,
    size_name,
)
from benchlib.rows import STAGES
from benchlib.study import figure, intervals
from benchlib.study.figure import bar_style
from benchlib.study.intervals import MIN_RUNS, MIN_TREND
from benchlib.study.wording import agreeing, counted, number, words

STYLES = (  # colour, marker and line of each series
    (figure.BLUE, "o", "-"),
    (figure.ORANGE, "s", "--"),
    (figure.GREEN, "D", "-."),
    (figure.RED, "^", ":"),
    (figure.PURPLE, "v", "-"),
    (figure.SKY, "P", "--"),
)
STEPS_STYLES = (  # other colours than the stages'
    (figure.ORANGE, "s", "--"),
    (figure.RED, "^", ":"),
    (figure.PURPLE, "v", "-"),
    (figure.GREY, "P", "-."),
    ("black", "X", "--"),
    (figure.DARK_ORANGE, "o", "-"),
)
STAGE_STYLES = {
    "encode": (figure.SKY, "o", "-"),
    "denoise": (figure.BLUE, "s", "--"),
    "decode": (figure.GREEN, "D", "-."),
}
NETWORKS = {  # what a reader calls each network; the colour is that of the stage it works in
    "unet": ("UNet", bar_style("denoise")),
    "text_encoder": ("text encoder", bar_style("encode")),
    "text_encoder_2": ("second text encoder", bar_style("encode") | {"hatch": ".."}),
    "vae": ("VAE", bar_style("decode")),
}
MOST_BARS = 16
MOST_WIDE_NAMES = 6
"""Names such as 1024x1024 of more sizes than these take two lines, or they would meet."""
LEAST_GAP = 0.13
"""Two names of sizes need so much of the axis between them."""
NEAR_LIMIT = 75  # per cent: beside a longer bar, the words would cross the limit
MANY_DOTS = 2000  # more of them are stored in an SVG as one image
NO_IMAGE = "no image was measured"
Record = dict[str, Any]
Style = tuple[str, str, str]
Label = tuple[float, str, str]  # height, text, colour: what figure.label_at_right takes


@figure.styled
def stage_stack(
    *,
    requests: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws the mean seconds of encode, denoise and decode, stacked.

    There is a bar for each size and number of steps. If there are more than MOST_BARS, that many
    are drawn, evenly chosen. The percentages over the bars are denoising's share. A bar of fewer
    than MIN_RUNS images has none, and its number of images in their place. The whiskers belong to
    the mean of the whole image.
    """
    ax = figure.axes(ax)
    ax.set_xlabel("steps, and below them the size in pixels")
    ax.set_ylabel("time of an image, s")
    images = finished_images(requests)
    if not len(images):
        return figure.no_data(ax, record, "an image's time by stage", NO_IMAGE)

    # 1) Reduce to means, shares and intervals.
    means_s = judge.stage_means(images)
    percent = 100 * means_s.div(means_s.sum(axis="columns"), axis="index")
    cases = images.groupby(["width", "height", "num_inference_steps"])
    whole = [intervals.runs_interval(list(total_s)) for _, total_s in cases["total_s"]]
    counts = cases.size()
    shown = percent[counts >= MIN_RUNS]

    # 2) Draw the bars that there is room for.
    chosen = _evenly_chosen(len(means_s))
    drawn = means_s.iloc[chosen]
    places = np.arange(len(chosen))
    names = _share_names(shown)
    heights = _stacked(ax, drawn, names)
    drawn_intervals = [whole[case] for case in chosen]
    tops = heights + figure.whiskers(ax, places, heights, drawn_intervals)
    for place, top, case in zip(places, tops, drawn.index, strict=True):
        above = counted(counts[case], "image")
        if case in shown.index:
            above = f"{shown['denoise'][case]:.0f} %"
        figure.label_point(ax, (place, top), above, (0, 3), ha="center")

    # 3) Axes and legend.
    _name_cases(ax, drawn.index)
    slots = max(len(places), 3)
    ax.set_xlim(-0.6, slots - 0.4)
    ax.set_ylim(0, 1.12 * float(tops.max()))
    figure.legend_beside(ax, reverse=True, title="share of an image's time" if len(shown) else None)

    # 4) Words.
    finding = f"which stage takes the time is not shown: {_too_few(counts)} of each size and steps"
    if len(shown):
        longest = max(STAGES, key=lambda stage: means_s[stage].sum())
        share = f"{_span(shown[longest])} % of an image's time"
        finding = f"{STAGE_NAMES[longest]} takes {share} ({counted(len(images), 'image')})"
    listed = "; ".join(names.values())
    alt = f"{counted(len(means_s), 'stacked bar')} by size and steps, from the bottom: {listed}."
    return _finish(ax, record, finding, alt)


def _share_names(percent: pd.DataFrame) -> dict[str, str]:
    """Returns a name for each stage, with its share where `percent` has rows."""
    if not len(percent):
        return STAGE_NAMES
    return {stage: f"{STAGE_NAMES[stage]}: {_span(percent[stage])} %" for stage in STAGES}


def _too_few(counts: pd.Series) -> str:
    """Returns how many images there are, and how many are needed: "1 to 3 images, it takes 5"."""
    least, most = int(counts.min()), int(counts.max())
    some = counted(most, "image")
    if least < most:
        some = f"{least} to {some}"
    are = agreeing(most, "is", "are")
    return f"it takes {MIN_RUNS} images, there {are} {some}"


def _name_cases(ax: Axes, cases: pd.Index[Any]) -> None:
    """Writes the steps below each bar, and once below all bars of a size that size."""
    ax.set_xticks(range(len(cases)), [str(steps) for _, _, steps in cases])
    places: dict[tuple[int, int], list[int]] = {}
    for place, (width, height, _) in enumerate(cases):
        places.setdefault((width, height), []).append(place)
    middles = [float(np.mean(of_size)) for of_size in places.values()]
    between = "x" if len(places) <= MOST_WIDE_NAMES else "x\n"
    sizes = [f"{width}{between}{height}" for width, height in places]
    ax.xaxis.remove_overlapping_locs = False  # a size may stand below a bar of its own
    ax.set_xticks(middles, sizes, minor=True)
    ax.tick_params(axis="x", which="minor", length=0, pad=17)


def _evenly_chosen(cases: int) -> Any:
    """Returns the positions of at most MOST_BARS cases, evenly chosen.

    The first and the last case are among them.
    """
    bars = min(MOST_BARS, cases)
    positions = np.linspace(0, cases - 1, bars)
    return np.unique(positions.astype(int))


def _stacked(
    ax: Axes,
    means_s: pd.DataFrame,
    names: dict[str, str],
) -> Any:
    """Draws a bar for each row, one stage on top of the other, and returns the bars' heights."""
    bottom = np.zeros(len(means_s))
    for stage in STAGES:
        ax.bar(
            np.arange(len(means_s)),
            means_s[stage],
            0.75,
            bottom,
            label=names[stage],
            **bar_style(stage),
        )
        bottom += means_s[stage].to_numpy()
    return bottom


@figure.styled
def cost_line(
    *,
    requests: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws the seconds of each image against its steps, with a line for each size.

    The line's left end is what any image costs, and its slope what each step adds. A size whose
    cost of a step is not shown has no line. Where the fixed cost is not shown, the line begins at
    the fewest steps. The title has the costs of the largest size. A size is marked where Python,
    not the GPU, is the limit. If there are more than six sizes, the six largest are drawn.
    """
    ax = figure.axes(ax)
    ax.set_xlabel("denoising steps")
    ax.set_ylabel("time of an image, s")
    images = finished_images(requests)
    if not len(images):
        return figure.no_data(ax, record, "time by steps", NO_IMAGE)

    # 1) Reduce to a line for each size.
    costs = {
        (cost["width"], cost["height"]): cost
        for cost in judge.cost_lines(images).to_dict("records")
    }
    most_steps = float(images["num_inference_steps"].max())
    launches = judge.launch_shares(images)
    slow_python = launches[launches["limit"] == "Python"]
    python_limits = set(zip(slow_python["width"], slow_python["height"], strict=True))

    # 2) Draw dots and lines.
    labels: list[Label] = []
    findings = []
    largest = _by_size(images)[-len(STYLES) :]
    for (size, group), style in zip(largest, STYLES, strict=False):
        cost = costs.get(size)
        end_s = _dots_and_line(ax, group, cost, most_steps, style, len(images) > MANY_DOTS)
        cost_words = f"no line, as all have {most_steps:g} steps"
        if cost:
            cost_words = judge.cost_words(cost)
        if size in python_limits:
            cost_words += ", Python is the limit"
        if cost is None or cost["per_step_s_interval"]:  # else its words have the images
            cost_words += f", {counted(len(group), 'image')}"
        name = size_name(*size)
        lines = cost_words.replace(", ", "\n")
        labels.append((end_s, f"{name}:\n{lines}", style[0]))
        findings.append(f"{name}: {cost_words}")

    # 3) Axes and labels.
    top = 1.05 * float(images["total_s"].max())
    ax.set_xlim(0, 1.03 * most_steps)
    ax.set_ylim(0, top)
    figure.whole_ticks(ax.xaxis)
    figure.label_at_right(ax, labels)

    # 4) Words.
    scale = f"time up to {number(top)} s by steps up to {most_steps:g}"
    alt = f"Dots and lines, {scale}: {'; '.join(findings)}."
    return _finish(ax, record, f"cost at {findings[-1]}", alt)


def _dots_and_line(
    ax: Axes,
    images: pd.DataFrame,
    cost: dict[Any, Any] | None,
    most_steps: float,
    style: Style,
    rasterized: bool,
) -> float:
    """Draws the images of one size and their line, and returns the height of the line's end.

    Without a line it returns the height of the highest dot.
    """
    colour, marker, dashes = style
    ax.scatter(
        images["num_inference_steps"],
        images["total_s"],
        25,
        marker=marker,
        color=colour,
        alpha=0.6,
        linewidths=0,
        rasterized=rasterized,
    )
    if cost is None or not _is_above_zero(cost["per_step_s_interval"]):
        return float(images["total_s"].max())
    first = 0.0
    if not _is_above_zero(cost["fixed_s_interval"]):
        first = float(images["num_inference_steps"].min())
    ends = np.array([first, most_steps])
    line_s = cost["fixed_s"] + cost["per_step_s"] * ends
    ax.plot(ends, line_s, dashes, color=colour, linewidth=1.5)
    return float(line_s[-1])


def _is_above_zero(interval: intervals.Interval) -> bool:
    """Returns whether an interval shows a cost; False where there is no interval."""
    return interval is not None and interval[0] > 0


@figure.styled
def against_pixels(
    *,
    requests: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws an image's mean seconds and, below, each stage's peak GiB, against the pixels.

    The upper panel has a line for each number of steps, at most for the six highest. Means of
    fewer than MIN_RUNS images have marks and no line, and the title says nothing of them. The upper
    panel is returned.
    """
    upper = figure.axes(ax, height=6)
    images = finished_images(requests)
    if not len(images):
        return figure.no_data(upper, record, "time and memory by pixels", NO_IMAGE)
    lower = figure.panel_below(upper)
    pixels = images["width"].astype(float) * images["height"].astype(float)
    images = images.assign(megapixels=pixels / 1e6)

    # 1) A line for each number of steps above, for each stage below.
    times: list[Label] = []
    all_steps = list(images.groupby("num_inference_steps"))
    by_steps = all_steps[-len(STEPS_STYLES) :]
    steps: Any
    for (steps, group), style in zip(by_steps, STEPS_STYLES, strict=False):
        end_s = _means_line(upper, group, "total_s", style)
        times.append((end_s, counted(steps, "step"), style[0]))
    peaks: list[Label] = []
    for stage, style in STAGE_STYLES.items():
        if images[f"{stage}_peak_gib"].notna().any():
            end_gib = _means_line(lower, images, f"{stage}_peak_gib", style)
            peaks.append((end_gib, STAGE_NAMES[stage], style[0]))

    # 2) Axes and labels.
    on_gpu = str(record["spec"]["target"]["device"]).startswith("cuda")
    memory = "torch on the GPU" if on_gpu else "the whole process"
    upper.set_ylabel("time of an image, s")
    for ax in (upper, lower):
        _, top = ax.get_ylim()
        ax.set_ylim(
            0, 1.04 * top
        )  # the margin over the highest mark shrinks as the axes begin at 0
    lower.set_ylabel(f"peak memory of\n{memory}, GiB")
    _name_sizes(lower, images)
    figure.label_at_right(upper, times)
    figure.label_at_right(lower, peaks)

    # 3) Words.
    peak_words = _peak_words(judge.peak_stage(images))
    if _counts_by_size(images).iloc[-1] < MIN_RUNS:
        peak_words = "the peak of memory is not shown"
    finding = f"{_time_by_size(images)}; {peak_words}"
    made = counted(len(images), "image")
    alt = f"Time over peak memory of each stage, by pixels, for {made}."
    return _finish(upper, record, finding, alt, lowest=lower)


def _means_line(
    ax: Axes,
    images: pd.DataFrame,
    column: str,
    style: Style,
) -> float:
    """Draws the means of `column` against the pixels, and returns the last mean.

    Each mean has its interval. The line goes through the means of MIN_RUNS images and more.
    """
    colour, marker, dashes = style
    sizes = images.groupby("megapixels")[column]
    means = sizes.mean()
    found = [intervals.runs_interval(list(values)) for _, values in sizes]
    figure.whiskers(ax, means.index, means, found, colour=colour)
    ax.plot(means.index, means, marker, color=colour, markersize=5)
    carried = means[sizes.size() >= MIN_RUNS]
    ax.plot(carried.index, carried, dashes, color=colour, linewidth=1.5)
    return float(means.iloc[-1])


def _name_sizes(ax: Axes, images: pd.DataFrame) -> None:
    """Names the sizes below their pixels, from 0 on; a name that would cover another is left out.

    The largest size always has its name.
    """
    most = float(images["megapixels"].max())
    ticks: dict[float, str] = {}
    for (width, height), group in reversed(_by_size(images)):
        megapixels = float(group["megapixels"].iloc[0])
        nearest = min(ticks, default=math.inf)
        if nearest - megapixels > LEAST_GAP * most:
            ticks[megapixels] = size_name(width, height)
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.set_xlim(0, 1.02 * most)
    ax.set_xlabel("size of the image; the axis is in proportion to its pixels")


def _counts_by_size(images: pd.DataFrame) -> pd.Series:
    """Returns how many images each size has, fewest pixels first."""
    counts = {size_name(*size): len(group) for size, group in _by_size(images)}
    return pd.Series(counts)


def _time_by_size(images: pd.DataFrame) -> str:
    """Returns in words the time at the largest size, and how many times the smallest size's it is.

    Both times are those of the images with the most steps. Fewer than MIN_RUNS of them show none.
    """
    most_steps = images["num_inference_steps"].max()
    longest = images[images["num_inference_steps"] == most_steps]
    counts = _counts_by_size(longest)
    by_size = _by_size(longest)
    if counts.iloc[-1] < MIN_RUNS or counts.iloc[0] < MIN_RUNS:
        steps = counted(most_steps, "step")
        return f"what size costs is not shown: {_too_few(counts)} of {steps} and one size"
    mean_s = [float(group["total_s"].mean()) for _, group in by_size]
    names = [size_name(*size) for size, _ in by_size]
    n = counted(counts.iloc[-1], "image")
    text = f"an image of {most_steps} steps takes {number(mean_s[-1])} s at {names[-1]} ({n})"
    if len(names) == 1:
        return text
    return f"{text}, {number(mean_s[-1] / mean_s[0])} times as long as at {names[0]}"


def _peak_words(peak: judge.Peak | None) -> str:
    if peak is None:
        return "peak memory is not known here"
    when = "in which stage is not shown"
    if peak.stage:
        when = f"while {STAGE_NAMES[peak.stage]}"
    return f"memory peaks at {number(peak.gib)} GiB, at {peak.size}, {when}"


@figure.styled
def memory_bars(
    *,
    parts: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws the GiB of the networks, of each stage's activations, and of what process and GPU hold.

    `parts` is from judge.memory_parts. The networks are stacked, because they add up. The other
    bars contain one another, so each stands alone. Unknown parts are not drawn, and neither are
    activations of fewer than MIN_RUNS images.
    """
    ax = figure.axes(ax)
    activations = parts[parts["kind"] == "activations"]
    images = int(activations["images"].max()) if len(activations) else 0
    if images < MIN_RUNS:
        parts = parts.drop(activations.index)
    ax.set_xlabel("memory, GiB (1 GiB = 2³⁰ bytes)")
    if not len(parts):
        return figure.no_data(ax, record, "parts of memory", "no memory is known")

    # 1) Reduce to a total of the networks and the single bars.
    networks = parts[parts["kind"] == "network"]
    networks_gib = float(networks["gib"].sum())
    singles = _single_bars(parts)
    bars = [(name, gib) for name, gib, _ in singles]
    if len(networks):
        bars.insert(0, ("the model's networks", networks_gib))

    # 2) Draw, the networks in the first row.
    _stacked_networks(ax, networks)
    first = len(bars) - len(singles)
    for place, (_, gib, colour) in enumerate(singles, start=first):
        ax.barh(place, gib, 0.7, color=colour)
    for place, (_, gib) in enumerate(bars):
        ax.text(gib, place, f"  {number(gib)}", va="center")

    # 3) Axes and legend.
    names = [name for name, _ in bars]
    ax.set_yticks(range(len(bars)), names)
    widest_gib = max(gib for _, gib in bars)
    ax.set_xlim(0, 1.25 * widest_gib)
    ax.set_ylim(len(bars) - 0.5, -0.6)
    ax.grid(visible=False, axis="y")
    if len(networks):
        figure.legend_beside(ax, title="the model's networks")

    # 4) Words.
    all_bars = "; ".join(f"{name} {number(gib)}" for name, gib in bars)
    findings = []
    if len(networks):
        findings.append(f"the model's networks take {number(networks_gib)} GiB")
    if images >= MIN_RUNS:
        most = activations.sort_values("gib").iloc[-1]
        added = f"{STAGE_NAMES[most['part']]} adds the most, {number(most['gib'])} GiB"
        findings.append(f"{added} ({counted(images, 'image')})")
    elif images:
        are = agreeing(images, "is", "are")
        findings.append(
            f"what a stage adds is not shown: it takes {MIN_RUNS} images, there {are} {images}"
        )
    return _finish(ax, record, "; ".join(findings) or all_bars, f"Bars in GiB: {all_bars}.")


def _single_bars(parts: pd.DataFrame) -> list[tuple[str, float, str]]:
    """Returns name, GiB and colour of each bar that is not a network."""
    bars = []
    for row in parts.to_dict("records"):
        if row["kind"] == "activations":
            colour = bar_style(row["part"])["color"]
            bars.append((f"added while {STAGE_NAMES[row['part']]}", row["gib"], colour))
        if row["kind"] == "held":
            name = f"{MEMORIES[row['part']]}, at the end"
            bars.append((name, row["gib"], figure.GREY))
    return bars


def _stacked_networks(ax: Axes, networks: pd.DataFrame) -> None:
    left_gib = 0.0
    for row in networks.to_dict("records"):
        other = row["part"], {"color": figure.PURPLE, "edgecolor": "white"}
        name, style = NETWORKS.get(row["part"], other)
        params = number(row["params"] / 1e6)
        label = f"{name}: {number(row['gib'])} GiB, {params} M parameters"
        ax.barh(0, row["gib"], 0.7, left_gib, label=label, **style)
        left_gib += row["gib"]


@figure.styled
def arithmetic_bars(
    *,
    shares: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws which share, in percent, of this machine's fastest matrix product each part reaches.

    `shares` is from judge.arithmetic_share. Bars that other work disturbed are drawn as measured.
    """
    drawn = shares.iloc[:MOST_BARS]
    ax = figure.axes(ax, height=2.6 + 0.4 * len(drawn))
    ax.set_xlabel("share of this machine's fastest matrix product, %")
    if not len(drawn):
        return figure.no_data(ax, record, "the arithmetic's share", "nothing was timed")

    # 1) Reduce to percent.
    places = np.arange(len(drawn))
    percent = 100 * drawn["share"].to_numpy(dtype=float)
    found = [_in_percent(interval) for interval in drawn["share_interval"]]

    # 2) Draw the bars, their rates and the limit.
    ax.barh(places, percent, 0.6, color=figure.BLUE)
    ends = percent + figure.whiskers(ax, percent, places, found, horizontal=True)
    rows = drawn.to_dict("records")
    for place, end, row in zip(places, ends, rows, strict=True):
        gflop_per_s = number(1000 * row["tflop_per_s"])
        limit = number(1000 * row["limit_tflop_per_s"])
        rates = f"{gflop_per_s} of {limit} GFLOP/s"
        crosses = NEAR_LIMIT < end < 100
        beside = 100 if crosses else end
        figure.label_point(ax, (beside, place), rates, (5, 0), va="center")
    ax.axvline(100, color=figure.RED, linestyle="--", linewidth=1.5)
    ax.text(
        100,
        -0.55,
        "the limit ",
        color=figure.DARK_RED,
        ha="right",
        va="top",
        fontsize="small",
    )

    # 3) Axes.
    ax.set_yticks(places, [f"{row['part']}\n({row['dtype']})" for row in rows])
    longest = max(100, ends.max())
    ax.set_xlim(0, 1.05 * longest)
    ax.set_ylim(len(places) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")

    # 4) Words.
    reached = [
        f"{row['part']} reaches {words(share, interval, '%')}"
        for row, share, interval in zip(rows, percent, found, strict=True)
    ]
    finding = f"{' and '.join(reached[:2])} of this machine's fastest matrix product"
    disturbed = rows[0].get("disturbed")
    if disturbed:
        finding = f"the arithmetic's share is not shown: {disturbed} while it was timed"
    return _finish(ax, record, finding, f"Bars, with the limit at 100 %: {'; '.join(reached)}.")


def _in_percent(interval: intervals.Interval) -> intervals.Interval:
    if interval is None:
        return None
    low, high = interval
    return 100 * low, 100 * high


@figure.styled
def memory_trend(
    *,
    telemetry: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws the memory after each image, in MiB more than after the first one.

    The title has the verdict on growth (judge.memory_growth). The shaded first quarter does not
    count towards the verdict. A dotted line from its end on grows by the LEAK_KIB that are allowed.
    """
    ax = figure.axes(ax)
    ax.set_xlabel("images made")
    ax.set_ylabel("memory, MiB more than after the first image")
    samples_gib = {name: telemetry[f"{name}_gib"].dropna() for name in OWN_MEMORIES}
    known_gib = {name: samples for name, samples in samples_gib.items() if len(samples)}
    if not known_gib:
        return figure.no_data(ax, record, "memory after each image", "no memory was sampled")
    images = max(len(samples) for samples in known_gib.values())

    # 1) A line for each memory.
    labels: list[Label] = []
    for (name, samples), style in zip(known_gib.items(), STYLES, strict=False):
        more_gib = samples - samples.iloc[0]
        more_mib = 1024 * more_gib.to_numpy()
        end_mib = _trend(ax, more_mib, style)
        labels += _allowed_growth(ax, more_mib)
        end_words = f"{MEMORIES[name]},\n{number(samples.iloc[-1])} GiB at the end"
        labels.append((end_mib, end_words, style[0]))

    # 2) Axes, labels and the quarter that does not count.
    low, high = ax.get_ylim()
    # At least 1 MiB is shown: a page of 4 KiB must not look like a mountain.
    ax.set_ylim(min(low, -0.1), max(high, 1.0))
    ax.set_xlim(0, 1.02 * images)
    quarter = images // 4
    ax.axvspan(0, quarter, color=figure.GREY, alpha=0.18, linewidth=0)
    ax.text(
        images / 8,
        0.97,
        "not counted",
        transform=ax.get_xaxis_transform(),
        ha="center",
        va="top",
        fontsize="small",
    )
    figure.whole_ticks(ax.xaxis)
    figure.label_at_right(ax, labels)

    # 3) Words.
    growth = judge.memory_growth(telemetry).to_dict("records")
    verdicts = [f"{MEMORIES[row['memory']]} {row['verdict']}" for row in growth]
    verdict = "; ".join(verdicts) or f"too few to tell a leak, which takes {MIN_TREND}"
    finding = f"{counted(images, 'image')}: {verdict}"
    alt = f"Lines of memory after each image; less than {LEAK_KIB:g} KiB more an image is no leak."
    return _finish(ax, record, finding, alt)


def _trend(ax: Axes, more_mib: Any, style: Style) -> float:
    """Draws one memory after each image, and returns its last value."""
    colour, marker, dashes = style
    ax.plot(
        np.arange(1, len(more_mib) + 1),
        more_mib,
        dashes,
        color=colour,
        linewidth=1.5,
        marker=marker,
        markevery=max(1, len(more_mib) // 10),
        markersize=5,
    )
    return float(more_mib[-1])


def _allowed_growth(ax: Axes, more_mib: Any) -> list[Label]:
    """Draws how far the memory may grow after the first quarter, and returns the line's label.

    Too few images to tell a leak have no line.
    """
    images = len(more_mib)
    if images < MIN_TREND:
        return []
    quarter = images // 4
    start_mib = float(more_mib[quarter - 1])
    end_mib = start_mib + LEAK_KIB / 1024 * (images - quarter)
    ax.plot([quarter, images], [start_mib, end_mib], ":", color=figure.RED, linewidth=1.5)
    return [(end_mib, f"the limit: {LEAK_KIB:g} KiB\nmore an image", figure.RED)]


def _finish(
    ax: Axes,
    record: Record,
    finding: str,
    alt: str,
    **options: Any,
) -> Axes:
    """Returns figure.finish, with words for the load.

    The record itself has a closed loop of one user.
    """
    load = {"kind": "one image at a time, without a server"}
    spec = record["spec"] | {"arrivals": load}
    return figure.finish(ax, record | {"spec": spec}, finding, alt, **options)


def _by_size(images: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """Returns ((width, height), images) of each size, fewest pixels first."""

    def pixels(pair: tuple[Any, pd.DataFrame]) -> tuple[int, int]:
        (width, height), _ = pair
        return width * height, width

    return sorted(images.groupby(["width", "height"]), key=pixels)


def _span(values: pd.Series) -> str:
    """Returns the lowest to the highest value in words, without decimals."""
    low = f"{values.min():.0f}"
    high = f"{values.max():.0f}"
    return low if low == high else f"{low} to {high}"
