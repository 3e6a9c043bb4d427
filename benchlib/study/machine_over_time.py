"""The plot of one run's machine: images/s, requests under way, CPU and GPU over time.

Knows a run's rows and samples. Ignorant of how they were taken, and of where they are stored. What
was not sampled has no panel, and words below the plot name it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchlib.study import figure, latency
from benchlib.study.intervals import MIN_RUNS
from benchlib.study.latency import Record
from benchlib.study.wording import agreeing, counted, number, span

MOST_BINS = 60
"""The most steps of the line of images/s. Each step has MIN_RUNS images or more on average."""
MOST_MOMENTS = 100
"""A stair of more moments looks like a comb: its average is drawn over it."""
MANY_POINTS = 5000
"""Above this many points, a line is drawn as an image: a path would make the SVG huge."""

Curve = tuple[Any, Any]  # seconds, heights


class Sampled(NamedTuple):
    """A column of the samples, and how it is drawn: `scale` times its values, in `unit`."""

    column: str
    name: str
    unit: str
    scale: float = 1


SERVER_CORES = Sampled("server_cpu_cores", "CPU of the server's process", "cores")
OTHER_CORES = Sampled("others_cpu_cores", "CPU of all other processes", "cores")
UTILISATION = Sampled("gpu_utilisation", "GPU at work", "%", 100)
POWER = Sampled("gpu_power_w", "power of the GPU", "W")
CLOCK = Sampled("gpu_sm_clock_mhz", "clock of the GPU", "MHz")
TEMPERATURE = Sampled("gpu_temperature_c", "temperature of the GPU", "°C")
OF_GPU = (UTILISATION, POWER, CLOCK, TEMPERATURE)
SAMPLED = (SERVER_CORES, OTHER_CORES, *OF_GPU)
COLOURS = (
    figure.BLUE,
    figure.GREY,
    figure.PURPLE,
    figure.RED,
    figure.SKY,
    "black",
)


class Panel(NamedTuple):
    """A line over time, and what is said over it."""

    curve: Curve
    words: str
    unit: str
    colour: str
    is_stair: bool = False
    behind: Curve | None = None  # a stair too fine to read, drawn faintly


@figure.styled
def machine_over_time(
    *,
    telemetry: pd.DataFrame,
    requests: pd.DataFrame,
    record: Record,
    ax: Axes | None = None,
) -> Axes:
    """Draws what a run made of its machine over time, in panels one above the other.

    The panels are the images finished per second, the requests under way, the cores that the
    server's process and all other processes took, and the GPU's work, power, clock and temperature.
    What was not sampled is left out, and words below the plot say so. Fewer than MIN_RUNS images have
    no panel of images/s. The words over a panel are of the measuring window.

    The Axes around the panels is returned. A given `ax` must belong to a grid, as pyplot.subplots
    makes it.
    """
    # 1) Reduce
    panels = [*_of_requests(requests, record), *_of_samples(telemetry, record)]
    ax = figure.axes(ax, height=1.4 + 1.15 * max(2, len(panels)))
    if not panels:
        return figure.no_data(ax, record, "the machine over time", "nothing was sampled")

    # 2) Draw
    places = figure.panels_below(ax, len(panels), above=0.01)
    warmup_s = record["spec"]["warmup_s"]
    ends_s = []
    for place, panel in zip(places, panels, strict=True):
        _draw(place, panel)
        place.axvspan(
            0,
            warmup_s,
            color=figure.GREY,
            alpha=0.18,
            linewidth=0,
        )
        times_s, _ = panel.curve
        ends_s.append(times_s[-1])
    last_s = float(max(ends_s))
    *_, lowest = places
    lowest.set_xlim(0, last_s)
    lowest.set_xlabel(_below(telemetry, warmup_s))

    # 3) Words
    listed = "; ".join(panel.words for panel in panels)
    alt = f"Lines over {number(last_s)} s: {listed}."
    finding = _finding(telemetry, requests, record)
    ax.set_axis_off()
    return figure.finish(
        ax,
        record,
        finding,
        alt,
        lowest=lowest,
    )


def _below(telemetry: pd.DataFrame, warmup_s: float) -> str:
    """The words below the time axis; what was not sampled has a line of its own."""
    words = "time since the start of the run, s"
    if warmup_s:
        words += " (shaded: warm-up, not counted)"
    missing = [sampled.name for sampled in SAMPLED if not _is_known(telemetry, sampled)]
    of_gpu = [sampled.name for sampled in OF_GPU]
    if set(of_gpu) <= set(missing):
        missing = [name for name in missing if name not in of_gpu]
        missing.append("the GPU")
    if missing:
        words += f"\nnot sampled: {', '.join(missing)}"
    return words


def _draw(ax: Axes, panel: Panel) -> None:
    x, y = panel.curve
    top = 1.15 * float(y.max())
    if panel.behind is not None:
        fine_x, fine_y = panel.behind
        top = 1.15 * float(fine_y.max())
        ax.step(
            fine_x,
            fine_y,
            where="post",
            color=panel.colour,
            alpha=0.35,
            linewidth=0.6,
            rasterized=len(fine_x) > MANY_POINTS,
        )
    ax.plot(
        x,
        y,
        drawstyle="steps-post" if panel.is_stair else "default",
        marker="o" if len(x) == 1 else "",
        color=panel.colour,
        linewidth=1.2,
        rasterized=len(x) > MANY_POINTS,
    )
    ax.set_ylim(0, top or 1)
    few_ticks = MaxNLocator(nbins=4, steps=[1, 2, 5, 10])
    ax.yaxis.set_major_locator(few_ticks)
    ax.set_ylabel(panel.unit)
    ax.set_title(panel.words, size=9.5)


# -- from rows


def _of_requests(requests: pd.DataFrame, record: Record) -> list[Panel]:
    """The panels of images/s and of requests under way; none without a request."""
    panels = []
    is_ok = latency.is_ok(requests)
    done_s = requests["done_s"][is_ok].to_numpy(dtype=float)
    end_s = _end_s(requests, record)
    if len(done_s) >= MIN_RUNS:
        curve = images_per_s(done_s, end_s)
        said = f"images finished per second ({len(done_s):,} in all)"
        panels.append(Panel(curve, said, "images/s", figure.GREEN, is_stair=True))
    if len(requests):
        curve = under_way(requests, end_s)
        moments_s, counts = curve
        said = f"requests under way, at most {number(counts.max())}"
        behind = None
        if len(moments_s) > MOST_MOMENTS:
            behind, curve = curve, average_of(curve, _stretches(len(requests)))
            said += "; bold: their average"
        panel = Panel(curve, said, "requests", figure.ORANGE, is_stair=True, behind=behind)
        panels.append(panel)
    return panels


def _end_s(requests: pd.DataFrame, record: Record) -> float:
    """When the run ended, in seconds since its start: no row is later."""
    outcome = record["outcome"] or {}
    wall_s = float(outcome.get("wall_s") or 0.0)
    times_s = requests[["scheduled_s", "done_s"]].to_numpy(dtype=float)
    last_s = np.nanmax(times_s, initial=0.0)
    return max(wall_s, float(last_s))


def images_per_s(done_s: Any, end_s: float) -> Curve:
    """Images finished per second, in equal stretches of the run.

    A stretch has MIN_RUNS images or more on average. The last height is repeated at the end.
    """
    counts, edges = np.histogram(done_s, _stretches(len(done_s)), range=(0, end_s))
    rates = counts / np.diff(edges)
    return edges, np.append(rates, rates[-1])


def _stretches(images: int) -> int:
    return int(np.clip(images // MIN_RUNS, 1, MOST_BINS))


def average_of(stair: Curve, stretches: int) -> Curve:
    """The average height of a stair in equal stretches of its length; the last one is repeated."""
    x, y = stair
    area = np.concatenate([[0.0], np.cumsum(y[:-1] * np.diff(x))])
    edges = np.linspace(x[0], x[-1], stretches + 1)
    heights = np.diff(np.interp(edges, x, area)) / np.diff(edges)
    return edges, np.append(heights, heights[-1])


def under_way(requests: pd.DataFrame, end_s: float) -> Curve:
    """How many requests had been sent and not yet answered, from each moment on that changes it."""
    sent = requests[requests["sent_s"].notna()]
    done_s = sent["done_s"].fillna(end_s)
    moments_s = np.array([*sent["sent_s"], *done_s], dtype=float)
    changes = np.repeat([1, -1], len(sent))
    # An answer at the moment of the next request comes first: the user had to have it.
    order = np.lexsort([changes, moments_s])
    counts = np.cumsum(changes[order])
    x = np.array([0.0, *moments_s[order], end_s])
    y = np.array([0, *counts, 0])
    return x, y


# -- from samples


def _of_samples(telemetry: pd.DataFrame, record: Record) -> list[Panel]:
    panels = []
    for sampled, colour in zip(SAMPLED, COLOURS, strict=True):
        if not _is_known(telemetry, sampled):
            continue
        known = telemetry.dropna(subset=[sampled.column])
        x = known["time_s"].to_numpy()
        y = sampled.scale * known[sampled.column].to_numpy()
        measured = _in_window(telemetry, sampled, record)
        said = f"{sampled.name}: {_mean_words(measured, sampled.unit)}"
        panels.append(Panel((x, y), said, sampled.unit, colour))
    return panels


def _mean_words(measured: pd.Series, unit: str) -> str:
    """The mean with the least and the most; one number where all are written alike."""
    if len(measured) < MIN_RUNS:
        return "too few samples for an average"
    mean = number(measured.mean())
    ends = span(measured.tolist())
    if mean == "1" and unit == SERVER_CORES.unit:
        unit = "core"
    if ends == mean:
        return f"{ends} {unit}"
    return f"{mean} {unit} on average ({ends})"


def _is_known(telemetry: pd.DataFrame, sampled: Sampled) -> bool:
    """Whether there is a sample; older runs have fewer columns."""
    return sampled.column in telemetry and bool(telemetry[sampled.column].notna().any())


def _in_window(telemetry: pd.DataFrame, sampled: Sampled, record: Record) -> pd.Series:
    """The samples of the measuring window, scaled; all of them where the window is unknown."""
    window = latency.measuring_window(record)
    samples = telemetry
    if window is not None:
        samples = telemetry[telemetry["time_s"].between(*window)]
    return sampled.scale * samples[sampled.column].dropna()


def _finding(telemetry: pd.DataFrame, requests: pd.DataFrame, record: Record) -> str:
    """What the machine did in the measuring window: the GPU's figures, or the process's cores."""
    values = _measured(telemetry, record)
    said = []
    if UTILISATION in values:
        percent = values[UTILISATION].mean()
        said.append(f"the GPU was at work {percent:.0f} % of the time")
    if POWER in values:
        watts = values[POWER].mean()
        said.append(f"{number(watts)} W on average")
    if TEMPERATURE in values:
        highest = values[TEMPERATURE].max()
        said.append(f"at most {number(highest)} °C")
    if CLOCK in values:
        ends = span(values[CLOCK].tolist())
        said.append(f"clock {ends} MHz")
    if not said and SERVER_CORES in values:
        cores = values[SERVER_CORES].mean()
        noun = agreeing(round(cores, 2), "core", "cores")
        said.append(f"the server's process took {number(cores)} {noun} on average")
    if said:
        fewest = min(len(measured) for measured in values.values())
        said[-1] += f" ({counted(fewest, 'sample')})"
    else:
        sent = counted(len(requests), "request")
        said.append(f"{sent}; the machine was hardly sampled")
    return ", ".join(said)


def _measured(telemetry: pd.DataFrame, record: Record) -> dict[Sampled, pd.Series]:
    """The samples of the measuring window; what has fewer than MIN_RUNS of them is left out."""
    values = {}
    for sampled in SAMPLED:
        if not _is_known(telemetry, sampled):
            continue
        measured = _in_window(telemetry, sampled, record)
        if len(measured) >= MIN_RUNS:
            values[sampled] = measured
    return values
