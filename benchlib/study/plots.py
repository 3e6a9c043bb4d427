"""Frames to pictures: four plots of one run, in one style, as PNG and SVG and in a notebook.

Knows how a figure should look and what a reader must be told. Ignorant of where runs are stored and of how they were
measured: a function takes a run's frames and record, draws on `ax` (or on a figure of its own) and returns the Axes,
whose label is the alt text. Figures are made without pyplot: nothing depends on a backend and nothing stays open.
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from matplotlib import pyplot, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchlib.study import statistics

if TYPE_CHECKING:
    from PIL.Image import Image

# Colours that colour-blind people can tell apart: Okabe & Ito, "Color Universal Design" (2008).
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6B6B6B"

PART_STYLES = {
    "queue": ("waiting in the queue", ORANGE, "//"),
    "wait": ("waiting for other images", YELLOW, ".."),
    "encode": ("encoding the prompt", SKY, ""),
    "denoise": ("denoising", BLUE, ""),
    "decode": ("decoding the image", GREEN, "\\\\"),
    "image": ("writing the image file", PURPLE, "xx"),
    statistics.OTHER: ("in the server, not told apart", "#D0D0D0", ""),
    statistics.REST: ("network and client", GREY, ""),
}
LATENCY = "latency (from request to image), s"

_TICKS: Any = {"nbins": 8, "steps": [1, 2, 5, 10]}  # 0, 5, 10 rather than 0.0, 2.5, 5.0
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "svg.hashsalt": "benchlib",  # the same picture gives the same file
}


@rc_context(_STYLE)
def latency_over_time(*, requests: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """Each request's latency in seconds at the time it was scheduled, the warm-up shaded.

    A failed request stands where it failed, and one that had not ended at as long as it had waited when the run ended.
    """
    ax = _axes(ax)
    ax.set(xlabel="when the request was made, s since the start of the run", ylabel=LATENCY)
    if not len(requests):
        return _no_data(ax, record, "latency of each request", "no request was sent")
    ok, censored = statistics.is_ok(requests), statistics.is_censored(requests)
    end_s = (record["outcome"] or {}).get("wall_s", requests[["scheduled_s", "done_s"]].max(axis=None))
    height_s = requests["latency_s"].fillna(end_s - requests["scheduled_s"])
    # A timeout of minutes over images of a second would press these into a line: it stands at the upper edge instead.
    top_s = min(height_s.max(), 1.5 * height_s[ok].max()) if ok.any() else height_s.max()
    area = 30 if len(requests) <= 100 else 12 if len(requests) <= 2000 else 4
    for kind, marker, colour, label in (
        (ok, "o", BLUE, "got an image"),
        (~ok & ~censored, "X", RED, "failed"),
        (censored, "^", PURPLE, "still waiting at the end"),
    ):
        if kind.any():
            if height_s[kind].max() > top_s:
                label += " (top edge: even longer)"
            x, y = requests["scheduled_s"][kind], height_s[kind].clip(upper=top_s)
            dots = ax.scatter(x, y, s=area, marker=marker, color=colour, alpha=0.8, linewidths=0, label=label)
            dots.set_rasterized(len(requests) > 2000)  # a path each would make the SVG huge
    warmup_s = record["spec"]["warmup_s"]
    if warmup_s:
        ax.axvspan(0, warmup_s, color=GREY, alpha=0.18, linewidth=0, label="warm-up, not counted")
    last_s = max(requests["scheduled_s"].max(), warmup_s, 1e-3)
    ax.set(xlim=(-0.01 * last_s, 1.01 * last_s), ylim=(0, 1.06 * top_s or 1))
    latency_s = statistics.latencies(requests)
    median_s = statistics.percentile(latency_s, 0.5)
    if median_s is not None:
        ax.hlines(median_s, warmup_s, last_s, color="black", linestyle="--", linewidth=1)
        _label_at_right(ax, [(median_s, f"half took at most\n{_number(median_s)} s (median)", "black")])
    span_s = " to ".join(dict.fromkeys(map(_number, (latency_s.min(), latency_s.max()))))
    took = f"{'after warm-up, ' if warmup_s else ''}each image took {span_s} s"
    keys = {"fontsize": "small", "handletextpad": 0.3, "markerscale": 6 / area**0.5}
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=4, **keys)
    warmup = f" The first {_number(warmup_s)} s are warm-up." if warmup_s else ""
    alt = f"Dots: when each request was made and how long it took, {len(requests):,} in {_number(last_s)} s.{warmup}"
    return _finish(ax, record, _finding(latency_s, took), alt, pad=22)


@rc_context(_STYLE)
def latency_distribution(*, requests: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """How many of the measured requests took how many seconds, and the percentiles that so many requests support."""
    ax = _axes(ax)
    ax.set(xlabel=LATENCY, ylabel="number of requests")
    latency_s = statistics.latencies(requests)
    known = latency_s.dropna().to_numpy()
    if not len(known):
        return _no_data(ax, record, "how long requests took", _finding(latency_s, ""))
    low, high = known.min(), known.max()
    spread = high - low > 0.01 * high
    bins = int(np.clip(2 * len(known) ** (1 / 3), 6, 60)) if spread else 1  # the Rice rule
    span = (low, high) if spread else (0.98 * low, 1.02 * high)
    counts, _, _ = ax.hist(known, bins, range=span, color=BLUE, alpha=0.8, edgecolor="white", linewidth=0.5)
    top = float(np.max(counts))
    carried = statistics.carried_percentiles(len(latency_s))
    points = {q: value for q in carried if (value := statistics.percentile(latency_s, q)) is not None}
    for row, (q, value) in enumerate(points.items()):
        height = top * (1.05 + 0.1 * (len(points) - row))  # each label passes over the lines to its right
        ax.vlines(value, 0, height, color="black", linestyle="-" if q == 0.5 else "--", linewidth=1)
        label = f"{100 * q:g} % took at most {_number(value)} s"
        ax.annotate(label, (value, height), (4, 0), textcoords="offset points", va="top", fontsize="small")
    ax.set_ylim(0, top * (1.1 + 0.1 * len(points)))
    ax.yaxis.set_major_locator(MaxNLocator(**_TICKS, integer=True))
    said = f"half of the requests took at most {_number(points[0.5])} s" if 0.5 in points else ""
    said += f", 95 % at most {_number(points[0.95])} s" if 0.95 in points else ""
    finding = _finding(latency_s, said or f"the slowest image took {_number(high)} s")
    alt = f"Histogram of latency, {len(known):,} in all, from {_number(low)} to {_number(high)} s."
    return _finish(ax, record, finding, alt)


@rc_context(_STYLE)
def latency_parts(*, requests: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """Where each image's latency went, in seconds, fastest first; over 120 images, as means of 60 groups.

    Parts that would read as "0 %" are left out.
    """
    ax = _axes(ax)
    ax.set(xlabel="requests, fastest to slowest", ylabel=LATENCY)
    parts = statistics.latency_parts(requests).fillna(0).clip(lower=0)
    n = len(parts)
    if not n:
        return _no_data(ax, record, "where the time went", "no image whose server told how its time went")
    mean_s = parts.mean()
    total_s = mean_s.sum()
    percent = 100 * mean_s / total_s
    drawn = [part for part in PART_STYLES if percent[part] >= 0.5]
    groups = n if n <= 120 else 60
    edges = np.arange(groups + 1) * n // groups
    order = parts.sum(axis="columns").argsort()
    bars = parts.iloc[order].groupby(np.repeat(np.arange(groups), np.diff(edges))).mean()
    bottom = np.zeros(groups)
    for part in drawn:
        name, colour, hatch = PART_STYLES[part]
        label = f"{name}: {_number(mean_s[part])} s, {percent[part]:.0f} %"
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
        ax.bar(edges[:-1], bars[part], np.diff(edges), bottom, align="edge", label=label, **style)
        bottom += bars[part].to_numpy()
    ax.set_xlim(0, n)
    ax.xaxis.set_major_locator(MaxNLocator(**_TICKS, integer=True))
    if groups < n:
        ax.set_xlabel(f"requests, fastest to slowest; each bar: the mean of about {n / groups:.0f}")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), reverse=True, title="average, from 0.5 % up", alignment="left")
    largest = sorted(drawn, key=lambda part: -mean_s[part])[:2]
    of_it = " and ".join(f"{percent[part]:.0f} % {PART_STYLES[part][0]}" for part in largest)
    alt = f"Stacked bars: each image's latency by part, {n:,} in all, from fastest to slowest."
    return _finish(ax, record, f"an image took {_number(total_s)} s on average: {of_it}", alt)


@rc_context(_STYLE)
def memory_over_time(
    *, telemetry: pd.DataFrame, record: dict[str, Any], requests: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """Memory of the server's process and, with CUDA, of its GPU over the run, in GiB, beside the model's own size.

    The weights are a band: on the GPU from 0, otherwise on top of what the process held before it loaded them.
    `requests` gives the GPU's true peak, as told by the server: a decode is shorter than the time between two samples.
    """
    ax = _axes(ax)
    ax.set(xlabel="time since the start of the run, s", ylabel="memory, GiB (1 GiB = 2³⁰ bytes)")
    if not telemetry["rss_gib"].notna().any():
        return _no_data(ax, record, "memory of the server", "the server's process was not sampled")
    target = record["spec"]["target"]
    on_gpu = str(target["device"]).startswith("cuda")
    time_s, labels = telemetry["time_s"], []
    for column, name, colour, line in (
        ("rss_gib", "server's process", BLUE, "-"),
        ("cuda_reserved_gib", "GPU, reserved", PURPLE, "-."),
        ("cuda_allocated_gib", "GPU, in use when sampled", GREEN, "-"),
    ):
        values = telemetry[column].dropna()
        if len(values):
            ax.plot(time_s, telemetry[column], line, color=colour, linewidth=2, marker="o" if len(values) == 1 else "")
            labels.append((values.iloc[-1], f"{name}, at most {_number(values.max())} GiB", colour))
    peak_gib = None if requests is None else requests["server_peak_gib"].max()
    if on_gpu and peak_gib is not None and peak_gib > 0:
        ax.axhline(peak_gib, color=GREEN, linestyle=(0, (1, 1)), linewidth=1.5)
        labels.append((peak_gib, f"GPU, peak in use by an image, {_number(peak_gib)} GiB", GREEN))
    before_gib, weights_gib = target["memory_before_load_gib"], target["weights_gib"]
    if before_gib is not None:
        ax.axhline(before_gib, color=GREY, linestyle="--", linewidth=1)
        labels.append((before_gib, f"process before the model, {_number(before_gib)} GiB", GREY))
    base_gib = 0 if on_gpu else before_gib
    if weights_gib is not None and base_gib is not None:
        top_gib = base_gib + weights_gib
        ax.axhspan(base_gib, top_gib, color=ORANGE, alpha=0.3, linewidth=0)
        ax.axhline(top_gib, color=ORANGE, linestyle=":", linewidth=1.5)
        where = "on the GPU:" if on_gpu else "add"
        labels.append((top_gib, f"the model's weights {where} {_number(weights_gib)} GiB", "#8A5F00"))
    ax.margins(x=0)
    ax.set_ylim(0, 1.15 * max(height for height, _, _ in labels))
    _label_at_right(ax, labels)
    finding = f"the server's process held at most {_number(telemetry['rss_gib'].max())} GiB"
    if telemetry["cuda_reserved_gib"].notna().any():
        finding += f" of main memory and {_number(telemetry['cuda_reserved_gib'].max())} GiB of the GPU's"
    if weights_gib is not None:
        finding += f"; the model's weights are {_number(weights_gib)} GiB"
    alt = f"Lines over {_number(time_s.max())} s: {'; '.join(text for _, text, _ in labels)}."
    return _finish(ax, record, finding, alt)


@dataclass(frozen=True)
class Picture:
    """A PNG as a notebook shows it, in HTML pixels: nbconvert and JupyterLab give an image/png no alt text."""

    alt: str
    png: bytes = field(repr=False)
    width: int = field(default=800, repr=False)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png).decode()
        return f'<img width="{self.width}" alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'


@rc_context(_STYLE)
def save(ax: Axes, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Writes the figure of `ax` to `path`.png (200 dots per inch) and `path`.svg, with its alt text as Description."""
    target, figure = Path(path), cast(Figure, ax.figure)
    target.parent.mkdir(parents=True, exist_ok=True)
    png, svg = target.with_name(f"{target.name}.png"), target.with_name(f"{target.name}.svg")
    about = {"Title": " ".join(ax.get_title("left").split()), "Description": _alt(figure)}
    figure.savefig(png, dpi=200, metadata=about)
    figure.savefig(svg, dpi=200, metadata={**about, "Date": None})
    return png, svg


def show(ax: Axes, path: str | os.PathLike[str]) -> Picture:
    """Saves as save() does, closes the figure (or pyplot's would appear twice) and returns it for the notebook."""
    png, _ = save(ax, path)
    figure = cast(Figure, ax.figure)
    pyplot.close(figure)
    return Picture(_alt(figure), png.read_bytes())


def picture(image: Image, *, alt: str) -> Picture:
    """A generated image for the notebook, no wider than a figure."""
    file = io.BytesIO()
    image.save(file, "png")
    return Picture(alt, file.getvalue(), min(image.width, Picture.width))


def _axes(ax: Axes | None) -> Axes:
    ax = Figure(figsize=(9, 4.6), layout="constrained").subplots() if ax is None else ax
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(**_TICKS))
    return ax


def _alt(figure: Figure) -> str:
    return " ".join(str(ax.get_label()) for ax in figure.axes)


def _number(value: float) -> str:
    """Three digits, none of them beyond the thousandths: nobody asks for more of a second or a GiB."""
    return f"{round(value, 3):.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _finding(latency_s: pd.Series, said_of_images: str) -> str:
    n, images = len(latency_s), int(latency_s.notna().sum())
    if not n:
        return "no request was measured"
    if not images:
        return f"none of {n:,} requests got an image"
    return said_of_images if images == n else f"{said_of_images}; {n - images:,} of {n:,} requests got none"


def _no_data(ax: Axes, record: dict[str, Any], subject: str, reason: str) -> Axes:
    ax.text(0.5, 0.5, f"no data: {reason}", transform=ax.transAxes, ha="center", va="center", fontsize="large")
    ax.set(xticks=[], yticks=[])
    return _finish(ax, record, f"{subject}: no data", f"An empty plot, as {reason}.")


def _label_at_right(ax: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Writes (height, text, colour) where lines end, moved up where one would cover the one below."""
    gap, lowest = 0.055 * ax.get_ylim()[1], 0.0
    for height, text, colour in sorted(labels):
        lowest = max(height, lowest)
        ax.text(1.01, lowest, text, color=colour, transform=ax.get_yaxis_transform(), va="center", fontsize="small")
        lowest += gap


def _finish(ax: Axes, record: dict[str, Any], finding: str, alt: str, pad: float = 8) -> Axes:
    spec, machine, packages = record["spec"], record["machine"], record["packages"]
    target = spec["target"]
    title = finding[0].upper() + finding[1:]
    if target["model"] == "tiny":
        title = f"tiny model, not SDXL: {finding}"
    model = " ".join(str(target[key]) for key in ("model", "dtype", "device") if target[key]) or target["url"]
    asked = [spec["workload"].get(key) for key in ("width", "height", "num_inference_steps")]
    image = "{}x{} pixels, {} steps".format(*asked) if all(isinstance(value, int) for value in asked) else ""
    arrivals = (
        ", ".join(f"{key} {value}" for key, value in spec["arrivals"].items() if value)
        .removeprefix("kind ")
        .replace("_", " ")
    )
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {_number(machine['memory_gib'])} GiB"
    versions = ", ".join(f"{name} {packages[name]}" for name in ("python", "torch", "diffusers") if name in packages)
    lines = (model, image, arrivals), (hardware, machine["gpu"]), (f"run {record['run']}", machine["os"], versions)
    small = "\n".join(" · ".join(part for part in line if part) for line in lines)
    unbroken = re.sub(r"(?<=\d) (?=s\b|GiB|%)", "\u00a0", title)
    width = int(0.18 * ax.get_window_extent().width / ax.figure.dpi * 72)  # letters that fit a panel of any size
    even = len(unbroken) // (1 + len(unbroken) // width) + 8  # lines of like length: no last word alone on the second
    ax.set_title(textwrap.fill(unbroken, min(width, even)), pad=pad)
    below = ("axes fraction", ax.xaxis.label)
    ax.annotate(small, (0, 0), (0, -7), below, "offset points", va="top", fontsize=7.5, color=GREY)
    ax.set_label(f"{title}. {alt} Run {record['run']} on {hardware}.")
    return ax
