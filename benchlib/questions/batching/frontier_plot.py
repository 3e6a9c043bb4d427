"""The plot of latency against throughput, with the promise: a line for each policy.

Knows what frontier.py foretells, and runs. Ignorant of how it is foretold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.batching.frontier import Frontier
from benchlib.questions.batching.plots import POLICY_STYLES
from benchlib.study import figure
from benchlib.study.intervals import MIN_TREND, Interval
from benchlib.study.latency import Record
from benchlib.study.slo import Slo
from benchlib.study.store import Run
from benchlib.study.wording import counted, number, per_second, words

HIGHEST_LATENCY = 3.0
"""The lines rise without end; so many times the promise show where they pass it."""
OTHER_STYLES: tuple[dict[str, Any], ...] = (
    {"color": figure.ORANGE, "linestyle": "-", "marker": "o"},
    {"color": figure.GREEN, "linestyle": "--", "marker": "s"},
    {"color": figure.PURPLE, "linestyle": "-.", "marker": "D"},
    {"color": figure.SKY, "linestyle": ":", "marker": "^"},
    {"color": "black", "linestyle": "-", "marker": "v"},
)
"""The looks of what is no policy, such as recipes; after the last one, the first comes again."""


@figure.styled
def frontier(
    *,
    foretold: Frontier,
    record: Record,
    runs: Iterable[Run] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draws the latency of the promise's percentile, in seconds, against the images/s.

    Each policy has a line with its band of 95 %, which ends where it can't keep up. A mark on the
    promise's line is how many images/s keep it, and its bar the interval. A small mark is one of
    `runs` of open loops, if it has MIN_TREND requests and the percentile.
    """
    ax = figure.axes(ax)
    if not len(foretold.rows) or foretold.slo is None:
        reasons = [f"{name}: {reason}" for name, reason in foretold.refusals.items()]
        reason = "; ".join(reasons) or "no run was calibrated"
        return figure.no_data(ax, record, "latency by throughput", reason)

    # 1) The lines with their bands, and the promise
    goal = Slo.parse(foretold.slo)
    styles = _styles(foretold)
    top_s = HIGHEST_LATENCY * goal.latency_s
    labels = [(goal.latency_s, f"promised:\n{foretold.slo}", "black")]
    ax.axhline(goal.latency_s, color="black", linewidth=1)
    for name, rows in foretold.rows.groupby("name", sort=False):
        end_s = _draw_line(ax, rows, styles[str(name)], top_s)
        rate, _ = foretold.capacities[str(name)]
        if rate is None:
            labels.append((end_s, str(name), styles[str(name)]["color"]))

    # 2) What keeps the promise, and the runs
    for name in _most_first(foretold):
        rate, interval = foretold.capacities[name]
        assert rate is not None
        _draw_capacity(ax, name, (rate, goal.latency_s), interval, styles[name])
    drawn = _draw_runs(ax, runs, goal, styles)
    if drawn:
        hollow: dict[str, Any] = {"color": "black", "markerfacecolor": "white", "markersize": 5}
        ax.plot([], [], "o", **hollow, label=f"hollow: a run of {MIN_TREND} requests or more")
    pad = figure.legend_above(ax) if _most_first(foretold) else 8.0

    # 3) The axes
    share = f"{100 * goal.q:g} %"
    ax.set_xlabel("throughput, images/s (← worse, better →)")
    ax.set_ylabel(f"latency that {share} stay within, s")
    ax.set_xlim(0, 1.04 * foretold.rows["images_per_s"].max())
    ax.set_ylim(0, top_s)
    figure.label_at_right(ax, labels)

    # 4) Words
    images = sum(foretold.images.values())
    source = f"study {record['study']}, foretold from {counted(images, 'image')}"
    if drawn:
        source += f"; small marks: {counted(drawn, 'run')}"
    finding = _finding(foretold)
    refused = [name for name in foretold.refusals if name not in foretold.images]
    if refused:
        finding += f"; nothing is foretold of {' and '.join(refused)}"
    return figure.finish(ax, record, finding, _points(foretold, share), pad=pad, source=source)


def _most_first(foretold: Frontier) -> list[str]:
    """Returns the names of those whose capacity is known, the highest first."""
    known = {name: rate for name, (rate, _) in foretold.capacities.items() if rate is not None}
    return sorted(known, key=lambda name: -known[name])


def _styles(foretold: Frontier) -> dict[str, dict[str, Any]]:
    styles = {}
    for place, name in enumerate(foretold.images):
        other = OTHER_STYLES[place % len(OTHER_STYLES)]
        styles[name] = POLICY_STYLES.get(name, other)
    return styles


def _draw_line(ax: Axes, rows: pd.DataFrame, style: dict[str, Any], top_s: float) -> float:
    """Draws a line with its band, and returns the height at which it leaves the axes or ends."""
    rate = rows["images_per_s"].astype(float)
    took_s = rows["promised_s"].astype(float)
    missing = (np.nan, np.nan)
    pairs = [pair or missing for pair in rows["promised_s_interval"]]
    low_s, high_s = np.array(pairs, dtype=float).T
    ax.fill_between(
        rate,
        low_s,
        high_s,
        color=style["color"],
        alpha=0.15,
        linewidth=0,
    )
    ax.plot(
        rate,
        took_s,
        color=style["color"],
        linestyle=style["linestyle"],
        linewidth=1.8,
    )
    return min(top_s, float(took_s.iloc[-1]))


def _draw_capacity(
    ax: Axes,
    name: str,
    spot: tuple[float, float],
    interval: Interval,
    style: dict[str, Any],
) -> None:
    """Draws a mark with its interval on the promise's line, and names the policy in the legend."""
    rate, latency_s = spot
    figure.whiskers(
        ax,
        [rate],
        [latency_s],
        [interval],
        horizontal=True,
        colour=style["color"],
        marker=style["marker"],
        markersize=8,
    )
    ax.plot([], [], **style, markersize=8, linewidth=1.8, label=f"{name}: {per_second(rate)}")


def _draw_runs(ax: Axes, runs: Iterable[Run], goal: Slo, styles: dict[str, dict[str, Any]]) -> int:
    """Draws a small mark for each run that carries the percentile, and returns their number."""
    drawn = 0
    for run in runs:
        name = run.spec["target"]["batching"]
        row = run.summary()
        took_s: Any = row.get(f"latency_p{100 * goal.q:g}_s")
        is_open = run.spec["arrivals"].get("rate") is not None
        carries = row["valid"] and row["requests"] >= MIN_TREND and took_s is not None
        if not (is_open and carries and name in styles):
            continue
        ax.plot(
            row["throughput_images_per_s"],
            took_s,
            styles[name]["marker"],
            color=styles[name]["color"],
            markerfacecolor="white",
            markersize=5,
        )
        drawn += 1
    return drawn


def _finding(foretold: Frontier) -> str:
    """Returns how many images/s keep the promise under each policy, the most first."""
    best_first = _most_first(foretold)
    if not best_first:
        return f"how many images/s keep {foretold.slo} is not shown"
    said = []
    for name in best_first:
        rate, interval = foretold.capacities[name]
        said.append(f"{words(rate, interval)} {name}")
    return f"foretold images/s within {foretold.slo}: {', '.join(said)}"


def _points(foretold: Frontier, share: str) -> str:
    """Returns the alt text: each line's points in words."""
    lines = []
    for name, rows in foretold.rows.groupby("name", sort=False):
        points = [
            f"{number(took_s)} s at {number(rate)}/s"
            for took_s, rate in zip(rows["promised_s"], rows["images_per_s"], strict=True)
        ]
        lines.append(f"{name} {', '.join(points)}")
    return f"Lines of the latency that {share} stay within, by images/s: {'; '.join(lines)}."
