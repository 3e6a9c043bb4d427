"""Plots of several studies: figures against the first study's, and one figure over the nights.

Knows the table that judge.compare_studies() makes. Ignorant of runs, and of how ratios and verdicts
are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.compare.judge import FIGURES, SERVICE, smallest_effect
from benchlib.study import figure
from benchlib.study.wording import agreeing, counted, words

MOST = 40
"""The most lines of a forest plot. More could not be read."""

MOST_NIGHT_NAMES = 12
MOST_CHANGES_NAMED = 8

LINE_COLOURS = (figure.BLUE, figure.PURPLE, figure.ORANGE, figure.GREEN)
LINE_STYLES = ("-", "--", "-.", ":")
"""A style for each load. After the last style, the first one comes again."""


class Kind(NamedTuple):
    """What a verdict means for a reader, and its look."""

    name: str
    colour: str
    marker: str


_WORSE = Kind("worse", figure.RED, "X")
_BETTER = Kind("better", figure.GREEN, "D")
_OPEN = Kind("inconclusive", figure.GREY, "s")
_SAME = Kind("no difference", figure.BLUE, "o")
_KINDS = {
    "slower": _WORSE,
    "more": _WORSE,
    "faster": _BETTER,
    "less": _BETTER,
    "inconclusive": _OPEN,
}
_GRAVEST_FIRST = (_WORSE, _OPEN, _BETTER, _SAME)
_PHRASES = {
    _WORSE: "worse than",
    _OPEN: "not shown to differ from",
    _BETTER: "better than",
    _SAME: "no different from",
}


# -- one study against another


@figure.styled
def forest(
    *,
    table: pd.DataFrame,
    record: dict[str, Any],
    against: str,
    min_effect: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws each figure's ratio to that of the study `against`, with its interval and verdict.

    Each figure has a line, and its interval is at 95 %. `table` has `study`, `load`, `figure`,
    `ratio`, `low`, `high` and `verdict`, as `compare_studies` makes it. Ratios in the band differ
    by less than `min_effect`, or if that is None, by less than the figure's own MIN_EFFECTS. The
    axis is logarithmic, and its ends say which side is better. If
    there are more than MOST lines, only those furthest from 1 are drawn.
    """
    # 1) Reduce.
    known = table[table["ratio"].notna()]
    shown = furthest_from_one(known)
    ax = figure.axes(ax, height=max(3.2, 1.9 + 0.33 * len(shown)))
    if not len(shown):
        reason = "no figure that both studies have"
        return figure.no_data(ax, record, f"ratios to {against}", reason)
    names = _line_names(shown)
    lines = shown.to_dict("records")

    # 2) Draw each line with its band.
    effects = [smallest_effect(line["figure"], min_effect) for line in lines]
    for place, (line, effect) in enumerate(zip(lines, effects, strict=True)):
        _draw_band(ax, place, effect)
        _draw_line(ax, place, line)
    ax.axvline(1, color="black", linewidth=1)
    ax.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
    )
    figure.ratio_axis(ax, "x", *_sides(shown["figure"]))
    widths = " or ".join(f"{100 * effect:g}" for effect in dict.fromkeys(effects))
    ax.set_xlabel(f"times that of {against}; lines: 95 % intervals; band: within {widths} %")
    # The labels make the axes narrower, and the title must be as narrow as the axes.
    ax.figure.figure.draw_without_rendering()

    # 3) Say what was found.
    finding = _forest_finding(shown, names, against)
    if len(shown) < len(known):
        finding += f"; the {MOST} of {len(known)} furthest from 1"
    all_lines = [f"{name} {_line_words(line)}" for name, line in zip(names, lines, strict=True)]
    return figure.finish(
        ax,
        record,
        finding,
        f"Forest plot of ratios: {'; '.join(all_lines)}.",
        source=_studies_of(shown, against),
        pad=20,
    )


def furthest_from_one(table: pd.DataFrame) -> pd.DataFrame:
    """Returns at most MOST rows, with the ratios furthest from 1, in the order of the table."""
    furthest = _distances(table).nlargest(MOST).index
    return table.loc[furthest].sort_index()


def _distances(table: pd.DataFrame) -> pd.Series:
    """Returns how far each ratio is from 1: a half is as far as a double."""
    logs: pd.Series = np.log(table["ratio"])
    return logs.abs()


def _line_names(shown: pd.DataFrame) -> list[str]:
    """Returns a name for each line: its figure, after its study and load.

    Study and load are left out if there is only one of them.
    """
    several = [column for column in ("study", "load") if shown[column].nunique() > 1]
    names = []
    for line in shown.to_dict("records"):
        parts = [str(line[column]) for column in several]
        names.append(", ".join([*parts, FIGURES[line["figure"]]]))
    return names


def _draw_band(ax: Axes, place: int, effect: float) -> None:
    """Colours the ratios of one line that differ by less than `effect`."""
    ax.fill_betweenx(
        [place - 0.5, place + 0.5],
        *_band(effect),
        color=figure.SKY,
        alpha=0.25,
        linewidth=0,
    )


def _draw_line(
    ax: Axes,
    place: int,
    line: Mapping[Any, Any],
) -> None:
    """Draws one ratio with its interval, and writes its verdict beside the axes."""
    kind = _kind(line)
    figure.whiskers(
        ax,
        [line["ratio"]],
        [place],
        [_interval(line)],
        horizontal=True,
        colour=kind.colour,
        marker=kind.marker,
        markersize=7,
    )
    verdict = line["verdict"]
    ax.text(
        1.01,
        place,
        f"{words(line['ratio'], unit='times')}: {verdict}",
        transform=ax.get_yaxis_transform(),
        va="center",
        fontsize="small",
        color=figure.ink(kind.colour),
    )


def _forest_finding(
    shown: pd.DataFrame,
    names: Sequence[str],
    against: str,
) -> str:
    """Returns the gravest verdict, and how many figures have it.

    It also names the figure with this verdict whose ratio is furthest from 1. Where nothing is
    worse, and the time in the model is known, only that time is spoken of.
    """
    # 1) The lines that are spoken of.
    lines = shown.assign(name=names, distance=_distances(shown))
    lines["kind"] = [_kind(line) for line in shown.to_dict("records")]
    of_service = lines[lines["figure"] == SERVICE]
    if len(of_service) and _WORSE not in lines["kind"].tolist():
        lines = of_service

    # 2) The gravest kind, how many lines are of it, and whose.
    kinds = lines["kind"].tolist()
    gravest = next(kind for kind in _GRAVEST_FIRST if kind in kinds)
    is_gravest = [kind is gravest for kind in kinds]
    studies = [str(study) for study in lines[is_gravest]["study"].unique()]
    who = " and ".join(studies) if len(studies) < 3 else f"{len(studies)} studies"
    is_ = agreeing(len(studies), "is", "are")
    count = f"{kinds.count(gravest)} of {counted(len(kinds), 'figure')}"
    if gravest is _SAME and lines is not of_service:
        return f"{who} {is_} {_PHRASES[gravest]} {against} in {count}"

    # 3) The line furthest from 1.
    furthest = lines[is_gravest].nlargest(1, "distance").to_dict("records")[0]
    ratio = f"{furthest['name']}: {_ratio_words(furthest)}"
    if len(lines) == 1:
        return f"{who} {is_} {_PHRASES[gravest]} {against} in {ratio}"
    return f"{who} {is_} {_PHRASES[gravest]} {against} in {count}, most in {ratio}"


# -- a figure over the nights


@figure.styled
def nights(
    *,
    table: pd.DataFrame,
    record: dict[str, Any],
    studies: Sequence[str],
    changes: Mapping[str, Sequence[str]] | None = None,
    metric: str | None = None,
    min_effect: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws `metric` of each of `studies` as a ratio to the first, with a line for each load.

    `metric` is a key of FIGURES. None is the time in the model; if no study has it, the 95th
    percentile of latency, or else the median. `table` and `changes` are from `compare_studies`.
    Ratios in the band differ by less than `min_effect`, or if that is None, by less than the
    figure's own MIN_EFFECTS. A dotted line shows where packages changed.
    """
    ax = figure.axes(ax)
    metric = metric or _figure_with_data(table)
    effect = smallest_effect(metric, min_effect)
    name = FIGURES[metric]
    found = table[(table["figure"] == metric) & table["ratio"].notna()]
    if not len(found):
        return figure.no_data(ax, record, f"{name} over studies", f"no two studies have a {name}")

    # 1) The band, and a line for each load.
    ax.axhspan(
        *_band(effect),
        color=figure.SKY,
        alpha=0.25,
        linewidth=0,
    )
    ax.axhline(1, color="black", linewidth=1)
    by_load = found.groupby("load", sort=False)
    for number_of_load, (load, rows) in enumerate(by_load):
        name_of_line = str(load) if len(by_load) > 1 else f"_{load}"  # not in the legend
        _draw_load(ax, number_of_load, name_of_line, rows, studies)
    kinds = dict.fromkeys(_kind(row) for row in found.to_dict("records"))
    for kind in kinds:
        ax.plot(
            [],
            [],
            kind.marker,
            color=figure.GREY,
            label=kind.name,
        )
    figure.legend_beside(ax, fontsize="small")

    # 2) Where packages changed.
    changed = [study for study in studies if changes and changes.get(study)]
    for study in changed:
        assert changes is not None
        words_of_change = changes[study] if len(changed) <= MOST_CHANGES_NAMED else ()
        _draw_change(ax, studies.index(study), words_of_change)

    # 3) The axes, and what was found.
    _name_studies(ax, studies)
    figure.ratio_axis(ax, "y", *_sides(found["figure"]))
    ax.set_ylabel(f"{name},\ntimes that of {studies[0]}")
    ax.set_xlabel(f"study, oldest first; bars: 95 % intervals; band: within {100 * effect:g} %")

    alt = f"Lines: {name} over {len(studies)} studies, each as a ratio to the first."
    if changed:
        alt += f" Packages changed before {', '.join(changed)}."
    finding = f"{name} of {studies[-1]} against {studies[0]}: {_last_words(found, studies[-1])}"
    source = _studies_of(found, studies[0])
    return figure.finish(ax, record, finding, alt, source=source)


def _figure_with_data(table: pd.DataFrame) -> str:
    """Returns the most telling figure with a ratio: time in the model, p95, or median latency.

    It returns the 95th percentile if none of them has a ratio.
    """
    figures = set(table["figure"][table["ratio"].notna()])
    for metric in (SERVICE, "latency_p95_s", "latency_p50_s"):
        if metric in figures:
            return metric
    return "latency_p95_s"


def _draw_load(
    ax: Axes,
    place: int,
    load: str,
    rows: pd.DataFrame,
    studies: Sequence[str],
) -> None:
    """Draws the line of one load, from the first study on, and its marks with their intervals."""
    colour = LINE_COLOURS[place % len(LINE_COLOURS)]
    style = LINE_STYLES[place % len(LINE_STYLES)]
    shift = 0.06 * place  # loads stand side by side, so that none hides another
    x = [studies.index(study) + shift for study in rows["study"]]
    ax.plot(
        [0, *x],
        [1, *rows["ratio"]],
        style,
        color=colour,
        linewidth=1.5,
        label=load,
    )
    for at, row in zip(x, rows.to_dict("records"), strict=True):
        figure.whiskers(
            ax,
            [at],
            [row["ratio"]],
            [_interval(row)],
            colour=colour,
            marker=_kind(row).marker,
            markersize=6,
        )


def _draw_change(
    ax: Axes,
    place: int,
    changes: Sequence[str],
) -> None:
    """Draws a dotted line before a study, with the first of `changes` in words.

    Without `changes` it draws the line alone.
    """
    ax.axvline(
        place - 0.5,
        color=figure.ORANGE,
        linestyle=":",
        linewidth=1.5,
    )
    if not changes:
        return

    text = changes[0]
    if len(changes) > 1:
        text += f" and {len(changes) - 1} more"
    box = {
        "facecolor": "white",
        "edgecolor": "none",
        "alpha": 0.8,
        "pad": 1,
    }
    ax.text(
        place - 0.53,
        0.02,
        text,
        color=figure.DARK_ORANGE,
        rotation=90,
        ha="right",
        va="bottom",
        fontsize=7.5,
        bbox=box,
        transform=ax.get_xaxis_transform(),
    )


def _name_studies(ax: Axes, studies: Sequence[str]) -> None:
    """Writes at most MOST_NIGHT_NAMES names below the axes, at equal distances."""
    step = -(-len(studies) // MOST_NIGHT_NAMES)
    ticks = range(0, len(studies), step)
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(studies) > 5 else {}
    ax.set_xticks(ticks, [studies[tick] for tick in ticks], **turned)
    ax.set_xlim(-0.4, len(studies) - 0.6)


def _last_words(found: pd.DataFrame, last: str) -> str:
    """Returns what the last study's ratios are, with the load's name where there are several."""
    ends = found[found["study"] == last].drop_duplicates("load", keep="last")
    sentences = []
    for row in ends.to_dict("records"):
        load = f"{row['load']} " if len(ends) > 1 else ""
        sentences.append(f"{load}{_line_words(row)}")
    if sentences:
        return "; ".join(sentences)
    *_, latest = found["study"]
    known = found[found["study"] == latest].to_dict("records")
    return f"not known; of {latest}, the last that has it: {_line_words(known[0])}"


# -- for both


def _kind(row: Mapping[Any, Any]) -> Kind:
    return _KINDS.get(row["verdict"], _SAME)


def _band(min_effect: float) -> tuple[float, float]:
    """Returns the ratios between which a difference does not matter."""
    return 1 / (1 + min_effect), 1 + min_effect


def _sides(figures: pd.Series) -> tuple[str, str]:
    """Returns what ratios below 1 and above 1 are: a higher throughput is better, the rest worse."""
    names = figures.unique()
    if "throughput_images_per_s" not in names:
        return "better", "worse"
    if len(names) == 1:
        return "worse", "better"
    return "better (throughput: worse)", "worse (throughput: better)"


def _interval(row: Mapping[Any, Any]) -> tuple[float, float]:
    """Returns the interval of a ratio.

    Without an interval it returns the ratio twice, which draws caps and no line.
    """
    if pd.isna(row["low"]):
        return row["ratio"], row["ratio"]
    return row["low"], row["high"]


def _ratio_words(row: Mapping[Any, Any]) -> str:
    interval = row["low"], row["high"]
    return words(row["ratio"], interval, "times", no_interval="no interval")


def _line_words(row: Mapping[Any, Any]) -> str:
    verdict = row["verdict"]
    if verdict == "inconclusive":
        verdict = "not shown to differ"
    return f"{_ratio_words(row)}, {verdict}"


def _studies_of(rows: pd.DataFrame, first: str) -> str:
    """Returns which studies the rows are of."""
    studies = [str(study) for study in rows["study"].unique()]
    if len(studies) > 1:
        return f"studies {first} to {studies[-1]}"
    return f"study {studies[0]} against {first}"
