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
from benchlib.study.wording import counted, number, span

MOST_BINS = 60
"""The most steps of the line of images/s. Each step has MIN_RUNS images or more on average."""
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


class Panel(NamedTuple):
    """A line over time, and what is said over it."""

    curve: Curve
    words: str
    unit: str
    colour: str
    is_stair: bool = False


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
    for place, panel in zip(places, panels, strict=True):
        _draw(place, panel)
    warmup_s = record["spec"]["warmup_s"]
    for place in places:
        if warmup_s:
            place.axvspan(0, warmup_s, color=figure.GREY, alpha=0.18, linewidth=0)
    last_s = max(float(np.max(panel.curve[0])) for panel in panels)
    shaded = " (shaded: warm-up, not counted)" if warmup_s else ""
    below = f"time since the start of the run, s{shaded}{_not_sampled(telemetry)}"
    places[-1].set(xlim=(0, last_s), xlabel=below)

    # 3) Words
    alt = f"Lines over {number(last_s)} s: {'; '.join(panel.words for panel in panels)}."
    finding = _finding(telemetry, requests, record)
    ax.set_axis_off()
    return figure.finish(ax, record, finding, alt, lowest=places[-1])


def _not_sampled(telemetry: pd.DataFrame) -> str:
    """What has no panel, in a line of its own; nothing where all was sampled."""
    missing = [sampled for sampled in SAMPLED if not _is_known(telemetry, sampled)]
    names = [sampled.name for sampled in missing if sampled not in OF_GPU]
    if set(OF_GPU) <= set(missing):
        names.append("the GPU")
    else:
        names += [sampled.name for sampled in missing if sampled in OF_GPU]
    return f"\nnot sampled: {', '.join(names)}" if names else ""


def _draw(ax: Axes, panel: Panel) -> None:
    x, y = panel.curve
    drawn: dict[str, Any] = {"color": panel.colour, "linewidth": 1.2}
    drawn["rasterized"] = len(x) > MANY_POINTS
    if panel.is_stair:
        ax.step(x, y, where="post", **drawn)
    else:
        ax.plot(x, y, marker="o" if len(x) == 1 else "", **drawn)
    highest = float(np.nanmax(y))
    ax.set_ylim(0, 1.15 * highest or 1)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    ax.set_ylabel(panel.unit)
    ax.set_title(panel.words, size=9.5)


# -- from rows


def _of_requests(requests: pd.DataFrame, record: Record) -> list[Panel]:
    """The panels of images/s and of requests under way; none without a request."""
    panels = []
    done_s = np.sort(requests["done_s"][latency.is_ok(requests)].to_numpy(dtype=float))
    end_s = _end_s(requests, record)
    if len(done_s) >= MIN_RUNS:
        curve = images_per_s(done_s, end_s)
        said = f"images finished per second ({len(done_s):,} in all)"
        panels.append(Panel(curve, said, "images/s", figure.GREEN, is_stair=True))
    if len(requests):
        curve = under_way(requests, end_s)
        said = f"requests under way, at most {number(curve[1].max())}"
        panels.append(Panel(curve, said, "requests", figure.ORANGE, is_stair=True))
    return panels


def _end_s(requests: pd.DataFrame, record: Record) -> float:
    """When the run ended, in seconds since its start: no row is later."""
    outcome = record["outcome"] or {}
    times_s = requests[["scheduled_s", "done_s"]].to_numpy(dtype=float)
    ends_s = [0.0, float(outcome.get("wall_s") or 0.0), *times_s[~np.isnan(times_s)]]
    return float(max(ends_s))


def images_per_s(done_s: Any, end_s: float) -> Curve:
    """Images finished per second, in equal stretches of the run.

    A stretch has MIN_RUNS images or more on average. The last height is repeated at the end.
    """
    bins = int(np.clip(len(done_s) // MIN_RUNS, 1, MOST_BINS))
    counts, edges = np.histogram(done_s, bins, range=(0, end_s))
    rates = counts / np.diff(edges)
    return edges, np.append(rates, rates[-1])


def under_way(requests: pd.DataFrame, end_s: float) -> Curve:
    """How many requests had been sent and not yet answered, from each moment on that changes it."""
    sent_s = requests["sent_s"].dropna().to_numpy(dtype=float)
    done_s = requests["done_s"][requests["sent_s"].notna()].fillna(end_s).to_numpy(dtype=float)
    changes = np.concatenate([np.ones(len(sent_s)), -np.ones(len(done_s))])
    moments_s = np.concatenate([sent_s, done_s])
    # An answer at the moment of the next request comes first: the user had to have it.
    order = np.lexsort([changes, moments_s])
    x = np.concatenate([[0.0], moments_s[order], [end_s]])
    counts = np.cumsum(changes[order])
    return x, np.concatenate([[0.0], counts, counts[-1:]])


# -- from samples


def _of_samples(telemetry: pd.DataFrame, record: Record) -> list[Panel]:
    panels = []
    colours = (figure.BLUE, figure.GREY, figure.PURPLE, figure.RED, figure.SKY, "black")
    for sampled, colour in zip(SAMPLED, colours, strict=True):
        if not _is_known(telemetry, sampled):
            continue
        known = telemetry.dropna(subset=[sampled.column])
        curve = known["time_s"].to_numpy(), sampled.scale * known[sampled.column].to_numpy()
        measured = _in_window(telemetry, sampled, record)
        said = f"{sampled.name}: {_mean_words(measured, sampled.unit)}"
        panels.append(Panel(curve, said, sampled.unit, colour))
    return panels


def _mean_words(measured: pd.Series, unit: str) -> str:
    """The mean with the least and the most; one number where all are written alike."""
    if len(measured) < MIN_RUNS:
        return "too few samples for an average"
    ends = span(measured.tolist())
    if ends == number(measured.mean()):
        return f"{ends} {unit}"
    return f"{number(measured.mean())} {unit} on average ({ends})"


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
    known = [sampled for sampled in SAMPLED if _is_known(telemetry, sampled)]
    values = {sampled: _in_window(telemetry, sampled, record) for sampled in known}
    values = {sampled: series for sampled, series in values.items() if len(series) >= MIN_RUNS}
    said = []
    if UTILISATION in values:
        said.append(f"the GPU was at work {values[UTILISATION].mean():.0f} % of the time")
    if POWER in values:
        said.append(f"{number(values[POWER].mean())} W on average")
    if TEMPERATURE in values:
        said.append(f"at most {number(values[TEMPERATURE].max())} °C")
    if CLOCK in values:
        said.append(f"clock {span(values[CLOCK].tolist())} MHz")
    if not said and SERVER_CORES in values:
        cores = number(values[SERVER_CORES].mean())
        said.append(f"the server's process took {cores} cores on average")
    if not said:
        return f"{counted(len(requests), 'request')}; the machine was hardly sampled"
    return ", ".join(said)
