"""The plot of what a thousand images cost with each setting: money or machine time, and energy.

Knows frames with a row for each setting. Ignorant of prices but the one that it is given, and of
how the settings were measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.settings.plots import DRAWN, highest_first
from benchlib.study import figure
from benchlib.study.intervals import MIN_RUNS, Interval
from benchlib.study.latency import Record
from benchlib.study.wording import counted, number, span, words

IMAGES = 1000
J_PER_KWH = 3.6e6


class Cost(NamedTuple):
    """What IMAGES images take with one setting, with its interval."""

    setting: str
    exact: bool
    confirmed: bool
    value: float
    interval: Interval


@figure.styled
def costs(
    *,
    settings: pd.DataFrame,
    record: Record,
    price_per_hour: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws what a thousand images cost with each setting, the least first, and their energy.

    They are made at the setting's capacity: as many images a second as keep the promise. Without
    `price_per_hour`, what one such machine costs, the bars are the machine's minutes. The energy is
    the GPU's, of settings that were confirmed under load with MIN_RUNS images or more. Without any,
    its panel is left out, and the words say so. A full bar is confirmed, and a hollow one foretold.
    Lines are 95 % intervals. Only the DRAWN settings of highest capacity are drawn. The Axes
    returned holds the title, and its child_axes are the panels.

    Raises ValueError for a price that is not above 0.
    """
    if price_per_hour is not None and not price_per_hour > 0:
        raise ValueError(f"price_per_hour must be above 0, got {price_per_hour}; None is no price")
    shown = highest_first(settings).iloc[:DRAWN]
    lines = max(1, len(shown))
    ax = figure.axes(ax, height=2.2 + 0.3 * lines)
    if not len(shown):
        return figure.no_data(ax, record, "what a thousand images cost", "no setting was measured")

    # 1) Reduce
    of_machine = machine_costs(shown, price_per_hour)
    of_gpu = energies(shown)

    # 2) Draw
    ax.axis("off")
    width = 0.34 if of_gpu else 0.62
    left = ax.inset_axes((0.22, 0, width, 1))
    _draw(left, of_machine, [cost.setting for cost in of_machine])
    promise = shown["promise"].iloc[0]
    what = f"minutes of the machine for {IMAGES:,} images"
    if price_per_hour is not None:
        what = f"cost of {IMAGES:,} images, at {number(price_per_hour)} an hour"
    kinds = "full: confirmed, hollow: foretold\nblue ●: the algorithm is kept,\norange ◆: changed"
    left.set_xlabel(f"{what},\nwithin {promise}\n{kinds}", fontsize="small")
    if of_gpu:
        right = ax.inset_axes((0.64, 0, 0.32, 1))
        _draw(right, of_gpu, [cost.setting for cost in of_machine])
        right.set_yticks(range(lines), [""] * lines)
        right.set_xlabel(f"energy of the GPU for {IMAGES:,} images, kWh", fontsize="small")

    # 3) Words
    finding = _finding(of_machine, is_money=price_per_hour is not None)
    finding += f"; {_energy_words(of_gpu)}"
    listed = [f"{cost.setting} {words(cost.value, cost.interval)}" for cost in of_machine]
    alt = f"Bars, {what}, within {promise}: {'; '.join(listed)}."
    source = figure.study_of(record, len(shown), "setting")
    return figure.finish(
        ax,
        record,
        finding,
        alt,
        source=source,
        lowest=left,
    )


def machine_costs(settings: pd.DataFrame, price_per_hour: float | None) -> list[Cost]:
    """Returns the money, or else the minutes, of IMAGES images with each setting, the least first."""
    per_minute = 1.0 if price_per_hour is None else price_per_hour / 60
    found = []
    for row in settings.to_dict("records"):
        rate = float(row["capacity_images_per_s"])
        value = per_minute * IMAGES / 60 / rate
        interval = None
        if row["capacity_images_per_s_interval"]:
            low, high = row["capacity_images_per_s_interval"]
            if low > 0:
                interval = value * rate / high, value * rate / low
        found.append(_cost(row, value, interval))
    return sorted(found, key=lambda cost: cost.value)


def energies(settings: pd.DataFrame) -> list[Cost]:
    """Returns the kWh of the GPU for IMAGES images, of each setting that was measured."""
    found = []
    for row in settings.to_dict("records"):
        joules = row["energy_per_image_j"]
        if joules is None or pd.isna(joules) or row["confirming_images"] < MIN_RUNS:
            continue
        value = IMAGES * float(joules) / J_PER_KWH
        found.append(_cost(row, value, None))
    return found


def _cost(row: dict[Any, Any], value: float, interval: Interval) -> Cost:
    return Cost(
        str(row["setting"]),
        bool(row["exact"]),
        bool(row["confirmed"]),
        value,
        interval,
    )


def _draw(panel: Axes, drawn: list[Cost], names: list[str]) -> None:
    """Draws a bar for each of `drawn`, in the line that its name has among `names`."""
    ends = []
    for cost in drawn:
        place = names.index(cost.setting)
        colour = figure.BLUE if cost.exact else figure.ORANGE
        panel.barh(
            place,
            cost.value,
            0.7,
            color=colour if cost.confirmed else "white",
            edgecolor=colour,
            linewidth=1.5,
        )
        end = cost.value + figure.whiskers(
            panel,
            [cost.value],
            [place],
            [cost.interval],
            horizontal=True,
        )
        panel.text(
            end[0],
            place,
            f"  {number(cost.value)}",
            va="center",
            fontsize="small",
        )
        ends.append(float(end[0]))
    marks = {cost.setting: "●" if cost.exact else "◆" for cost in drawn}
    ticks = [f"{name} {marks.get(name, '')}".replace(", ", ",\n") for name in names]
    panel.set_yticks(range(len(names)), ticks, fontsize="small")
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_xlim(0, 1.3 * max(ends))
    panel.grid(visible=False, axis="y")


def _finding(costs: list[Cost], *, is_money: bool) -> str:
    """Returns the least cost in words, and whether it is shown to be the least."""
    best, *others = costs
    cost = words(best.value, best.interval)
    takes = f"cost {cost}" if is_money else f"take {cost} minutes of the machine"
    finding = f"{IMAGES:,} images {takes} with {best.setting}"
    if not best.confirmed:
        finding += " (foretold)"
    if not others:
        return finding
    if all(_is_less(best, other) for other in others):
        return f"{finding}, the least of {counted(len(costs), 'setting')}"
    return f"{finding}; not shown to be less than with {others[0].setting}"


def _is_less(one: Cost, other: Cost) -> bool:
    """Returns whether the whole interval of one cost lies below that of another."""
    if one.interval is None or other.interval is None:
        return False
    return one.interval[1] < other.interval[0]


def _energy_words(costs: list[Cost]) -> str:
    if not costs:
        return "energy is not known (no GPU was sampled)"
    kwh = span([cost.value for cost in costs])
    return f"the GPU takes {kwh} kWh ({counted(len(costs), 'setting')})"
