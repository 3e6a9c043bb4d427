"""Settings as pictures: what each one gives and takes, and which one to run.

Knows frames with a row for each setting (benchlib/settings.py; `decide` of study/settings.py adds to them). Ignorant of
how they were measured.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.settings.judge import Decision, apart, capacity_words
from benchlib.study import figure
from benchlib.study.figure import number

COLOURS = (
    figure.BLUE, figure.ORANGE, figure.GREEN, figure.RED, figure.PURPLE, figure.SKY, "#000000", figure.YELLOW,
)  # fmt: skip
DRAWN = 16
SAME_DB = 100.0
"""Where an image that is the same to the last level is drawn."""


@figure.styled
def ladder(*, settings: pd.DataFrame, record: dict[str, Any], ax: Axes | None = None) -> Axes:
    """The settings, fastest first, with images/s of the most users, seconds of one image alone, and PSNR in dB to the
    baseline's images with SSIM beside it. Lines are 95 % intervals; where none is drawn there is none. The DRAWN
    fastest. The Axes returned holds the title, its child_axes the three columns.
    """
    rows = settings[
        settings["images_per_s"].notna() & (settings["users"] == settings["users"].max())
    ]
    rows = rows.sort_values("images_per_s", ascending=False)
    ax = figure.axes(ax, height=2.6 + 0.3 * min(DRAWN, max(1, len(rows))))
    if not len(rows):
        return figure.no_data(ax, record, "what settings give and take", "no setting was measured")
    best, worst, shown = rows.iloc[0], rows.iloc[-1], rows.iloc[:DRAWN]
    load = f"with {best['users']} user{'s' * (best['users'] > 1)}"
    heights = [float(height) for height in range(len(shown))]
    speed, alone, near = (
        ax.inset_axes((left, 0, width, 1))
        for left, width in ((0.19, 0.3), (0.52, 0.19), (0.74, 0.26))
    )
    ax.axis("off")
    kept = [bool(exact) for exact in shown["exact"]]
    for panel, name, kind in ((speed, "images_per_s", "bar"), (alone, "image_s", "dot")):
        values = shown[name].astype(float).tolist()
        if kind == "bar":
            panel.barh(
                heights,
                values,
                0.7,
                color=[figure.BLUE if same else figure.ORANGE for same in kept],
            )
        else:
            panel.plot(values, heights, "o", color="black", markersize=4)
        panel.errorbar(
            values,
            heights,
            xerr=figure.beyond(values, shown[f"{name}_interval"]),
            fmt="none",
            ecolor="black",
        )
        ends = [
            pair[1] if pair else value
            for value, pair in zip(values, shown[f"{name}_interval"], strict=True)
        ]
        for value, end, height in zip(values, ends, heights, strict=True):
            panel.text(end, height, f"  {number(value)}", va="center", fontsize="small")
        panel.set_xlim(0, 1.3 * max(ends))
    decibels = [min(float(value), SAME_DB) for value in shown["psnr_db"]]
    for same, value, likeness, height in zip(kept, decibels, shown["ssim"], heights, strict=True):
        marker, colour = ("o", figure.BLUE) if same else ("D", figure.ORANGE)
        near.plot(value, height, marker, color=colour, markersize=6)
        text = "the same" if value == SAME_DB else f"SSIM {likeness:.3f}"
        near.text(
            value,
            height,
            f"   {text}   ",
            va="center",
            ha="right" if value > 55 else "left",
            fontsize="small",
        )
    near.set_xlim(0, 1.04 * SAME_DB)
    for panel, label in (
        (speed, f"images/s {load}\n(blue ●: keeps the image,\norange ◆: changes it)"),
        (alone, "time of one image\nalone, s"),
        (
            near,
            "PSNR to the baseline's images,\ndB (more is nearer; a difference\nabove 40 dB is hard to see)",
        ),
    ):
        panel.set_xlabel(label, fontsize="small")
        panel.set(yticks=[], ylim=(len(shown) - 0.4, -0.6))
        panel.grid(visible=False, axis="y")
    names = [
        f"{name} {'●' if same else '◆'}" for name, same in zip(shown["setting"], kept, strict=True)
    ]
    speed.set_yticks(heights, [name.replace(", ", ",\n") for name in names], fontsize="small")
    finding = f"{best['setting']}: {number(best['images_per_s'])} images/s {load}"
    if len(rows) > 1:
        is_apart = apart(best["images_per_s_interval"], rows.iloc[1]["images_per_s_interval"])
        finding += ", the most measured" + ("" if is_apart else "; not shown to beat the next")
    alt = f"Bars and dots of {len(rows):,} settings, from {number(worst['images_per_s'])} to "
    alt += f"{number(best['images_per_s'])} images/s, with the time of one image and its likeness to the baseline's."
    return figure.finish(
        ax, record, finding, alt, of=figure.study_of(record, len(rows), "setting"), lowest=speed
    )


@figure.styled
def decision(
    *, decision: Decision, memory_limit_gib: float, record: dict[str, Any], ax: Axes | None = None
) -> Axes:
    """Capacity within the promise, at least so many images/s, against peak memory in GiB, of a `decide`d frame.

    Colour for the setting, circle where the image is kept and diamond where it changes, hollow where the promise is not
    shown to be kept, or the setting is ruled out: these are the images/s of its best load. The DRAWN best are named. A
    limit far off is told, not drawn.
    """
    ax = figure.axes(ax)
    table = decision.table
    rows = table[table["images_per_s"].notna() & table["memory_gib"].notna()]
    if not len(rows):
        return figure.no_data(ax, record, "which setting to run", "no setting was measured")
    of_what = rows["memory_of"].iloc[0]
    capacity = f"capacity within {decision.slo}:\nimages/s, at least"
    if not (rows["verdict"] == "met").any():
        capacity = f"images/s of a closed loop\n(not shown to keep {decision.slo})"
    ax.set(xlabel=f"peak memory ({of_what}), GiB", ylabel=capacity)
    for place, row in enumerate(rows[:DRAWN].to_dict("records")):
        colour, out = COLOURS[place % len(COLOURS)], row["ruled_out"]
        out = out or (None if row["verdict"] == "met" else "promise not shown")
        pair = row["images_per_s_interval"]
        label = f"{place + 1}  {row['setting']}, {row['users']} users" + (
            f":\n{out}" if out else ""
        )
        ax.errorbar(
            row["memory_gib"],
            row["images_per_s"],
            figure.beyond([row["images_per_s"]], [pair]),
            fmt="o" if row["exact"] else "D",
            color=colour,
            markerfacecolor="white" if out else colour,
            capsize=3,
            markersize=8,
            label=label,
        )
        where = (row["memory_gib"], row["images_per_s"])
        beside = (-13, -10) if place % 2 else (6, 5)  # neighbours in rank may stand in one place
        ax.annotate(str(place + 1), where, beside, textcoords="offset points", fontsize="small")
    ax.plot(rows["memory_gib"][DRAWN:], rows["images_per_s"][DRAWN:], ".", color=figure.GREY)
    most_gib = float(rows["memory_gib"].max())
    least_gib = float(rows["memory_gib"].min())
    limit = f"limit {number(memory_limit_gib)} GiB"
    right = max(most_gib + 0.15 * (most_gib - least_gib), 1.02 * most_gib)
    left = min(least_gib - 0.15 * (most_gib - least_gib), 0.98 * least_gib)
    if memory_limit_gib < most_gib + 2 * (most_gib - least_gib) + 0.1 * most_gib:
        ax.axvline(memory_limit_gib, color=figure.RED, linestyle="--", linewidth=1.5)
        style: dict[str, Any] = {
            "color": figure.RED,
            "fontsize": "small",
            "ha": "right",
            "va": "top",
        }
        ax.text(memory_limit_gib, 0.98, f"{limit} ", transform=ax.get_xaxis_transform(), **style)
        left, right = min(left, 0.98 * memory_limit_gib), max(right, 1.02 * memory_limit_gib)
    else:
        far = f"{limit}: far to the right →"
        ax.text(0.99, 0.98, far, transform=ax.transAxes, color=figure.RED, ha="right", va="top")
    ax.set_xlim(left, right)
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    keys = {
        "fontsize": "small",
        "alignment": "left",
        "title": "● keeps the image, ◆ changes it\nhollow: for the reason told",
    }
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), **keys)
    if decision.best is None:
        finding = "no setting is left: each one is ruled out"
    else:
        best = rows[rows["setting"] == decision.best].iloc[0]
        finding = f"run {decision.best}: {capacity_words(best.to_dict(), decision.slo)}; {number(best['memory_gib'])} GiB"
        if decision.runner_up and not decision.shown:
            finding += f"; not shown to beat {decision.runner_up}"
    alt = f"Dots: images/s over peak memory of {len(rows):,} settings; {limit}."
    return figure.finish(
        ax, record, finding, alt, of=figure.study_of(record, len(table), "setting")
    )
