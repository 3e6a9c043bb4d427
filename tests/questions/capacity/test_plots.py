"""Plots of many loads: what is drawn, what the titles dare to say, and no data."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from benchlib import plots
from benchlib.study.store import Run, Study

SLO = "p95 < 2 s"


def texts(ax: Axes) -> str:
    legend = ax.get_legend()
    entries = [entry.get_text() for entry in legend.get_texts()] if legend else []
    parts = [ax.get_title("left"), *[text.get_text() for text in ax.texts], *entries]
    return "\n".join(parts).replace("\u00a0", " ").replace("\n", " ")


def title(ax: Axes) -> str:
    return (
        ax.get_title("left")
        .replace("\u00a0", " ")
        .replace("\n", " ")
        .removeprefix("tiny model, not SDXL: ")
    )


def load_study(
    made: SimpleNamespace, latencies_s: list[tuple[float, Any]], kind: str = "rate"
) -> Study:
    """A run at each load whose images took so long, asked for evenly."""
    runs = []
    for load, took in latencies_s:
        arrivals = {"kind": "open_loop" if kind == "rate" else "closed_loop", kind: load}
        record, requests, telemetry = made.run(took, gap_s=1 / load, spec={"arrivals": arrivals})
        runs.append(Run(record, requests, telemetry, Path("results/load/run")))
    return Study(Path("results/load"), tuple(runs))


def stick(made: SimpleNamespace) -> pd.DataFrame:
    """Four rates: quick, near the promise, past it, and a queue that only grows."""
    random = np.random.default_rng(1)
    calm = [
        (1, random.uniform(0.5, 0.6, 250)),
        (2, random.uniform(1.0, 2.04, 250)),
        (3, random.uniform(1.5, 3, 250)),
    ]
    return load_study(made, [*calm, (4, 0.5 + 0.05 * np.arange(250))]).judge(SLO)


def test_a_promise_is_judged_run_by_run(made: SimpleNamespace) -> None:
    took = np.random.default_rng(3).permutation([0.5] * 80 + [3.0] * 10 + [np.nan] * 10)
    study = load_study(made, [(10, [0.5] * 100), (5, took), (2, [0.5] * 20)])
    judged = study.judge("p95 < 1 s")
    assert judged["verdict"].tolist() == ["met", "missed", "not shown"]
    assert judged["goodput_images_per_s"].tolist() == pytest.approx([10, 4, 2])
    assert judged.drop(columns=["verdict", "goodput_images_per_s"]).equals(study.summary)


def test_a_study_without_runs_judges_nothing() -> None:
    assert Study(Path("load"), ()).judge(SLO).empty


def test_the_hockey_stick_draws_what_is_known_and_shades_what_is_not(made: SimpleNamespace) -> None:
    summary = stick(made)
    assert summary["verdict"].tolist() == ["met", "not shown", "missed", "missed"]
    assert summary["state"].tolist() == ["steady", "steady", "steady", "unstable"]
    ax = plots.hockey_stick(summary=summary, record=made.record(), slo=SLO)
    (line,) = [line for line in ax.lines if "95 % took at most" in str(line.get_label())]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata()[:3] == pytest.approx(summary["latency_p95_s"][:3].astype(float))
    assert np.isnan(line.get_ydata()[3])
    said = texts(ax)
    for words in (
        "with 95 % interval",
        "kept",
        "too short",
        "broken",
        "no p95",
        "unstable",
        "promised: p95 < 2 s",
    ):
        assert words in said
    assert [line.get_linestyle() for line in ax.lines if {*line.get_ydata()} == {2.0}] == ["--"]
    (shaded,) = [patch for patch in ax.patches if "unstable" in patch.get_label()]
    assert shaded.get_x() == 4
    assert ax.get_xlim()[1] == pytest.approx(shaded.get_x() + shaded.get_width())
    assert "study quickstart, 4 runs" in said


@pytest.mark.parametrize(
    ("capacity", "finding", "drawn"),
    [
        ((1.38, 1.42), "p95 passes 2 s between 1.38 and 1.42 images/s", "capacity: in this band"),
        (
            (1.38, None),
            "p95 stays within 2 s up to 1.38 images/s; where it passes is not shown",
            "capacity: at least",
        ),
        (
            (None, 3.5),
            "p95 is past 2 s from 3.5 images/s on; what keeps within is not shown",
            "capacity: less than",
        ),
        ((None, None), "where p95 passes 2 s is not shown", ""),
    ],
)
def test_the_hockey_stick_says_what_the_search_for_the_capacity_has_shown(
    made: SimpleNamespace, capacity: Any, finding: str, drawn: str
) -> None:
    ax = plots.hockey_stick(summary=stick(made), record=made.record(), slo=SLO, capacity=capacity)
    assert title(ax) == finding
    assert drawn in texts(ax)
    assert texts(ax).count("capacity: ") == bool(drawn)
    bands = [patch for patch in ax.patches if "capacity" in patch.get_label()]
    ends = [(band.get_x(), band.get_x() + band.get_width()) for band in bands]
    assert ends == [pytest.approx(capacity)] * all(capacity)
    lines = [{*line.get_xdata()} for line in ax.lines if "capacity" in str(line.get_label())]
    assert lines == [{*capacity} - {None}] * (bool(drawn) and not bands)


def test_the_hockey_stick_is_of_the_promised_percentile(made: SimpleNamespace) -> None:
    judged = load_study(made, [(1, [0.5] * 40), (2, [0.7] * 40), (8, [0.9] * 9)]).judge(
        "p90 < 600 ms"
    )
    ax = plots.hockey_stick(summary=judged, record=made.record(), slo="p90 < 600 ms")
    assert title(ax) == "where p90 passes 0.6 s is not shown"
    assert "90 % took at most this (too few requests for an interval)" in texts(ax)
    assert "no p90: latency drifted, or too few images" in texts(ax)
    assert "p90 by offered load: 0.5 s at 1/s; 0.7 s at 2/s." in ax.get_label()
    alone = plots.hockey_stick(summary=judged[2:], record=made.record(), slo="p90 < 600 ms")
    assert "p90 by offered load: none." in alone.get_label()
    with pytest.raises(
        ValueError,
        match=r"slo: no summary has the p97 of 'p97 < 2 s'; take a share of .0.5, 0.9, 0.95",
    ):
        plots.hockey_stick(summary=judged, record=made.record(), slo="p97 < 2 s")


def test_the_interval_of_several_runs_takes_five_and_a_figure_of_each(
    made: SimpleNamespace,
) -> None:
    summary = load_study(made, [(2, [0.5 + 0.01 * i] * 80) for i in range(5)]).judge(SLO)
    ax = plots.hockey_stick(summary=summary, record=made.record(), slo=SLO)
    (bar,) = [
        part
        for lines in ax.collections
        if isinstance(lines, LineCollection)
        for part in lines.get_segments()
    ]
    half_s = (
        2.776 * 0.015811 / 5**0.5
    )  # t for 4 degrees of freedom; the standard deviation of 0.50 to 0.54
    assert bar[:, 1].tolist() == pytest.approx([0.52 - half_s, 0.52 + half_s], abs=1e-4)
    four = plots.hockey_stick(summary=summary[1:], record=made.record(), slo=SLO)
    assert "too few requests for an interval" in texts(four)
    drifted = summary.assign(latency_p95_s=[0.5, 0.5, None, 0.5, 0.5])
    ax = plots.hockey_stick(summary=drifted, record=made.record(), slo=SLO)
    assert np.isnan(ax.lines[-2].get_ydata()).all(), "the mean of the calmer runs is no mean"


def test_goodput_falls_where_the_promise_breaks(made: SimpleNamespace) -> None:
    summary = stick(made)
    ax = plots.goodput_curve(summary=summary, record=made.record(), slo=SLO)
    good = summary["goodput_images_per_s"]
    (line,) = [line for line in ax.lines if str(line.get_label()).startswith("goodput")]
    assert line.get_xdata().tolist() == pytest.approx([1, 2, 3, 4])
    assert line.get_ydata().tolist() == good.tolist()
    assert (
        title(ax) == f"at most {good[1]:.3g} images/s came within 2 s, of 2 asked for; "
        f"of 4 asked for, {good[3]:.3g} came in time"
    )
    assert "all of them came within 2 s" in texts(ax)
    one = plots.goodput_curve(summary=summary[:1], record=made.record(), slo=SLO)
    assert title(one) == "up to 1 image/s all images came within 2 s"


def test_the_queue_s_share_grows_with_the_users(made: SimpleNamespace) -> None:
    study = load_study(made, [(8, [2.0] * 50), (1, [0.5] * 50), (2, [1.0] * 50)], "users")
    summary = study.summary.assign(queue_share=[0.75, 0.0, 0.5])
    ax = plots.queue_share(summary=summary, record=made.record())
    assert (
        title(ax)
        == "waiting in the queue is 0 % of latency with 1 user and 75 % of latency with 8 users"
    )
    assert ax.lines[-1].get_xdata().tolist() == [1, 2, 8]
    assert ax.lines[-1].get_ydata().tolist() == [0, 50, 75]
    one = plots.queue_share(summary=summary[:1], record=made.record())
    assert title(one) == "waiting in the queue is 75 % of latency with 8 users"
    silent = summary.assign(queue_share=None)
    assert "no data" in texts(plots.queue_share(summary=silent, record=made.record()))


@pytest.mark.parametrize("by", ["users", "rate"])
def test_loads_with_fewer_than_five_images_have_no_share_and_no_goodput(
    by: str, made: SimpleNamespace
) -> None:
    summary = stick(made).rename(columns={"rate": by}).assign(queue_share=0.5)
    plot: Any = plots.queue_share if by == "users" else partial(plots.goodput_curve, slo=SLO)
    none = plot(summary=summary.assign(ok=4), record=made.record())
    assert "no data: no load has 5 images" in texts(none)
    some = plot(summary=summary.assign(ok=[4, *[5] * (len(summary) - 1)]), record=made.record())
    assert "1 load with fewer than 5 images left out" in title(some)
    assert f"{len(summary) - 1} runs, {5 * (len(summary) - 1)} images" in texts(some)


def foretold() -> pd.DataFrame:
    """A curve that passes 2 s at 2.5 images/s, with no interval at its last rate."""
    rates = np.array([0.2, 1, 2, 2.5, 3, 3.5])
    promised_s = np.array([0.5, 0.8, 1.4, 2.0, 3.5, 20])
    in_time = np.array([1, 1, 0.99, 0.95, 0.7, 0.1])
    curve = pd.DataFrame(
        {"rate": rates, "stable": True, "promised_s": promised_s, "in_time": in_time}
    )
    curve["goodput_images_per_s"] = rates * in_time
    for name in ("promised_s", "goodput_images_per_s"):
        pairs = [(0.95 * value, 1.05 * value) for value in curve[name]]
        curve[f"{name}_interval"] = [*pairs[:-1], None]
    beyond = pd.DataFrame({"rate": [4.5], "stable": [False]})
    return pd.concat([curve, beyond], ignore_index=True)


COMPARED = pd.DataFrame(
    {
        "offered_images_per_s": [1.0, 2.0],
        "foretold_s": [(0.5, 0.7), None],
        "rate": [1.0, 2.0],
        "verdict": ["calibrates", "confirmed"],
        "judges": "latest",
    }
)


def test_the_hockey_stick_draws_what_is_foretold_and_marks_the_runs(made: SimpleNamespace) -> None:
    options: dict[str, Any] = {"record": made.record(), "slo": SLO, "capacity": (2.4, 2.6)}
    ax = plots.hockey_stick(
        summary=stick(made), predicted=foretold(), comparison=COMPARED, **options
    )
    assert title(ax) == "foretold: p95 passes 2 s between 2.4 and 2.6 images/s"
    (line,) = [line for line in ax.lines if "foretold: 95 %" in str(line.get_label())]
    assert line.get_xdata().tolist() == [0.2, 1, 2, 2.5, 3, 3.5]
    assert line.get_ydata()[3] == 2
    said = texts(ax)
    assert "foretold for the run's own arrivals (99 %)" in said
    assert "capacity: in this band" in said
    assert "unstable" not in said, "the curve says so"
    (bar,) = [
        lines.get_segments()
        for lines in ax.collections
        if isinstance(lines, LineCollection) and len(lines.get_segments()) == 1
    ]
    assert bar[0][:, 1].tolist() == pytest.approx([0.5, 0.7])
    assert ax.get_ylim()[1] < 6, "the steep end does not hide where the promise breaks"
    left_out = COMPARED.assign(offered_images_per_s=[1.37, 2.0])
    without = plots.hockey_stick(
        summary=stick(made), predicted=foretold(), comparison=left_out, **options
    )
    assert "own arrivals" not in texts(without), "a run without a mark has no bar"


def test_a_title_says_that_runs_contradict_what_is_foretold(made: SimpleNamespace) -> None:
    options: dict[str, Any] = {"record": made.record(), "slo": SLO, "predicted": foretold()}
    judged = COMPARED.assign(verdict=["not confirmed", "not confirmed"])
    stick_ax = plots.hockey_stick(
        summary=stick(made), comparison=judged, capacity=(2.4, 2.6), **options
    )
    assert "between 2.4 and 2.6 images/s, but 2 of 2 runs contradict it" in title(stick_ax)
    earlier = judged.assign(judges=["earlier", "latest"], verdict=["not confirmed", "confirmed"])
    stick_ax = plots.hockey_stick(
        summary=stick(made), comparison=earlier, capacity=(2.4, 2.6), **options
    )
    assert "contradict" not in title(stick_ax), "that run made the estimate a better one"
    assert "the same, by an earlier estimate" in texts(stick_ax), "its bar has a colour of its own"
    assert "own arrivals" not in texts(stick_ax), "the other run has no bar"
    high = foretold().assign(goodput_images_per_s_interval=[(90.0, 99.0)] * 7)
    goodput_ax = plots.goodput_curve(summary=stick(made), **options | {"predicted": high})
    assert "runs made less than was foretold" in title(goodput_ax)


def test_what_is_foretold_is_drawn_without_any_run(made: SimpleNamespace) -> None:
    options: dict[str, Any] = {"record": made.record(), "slo": SLO, "predicted": foretold()}
    none = stick(made)[:0]
    for empty in (none, pd.DataFrame()):
        stick_ax = plots.hockey_stick(summary=empty, comparison=COMPARED[:0], **options)
        assert "foretold: 95 % take at most this" in texts(stick_ax)
        goodput_ax = plots.goodput_curve(summary=empty, **options)
        assert "measured in a run" not in texts(goodput_ax)


def test_goodput_says_where_it_is_foretold_to_be_highest(made: SimpleNamespace) -> None:
    ax = plots.goodput_curve(
        summary=stick(made), record=made.record(), slo=SLO, predicted=foretold()
    )
    assert title(ax).startswith("foretold: at most 2.38 images/s come within 2 s, of 2.5 asked for")
    assert "measured in a run" in texts(ax)
    highest = 100 + foretold()["goodput_images_per_s"]
    tall = plots.goodput_curve(
        summary=stick(made),
        record=made.record(),
        slo=SLO,
        predicted=foretold().assign(goodput_images_per_s=highest),
    )
    assert tall.get_ylim()[1] > highest.max(), "the figure of the title is seen"
    refused = foretold()[:0]
    raw = plots.goodput_curve(summary=stick(made), record=made.record(), slo=SLO, predicted=refused)
    assert title(raw).startswith("at most "), "nothing is foretold, so the runs are drawn"


def test_a_load_curve_has_lines_of_what_is_foretold_for_users(made: SimpleNamespace) -> None:
    users = pd.DataFrame(
        {
            "users": [1, 2, 4],
            "images_per_s": [1.5, 1.8, 1.9],
            "p50_s": [0.6, 1.1, 2.1],
            "p95_s": [0.7, 1.2, 2.2],
        }
    )
    study = load_study(made, [(4, [2.0] * 50)], "users")
    upper = plots.load_curve(summary=study.summary, record=made.record(), predicted=users)
    assert title(upper) == "4 users get 1.9 images/s (foretold, and 3.44 were measured)"
    assert "measured in a run (marks)" in texts(upper)
    assert upper.lines[0].get_ydata().tolist() == [1.5, 1.8, 1.9]
    _, lower = upper.figure.axes
    assert lower.lines[0].get_ydata().tolist() == [0.7, 1.2, 2.2]
    alone = plots.load_curve(summary=pd.DataFrame(), record=made.record(), predicted=users)
    assert "measured" not in texts(alone)


def test_a_line_that_ends_before_the_last_load_says_where(made: SimpleNamespace) -> None:
    study = load_study(made, [(1, [0.5] * 250), (4, [2.0] * 12)], "users")
    _, lower = plots.load_curve(summary=study.summary, record=made.record()).figure.axes
    said = [text.get_text() for text in lower.texts]
    assert "95 % within this\n(up to 1 user)" in said
    assert "half within this" in said


OF_LOADS = [
    ("rate", lambda **options: plots.hockey_stick(slo=SLO, **options)),
    ("rate", lambda **options: plots.goodput_curve(slo=SLO, **options)),
    ("users", plots.queue_share),
]


@pytest.mark.parametrize(("by", "plot"), OF_LOADS)
def test_no_run_and_invalid_ones_and_a_thousand_are_drawn(
    by: str, plot: Any, made: SimpleNamespace, tmp_path: Path
) -> None:
    summary = stick(made).rename(columns={"rate": by})
    for none in (
        summary[:0],
        pd.DataFrame(),
        summary.assign(valid=False),
        summary.drop(columns=by),
    ):
        ax = plot(summary=none, record=made.record())
        assert "no data: no valid run" in texts(ax)
        plots.save(ax, tmp_path / "none")
    ax = plot(summary=summary.assign(valid=[True, True, False, True]), record=made.record())
    assert title(ax).endswith("; 1 of 4 runs left out as not valid")
    many = pd.concat(
        [summary.assign(**{by: summary[by] + i / 250}) for i in range(250)], ignore_index=True
    )
    plots.save(plot(summary=many, record=made.record()), tmp_path / "many")
    figure, panels = pyplot.subplots(1, 2)
    assert plot(summary=summary[:1], record=made.record(), ax=panels[1]) is panels[1]
    assert not panels[0].has_data()
    pyplot.close(figure)


def test_runs_that_all_kept_the_promise_are_a_finding(made: SimpleNamespace) -> None:
    summary = stick(made)[:2]
    options = {"record": made.record(), "slo": SLO, "capacity": (None, None)}
    ax = plots.hockey_stick(summary=summary, **options)
    said = "p95 of 2 runs up to 2 images/s stayed within 2 s; where it passes is not shown"
    assert title(ax) == said
    broken = summary.assign(latency_p95_s=[1.0, 2.5])
    assert (
        title(plots.hockey_stick(summary=broken, **options)) == "where p95 passes 2 s is not shown"
    )


def test_a_load_curve_of_few_images_has_marks_and_no_claim(made: SimpleNamespace) -> None:
    summary = stick(made).assign(ok=[60, 4, 60, 1])
    ax = plots.load_curve(summary=summary, record=made.record())
    (line,) = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert len(line.get_xdata()) == 2, "the loads with 60 images"
    assert "125 images" in str(ax.get_label())
    few = plots.load_curve(summary=summary.assign(ok=4), record=made.record())
    assert title(few) == "what throughput is at a load is not shown: it takes 5 images there"
    assert not [line for line in few.lines if len(line.get_xdata()) and line.get_linestyle() == "-"]
