"""The plots of notebook 07: the promise over the day, and what a day costs against what it keeps.

Knows the outcomes of simulated days. Ignorant of how a day is simulated.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import FuncFormatter, MultipleLocator

from benchlib.questions.scale.outcomes import (
    HOURS,
    DayOutlook,
    FleetDays,
    lasting,
    next_day,
    saved_percent,
)
from benchlib.study import figure
from benchlib.study.intervals import Interval
from benchlib.study.latency import Record
from benchlib.study.wording import agreeing, counted, number

KEPT = "#CFE5F2"
"""A pale blue, on which black words stand out."""
SOMETIMES = figure.YELLOW
BROKEN = figure.RED
STRIP = 0.72
"""The height of a fleet's strip, of the room that it has."""


class Spell(NamedTuple):
    """Hours of the day in a row in which a fleet does equally well; `colour` says how well."""

    begin_h: float
    hours: float
    colour: str


@figure.styled
def promise_over_day(*, outlook: DayOutlook, record: Record, ax: Axes | None = None) -> Axes:
    """Draws when each fleet keeps the promise: a strip of 24 hours for each, under the arrivals.

    A strip is pale where the promise was kept on all simulated days, yellow where it was broken on
    some, and red where on most. At its right stand the hours of a day in which it was broken.
    """
    fleets = outlook.fleets
    ax = figure.axes(ax, height=3.2 + 0.34 * max(1, len(fleets)))
    if not fleets:
        return figure.no_data(ax, record, "the promise over the day", _why_nothing(outlook))

    # 1) Place
    place = cast(SubplotSpec, ax.get_subplotspec()).subgridspec(
        2, 1, height_ratios=[1.2, 0.34 * len(fleets) + 0.3]
    )
    ax.set_subplotspec(place[0])
    ax.tick_params(labelbottom=False)
    strips = ax.figure.add_subplot(place[1], sharex=ax)

    # 2) Draw
    _draw_arrivals(ax, outlook)
    for row, fleet in enumerate(fleets):
        _draw_strip(strips, row, fleet, outlook)
    names = [_name(fleet, outlook) for fleet in fleets]
    strips.set_yticks(range(len(fleets)), names)
    strips.set_ylim(len(fleets) - 0.5, -0.5)
    strips.grid(visible=False, axis="y")
    target = "; target: ongoing requests for each card" if outlook.scaled else ""
    strips.set_xlabel(f"hour of the day{target}")
    strips.text(1.01, 1.0, "broken for", transform=strips.transAxes, fontsize="small", va="bottom")
    pad = _strip_legend(ax, outlook)

    # 3) Words
    finding = _kept_finding(outlook)
    alt = f"Strips of 24 hours. {_strips_words(outlook)}."
    return figure.finish(
        ax, record, finding, alt, pad=pad, source=_source(record, outlook), lowest=strips
    )


def spells(fleet: FleetDays, window_s: float) -> list[Spell]:
    """The hours of a day, joined where the fleet does equally well in successive windows."""
    colours = [_colour(share) for share in fleet.broken_share]
    found = []
    begin_h = 0.0
    for colour, same in groupby(colours):
        hours = len(list(same)) * window_s / 3600
        found.append(Spell(begin_h, hours, colour))
        begin_h += hours
    return found


def _colour(broken_share: float) -> str:
    if not broken_share:
        return KEPT
    return BROKEN if broken_share > 0.5 else SOMETIMES


def _draw_arrivals(ax: Axes, outlook: DayOutlook) -> None:
    windows = len(outlook.rates)
    middle_h = (np.arange(windows) + 0.5) * outlook.window_s / 3600
    ax.fill_between(middle_h, outlook.rates, color=figure.GREY, alpha=0.15, linewidth=0)
    ax.plot(middle_h, outlook.rates, color=figure.GREY, linewidth=1.5)
    ax.set_xlim(0, HOURS)
    ax.set_ylim(0, 1.15 * float(outlook.rates.max()))
    ax.set_ylabel("requests/s")
    ax.xaxis.set_major_locator(MultipleLocator(3))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda hour, _: f"{hour:02.0f}:00"))


def _draw_strip(ax: Axes, row: int, fleet: FleetDays, outlook: DayOutlook) -> None:
    """Draws the strip of one fleet, and its hours beside it."""
    for spell in spells(fleet, outlook.window_s):
        ax.barh(row, spell.hours, STRIP, left=spell.begin_h, color=spell.colour)
    text, _, _ = lasting(fleet.broken_h).partition(" (")
    ax.text(HOURS * 1.01, row, text, va="center", fontsize="small", clip_on=False)


def _strip_legend(ax: Axes, outlook: DayOutlook) -> float:
    """Says what the colours mean, over the arrivals; returns the room that it takes."""
    days = outlook.fleets[0].days
    meanings = (
        (KEPT, f"{outlook.slo} is kept on {_all_days(days)}"),
        (SOMETIMES, "broken on some"),
        (BROKEN, "broken on most"),
    )
    for colour, meaning in meanings:
        ax.fill_between([], [], color=colour, label=meaning)
    return figure.legend_above(ax)


def _name(fleet: FleetDays, outlook: DayOutlook) -> str:
    if fleet.target_ongoing is None:
        return outlook.cards_words(fleet)
    bounds = f"autoscaled {fleet.least} to {fleet.most}"
    return f"{bounds}, target {number(fleet.target_ongoing)}"


def _kept_finding(outlook: DayOutlook) -> str:
    """Which number of cards keeps the promise all day, and how long one less breaks it."""
    enough = outlook.enough
    if enough is None:
        fleet = outlook.fixed[-1]
        return f"not even {_keep(fleet, outlook)}: broken for {lasting(fleet.broken_h)}"
    finding = _keep(enough, outlook)
    if outlook.open_question is not None:
        finding = f"not known {outlook.open_question}"
    fewer = outlook.too_few
    if fewer is None:
        return finding
    breaks = agreeing(fewer.most, "breaks", "break")
    return f"{finding}; {fewer.most} {breaks} it for {lasting(fewer.broken_h)}"


def _keep(fleet: FleetDays, outlook: DayOutlook) -> str:
    verb = agreeing(fleet.most, "keeps", "keep")
    return f"{outlook.cards_words(fleet)} {verb} {outlook.slo} on {_all_days(fleet.days)}"


def _all_days(days: int) -> str:
    return "one simulated day" if days == 1 else f"all {days} simulated days"


def _strips_words(outlook: DayOutlook) -> str:
    listed = [
        f"{_name(fleet, outlook)}: broken for {lasting(fleet.broken_h)}" for fleet in outlook.fleets
    ]
    busiest = float(outlook.rates.argmax()) * outlook.window_s / 3600
    peak = f"Most requests come at {busiest:02.0f}:00, {number(float(outlook.rates.max()))}/s"
    return f"{'; '.join(listed)}. {peak}"


def _why_nothing(outlook: DayOutlook) -> str:
    return outlook.refusal or "no fleet was simulated"


def _source(record: Record, outlook: DayOutlook) -> str:
    """The runs are those of one card; their images are what the days are foretold from."""
    images = counted(outlook.images, "image")
    days = counted(outlook.fleets[0].days, "simulated day")
    return f"study {record['study']}, run {record['run']}, {days} foretold from {images}"


# ---- cost against promise


@figure.styled
def cost_against_promise(*, outlook: DayOutlook, record: Record, ax: Axes | None = None) -> Axes:
    """Draws each fleet by what a day costs, and by the hours in which it breaks the promise.

    The cost is money, or hours of cards where no price is known. Down and to the left is better.
    Lines are intervals that hold 95 % of the days.
    """
    fleets = outlook.fleets
    ax = figure.axes(ax)
    if not fleets:
        return figure.no_data(ax, record, "cost against promise", _why_nothing(outlook))

    # 1) Draw
    fixed = "a fixed number of cards"
    scaled = "autoscaled; target: ongoing requests a card"
    if outlook.scaled:
        first = outlook.scaled[0]  # all have the same bounds
        scaled = f"autoscaled {first.least} to {first.most}; target: ongoing requests a card"
    _draw_fleets(ax, outlook.fixed, outlook, figure.BLUE, "o", fixed)
    _draw_fleets(ax, outlook.scaled, outlook, figure.ORANGE, "D", scaled)
    ax.axhline(0, color=figure.GREEN, linewidth=1.2, zorder=0)
    highest = max(float(fleet.broken_h.mean()) for fleet in fleets)
    ax.set_ylim(-0.06 * max(highest, 1.0), 1.15 * max(highest, 1.0))
    ax.set_xlim(0, 1.12 * ax.get_xlim()[1])

    # 2) Words
    cut = "\n(lines cut at the edge)" if _is_cut(ax, fleets) else ""
    ax.set_ylabel(f"hours a day in which {outlook.slo} is broken{cut}")
    unit = "dollars a day" if outlook.price_per_hour is not None else "hours of cards a day"
    ax.set_xlabel(f"cost: {unit} (left and down is better; lines: 95 % of the days)")
    figure.label_at_right(ax, [(0.0, "kept\nall day", figure.GREEN)])
    pad = figure.legend_above(ax)
    listed = []
    for fleet in fleets:
        hours = number(float(fleet.broken_h.mean()))
        cost = number(float(outlook.money(fleet).mean()))
        listed.append(f"{_name(fleet, outlook)}: {cost} {unit}, broken for {hours} h")
    alt = f"Points, cost over hours broken: {'; '.join(listed)}."
    return figure.finish(
        ax, record, _cost_finding(outlook), alt, pad=pad, source=_source(record, outlook)
    )


def _draw_fleets(
    ax: Axes,
    fleets: tuple[FleetDays, ...],
    outlook: DayOutlook,
    colour: str,
    marker: str,
    label: str,
) -> None:
    """Draws a line through fleets of one kind, a mark for each, and its name."""
    if not fleets:
        return
    cost = [float(outlook.money(fleet).mean()) for fleet in fleets]
    hours = [float(fleet.broken_h.mean()) for fleet in fleets]
    of_cost: list[Interval] = [next_day(outlook.money(fleet)) for fleet in fleets]
    of_hours: list[Interval] = [next_day(fleet.broken_h, most=HOURS) for fleet in fleets]
    style: dict[str, Any] = {"color": colour, "linewidth": 1.2, "markersize": 8}
    ax.plot(cost, hours, marker=marker, label=label, **style)
    figure.whiskers(ax, cost, hours, of_hours, colour=colour)
    figure.whiskers(ax, cost, hours, of_cost, horizontal=True, colour=colour)
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
    for x, y, fleet in zip(cost, hours, fleets, strict=True):
        offset, side = ((8, 6), "left") if fleet.is_fixed else ((-8, 6), "right")
        figure.label_point(ax, (x, y), _short_name(fleet, outlook), offset, ha=side, bbox=box)


def _is_cut(ax: Axes, fleets: tuple[FleetDays, ...]) -> bool:
    """Whether an interval of the hours leaves the axes at their top."""
    _, top = ax.get_ylim()
    found = [next_day(fleet.broken_h, most=HOURS) for fleet in fleets]
    return any(ends is not None and ends[1] > top for ends in found)


def _short_name(fleet: FleetDays, outlook: DayOutlook) -> str:
    if fleet.target_ongoing is None:
        return outlook.cards_words(fleet)
    return f"target {number(fleet.target_ongoing)}"


def _cost_finding(outlook: DayOutlook) -> str:
    """What autoscaling saves and breaks beside the fixed cards that are enough."""
    enough = outlook.enough
    scaled = outlook.autoscaled
    if enough is None:
        days = _all_days(outlook.fleets[0].days)
        return f"no fixed number of cards keeps {outlook.slo} on {days}"
    cost = number(float(outlook.money(enough).mean()))
    unit = "dollars" if outlook.price_per_hour is not None else "card hours"
    kept = f"{_keep(enough, outlook)}, for {cost} {unit} a day"
    if outlook.open_question is not None:
        kept = f"not known {outlook.open_question}; {enough.most} do for {cost} {unit} a day"
    if scaled is None:
        return kept
    percent = saved_percent(enough, scaled)
    saves = "saves nothing" if percent is None else f"saves {percent:.0f} %"
    does = f"autoscaling {scaled.least} to {scaled.most} {saves}"
    if scaled.keeps:
        return f"{kept}; {does} and keeps it, too"
    return f"{kept}; {does} and breaks it for {lasting(scaled.broken_h)}"
