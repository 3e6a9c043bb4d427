"""Frames to pictures: the plots of one run, in one style (figure.py).

Knows what a reader must learn from each figure. Ignorant of where runs are stored and of how they
were measured. A function takes a run's frames and record, draws on `ax` (or on a figure of its own)
and returns the Axes. Their label is the alt text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.study import figure, latency
from benchlib.study.figure import whole_ticks
from benchlib.study.intervals import MIN_RUNS, MIN_TREND
from benchlib.study.latency import Record
from benchlib.study.summary import is_steady
from benchlib.study.wording import agreeing, counted, number, span

DRIFTED = "latency still drifted: no percentile is given"
NARROWEST_BAR = 1 / 80
"""The narrowest bar of a histogram, as a share of its axis."""
MANY = 2000
"""Above this many requests, dots are drawn as one image: paths would make the SVG huge."""

Labels = list[tuple[float, str, str]]


@figure.styled
def latency_over_time(*, requests: pd.DataFrame, record: Record, ax: Axes | None = None) -> Axes:
    """Each request's latency in seconds at the time it was scheduled, the warm-up shaded.

    A failed request stands where it failed. One that had not ended stands as high as it had waited
    when the run ended.
    """
    ax = figure.axes(ax)
    ax.set(xlabel="when the request was made, s since the start of the run", ylabel=figure.LATENCY)
    if not len(requests):
        return figure.no_data(ax, record, "latency of each request", "no request was sent")
    warmup_s = record["spec"]["warmup_s"]
    latency_s = latency.latencies(requests)
    unsettled = _unsettled(record, requests)
    last_s = max(requests["scheduled_s"].max(), warmup_s, 1e-3)

    # 1) The dots, and the warm-up behind them
    top_s = _draw_requests(ax, requests, _waited_s(requests, record))
    if warmup_s:
        ax.axvspan(
            0,
            warmup_s,
            color=figure.GREY,
            alpha=0.18,
            linewidth=0,
            label="warm-up, not counted",
        )
    ax.set_xlim(-0.01 * last_s, 1.01 * last_s)
    ax.set_ylim(0, 1.06 * top_s or 1)

    scale = 6 / _dot_area(len(requests)) ** 0.5  # all dots of a legend have one size
    figure.legend_above(ax, columns=4, handletextpad=0.3, markerscale=scale)

    # 2) The median
    median_s = None if unsettled else latency.percentile(latency_s, 0.5)
    if median_s is not None:
        ax.hlines(median_s, warmup_s, last_s, color="black", linestyle="--", linewidth=1)
        words = f"half took at most\n{number(median_s)} s (median)"
        figure.label_at_right(ax, [(median_s, words, "black")])

    # 3) The words
    images = int(latency_s.notna().sum())
    each = "one image" if images == 1 else f"each of {images:,} images"
    took = f"{each} took {span(latency_s.dropna().tolist())} s"
    if unsettled == DRIFTED:
        took = f"{DRIFTED} ({took})"
    elif warmup_s:
        took = f"after warm-up, {took}"
    if unsettled and unsettled != DRIFTED:
        took += f"; {unsettled}"
    alt = "Dots: when each request was made and how long it took, "
    alt += f"{len(requests):,} in {number(last_s)} s."
    if warmup_s:
        alt += f" The first {number(warmup_s)} s are warm-up."
    return figure.finish(ax, record, _finding(latency_s, took), alt, pad=22)


def _unsettled(record: Record, requests: pd.DataFrame) -> str:
    """Why no percentile is given, in words; nothing where latency settled, or a ramp moves it."""
    n = len(latency.in_window(requests))
    if n < MIN_TREND:
        return f"not known whether it settled ({counted(n, 'request')}, it takes {MIN_TREND})"
    return DRIFTED if is_steady(record, requests) is False else ""


def _waited_s(requests: pd.DataFrame, record: Record) -> pd.Series:
    """How long each request took, or had waited when the run ended."""
    outcome = record["outcome"] or {}
    last_s = requests[["scheduled_s", "done_s"]].max(axis=None)
    end_s = outcome.get("wall_s", last_s)
    return requests["latency_s"].fillna(end_s - requests["scheduled_s"])


def _draw_requests(ax: Axes, requests: pd.DataFrame, waited_s: pd.Series) -> float:
    """Draws a dot for each request, and returns the height of the highest."""
    ok = latency.is_ok(requests)
    censored = latency.is_censored(requests)
    top_s = float(waited_s.max())
    if ok.any():
        # A timeout of minutes would squeeze images of a second into a line, so it is drawn at the
        # upper edge.
        top_s = min(top_s, 1.5 * float(waited_s[ok].max()))
    area = _dot_area(len(requests))
    for kind, marker, colour, label in (
        (ok, "o", figure.BLUE, "got an image"),
        (~ok & ~censored, "X", figure.RED, "failed"),
        (censored, "^", figure.PURPLE, "still waiting at the end"),
    ):
        if not kind.any():
            continue
        if waited_s[kind].max() > top_s:
            label += " (top edge: even longer)"
        dots = ax.scatter(
            requests["scheduled_s"][kind],
            waited_s[kind].clip(upper=top_s),
            area,
            marker=marker,
            color=colour,
            alpha=0.8,
            linewidths=0,
            label=label,
        )
        dots.set_rasterized(len(requests) > MANY)
    return top_s


def _dot_area(requests: int) -> int:
    if requests <= 100:
        return 30
    return 12 if requests <= MANY else 4


@figure.styled
def latency_distribution(*, requests: pd.DataFrame, record: Record, ax: Axes | None = None) -> Axes:
    """A histogram of the measured requests' latencies in seconds, and their percentiles.

    Fewer than MIN_RUNS images have no histogram. Where it is not known whether latency settled,
    there are bars and no percentiles.
    """
    ax = figure.axes(ax)
    ax.set(xlabel=figure.LATENCY, ylabel="number of requests")
    latency_s = latency.latencies(requests)
    known_s = latency_s.dropna().to_numpy()
    if not len(known_s):
        return figure.no_data(ax, record, "how long requests took", _finding(latency_s, ""))
    if len(known_s) < MIN_RUNS:
        are = agreeing(len(known_s), "is", "are")
        few = f"a histogram takes {MIN_RUNS} images, there {are} {len(known_s)}"
        return figure.no_data(ax, record, "how long requests took", few)
    unsettled = _unsettled(record, requests)
    points = {} if unsettled else _percentiles(latency_s)

    # 1) The bars, and over them a line for each percentile
    right_s = 1.03 * known_s.max()
    top = _draw_histogram(ax, known_s)
    at_right = sum(value_s <= 0.6 * right_s for value_s in points.values())
    for row, (q, value_s) in enumerate(points.items()):
        # A label at the right of its line passes over the lines further right. The others stand at
        # the left of theirs, and pass over the lines further left.
        level = len(points) - row if row < at_right else 1 + row - at_right
        height = top * (1.05 + 0.1 * level)
        line = "-" if q == 0.5 else "--"
        ax.vlines(value_s, 0, height, color="black", linestyle=line, linewidth=1)
        words = f"{100 * q:g} % took at most {number(value_s)} s"
        _label_percentile(ax, (value_s, height), words, at_left=row >= at_right)
    ax.set_xlim(0, right_s)
    ax.set_ylim(0, top * (1.1 + 0.1 * len(points)))
    whole_ticks(ax.yaxis)

    # 2) The words
    low, high = number(known_s.min()), number(known_s.max())
    said = f"{counted(len(known_s), 'image')} took {span(known_s.tolist())} s"
    if unsettled == DRIFTED:
        said = DRIFTED
    elif unsettled:
        said += f"; {unsettled}"
    elif 0.5 in points:
        of_all = f"half of {counted(len(latency_s), 'request')}"
        said = f"{of_all} took at most {number(points[0.5])} s"
        if 0.95 in points:
            said += f", 95 % at most {number(points[0.95])} s"
    alt = f"Histogram of latency, {len(known_s):,} in all, from {low} to {high} s."
    return figure.finish(ax, record, _finding(latency_s, said), alt)


def _label_percentile(ax: Axes, spot: tuple[float, float], words: str, *, at_left: bool) -> None:
    """Writes beside the top of a percentile's line, over the lines of others."""
    offset, side = ((-4, 0), "right") if at_left else ((4, 0), "left")
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
    figure.label_point(ax, spot, words, offset, va="top", ha=side, bbox=box)


def _percentiles(latency_s: pd.Series) -> dict[float, float]:
    """The percentiles that so many requests support: seconds by share."""
    points = {}
    for q in latency.carried_percentiles(len(latency_s)):
        value_s = latency.percentile(latency_s, q)
        if value_s is not None:
            points[q] = value_s
    return points


def _draw_histogram(ax: Axes, values: np.ndarray[Any, Any]) -> float:
    """Draws the bars and returns the highest one's height; nearly equal values get one bar."""
    low, high = values.min(), values.max()
    rice_rule = 2 * len(values) ** (1 / 3)
    widest_fit = int((high - low) / (NARROWEST_BAR * high))
    bins = min(int(np.clip(rice_rule, 6, 60)), widest_fit)
    ends = low, high
    if bins < 2:
        bins = 1
        ends = 0.98 * low, 1.02 * high
    counts, _, _ = ax.hist(
        values,
        bins,
        range=ends,
        color=figure.BLUE,
        alpha=0.8,
        edgecolor="white",
        linewidth=0.5,
    )
    return float(np.max(counts))


@figure.styled
def latency_parts(*, requests: pd.DataFrame, record: Record, ax: Axes | None = None) -> Axes:
    """The parts of each image's latency, in seconds, fastest first.

    More than 120 images are drawn as the means of 60 groups. Parts that would read as "0 %" are
    left out.
    """
    ax = figure.axes(ax)
    ax.set(xlabel="requests, fastest to slowest", ylabel=figure.LATENCY)
    parts = latency.breakdown(requests).fillna(0).clip(lower=0)
    n = len(parts)
    if not n:
        reason = "no image came with the server's times"
        return figure.no_data(ax, record, "where the time went", reason)
    mean_s = parts.mean()
    percent = 100 * mean_s / mean_s.sum()
    few = n < MIN_RUNS
    shown = [part for part in figure.PART_STYLES if percent[part] >= 0.5]

    # 1) The bars, a group of requests each
    groups = n if n <= 120 else 60
    edges = np.arange(groups + 1) * n // groups
    widths = np.diff(edges)
    bars = _means_by_group(parts, widths)
    bottom = np.zeros(groups)
    for part in shown:
        name, *_ = figure.PART_STYLES[part]
        label = name
        if not few:
            label += f": {number(mean_s[part])} s, {percent[part]:.0f} %"
        ax.bar(
            edges[:-1],
            bars[part],
            widths,
            bottom,
            align="edge",
            label=label,
            **figure.bar_style(part),
        )
        bottom += bars[part].to_numpy()
    ax.set_xlim(0, n)
    whole_ticks(ax.xaxis)
    if groups < n:
        ax.set_xlabel(f"requests, fastest to slowest; each bar: the mean of about {n / groups:.0f}")
    title = None if few else "on average (parts of 0.5 % and more)"
    figure.legend_beside(ax, reverse=True, title=title)

    # 2) The words
    largest = sorted(shown, key=lambda part: -mean_s[part])[:2]
    shares = [f"{percent[part]:.0f} % {figure.PART_STYLES[part][0]}" for part in largest]
    took = f"took {number(mean_s.sum())} s on average"
    finding = f"an image {took}: {' and '.join(shares)} ({counted(n, 'image')})"
    if few:
        some = f"there {agreeing(n, 'is', 'are')} {n}"
        finding = f"where the time went is not shown: it takes {MIN_RUNS} images, {some}"
    elif is_steady(record, requests) is False:
        finding += "; latency still drifted"
    alt = f"Stacked bars: each image's latency by part, {n:,} in all, from fastest to slowest."
    return figure.finish(ax, record, finding, alt)


def _means_by_group(parts: pd.DataFrame, sizes: np.ndarray[Any, Any]) -> pd.DataFrame:
    """The mean of each part in successive groups of so many requests, the fastest first."""
    order = parts.sum(axis="columns").argsort()
    group = np.repeat(np.arange(len(sizes)), sizes)
    return parts.iloc[order].groupby(group).mean()


@figure.styled
def memory_over_time(
    *,
    telemetry: pd.DataFrame,
    record: Record,
    requests: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Memory of the server's process and of its GPU over the run, in GiB, beside the model's size.

    The GPU is drawn with CUDA only. The weights are a band: on the GPU from 0, otherwise on top of
    what the process held before it loaded them. `requests` gives the GPU's true peak, as the server
    sent it: a decode is shorter than the time between two samples.
    """
    ax = figure.axes(ax)
    ax.set(xlabel="time since the start of the run, s", ylabel="memory, GiB (1 GiB = 2³⁰ bytes)")
    if not telemetry["rss_gib"].notna().any():
        reason = "the server's process was not sampled"
        return figure.no_data(ax, record, "memory of the server", reason)

    # 1) The lines, each with its label
    labels = _draw_samples(ax, telemetry)
    target = record["spec"]["target"]
    on_gpu = str(target["device"]).startswith("cuda")
    if on_gpu and requests is not None:
        labels += _draw_peak(ax, requests["server_peak_gib"].max())
    labels += _draw_model(ax, target, on_gpu)
    ax.margins(x=0)
    highest, *_ = max(labels)
    ax.set_ylim(0, 1.15 * highest)
    figure.label_at_right(ax, labels)

    # 2) The words
    samples = counted(int(telemetry["rss_gib"].notna().sum()), "sample")
    finding = f"the server's process held at most {number(telemetry['rss_gib'].max())} GiB"
    if telemetry["cuda_reserved_gib"].notna().any():
        reserved_gib = telemetry["cuda_reserved_gib"].max()
        finding += f" of main memory and {number(reserved_gib)} GiB of the GPU's"
    finding += f" ({samples})"
    if target["weights_gib"] is not None:
        finding += f"; the model's weights are {number(target['weights_gib'])} GiB"
    listed = "; ".join(text for _, text, _ in labels)
    alt = f"Lines over {number(telemetry['time_s'].max())} s: {listed}."
    return figure.finish(ax, record, finding, alt)


def _draw_samples(ax: Axes, telemetry: pd.DataFrame) -> Labels:
    labels: Labels = []
    for column, name, colour, line in (
        ("rss_gib", "server's process", figure.BLUE, "-"),
        ("cuda_reserved_gib", "GPU, reserved", figure.PURPLE, "-."),
        ("cuda_allocated_gib", "GPU, in use when sampled", figure.GREEN, "-"),
    ):
        known_gib = telemetry[column].dropna()
        if not len(known_gib):
            continue
        ax.plot(
            telemetry["time_s"],
            telemetry[column],
            line,
            color=colour,
            linewidth=2,
            marker="o" if len(known_gib) == 1 else "",
        )
        words = f"{name}, at most {number(known_gib.max())} GiB"
        labels.append((known_gib.iloc[-1], words, colour))
    return labels


def _draw_peak(ax: Axes, peak_gib: float) -> Labels:
    """Draws the highest memory of the GPU while an image was made, if that is known."""
    if not peak_gib > 0:
        return []
    ax.axhline(peak_gib, color=figure.GREEN, linestyle=(0, (1, 1)), linewidth=1.5)
    words = f"GPU, peak in use by an image, {number(peak_gib)} GiB"
    return [(peak_gib, words, figure.GREEN)]


def _draw_model(ax: Axes, target: dict[str, Any], on_gpu: bool) -> Labels:
    """Draws the process's memory before the model, and the model's weights as a band."""
    labels: Labels = []
    before_gib = target["memory_before_load_gib"]
    if before_gib is not None:
        ax.axhline(before_gib, color=figure.GREY, linestyle="--", linewidth=1)
        words = f"process before the model, {number(before_gib)} GiB"
        labels.append((before_gib, words, figure.GREY))
    weights_gib = target["weights_gib"]
    base_gib = 0 if on_gpu else before_gib
    if weights_gib is not None and base_gib is not None:
        top_gib = base_gib + weights_gib
        ax.axhspan(base_gib, top_gib, color=figure.ORANGE, alpha=0.3, linewidth=0)
        ax.axhline(top_gib, color=figure.ORANGE, linestyle=":", linewidth=1.5)
        where = "on the GPU:" if on_gpu else "add"
        words = f"the model's weights {where} {number(weights_gib)} GiB"
        labels.append((top_gib, words, figure.ORANGE))
    return labels


def _finding(latency_s: pd.Series, said_of_images: str) -> str:
    """The title: what is said of the images, and how many requests got no image."""
    n = len(latency_s)
    images = int(latency_s.notna().sum())
    if not n:
        return "no request was measured"
    if not images:
        return f"none of {counted(n, 'request')} got an image"
    if images < n:
        return f"{said_of_images}; {n - images:,} of {counted(n, 'request')} got no image"
    return said_of_images
