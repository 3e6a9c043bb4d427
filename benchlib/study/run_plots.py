"""Frames to pictures: the plots of one run, in one style (figure.py).

Knows what a reader must be told of each. Ignorant of where runs are stored and of how they were measured: a function
takes a run's frames and record, draws on `ax` (or on a figure of its own) and returns the Axes, whose label is the alt
text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.study import figure, latency
from benchlib.study.figure import number, whole_ticks
from benchlib.study.latency import Record
from benchlib.study.summary import is_steady

DRIFTED = "latency still drifted: no percentile is given"


@figure.styled
def latency_over_time(*, requests: pd.DataFrame, record: Record, ax: Axes | None = None) -> Axes:
    """Each request's latency in seconds at the time it was scheduled, the warm-up shaded.

    A failed request stands where it failed, and one that had not ended at as long as it had waited when the run ended.
    """
    ax = figure.axes(ax)
    ax.set(xlabel="when the request was made, s since the start of the run", ylabel=figure.LATENCY)
    if not len(requests):
        return figure.no_data(ax, record, "latency of each request", "no request was sent")
    ok, censored = latency.is_ok(requests), latency.is_censored(requests)
    end_s = (record["outcome"] or {}).get(
        "wall_s", requests[["scheduled_s", "done_s"]].max(axis=None)
    )
    height_s = requests["latency_s"].fillna(end_s - requests["scheduled_s"])
    # A timeout of minutes over images of a second would press these into a line: it stands at the upper edge instead.
    top_s = min(height_s.max(), 1.5 * height_s[ok].max()) if ok.any() else height_s.max()
    area = 30 if len(requests) <= 100 else 12 if len(requests) <= 2000 else 4
    for kind, marker, colour, label in (
        (ok, "o", figure.BLUE, "got an image"),
        (~ok & ~censored, "X", figure.RED, "failed"),
        (censored, "^", figure.PURPLE, "still waiting at the end"),
    ):
        if kind.any():
            if height_s[kind].max() > top_s:
                label += " (top edge: even longer)"
            x, y = requests["scheduled_s"][kind], height_s[kind].clip(upper=top_s)
            dots = ax.scatter(
                x, y, s=area, marker=marker, color=colour, alpha=0.8, linewidths=0, label=label
            )
            dots.set_rasterized(len(requests) > 2000)  # a path each would make the SVG huge
    warmup_s = record["spec"]["warmup_s"]
    if warmup_s:
        ax.axvspan(
            0, warmup_s, color=figure.GREY, alpha=0.18, linewidth=0, label="warm-up, not counted"
        )
    last_s = max(requests["scheduled_s"].max(), warmup_s, 1e-3)
    ax.set(xlim=(-0.01 * last_s, 1.01 * last_s), ylim=(0, 1.06 * top_s or 1))
    latency_s = latency.latencies(requests)
    drifted = is_steady(record, requests) is False
    median_s = None if drifted else latency.percentile(latency_s, 0.5)
    if median_s is not None:
        ax.hlines(median_s, warmup_s, last_s, color="black", linestyle="--", linewidth=1)
        figure.label_at_right(
            ax, [(median_s, f"half took at most\n{number(median_s)} s (median)", "black")]
        )
    span_s = " to ".join(dict.fromkeys(map(number, (latency_s.min(), latency_s.max()))))
    took = f"{'after warm-up, ' if warmup_s else ''}each image took {span_s} s"
    if drifted:
        took = f"{DRIFTED} (each image took {span_s} s)"
    keys = {"fontsize": "small", "handletextpad": 0.3, "markerscale": 6 / area**0.5}
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=4, **keys)
    warmup = f" The first {number(warmup_s)} s are warm-up." if warmup_s else ""
    alt = f"Dots: when each request was made and how long it took, {len(requests):,} in {number(last_s)} s.{warmup}"
    return figure.finish(ax, record, _finding(latency_s, took), alt, pad=22)


@figure.styled
def latency_distribution(*, requests: pd.DataFrame, record: Record, ax: Axes | None = None) -> Axes:
    """How many of the measured requests took how many seconds, and the percentiles that so many requests support."""
    ax = figure.axes(ax)
    ax.set(xlabel=figure.LATENCY, ylabel="number of requests")
    latency_s = latency.latencies(requests)
    known = latency_s.dropna().to_numpy()
    if not len(known):
        return figure.no_data(ax, record, "how long requests took", _finding(latency_s, ""))
    low, high = known.min(), known.max()
    spread = high - low > 0.01 * high
    bins = int(np.clip(2 * len(known) ** (1 / 3), 6, 60)) if spread else 1  # the Rice rule
    span = (low, high) if spread else (0.98 * low, 1.02 * high)
    counts, _, _ = ax.hist(
        known, bins, range=span, color=figure.BLUE, alpha=0.8, edgecolor="white", linewidth=0.5
    )
    top = float(np.max(counts))
    drifted = is_steady(record, requests) is False
    carried = () if drifted else latency.carried_percentiles(len(latency_s))
    points = {q: value for q in carried if (value := latency.percentile(latency_s, q)) is not None}
    for row, (q, value) in enumerate(points.items()):
        height = top * (
            1.05 + 0.1 * (len(points) - row)
        )  # each label passes over the lines to its right
        ax.vlines(value, 0, height, color="black", linestyle="-" if q == 0.5 else "--", linewidth=1)
        label = f"{100 * q:g} % took at most {number(value)} s"
        ax.annotate(
            label, (value, height), (4, 0), textcoords="offset points", va="top", fontsize="small"
        )
    ax.set_ylim(0, top * (1.1 + 0.1 * len(points)))
    whole_ticks(ax.yaxis)
    said = DRIFTED if drifted else f"the slowest image took {number(high)} s"
    if 0.5 in points:
        said = f"half of the requests took at most {number(points[0.5])} s"
        said += f", 95 % at most {number(points[0.95])} s" if 0.95 in points else ""
    alt = f"Histogram of latency, {len(known):,} in all, from {number(low)} to {number(high)} s."
    return figure.finish(ax, record, _finding(latency_s, said), alt)


@figure.styled
def latency_parts(*, requests: pd.DataFrame, record: Record, ax: Axes | None = None) -> Axes:
    """Where each image's latency went, in seconds, fastest first; over 120 images, as means of 60 groups.

    Parts that would read as "0 %" are left out.
    """
    ax = figure.axes(ax)
    ax.set(xlabel="requests, fastest to slowest", ylabel=figure.LATENCY)
    parts = latency.latency_parts(requests).fillna(0).clip(lower=0)
    n = len(parts)
    if not n:
        return figure.no_data(
            ax, record, "where the time went", "no image whose server told how its time went"
        )
    mean_s = parts.mean()
    total_s = mean_s.sum()
    percent = 100 * mean_s / total_s
    drawn = [part for part in figure.PART_STYLES if percent[part] >= 0.5]
    groups = n if n <= 120 else 60
    edges = np.arange(groups + 1) * n // groups
    order = parts.sum(axis="columns").argsort()
    bars = parts.iloc[order].groupby(np.repeat(np.arange(groups), np.diff(edges))).mean()
    bottom = np.zeros(groups)
    for part in drawn:
        name, colour, hatch = figure.PART_STYLES[part]
        label = f"{name}: {number(mean_s[part])} s, {percent[part]:.0f} %"
        style: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": "white",
            "linewidth": 0.3,
        }
        ax.bar(edges[:-1], bars[part], np.diff(edges), bottom, align="edge", label=label, **style)
        bottom += bars[part].to_numpy()
    ax.set_xlim(0, n)
    whole_ticks(ax.xaxis)
    if groups < n:
        ax.set_xlabel(f"requests, fastest to slowest; each bar: the mean of about {n / groups:.0f}")
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(1, 1),
        reverse=True,
        title="average, from 0.5 % up",
        alignment="left",
    )
    largest = sorted(drawn, key=lambda part: -mean_s[part])[:2]
    of_it = " and ".join(f"{percent[part]:.0f} % {figure.PART_STYLES[part][0]}" for part in largest)
    alt = f"Stacked bars: each image's latency by part, {n:,} in all, from fastest to slowest."
    finding = f"an image took {number(total_s)} s on average: {of_it}"
    if is_steady(record, requests) is False:
        finding += "; latency still drifted"
    return figure.finish(ax, record, finding, alt)


@figure.styled
def memory_over_time(
    *,
    telemetry: pd.DataFrame,
    record: Record,
    requests: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Memory of the server's process and, with CUDA, of its GPU over the run, in GiB, beside the model's own size.

    The weights are a band: on the GPU from 0, otherwise on top of what the process held before it loaded them.
    `requests` gives the GPU's true peak, as told by the server: a decode is shorter than the time between two samples.
    """
    ax = figure.axes(ax)
    ax.set(xlabel="time since the start of the run, s", ylabel="memory, GiB (1 GiB = 2³⁰ bytes)")
    if not telemetry["rss_gib"].notna().any():
        return figure.no_data(
            ax, record, "memory of the server", "the server's process was not sampled"
        )
    target = record["spec"]["target"]
    on_gpu = str(target["device"]).startswith("cuda")
    time_s, labels = telemetry["time_s"], []
    for column, name, colour, line in (
        ("rss_gib", "server's process", figure.BLUE, "-"),
        ("cuda_reserved_gib", "GPU, reserved", figure.PURPLE, "-."),
        ("cuda_allocated_gib", "GPU, in use when sampled", figure.GREEN, "-"),
    ):
        values = telemetry[column].dropna()
        if len(values):
            ax.plot(
                time_s,
                telemetry[column],
                line,
                color=colour,
                linewidth=2,
                marker="o" if len(values) == 1 else "",
            )
            labels.append((values.iloc[-1], f"{name}, at most {number(values.max())} GiB", colour))
    peak_gib = None if requests is None else requests["server_peak_gib"].max()
    if on_gpu and peak_gib is not None and peak_gib > 0:
        ax.axhline(peak_gib, color=figure.GREEN, linestyle=(0, (1, 1)), linewidth=1.5)
        labels.append(
            (peak_gib, f"GPU, peak in use by an image, {number(peak_gib)} GiB", figure.GREEN)
        )
    before_gib, weights_gib = target["memory_before_load_gib"], target["weights_gib"]
    if before_gib is not None:
        ax.axhline(before_gib, color=figure.GREY, linestyle="--", linewidth=1)
        labels.append(
            (before_gib, f"process before the model, {number(before_gib)} GiB", figure.GREY)
        )
    base_gib = 0 if on_gpu else before_gib
    if weights_gib is not None and base_gib is not None:
        top_gib = base_gib + weights_gib
        ax.axhspan(base_gib, top_gib, color=figure.ORANGE, alpha=0.3, linewidth=0)
        ax.axhline(top_gib, color=figure.ORANGE, linestyle=":", linewidth=1.5)
        where = "on the GPU:" if on_gpu else "add"
        labels.append(
            (top_gib, f"the model's weights {where} {number(weights_gib)} GiB", "#8A5F00")
        )
    ax.margins(x=0)
    ax.set_ylim(0, 1.15 * max(height for height, _, _ in labels))
    figure.label_at_right(ax, labels)
    finding = f"the server's process held at most {number(telemetry['rss_gib'].max())} GiB"
    if telemetry["cuda_reserved_gib"].notna().any():
        finding += (
            f" of main memory and {number(telemetry['cuda_reserved_gib'].max())} GiB of the GPU's"
        )
    if weights_gib is not None:
        finding += f"; the model's weights are {number(weights_gib)} GiB"
    alt = f"Lines over {number(time_s.max())} s: {'; '.join(text for _, text, _ in labels)}."
    return figure.finish(ax, record, finding, alt)


def _finding(latency_s: pd.Series, said_of_images: str) -> str:
    n, images = len(latency_s), int(latency_s.notna().sum())
    if not n:
        return "no request was measured"
    if not images:
        return f"none of {n:,} requests got an image"
    return (
        said_of_images
        if images == n
        else f"{said_of_images}; {n - images:,} of {n:,} requests got none"
    )
