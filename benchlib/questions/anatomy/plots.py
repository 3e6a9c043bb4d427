"""An image taken apart, as pictures: where its time and its memory go, the arithmetic's share, and leaks.

Knows frames of images that were made one at a time (anatomy.py) and what dissection.py makes of them. Ignorant of how
they were measured. Whiskers are 95 % intervals; where none is drawn there is none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.anatomy import judge
from benchlib.questions.anatomy.judge import LEAK_KIB, MEMORIES, measured, size_name
from benchlib.rows import STAGES
from benchlib.study import figure, intervals
from benchlib.study.figure import PART_STYLES, number
from benchlib.study.intervals import Interval

STYLES = (
    (figure.BLUE, "o", "-"), (figure.ORANGE, "s", "--"), (figure.GREEN, "D", "-."), (figure.RED, "^", ":"),
    (figure.PURPLE, "v", "-"), (figure.SKY, "P", "--"),
)  # fmt: skip
DRAWN = 16
NO_IMAGE = "no image was measured"


@figure.styled
def stage_stack(*, requests: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """Mean seconds of encode, denoise and decode, stacked, a bar for each size and number of steps; of more than DRAWN,
    evenly chosen. The percentages are denoising's; the whiskers are of the whole image's mean."""
    ax = figure.axes(ax)
    ax.set(ylabel="time of an image, s", xlabel="steps and size in pixels")
    images = measured(requests)
    if not len(images):
        return figure.no_data(ax, record, "an image's time by stage", NO_IMAGE)
    groups = images.groupby(["width", "height", "num_inference_steps"])
    means = groups[[f"{stage}_s" for stage in STAGES]].mean().set_axis(list(STAGES), axis=1)
    percent = 100 * means.div(means.sum(axis=1), axis=0)
    chosen = np.unique(np.linspace(0, len(means) - 1, min(DRAWN, len(means))).astype(int))
    drawn, at = means.iloc[chosen], np.arange(len(chosen))
    bottom = np.zeros(len(at))
    for stage in STAGES:
        name, colour, hatch = PART_STYLES[stage]
        style: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": "white",
            "linewidth": 0.3,
        }
        ax.bar(at, drawn[stage], 0.75, bottom, label=f"{name}: {_span(percent[stage])} %", **style)
        bottom += drawn[stage].to_numpy()
    pairs = [intervals.runs_interval(group["total_s"].tolist()) for _, group in groups]
    ends = bottom + _whiskers(ax, at, bottom, [pairs[place] for place in chosen])
    for place, end, share in zip(at, ends, percent["denoise"].iloc[chosen], strict=True):
        ax.annotate(
            f"{share:.0f} %",
            (place, end),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    ax.set_xticks(at, [f"{steps}\n{width}x\n{height}" for width, height, steps in drawn.index])
    ax.set(xlim=(-0.6, max(len(at), 3) - 0.4), ylim=(0, 1.12 * float(ends.max())))
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(1, 1),
        reverse=True,
        title="share of an image's time",
        alignment="left",
    )
    top = max(STAGES, key=lambda stage: means[stage].to_numpy().sum())
    finding = f"{PART_STYLES[top][0]} takes {_span(percent[top])} % of an image's time"
    shares = "; ".join(f"{PART_STYLES[stage][0]} {_span(percent[stage])} %" for stage in STAGES)
    return _finish(
        ax, record, finding, f"Stacked bars of {len(means):,} sizes and steps: {shares}."
    )


@figure.styled
def cost_line(*, requests: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """Seconds of each image against its steps, and the line through them for each size: what any image costs, and what
    each step adds. The title tells the largest size's; of more than six sizes, the six largest are drawn."""
    ax = figure.axes(ax)
    ax.set(xlabel="denoising steps", ylabel="time of an image, s")
    images = measured(requests)
    if not len(images):
        return figure.no_data(ax, record, "time by steps", NO_IMAGE)
    lines = {
        (row["width"], row["height"]): row for row in judge.cost_lines(requests).to_dict("records")
    }
    last, labels, found = float(images["num_inference_steps"].max()), [], []
    for (size, group), (colour, marker, dashes) in zip(
        _sizes(images)[-len(STYLES) :], STYLES, strict=False
    ):
        dots: dict[str, Any] = {
            "marker": marker,
            "color": colour,
            "alpha": 0.6,
            "linewidths": 0,
            "rasterized": len(images) > 2000,
        }
        ax.scatter(group["num_inference_steps"], group["total_s"], 25, **dots)
        words = (size_name(*size), f"no line, as all have {last:g} steps")
        end_s = float(group["total_s"].mean())
        if line := lines.get(size):
            end_s = line["fixed_s"] + line["per_step_s"] * last
            ax.plot([0, last], [line["fixed_s"], end_s], dashes, color=colour, linewidth=1.5)
            words = (size_name(*size), "costs not shown, too few images")
            if line["fixed_s_interval"]:
                words = (size_name(*size), f"{_cost(line, 'per_step_s')}, {_cost(line, 'fixed_s')}")
        labels.append((end_s, f"{words[0]}:\n{words[1].replace(', ', chr(10))}", colour))
        found.append(": ".join(words))
    ax.set(
        xlim=(0, 1.03 * last),
        ylim=(min(0, ax.get_ylim()[0]), 1.05 * float(images["total_s"].max())),
    )
    whole = number(ax.get_ylim()[1])
    figure.whole_ticks(ax.xaxis)
    figure.label_at_right(ax, labels)
    alt = f"Dots and lines, time up to {whole} s by steps up to {last:g}: {'; '.join(found)}."
    return _finish(ax, record, found[-1], alt)


@figure.styled
def against_pixels(
    *, requests: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None
) -> Axes:
    """Seconds of an image, a line for each number of steps (of more than six, the six highest), and, in a panel below,
    each stage's peak memory in GiB, both means against the image's pixels. The upper panel is returned."""
    upper = figure.axes(ax, height=6)
    images = measured(requests)
    if not len(images):
        return figure.no_data(upper, record, "time and memory by pixels", NO_IMAGE)
    lower = figure.panel_below(upper)
    images = images.assign(
        pixels=images["width"].astype(float) * images["height"].astype(float) / 1e6
    )
    most = images["num_inference_steps"].max()
    by_steps = list(images.groupby("num_inference_steps"))[-len(STYLES) :]
    times = [
        _curve(upper, group, "total_s", style, f"{steps} step{'' if steps == 1 else 's'}")
        for (steps, group), style in zip(by_steps, STYLES, strict=False)
    ]
    peaks = [
        _curve(lower, images, f"{stage}_peak_gib", style, PART_STYLES[stage][0])
        for stage, style in zip(STAGES, STYLES, strict=False)
        if images[f"{stage}_peak_gib"].notna().any()
    ]
    memory = (
        "torch on the GPU"
        if str(record["spec"]["target"]["device"]).startswith("cuda")
        else "the whole process"
    )
    upper.set(ylabel="time of an image, s", ylim=(0, None))
    lower.set(
        ylabel=f"peak memory of\n{memory}, GiB", xlabel="size of the image, millions of pixels"
    )
    lower.set_xlim(0, 1.02 * images["pixels"].max())
    figure.label_at_right(upper, times)
    figure.label_at_right(lower, peaks)
    peak = judge.peak_stage(requests)
    mean_s = [
        float(group["total_s"].mean())
        for _, group in _sizes(images[images["num_inference_steps"] == most])
    ]
    names = [size_name(*size) for size, _ in _sizes(images[images["num_inference_steps"] == most])]
    finding = f"an image of {most} steps takes {number(mean_s[-1])} s at {names[-1]}"
    if len(names) > 1:
        finding += f", {number(mean_s[-1] / mean_s[0])} times as long as at {names[0]}"
    if peak is None:
        finding += "; peak memory is not known here"
    else:
        where = f"while {PART_STYLES[peak[0]][0]}" if peak[0] else "in which stage is not shown"
        finding += f"; memory peaks at {number(peak[1])} GiB, at {peak[2]}, {where}"
    alt = f"Time over peak memory of each stage, by pixels, for {len(images):,} images."
    return _finish(upper, record, finding, alt, lowest=lower)


@figure.styled
def memory_bars(*, parts: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """GiB of the networks, stacked as they add up, of each stage's activations, and of what process and GPU hold, which
    contain one another and so stand apart. `parts` are judge.memory_parts'; what is not known is not drawn."""
    ax = figure.axes(ax)
    ax.set_xlabel("memory, GiB (1 GiB = 2³⁰ bytes)")
    if not len(parts):
        return figure.no_data(ax, record, "parts of memory", "no memory is known")
    networks, activations, held = (
        parts[parts["kind"] == kind] for kind in ("network", "activations", "held")
    )
    bars: list[tuple[str, float, str]] = [
        ("the model's networks", float(networks["gib"].sum()), "")
    ] * bool(len(networks))
    stages: dict[str, float] = dict(zip(activations["part"], activations["gib"], strict=True))
    bars += [
        (f"added while {PART_STYLES[stage][0]}", gib, PART_STYLES[stage][1])
        for stage, gib in stages.items()
    ]
    bars += [
        (MEMORIES[name], gib, figure.GREY)
        for name, gib in zip(held["part"], held["gib"], strict=True)
    ]
    left = 0.0
    for place, row in enumerate(networks.to_dict("records")):
        colour, hatch = STYLES[place % len(STYLES)][0], ("", "//", "..", "\\\\")[place % 4]
        label = (
            f"{row['part']}: {number(row['gib'])} GiB, {number(row['params'] / 1e6)} M parameters"
        )
        ax.barh(
            0,
            row["gib"],
            0.7,
            left,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
        left += row["gib"]
    for place, (_, gib, colour) in enumerate(bars):
        if colour:
            ax.barh(place, gib, 0.7, color=colour)
        ax.text(gib, place, f"  {number(gib)}", va="center")
    ax.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    ax.set(ylim=(len(bars) - 0.5, -0.6), xlim=(0, 1.15 * max(gib for _, gib, _ in bars)))
    ax.grid(visible=False, axis="y")
    findings = []
    if len(networks):
        ax.legend(
            loc="upper left", bbox_to_anchor=(1, 1), title="the model's networks", alignment="left"
        )
        findings = [f"the model's networks take {number(left)} GiB"]
    if stages:
        stage = max(stages, key=lambda one: stages[one])
        findings += [f"{PART_STYLES[stage][0]} adds the most, {number(stages[stage])} GiB"]
    said = "; ".join(f"{name} {number(gib)}" for name, gib, _ in bars)
    return _finish(ax, record, "; ".join(findings) or said, f"Bars in GiB: {said}.")


@figure.styled
def arithmetic_bars(
    *, shares: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None
) -> Axes:
    """What share, in percent, of the fastest matrix product on this machine each part reaches (`shares` are
    judge.arithmetic_share's)."""
    ax = figure.axes(ax, height=2.6 + 0.4 * min(len(shares), DRAWN))
    ax.set_xlabel("share of this machine's fastest matrix product, %")
    if not len(shares):
        return figure.no_data(ax, record, "the arithmetic's share", "nothing was timed")
    shown, at = shares.iloc[:DRAWN], np.arange(min(len(shares), DRAWN))
    percent = 100 * shown["share"].to_numpy(dtype=float)
    pairs = [pair and (100 * pair[0], 100 * pair[1]) for pair in shown["share_interval"]]
    ax.barh(at, percent, 0.6, color=figure.BLUE)
    ends = percent + _whiskers(ax, at, percent, pairs, across=True)
    for place, end, row in zip(at, ends, shown.to_dict("records"), strict=True):
        rates = f"{number(1000 * row['tflop_per_s'])} of {number(1000 * row['limit_tflop_per_s'])} GFLOP/s"
        ax.annotate(
            rates, (end, place), (5, 0), textcoords="offset points", va="center", fontsize="small"
        )
    ax.axvline(100, color=figure.RED, linestyle="--", linewidth=1.5)
    ax.text(100, -0.55, "the limit ", color=figure.RED, ha="right", va="top", fontsize="small")
    ax.set_yticks(at, [f"{row['part']}\n({row['dtype']})" for row in shown.to_dict("records")])
    ax.set(ylim=(len(at) - 0.4, -0.6), xlim=(0, 1.05 * max(100, ends.max())))
    ax.grid(visible=False, axis="y")
    told = [
        f"{part} reaches {_told(share, pair, ' %')}"
        for part, share, pair in zip(shown["part"], percent, pairs, strict=True)
    ]
    finding = f"{' and '.join(told[:2])} of this machine's fastest matrix product"
    return _finish(ax, record, finding, f"Bars, with the limit at 100 %: {'; '.join(told)}.")


@figure.styled
def memory_trend(
    *, telemetry: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None
) -> Axes:
    """Memory after each image, in MiB more than after the first one; the shaded quarter does not count towards the
    verdict on growth in the title (judge.memory_growth)."""
    ax = figure.axes(ax)
    ax.set(xlabel="images made", ylabel="memory, MiB more than after the first image")
    known = {
        name: values
        for name in list(MEMORIES)[:3]
        if len(values := telemetry[f"{name}_gib"].dropna())
    }
    if not known:
        return figure.no_data(ax, record, "memory after each image", "no memory was sampled")
    growth, labels = judge.memory_growth(telemetry).set_index("memory")["verdict"], []
    for (name, values), (colour, marker, dashes) in zip(known.items(), STYLES, strict=False):
        more = 1024 * (values - values.iloc[0]).to_numpy()
        marks: dict[str, Any] = {
            "marker": marker,
            "markevery": max(1, len(more) // 10),
            "markersize": 5,
        }
        ax.plot(np.arange(1, len(more) + 1), more, dashes, color=colour, linewidth=1.5, **marks)
        labels.append(
            (
                float(more[-1]),
                f"{MEMORIES[name]},\n{number(values.iloc[-1])} GiB at the end",
                colour,
            )
        )
    images = max(map(len, known.values()))
    low, high = ax.get_ylim()
    ax.set(
        xlim=(0, 1.02 * images), ylim=(min(low, -0.1), max(high, 1.0))
    )  # a page of 4 KiB is no mountain
    ax.axvspan(0, images // 4, color=figure.GREY, alpha=0.18, linewidth=0)
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
    told = [f"{MEMORIES[str(name)]} {verdict}" for name, verdict in growth.items()]
    finding = f"{images:,} image{'s' * (images != 1)}: {'; '.join(told) or 'too few to tell a leak, which takes 40'}"
    alt = f"Lines of memory after each image; less than {LEAK_KIB:g} KiB more an image is no leak."
    return _finish(ax, record, finding, alt)


def _finish(ax: Axes, record: dict[str, Any], finding: str, alt: str, **options: Any) -> Axes:
    made = {
        "arrivals": {"kind": "one image at a time, without a server"}
    }  # the record has a closed loop of one user
    return figure.finish(ax, record | {"spec": record["spec"] | made}, finding, alt, **options)


def _sizes(images: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """The images of each size, fewest pixels first."""
    return sorted(
        images.groupby(["width", "height"]), key=lambda pair: (pair[0][0] * pair[0][1], pair[0])
    )


def _curve(
    ax: Axes, images: pd.DataFrame, column: str, style: tuple[str, str, str], label: str
) -> tuple[float, str, str]:
    """Draws means and intervals, and returns the line's label as label_at_right takes it."""
    groups = images.groupby("pixels")[column]
    means, (colour, marker, dashes) = groups.mean(), style
    _whiskers(
        ax,
        means.index,
        means,
        [intervals.runs_interval(group.tolist()) for _, group in groups],
        colour=colour,
    )
    ax.plot(means.index, means, dashes, marker=marker, color=colour, linewidth=1.5, markersize=5)
    return float(means.iloc[-1]), label, colour


def _whiskers(
    ax: Axes,
    at: Any,
    values: Any,
    pairs: list[Interval],
    *,
    across: bool = False,
    colour: str = "black",
) -> Any:
    """Draws the intervals, and returns how far each one goes beyond its value: 0 where there is none."""
    beyond = figure.beyond(values, pairs)
    places: dict[str, Any] = (
        {"x": values, "y": at, "xerr": beyond} if across else {"x": at, "y": values, "yerr": beyond}
    )
    ax.errorbar(**places, fmt="none", ecolor=colour, capsize=3)
    return np.nan_to_num(beyond[1])


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.0f}", f"{values.max():.0f}"
    return low if low == high else f"{low} to {high}"


def _told(value: float, interval: Interval, unit: str = "") -> str:
    return (
        number(value)
        + unit
        + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")
    )


def _cost(line: dict[Any, Any], name: str) -> str:
    what, words = {
        "per_step_s": ("the cost of a step", "{} s a step"),
        "fixed_s": ("a fixed cost", "plus {} s"),
    }[name]
    interval = line[f"{name}_interval"]
    if interval[0] > 0:
        return words.format(_told(line[name], interval))
    return f"{what} is not shown ({number(interval[0])} to {number(interval[1])} s)"
