"""Plots of settings: what each one gives and takes, and which one to run.

Knows frames with a row for each setting (measure.py makes them, judge.py adds to them). Ignorant of
how the settings were measured.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from benchlib.questions.settings.judge import BASELINE, Decision, capacity_words, why_open
from benchlib.study import figure
from benchlib.study.picture_quality import CHANGED, NOT_SHOWN, Pair, visibly_differs
from benchlib.study.wording import counted, number, span, words

COLOURS = (
    figure.BLUE,
    figure.ORANGE,
    figure.GREEN,
    figure.RED,
    figure.PURPLE,
    figure.SKY,
    "#000000",
    figure.YELLOW,
)
DRAWN = 16
"""How many settings are drawn with their names. More can't be read."""

LEAST_END_DB = 40.0
"""The axis of PSNR ends here, or above its highest mark."""

GRID_PROMPTS = 6
GRID_RECIPES = 9
"""How many prompts and recipes of the grid of pictures fit a page."""

CELL_HEIGHT = 1.2
"""The height of a picture and the words below it, in widths of a picture."""

TO_THE_LEFT = 0.55
"""The label of a mark beyond this share of the axis of PSNR stands to the left of it."""


# -- what each setting gives and takes


@figure.styled
def ladder(
    *,
    settings: pd.DataFrame,
    record: dict[str, Any],
    ax: Axes | None = None,
) -> Axes:
    """Draws the settings, the highest capacity first, in three columns.

    The columns have the capacity in images/s, the seconds of one image alone, and PSNR in dB to the
    baseline's images. A capacity is a full bar if it is confirmed under load, and a hollow one if
    it is foretold. The verdict on the pictures stands beside PSNR, with SSIM and FLIP. Lines are
    95 % intervals; a missing line means no interval. Only the DRAWN first are drawn. The Axes
    returned holds the title, and its child_axes are the three columns.
    """
    rows = highest_first(settings)
    lines = min(DRAWN, max(1, len(rows)))
    ax = figure.axes(ax, height=2.6 + 0.3 * lines)
    if not len(rows):
        return figure.no_data(ax, record, "what settings give and take", "no setting was measured")
    shown = rows.iloc[:DRAWN]
    promise = shown["promise"].iloc[0]

    # 1) Three columns with one line for each setting.
    ax.axis("off")
    capacity = ax.inset_axes((0.19, 0, 0.3, 1))
    alone = ax.inset_axes((0.52, 0, 0.19, 1))
    likeness = ax.inset_axes((0.74, 0, 0.26, 1))
    _draw_capacity(capacity, shown, promise)
    _draw_alone(alone, shown)
    _draw_likeness(likeness, shown)
    for panel in (capacity, alone, likeness):
        panel.set(ylim=(len(shown) - 0.4, -0.6))
        panel.grid(visible=False, axis="y")

    # 2) What was found.
    rates = span(rows["capacity_images_per_s"].tolist())
    confirmed = int(rows["confirmed"].sum())
    alt = (
        f"Bars and dots of {counted(len(rows), 'setting')}, {rates} images/s within {promise}, "
        f"{confirmed} of them confirmed under load, "
        "with the time of one image and its likeness to the baseline's."
    )
    source = figure.study_of(record, len(rows), "setting")
    finding = _ladder_finding(rows)
    return figure.finish(
        ax,
        record,
        finding,
        alt,
        source=source,
        lowest=capacity,
    )


def highest_first(settings: pd.DataFrame) -> pd.DataFrame:
    """Returns the settings with a capacity, the highest first."""
    measured: pd.DataFrame = settings[settings["capacity_images_per_s"].notna()]
    return measured.sort_values("capacity_images_per_s", ascending=False, kind="stable")


def _draw_capacity(
    panel: Axes,
    shown: pd.DataFrame,
    promise: str,
) -> None:
    heights = _heights(shown)
    rows = shown.to_dict("records")
    for height, row in zip(heights, rows, strict=True):
        colour = figure.BLUE if row["exact"] else figure.ORANGE
        panel.barh(
            height,
            float(row["capacity_images_per_s"]),
            0.7,
            color=colour if row["confirmed"] else "white",
            edgecolor=colour,
            linewidth=1.5,
        )
    values = shown["capacity_images_per_s"].astype(float).tolist()
    _draw_intervals(panel, values, heights, shown["capacity_images_per_s_interval"])
    names = []
    for row in rows:
        mark = "●" if row["exact"] else "◆"
        two_lines = row["setting"].replace(", ", ",\n")
        names.append(f"{two_lines} {mark}")
    panel.set_yticks(heights, names, fontsize="small")
    label = (
        f"images/s within {promise}\nfull: confirmed, hollow: foretold\n"
        "blue ●: the algorithm is kept,\norange ◆: it is changed"
    )
    panel.set_xlabel(label, fontsize="small")


def _draw_alone(panel: Axes, shown: pd.DataFrame) -> None:
    values = shown["image_s"].astype(float).tolist()
    heights = _heights(shown)
    panel.plot(
        values,
        heights,
        "o",
        color="black",
        markersize=4,
    )
    _draw_intervals(panel, values, heights, shown["image_s_interval"])
    panel.set(yticks=[])
    panel.set_xlabel("time of one image\nalone, s", fontsize="small")


def _draw_likeness(panel: Axes, shown: pd.DataFrame) -> None:
    """Draws PSNR. An identical picture has none: its mark stands past the axis's end, as "same"."""
    # 1) The axis, with a place for what is the same.
    decibels = shown["psnr_db"].astype(float)
    finite = decibels[decibels.map(math.isfinite)]
    end_db = max([LEAST_END_DB, *(1.05 * finite)])
    same_db = 1.15 * end_db
    ticks = [tick for tick in MaxNLocator(4).tick_values(0, end_db) if tick <= end_db]
    names = [number(tick) for tick in ticks]
    if len(finite) < len(decibels):
        ticks.append(same_db)
        names.append("same")
    panel.set(xlim=(0, 1.2 * end_db), yticks=[])
    panel.set_xticks(ticks, names)

    # 2) The marks with their words.
    for height, row in enumerate(shown.to_dict("records")):
        place = min(float(row["psnr_db"]), same_db)
        marker, colour = "D", figure.ORANGE
        if row["exact"]:
            marker, colour = "o", figure.BLUE
        panel.plot(
            place,
            height,
            marker,
            color=colour,
            markersize=6,
        )
        side = "right" if place > TO_THE_LEFT * end_db else "left"
        style: dict[str, Any] = {
            "va": "center",
            "ha": side,
            "fontsize": "small",
            "linespacing": 1.1,
        }
        text = _likeness_words(row).replace("\n", "   \n   ")
        panel.text(place, height, f"   {text}   ", **style)
    panel.set_xlabel(
        "PSNR to the baseline's pictures, dB\n(more is nearer), and the verdict\nby SSIM and FLIP",
        fontsize="small",
    )


def _likeness_words(row: Mapping[Any, Any]) -> str:
    """The verdict on a setting's pictures, and below it SSIM and FLIP where they tell anything."""
    verdict = row["pictures"] or "not shown"
    if math.isinf(row["psnr_db"]):
        return str(verdict)
    figures = f"SSIM {row['ssim']:.3f}"
    if row["flip"] is not None:
        figures += f", FLIP {row['flip']:.3f}"
    return f"{verdict}\n{figures}"


def _heights(shown: pd.DataFrame) -> list[float]:
    return [float(place) for place in range(len(shown))]


def _draw_intervals(
    panel: Axes,
    values: list[float],
    heights: list[float],
    intervals: pd.Series,
) -> None:
    """Draws horizontal intervals, and each value in words behind its interval."""
    lengths = figure.whisker_lengths(values, intervals)
    panel.errorbar(
        values,
        heights,
        xerr=lengths,
        fmt="none",
        ecolor="black",
    )
    ends = []
    for value, height, interval in zip(values, heights, intervals, strict=True):
        end = interval[1] if interval else value
        panel.text(
            end,
            height,
            f"  {number(value)}",
            va="center",
            fontsize="small",
        )
        ends.append(end)
    panel.set_xlim(0, 1.3 * max(ends))


def _ladder_finding(rows: pd.DataFrame) -> str:
    best = rows.iloc[0].to_dict()
    finding = f"{best['setting']} {capacity_words(best, best['promise'])}"
    if len(rows) == 1:
        return finding
    for other in rows.iloc[1:].to_dict("records"):
        if not _is_more(best, other):
            return f"{finding}; not shown to be more than with {other['setting']}"
    return f"{finding}, the most of all"


def _is_more(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether the whole interval of one capacity lies above that of another."""
    higher, lower = (row["capacity_images_per_s_interval"] for row in (one, other))
    if higher is None or lower is None:
        return False
    return bool(higher[0] > lower[1])


# -- what each recipe does to the picture


@figure.styled
def picture_grid(
    *,
    settings: pd.DataFrame,
    record: dict[str, Any],
    ax: Axes | None = None,
) -> Axes:
    """Draws small pictures: a prompt in each column, a recipe in each row, the baseline first.

    The prompts are the GRID_PROMPTS that change most in any recipe, the one that changes most
    first. There are GRID_RECIPES recipes at most, the most changed ones. The verdict stands beside
    each row. Below a picture stand its SSIM and FLIP to the baseline's, or "identical". A picture
    that visibly differs has a thick orange frame.
    """
    rows = _grid_rows(settings)
    if not rows:
        ax = figure.axes(ax)
        return figure.no_data(ax, record, "what recipes do to the picture", "no picture was made")
    prompts = _telling_prompts(rows)

    # 1) The pictures, each in a cell of one unit.
    cells = len(prompts) + 2.2
    ax = figure.axes(ax, height=1.5 + len(rows) * CELL_HEIGHT * 9 / cells)
    for height, row in enumerate(rows):
        for place, chosen in enumerate(prompts):
            if chosen < len(row["pairs"]):
                pair = row["pairs"][chosen]
                is_baseline = row["recipe"] == BASELINE
                _draw_picture(ax, pair, place, height * CELL_HEIGHT, is_baseline=is_baseline)
    ax.set(xlim=(0, len(prompts)), ylim=(len(rows) * CELL_HEIGHT, 0), aspect="equal")

    # 2) The prompts above, the recipes and their verdicts to the left.
    most = max((row["pairs"] for row in rows), key=len)
    names = [textwrap.shorten(most[chosen].prompt, 48, placeholder=" ...") for chosen in prompts]
    above = [textwrap.fill(name, 17) for name in names]
    ax.set_xticks([place + 0.5 for place in range(len(prompts))], above, fontsize="x-small")
    ax.xaxis.tick_top()
    names = [_row_name(row) for row in rows]
    middles = [height * CELL_HEIGHT + 0.5 for height in range(len(rows))]
    ax.set_yticks(middles, names, fontsize="small")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)

    # 3) What was found.
    verdicts = "; ".join(f"{row['recipe']}: {row['pictures']}" for row in rows[1:])
    alt = (
        f"A grid of small pictures: {counted(len(prompts), 'prompt')} in columns, "
        f"{counted(len(rows), 'recipe')} in rows, the baseline first. {verdicts or 'No other'}."
    )
    source = figure.study_of(record, len(rows), "recipe")
    return figure.finish(ax, record, _grid_finding(rows), alt, source=source)


def _grid_rows(settings: pd.DataFrame) -> list[dict[Any, Any]]:
    """A row for each recipe with pictures: the baseline, then those that changed, then the rest."""
    recipes = settings.drop_duplicates("recipe").to_dict("records")
    with_pictures = [row for row in recipes if row["pairs"]]
    with_pictures.sort(key=lambda row: (row["recipe"] != BASELINE, row["pictures"] != CHANGED))
    return with_pictures[:GRID_RECIPES]


def _telling_prompts(rows: list[dict[Any, Any]]) -> list[int]:
    """The places of the prompts that change most in any recipe, the most changed first."""
    lowest: dict[int, float] = {}
    for row in rows:
        for place, pair in enumerate(row["pairs"]):
            lowest[place] = min(pair.ssim, lowest.get(place, 1.0))
    return sorted(lowest, key=lambda place: lowest[place])[:GRID_PROMPTS]


def _draw_picture(
    ax: Axes,
    pair: Pair,
    left: float,
    top: float,
    *,
    is_baseline: bool,
) -> None:
    """Draws a pair's picture with its frame, and its likeness to the baseline's below it."""
    assert pair.picture is not None
    height, width, _ = pair.picture.shape
    longest = max(height, width)
    high, wide = 0.94 * height / longest, 0.94 * width / longest
    extent = (left, left + wide, top + high, top)
    ax.imshow(pair.picture, extent=extent, interpolation="antialiased")
    is_broken = visibly_differs(pair)
    frame = Rectangle(
        (left, top),
        wide,
        high,
        fill=False,
        edgecolor=figure.ORANGE if is_broken else figure.GREY,
        linewidth=2.5 if is_broken else 0.5,
    )
    ax.add_patch(frame)
    text = "" if is_baseline else "identical"
    if not pair.identical:
        text = f"SSIM {pair.ssim:.3f}"
        if pair.flip is not None:
            text += f"\nFLIP {pair.flip:.3f}"
    ax.text(
        left + wide / 2,
        top + high + 0.01,
        text,
        ha="center",
        va="top",
        fontsize=7.5,
        linespacing=1.05,
    )


def _row_name(row: Mapping[Any, Any]) -> str:
    """A recipe and its verdict, in words."""
    name = textwrap.fill(row["recipe"], 20)
    if row["recipe"] == BASELINE:
        return name
    counts = f"{row['identical_pairs']} of {row['picture_pairs']} identical"
    return f"{name}\n{row['pictures'].upper()}\n{counts}"


def _grid_finding(rows: list[dict[Any, Any]]) -> str:
    if all(row["recipe"] == BASELINE for row in rows):
        return "what recipes do to the picture is not shown: only the baseline was tried"
    changed = [row["recipe"] for row in rows if row["pictures"] == CHANGED]
    if len(changed) == 1:
        return f"{changed[0]} changes the picture"
    if len(changed) > 3:
        others = sum(row["recipe"] != BASELINE for row in rows)
        return f"{len(changed)} of {others} recipes change the picture"
    if changed:
        return f"{', '.join(changed[:-1])} and {changed[-1]} change the picture"
    open_ones = [row for row in rows if row["pictures"] == NOT_SHOWN]
    if open_ones:
        return f"of {counted(len(open_ones), 'recipe')} it is not shown what the picture loses"
    return "no recipe changes the picture visibly"


# -- which setting to run


@figure.styled
def decision(
    *,
    decision: Decision,
    memory_limit_gib: float | None,
    record: dict[str, Any],
    ax: Axes | None = None,
) -> Axes:
    """Draws capacity within the promise, in images/s, against peak memory in GiB.

    Each setting has its colour. A circle keeps the algorithm, a diamond changes it. A filled mark
    is confirmed under load, a hollow one foretold, and a cross is ruled out. Only the DRAWN best
    are named. Lines are 95 % intervals. A memory limit far to the right is written, not drawn;
    None is no limit.
    """
    ax = figure.axes(ax)
    table = decision.table
    rows = table.dropna(subset=["capacity_images_per_s", "memory_gib"])
    if not len(rows):
        return figure.no_data(ax, record, "which setting to run", "no setting was measured")

    # 1) A mark for each setting, and the memory limit.
    named = rows[:DRAWN].to_dict("records")
    for rank, row in enumerate(named, 1):
        _draw_setting(ax, rank, row)
    others = rows[DRAWN:]
    ax.plot(others["memory_gib"], others["capacity_images_per_s"], ".", color=figure.GREY)
    limit = "no memory limit"
    if memory_limit_gib is not None:
        limit = f"limit {number(memory_limit_gib)} GiB"
    _draw_limit(ax, rows["memory_gib"].astype(float), memory_limit_gib, limit)
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])

    # 2) The axes, and what was found.
    capacity = f"images/s that keep {decision.slo}"
    ax.set(xlabel=f"peak memory ({rows['memory_of'].iloc[0]}), GiB", ylabel=capacity)
    key = "● keeps the algorithm, ◆ changes it\nfilled: confirmed under load\nhollow: foretold"
    figure.legend_beside(ax, title=key, fontsize="small")
    confirmed = int(rows["confirmed"].sum())
    alt = (
        f"Marks: capacity over peak memory of {counted(len(rows), 'setting')}, "
        f"{confirmed} of them confirmed; {limit}."
    )
    source = figure.study_of(record, len(rows), "setting")
    if len(rows) < len(table):
        source += f" of {len(table)}"
    finding = _decision_finding(decision)
    return figure.finish(ax, record, finding, alt, source=source)


def _draw_setting(
    ax: Axes,
    rank: int,
    row: Mapping[Any, Any],
) -> None:
    """Draws one setting with its rank beside it. The legend says why one is ruled out."""
    label = f"{rank}  {row['setting']}"
    if row["ruled_out"] is not None:
        label += f":\n{row['ruled_out']}"
    if row["pictures"] == CHANGED:
        label += "\n(pictures changed)"
    colour = COLOURS[(rank - 1) % len(COLOURS)]
    marker = "o" if row["exact"] else "D"
    if row["ruled_out"] is not None:
        marker = "x"
    spot = row["memory_gib"], row["capacity_images_per_s"]
    lengths = figure.whisker_lengths(spot[1:], [row["capacity_images_per_s_interval"]])
    ax.errorbar(
        *spot,
        lengths,
        fmt=marker,
        color=colour,
        markerfacecolor=colour if row["confirmed"] else "white",
        elinewidth=2 if row["confirmed"] else 0.8,
        capsize=4 if row["confirmed"] else 2,
        markersize=8,
        label=label,
    )
    # Neighbours may stand in one place, so four in a row have their numbers on four sides.
    beside = ((6, 5), (-13, -10), (-13, 5), (6, -10))[(rank - 1) % 4]
    halo = [withStroke(linewidth=3, foreground="white")]  # a neighbour's bar may lie behind it
    figure.label_point(
        ax, spot, str(rank), beside, color=figure.ink(colour), path_effects=halo, zorder=5
    )


def _draw_limit(
    ax: Axes,
    memory_gib: pd.Series,
    limit_gib: float | None,
    words: str,
) -> None:
    """Draws the memory limit, or writes where it is, and sets the limits of the x-axis.

    The axis begins at 0: a mark twice as far to the right takes twice the memory.
    """
    # 1) The limit by the marks alone.
    most_gib = float(memory_gib.max())
    right = 1.15 * most_gib

    # 2) The memory limit, drawn if it is near.
    style: dict[str, Any] = {
        "color": figure.DARK_RED,
        "ha": "right",
        "va": "top",
    }
    if limit_gib is None:
        ax.text(0.99, 0.98, words, transform=ax.transAxes, **style)
    elif limit_gib < 2 * most_gib:
        ax.axvline(
            limit_gib,
            color=figure.RED,
            linestyle="--",
            linewidth=1.5,
        )
        place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "fontsize": "small"}
        ax.text(limit_gib, 0.98, f"{words} ", **place, **style)
        right = max(right, 1.02 * limit_gib)
    else:
        ax.text(
            0.99,
            0.98,
            f"{words}: far to the right →",
            transform=ax.transAxes,
            **style,
        )
    ax.set_xlim(0, right)


def _decision_finding(decision: Decision) -> str:
    if decision.best is None:
        return "no setting is left: each one is ruled out"
    best = decision.row(decision.best)
    capacity = capacity_words(best, decision.slo)
    finding = f"run {decision.best}: it {capacity} with {number(best['memory_gib'])} GiB"
    if decision.shown:
        ratio = words(decision.times, decision.times_interval, "times")
        finding += f"; {ratio} the capacity of the next"
    elif decision.runner_up:
        finding += f"; not shown to beat {decision.runner_up}"
        if decision.shown is None:
            why = why_open(best, decision.row(decision.runner_up))
            finding += f": {why}"
    return finding
