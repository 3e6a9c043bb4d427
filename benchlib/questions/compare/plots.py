"""Pictures of several studies: how each figure of one stands to another's, and how one figure went over the nights.

Knows the table that `comparison.compare_studies` makes. Ignorant of runs and of how ratios and verdicts are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.compare.judge import FIGURES
from benchlib.study import figure
from benchlib.study.figure import number

MOST = 40
"""Lines of a forest plot: more could not be read."""

_WORSE, _BETTER, _OPEN = (
    ("worse", figure.RED, "X"),
    ("better", figure.GREEN, "D"),
    ("inconclusive", figure.GREY, "s"),
)
_NONE = ("no difference", figure.BLUE, "o")
_KINDS = {
    "slower": _WORSE,
    "more": _WORSE,
    "faster": _BETTER,
    "less": _BETTER,
    "inconclusive": _OPEN,
}


@figure.styled
def forest(
    *,
    table: pd.DataFrame,
    record: dict[str, Any],
    against: str,
    min_effect: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Each figure's ratio to that of the study `against`, with its 95 % interval and verdict, a line each.

    `table` has `study`, `load`, `figure`, `ratio`, `low`, `high` and `verdict`, as `compare_studies` makes it. Ratios
    in the band differ by less than `min_effect`. Of more than MOST lines, those furthest from 1 are drawn.
    """
    known = table[table["ratio"].notna()]
    shown = known.loc[np.log(known["ratio"]).abs().nlargest(MOST).index].sort_index()
    ax = figure.axes(ax, height=max(3.2, 1.9 + 0.33 * len(shown)))
    if not len(shown):
        return figure.no_data(
            ax, record, f"ratios to {against}", "no figure that both studies have"
        )
    several = [column for column in ("study", "load") if shown[column].nunique() > 1]
    lines = shown.to_dict("records")
    names = [
        ", ".join([*(str(line[column]) for column in several), FIGURES[line["figure"]]])
        for line in lines
    ]
    for place, line in enumerate(lines):
        _, colour, marker = _KINDS.get(line["verdict"], _NONE)
        ax.errorbar(
            line["ratio"],
            place,
            xerr=_beyond(line),
            fmt=marker,
            color=colour,
            markersize=7,
            capsize=3,
        )
        words = f"{number(line['ratio'])} times: {line['verdict'].replace('%', ' %')}"
        ax.text(
            1.01,
            place,
            words,
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize="small",
            color=colour,
        )
    ax.axvspan(1 / (1 + min_effect), 1 + min_effect, color=figure.SKY, alpha=0.25, linewidth=0)
    ax.axvline(1, color="black", linewidth=1)
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.set_xlabel(
        f"times that of {against}; lines: 95 % intervals; band: within {100 * min_effect:g} %"
    )
    # The labels take room of the axes, and a title is as wide as these are.
    ax.figure.figure.draw_without_rendering()
    told = "; ".join(f"{name} {_words(line)}" for name, line in zip(names, lines, strict=True))
    kinds = [_KINDS.get(line["verdict"], _NONE)[0] for line in lines]
    kind = next(
        kind for kind in ("worse", "inconclusive", "better", "no difference") if kind in kinds
    )
    most = max(
        (line for line in lines if _KINDS.get(line["verdict"], _NONE)[0] == kind), key=_distance
    )
    said = {
        "worse": "worse than",
        "better": "better than",
        "inconclusive": "not shown to differ from",
    }
    who = (
        " and ".join(dict.fromkeys(line["study"] for line in lines))
        if shown["study"].nunique() < 3
        else "all"
    )
    finding = f"{who} {said.get(kind, 'no different from')} {against} in {kinds.count(kind)} of {len(kinds)} figures"
    if kind != "no difference":
        finding += f", most in {names[lines.index(most)]}: {_ratio(most)}"
    if len(shown) < len(known):
        finding += f"; the {MOST} of {len(known)} furthest from 1"
    return figure.finish(
        ax, record, finding, f"Forest plot of ratios: {told}.", of=_of(shown, against)
    )


@figure.styled
def nights(
    *,
    table: pd.DataFrame,
    record: dict[str, Any],
    studies: Sequence[str],
    changes: Mapping[str, Sequence[str]] | None = None,
    metric: str = "latency_p95_s",
    min_effect: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """`metric` of each of `studies` as a ratio to the first, a line per load; dotted where packages changed.

    `table` and `changes` are those of `compare_studies`. Ratios in the band differ by less than `min_effect`.
    """
    ax = figure.axes(ax)
    name, first, last, changes = FIGURES[metric], studies[0], studies[-1], changes or {}
    found = table[(table["figure"] == metric) & table["ratio"].notna()]
    if not len(found):
        return figure.no_data(ax, record, f"{name} over studies", f"no two studies have a {name}")
    ax.axhspan(1 / (1 + min_effect), 1 + min_effect, color=figure.SKY, alpha=0.25, linewidth=0)
    ax.axhline(1, color="black", linewidth=1)
    place, ends = {study: x for x, study in enumerate(studies)}, {}
    for index, (load, rows) in enumerate(found.groupby("load", sort=False)):
        colour = (figure.BLUE, figure.PURPLE, figure.ORANGE, figure.GREEN)[index % 4]
        x = rows["study"].map(place).to_numpy(float) + 0.06 * index
        line = ("-", "--", "-.", ":")[index % 4]
        ax.plot([0, *x], [1, *rows["ratio"]], line, color=colour, linewidth=1.5, label=load)
        for at, row in zip(x, rows.to_dict("records"), strict=True):
            marker = _KINDS.get(row["verdict"], _NONE)[2]
            ax.errorbar(
                at,
                row["ratio"],
                yerr=_beyond(row),
                fmt=marker,
                color=colour,
                markersize=6,
                capsize=3,
            )
        if rows["study"].iloc[-1] == last:
            ends[load] = rows.iloc[-1].to_dict()
    for kind, _, marker in dict.fromkeys(
        _KINDS.get(verdict, _NONE) for verdict in found["verdict"]
    ):
        ax.plot([], [], marker, color=figure.GREY, label=kind)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    changed = [study for study in studies if changes.get(study)]
    for study in changed:
        ax.axvline(place[study] - 0.5, color=figure.ORANGE, linestyle=":", linewidth=1.5)
        more = f" and {len(changes[study]) - 1} more" if len(changes[study]) > 1 else ""
        if len(changed) <= 8:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            style: dict[str, Any] = {
                "rotation": 90,
                "ha": "right",
                "va": "bottom",
                "fontsize": 7.5,
                "bbox": box,
            }
            style["transform"] = ax.get_xaxis_transform()
            ax.text(place[study] - 0.53, 0.02, changes[study][0] + more, color="#8A5F00", **style)
    ticks = range(0, len(studies), -(-len(studies) // 12))
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(studies) > 5 else {}
    ax.set_xticks(ticks, [studies[tick] for tick in ticks], **turned)
    ax.set(xlim=(-0.4, len(studies) - 0.6), ylabel=f"{name}, times that of {first}")
    ax.set_xlabel(f"study, oldest first; bars: 95 % intervals; band: within {100 * min_effect:g} %")
    told = "; ".join(
        f"{load} {_words(end)}" if len(ends) > 1 else _words(end) for load, end in ends.items()
    )
    finding = f"{name} of {last} against {first}: {told or 'not known'}"
    alt = f"Lines: {name} over {len(studies)} studies, each as a ratio to the first."
    if changed:
        alt += f" Packages changed before {', '.join(changed)}."
    return figure.finish(ax, record, finding, alt, of=_of(found, first))


def _beyond(row: Mapping[Any, Any]) -> list[list[float]]:
    """How far the interval goes to either side of the ratio: nowhere where there is none."""
    low, high = (row["ratio"] if pd.isna(row[end]) else row[end] for end in ("low", "high"))
    return [[row["ratio"] - low], [high - row["ratio"]]]


def _distance(row: Mapping[Any, Any]) -> float:
    return abs(float(np.log(row["ratio"])))


def _ratio(row: Mapping[Any, Any]) -> str:
    interval = (
        "no interval" if pd.isna(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"
    )
    return f"{number(row['ratio'])} times ({interval})"


def _words(row: Mapping[Any, Any]) -> str:
    verdict = {"inconclusive": "not shown to differ"}.get(
        row["verdict"], row["verdict"].replace("%", " %")
    )
    return f"{_ratio(row)}, {verdict}"


def _of(rows: pd.DataFrame, first: str) -> str:
    studies = [str(study) for study in rows["study"].unique()]
    return (
        f"studies {first} to {studies[-1]}"
        if len(studies) > 1
        else f"study {studies[0]} against {first}"
    )
