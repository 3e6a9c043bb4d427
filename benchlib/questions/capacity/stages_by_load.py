"""The plot of where an image's time goes at each load: the parts of latency, stacked.

Knows a study's runs. Ignorant of how the loads were chosen, and of what any load should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.capacity.load_marks import USERS, Record
from benchlib.rows import PARTS_IN_TIME
from benchlib.study import figure, latency
from benchlib.study.busy import busy_sentence_of
from benchlib.study.intervals import MIN_RUNS
from benchlib.study.store import Run, Study
from benchlib.study.summary import is_steady
from benchlib.study.wording import counted, number, per_second

LEAST_SHARE = 0.005
"""A part of less than this share of all latencies is not drawn."""


class AtLoad(NamedTuple):
    """Where the time went at one load: users, or requests/s.

    `parts_s` has the mean seconds of each part. `drifted` says whether the latency of one of the
    runs kept rising.
    """

    load: float
    images: int
    parts_s: pd.Series
    drifted: bool

    @property
    def total_s(self) -> float:
        return float(self.parts_s.sum())

    @property
    def waiting_percent(self) -> float:
        waited_s = self.parts_s["queue"] + self.parts_s["wait"]
        return float(100 * waited_s / self.total_s)


@figure.styled
def stages_by_load(*, study: Study, record: Record, ax: Axes | None = None) -> Axes:
    """Draws the mean seconds of each part of an image's latency, stacked, with a bar for each load.

    The load is the users of closed loops, or else the rate of open ones. The runs of `study` that
    are not valid are left out. So are loads with fewer than MIN_RUNS images, which the title names.
    """
    ax = figure.axes(ax)
    by, found = _at_loads(study)
    ax.set_xlabel(USERS if by == "users" else "requests sent, 1/s")
    ax.set_ylabel(figure.LATENCY)
    shown = [one for one in found if one.images >= MIN_RUNS]
    if not shown:
        reason = f"no load has {MIN_RUNS} images with the server's times"
        return figure.no_data(ax, record, "where the time goes by load", reason)

    # 1) The bars, and over each its height
    _draw_bars(ax, shown)
    for place, one in enumerate(shown):
        words = f"{number(one.total_s)} s"
        if one.drifted:
            words += "\nand rising"
        figure.label_point(ax, (place, one.total_s), words, (0, 3), ha="center")

    # 2) Axes and legend
    names = [f"{number(one.load)}\n({counted(one.images, 'image')})" for one in shown]
    ax.set_xticks(range(len(shown)), names)
    slots = max(len(shown), 3)
    ax.set_xlim(-0.6, slots - 0.4)
    highest_s = max(one.total_s for one in shown)
    ax.set_ylim(0, 1.18 * highest_s)
    ax.grid(visible=False, axis="x")
    figure.legend_beside(ax, reverse=True)

    # 3) Words
    points = [_at_load_words(one, by) for one in shown]
    finding = points[0] if len(points) == 1 else f"{points[0]}; {points[-1]}"
    few = [one for one in found if one.images < MIN_RUNS]
    if few:
        left_out = ", ".join(_load_words(one.load, by) for one in few)
        finding += f"; too few images with {left_out}"
    alt = f"Stacked bars of mean latency by part: {'; '.join(points)}."
    images = sum(one.images for one in shown)
    source = figure.study_of(record, images, "image")
    return figure.finish(
        ax,
        record,
        f"an image takes {finding}",
        alt,
        source=source,
        busy=busy_sentence_of(study.runs),
    )


def _at_loads(study: Study) -> tuple[str, list[AtLoad]]:
    """Returns whether the load is "users" or "rate", and each load of valid runs, the least first."""
    valid = [run for run in study.runs if run.summary()["valid"]]
    by = "users" if any(_load(run, "users") for run in valid) else "rate"
    groups: dict[float, list[Run]] = {}
    for run in valid:
        load = _load(run, by)
        if load is not None:
            groups.setdefault(load, []).append(run)
    return by, [_at_load(load, groups[load]) for load in sorted(groups)]


def _load(run: Run, by: str) -> float | None:
    value: float | None = run.spec["arrivals"].get(by)
    return value


def _at_load(load: float, runs: Sequence[Run]) -> AtLoad:
    parts = pd.concat([latency.breakdown(run.requests) for run in runs])
    means_s = parts.fillna(0).clip(lower=0).mean()
    drifted = any(is_steady(run.record, run.requests) is False for run in runs)
    return AtLoad(float(load), len(parts), means_s, drifted)


def _draw_bars(ax: Axes, shown: Sequence[AtLoad]) -> None:
    """Draws a bar for each load, one part on top of the other, in the order of time."""
    all_s = sum(one.total_s for one in shown)
    bottom = np.zeros(len(shown))
    for part in (*PARTS_IN_TIME, latency.OTHER, latency.REST):
        heights = np.array([one.parts_s[part] for one in shown])
        if heights.sum() < LEAST_SHARE * all_s:
            continue
        name, *_ = figure.PART_STYLES[part]
        ax.bar(
            range(len(shown)),
            heights,
            0.7,
            bottom,
            label=name,
            **figure.bar_style(part),
        )
        bottom = bottom + heights


def _at_load_words(one: AtLoad, by: str) -> str:
    """Returns "0.55 s with 4 users, 75 % of it waiting"."""
    where = _load_words(one.load, by)
    return f"{number(one.total_s)} s with {where}, {one.waiting_percent:.0f} % of it waiting"


def _load_words(load: float, by: str) -> str:
    if by == "rate":
        return per_second(load, "request")
    return counted(load, "user")
