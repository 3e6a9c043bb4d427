"""Plots of what is foretold at many loads, with the measured runs as marks on it.

Knows a Calibration's curve, and a row for each run. Ignorant of how anything was foretold, and of
plots where nothing was (plots.py).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from benchlib.questions.capacity.load_marks import (
    LATENCIES,
    THROUGHPUT,
    USERS,
    Ends,
    Record,
    draw_capacity,
    draw_run_marks,
    draw_verdicts,
    finish_load_plot,
    known_floats,
    valid_runs,
    where_it_breaks,
)
from benchlib.questions.capacity.outlook import CALIBRATES, EARLIER, LATEST, NOT_CONFIRMED
from benchlib.study import figure
from benchlib.study.busy import busy_sentence
from benchlib.study.figure import whole_ticks
from benchlib.study.slo import Slo
from benchlib.study.wording import agreeing, counted, number, per_second

FORETOLD = {
    "throughput_images_per_s": "images_per_s",
    "latency_p95_s": "p95_s",
    "latency_p50_s": "p50_s",
}
"""The column of foretold users for each column of the summary."""
HIGHEST_LATENCY = 2.0
"""The curve rises without end; so many times the promise show where it passes."""
OFFERED = "offered_images_per_s"
OWN_ARRIVALS = {
    LATEST: (figure.PURPLE, "foretold for the run's own arrivals (99 %)"),
    EARLIER: (figure.GREY, "the same, by an earlier estimate"),
}
"""The bars beside the runs' marks, by the estimate that a run judges."""


def foretold_rates(predicted: pd.DataFrame | None) -> pd.DataFrame:
    """The predicted rates that the server keeps up with; without rows where nothing is foretold."""
    if predicted is None or not len(predicted):
        return pd.DataFrame({"rate": []})
    is_known = predicted["stable"].astype(bool) & predicted["promised_s"].notna()
    return predicted[is_known].sort_values("rate")


def draw_foretold_users(
    upper: Axes, summary: pd.DataFrame, record: Record, predicted: pd.DataFrame
) -> Axes:
    """Draws plots.load_curve with lines of what is predicted for users, and a mark for each run."""
    runs, left_out = valid_runs(summary, "users", THROUGHPUT.name)
    lower = figure.panel_below(upper)
    users = predicted["users"].astype(float)

    # 1) Lines of what is foretold, and the runs' marks.
    labels = []
    for ax, column in ((upper, THROUGHPUT), *((lower, column) for column in LATENCIES)):
        foretold = predicted[FORETOLD[column.name]].astype(float)
        ax.plot(users, foretold, color=column.colour, linewidth=1.5)
        if len(runs):
            draw_run_marks(ax, runs, "users", column, line=False)
        if column.label:
            labels.append((float(foretold.iloc[-1]), column.label, column.colour))

    # 2) Axes and labels.
    upper.plot([], [], color="black", linewidth=1.5, label="foretold (lines)")
    if len(runs):
        upper.plot([], [], "D", color="black", markersize=5, label="measured in a run (marks)")
    lower.set_xlim(0, 1.08 * users.max())
    lower.set_xlabel(USERS)
    whole_ticks(lower.xaxis)
    for ax, label in ((upper, "throughput, images/s"), (lower, "latency, s")):
        _, top = ax.get_ylim()
        ax.set_ylim(0, 1.1 * top)
        ax.set_ylabel(label)
    figure.label_at_right(lower, labels)
    pad = figure.legend_above(upper)

    # 3) Words.
    most = predicted.iloc[-1]
    people = counted(most["users"], "user")
    get = agreeing(most["users"], "gets", "get")
    beside = ""
    if len(runs) and (runs["users"] == most["users"]).any():
        measured = known_floats(runs, THROUGHPUT.name)[runs["users"] == most["users"]]
        beside = f", and {number(measured.mean())} were measured"
    finding = f"{people} {get} {per_second(most['images_per_s'])} (foretold{beside})"
    points = [
        f"{per_second(row['images_per_s'])} with {counted(row['users'], 'user')}"
        for _, row in predicted.iterrows()
    ]
    alt = f"Foretold throughput over latency, by users: {'; '.join(points)}."
    source = figure.study_of(record, len(runs), "run")
    return figure.finish(
        upper,
        record,
        finding + left_out,
        alt,
        pad=pad,
        source=source,
        lowest=lower,
        busy=busy_sentence(runs.to_dict("records")),
    )


def draw_foretold_stick(
    ax: Axes,
    foretold: pd.DataFrame,
    summary: pd.DataFrame,
    record: Record,
    *,
    slo: str,
    capacity: Ends,
    comparison: pd.DataFrame | None,
) -> Axes:
    """Draws plots.hockey_stick with a line of what is foretold, and a mark for each run."""
    # 1) The runs' own percentiles, at the rates that they in fact offered
    goal = Slo.parse(slo)
    share = f"{100 * goal.q:g}"
    runs, left_out = valid_runs(summary, "rate")
    took_s = known_floats(runs, f"latency_p{share}_s")
    highest_s = np.nanmax([*took_s, HIGHEST_LATENCY * goal.latency_s])

    # 2) Draw
    ax.set_xlim(0, 1.08 * max([*known_floats(runs, OFFERED), *foretold["rate"]]))
    ax.set_ylim(0, 1.2 * highest_s)
    _draw_foretold(ax, foretold, "promised_s", f"foretold: {share} % take at most this")
    _draw_own_arrivals(ax, comparison, known_floats(runs, OFFERED))
    draw_verdicts(ax, runs, took_s, OFFERED)
    silent = known_floats(runs, OFFERED)[took_s.isna()]
    if len(silent):
        ax.scatter(
            silent,
            [0.03 * highest_s] * len(silent),
            marker="x",
            color=figure.GREY,
            label=f"a run without p{share}: latency drifted, or too few images",
        )
    draw_capacity(ax, capacity)
    ax.axhline(goal.latency_s, color=figure.RED, linestyle="--", linewidth=1)
    figure.label_at_right(ax, [(goal.latency_s, f"promised:\n{slo}", figure.RED)])

    # 3) Words
    finding = where_it_breaks(capacity, f"p{share}", goal.latency_s, runs, took_s)
    pairs = zip(foretold["promised_s"], foretold["rate"], strict=True)
    points = [f"{number(took)} s at {number(rate)}/s" for took, rate in pairs]
    alt = f"Foretold p{share} by offered load: {'; '.join(points)}."
    source = "foretold: " if any(capacity) else ""
    contradicted = _contradicted_words(comparison)
    return finish_load_plot(ax, record, runs, f"{source}{finding}{contradicted}{left_out}", alt)


def draw_foretold_goodput(
    ax: Axes, foretold: pd.DataFrame, summary: pd.DataFrame, record: Record, within: str
) -> Axes:
    """Draws plots.goodput_curve with a line of what is foretold, and a mark for each run."""
    # 1) Draw
    runs, left_out = valid_runs(summary, "rate")
    offered = known_floats(runs, OFFERED)
    good = known_floats(runs, "goodput_images_per_s")
    means = foretold["goodput_images_per_s"].astype(float)
    last_rate = 1.08 * max([*offered, *foretold["rate"]])
    line = [0, last_rate]
    in_time = f"all of them came {within}"
    ax.plot(line, line, "--", color=figure.GREY, linewidth=1, label=in_time)
    _draw_foretold(ax, foretold, "goodput_images_per_s", "foretold")
    if len(runs):
        label = "measured in a run"
        ax.scatter(offered, good, s=30, marker="D", color=figure.GREEN, zorder=3, label=label)
    ax.set_xlim(0, last_rate)
    ax.set_ylim(0, 1.15 * max([*good, *means]))

    # 2) Words
    best = foretold.iloc[int(means.argmax())]
    most = f"{per_second(best['goodput_images_per_s'])} come {within}"
    finding = f"foretold: at most {most}, of {number(best['rate'])} asked for"
    below = _runs_below(foretold, offered, good)
    if below:
        which = f"{below} of {len(runs)} runs" if len(runs) > 1 else "the run"
        finding += f"; {which} made less than was foretold"
    pairs = zip(means, foretold["rate"], strict=True)
    points = [f"{number(mean)} of {number(rate)}" for mean, rate in pairs]
    alt = f"Images/s {within}: {'; '.join(points)}/s."
    return finish_load_plot(ax, record, runs, finding + left_out, alt)


def _runs_below(foretold: pd.DataFrame, offered: pd.Series, good: pd.Series) -> int:
    """How many runs lie below the band of what is foretold at their rate."""
    name = "goodput_images_per_s"
    pairs = zip(foretold[f"{name}_interval"], foretold[name], strict=True)
    low = [value if pair is None else pair[0] for pair, value in pairs]
    least = np.interp(offered, foretold["rate"].astype(float), np.array(low, dtype=float))
    return int((good < least).sum())


def _contradicted_words(comparison: pd.DataFrame | None) -> str:
    """That runs contradict what is foretold, or nothing."""
    if comparison is None:
        return ""
    is_judge = (comparison["verdict"] != CALIBRATES) & (comparison["judges"] == LATEST)
    judging = int(is_judge.sum())
    contradicting = int((is_judge & (comparison["verdict"] == NOT_CONFIRMED)).sum())
    if not contradicting:
        return ""
    verb = agreeing(contradicting, "contradicts", "contradict")
    return f", but {contradicting} of {counted(judging, 'run')} {verb} it"


def _draw_foretold(ax: Axes, foretold: pd.DataFrame, column: str, label: str) -> None:
    """Draws a line of what is foretold at each rate, and its band."""
    missing = (math.nan, math.nan)
    pairs = [pair or missing for pair in foretold[f"{column}_interval"]]
    low, high = np.array(pairs, dtype=float).T
    rate = foretold["rate"].astype(float)
    ax.fill_between(rate, low, high, color=figure.BLUE, alpha=0.2, linewidth=0)
    ax.plot(
        rate,
        foretold[column].astype(float),
        color=figure.BLUE,
        linewidth=1.8,
        label=f"{label}, with 95 % interval",
    )


def _draw_own_arrivals(ax: Axes, comparison: pd.DataFrame | None, offered: pd.Series) -> None:
    """Draws a bar for each run: what was foretold for the arrivals that it happened to have.

    `offered` are the rates of the runs that have a mark; a run that is not valid has none.
    """
    if comparison is None or not len(comparison):
        return
    has_mark = comparison[OFFERED].astype(float).isin(offered)
    is_drawn = comparison["foretold_s"].notna() & has_mark
    for estimate, (colour, label) in OWN_ARRIVALS.items():
        judged = comparison[is_drawn & (comparison["judges"] == estimate)]
        if not len(judged):
            continue
        ends_s = np.array(judged["foretold_s"].tolist(), dtype=float)
        middle_s = ends_s.mean(axis=1)
        lengths_s = figure.whisker_lengths(middle_s, ends_s)
        ax.errorbar(
            judged[OFFERED],
            middle_s,
            yerr=lengths_s,
            fmt="none",
            ecolor=colour,
            elinewidth=4,
            capsize=9,
            capthick=2,
            label=label,
        )
