"""Plots of many loads: what is drawn, what the titles dare to say, and no data."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchlib.study import plots
from benchlib.study.store import Run, Study

SLO = "p95 < 2 s"


def texts(ax: Axes) -> str:
    legend = ax.get_legend()
    entries = [entry.get_text() for entry in legend.get_texts()] if legend else []
    parts = [ax.get_title("left"), *[text.get_text() for text in ax.texts], *entries]
    return "\n".join(parts).replace("\u00a0", " ").replace("\n", " ")


def title(ax: Axes) -> str:
    return ax.get_title("left").replace("\u00a0", " ").replace("\n", " ").removeprefix("tiny model, not SDXL: ")


def load_study(made: SimpleNamespace, latencies_s: list[tuple[float, Any]], kind: str = "rate") -> Study:
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
    calm = [(1, random.uniform(0.5, 0.6, 250)), (2, random.uniform(1.0, 2.04, 250)), (3, random.uniform(1.5, 3, 250))]
    return load_study(made, [*calm, (4, 0.5 + 0.05 * np.arange(250))]).judge(SLO)


def test_a_promise_is_judged_run_by_run(made: SimpleNamespace) -> None:
    took = np.random.default_rng(3).permutation([0.5] * 80 + [3.0] * 10 + [np.nan] * 10)
    study = load_study(made, [(10, [0.5] * 100), (5, took), (2, [0.5] * 20)])
    judged = study.judge("p95 < 1 s")
    assert judged["verdict"].tolist() == ["met", "missed", "not shown"]
    assert judged["goodput_images_per_s"].tolist() == pytest.approx([10, 4, 2])
    assert judged.drop(columns=["verdict", "goodput_images_per_s"]).equals(study.summary)


def test_the_runs_since_a_moment_are_those_that_began_then(made: SimpleNamespace) -> None:
    days = [f"2026-11-{day}T10:00:00.5+00:00" for day in (22, 23, 24)]
    runs = [Run(made.record(started_at=day), made.requests([]), made.telemetry(0), Path("run")) for day in days]
    study = Study(Path("load"), tuple(runs))
    assert [run.record["started_at"] for run in study.since("2026-11-23T10:00:00+00:00").runs] == days[1:]
    assert study.since("2027-01-01T00:00:00+00:00").judge(SLO).empty


def test_the_hockey_stick_says_between_which_rates_the_promise_breaks(made: SimpleNamespace) -> None:
    summary = stick(made)
    assert summary["verdict"].tolist() == ["met", "not shown", "missed", "missed"]
    assert summary["state"].tolist() == ["steady", "steady", "steady", "unstable"]
    ax = plots.hockey_stick(summary=summary, record=made.record(), slo=SLO)
    assert title(ax) == "p95 passes 2 s between 1 and 3 images/s"
    (line,) = [line for line in ax.lines if "95 % took at most" in str(line.get_label())]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata()[:3] == pytest.approx(summary["latency_p95_s"][:3].astype(float))
    assert np.isnan(line.get_ydata()[3])
    said = texts(ax)
    for words in ("with 95 % interval", "kept", "neither", "broken", "no p95", "unstable", "promised: p95 < 2 s"):
        assert words in said
    (limit,) = [line for line in ax.lines if set(line.get_ydata()) == {2.0} and line is not ax.lines[0]]
    assert limit.get_linestyle() == "--"
    (shaded,) = [patch for patch in ax.patches if "unstable" in patch.get_label()]
    assert shaded.get_x() == 4
    assert ax.get_xlim()[1] == pytest.approx(shaded.get_x() + shaded.get_width())
    assert "study quickstart, 4 runs" in said


@pytest.mark.parametrize(
    ("capacity", "finding"),
    [
        ((1.38, 1.42), "p95 passes 2 s between 1.38 and 1.42 images/s"),
        ((1.38, None), "p95 stays within 2 s up to 1.38 images/s; where it passes is not shown"),
        ((None, 3.5), "p95 is past 2 s from 3.5 images/s on; how much keeps within is not shown"),
        ((None, None), "where p95 passes 2 s is not shown"),
    ],
)
def test_the_hockey_stick_takes_the_capacity_s_word(made: SimpleNamespace, capacity: Any, finding: str) -> None:
    ax = plots.hockey_stick(summary=stick(made), record=made.record(), slo=SLO, capacity=capacity)
    assert title(ax) == finding
    assert texts(ax).count("capacity: ") == (capacity != (None, None))
    (band,) = [patch for patch in ax.patches if "capacity" in patch.get_label()] if all(capacity) else [None]
    if band:
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(capacity)


def test_the_hockey_stick_without_a_promise_tells_how_far_it_saw(made: SimpleNamespace) -> None:
    study = load_study(made, [(1, [0.5] * 40), (2, [0.7] * 40), (8, [0.9] * 10)])
    ax = plots.hockey_stick(summary=study.summary, record=made.record())
    assert title(ax) == "p95 was 0.7 s at 2 images/s, the highest rate that has one"
    assert "too few requests for an interval" in texts(ax)
    assert "no p95: latency drifted, or too few images" in texts(ax)
    alone = plots.hockey_stick(summary=study.summary[2:], record=made.record())
    assert title(alone) == "no rate had a p95"
    judged = load_study(made, [(1, [0.5] * 30)]).judge("p90 < 2 s")
    assert title(plots.hockey_stick(summary=judged, record=made.record(), slo="p90 < 2 s")) == (
        "where p90 passes 2 s is not shown"
    )
    with pytest.raises(ValueError, match=r"slo: 'p97 < 2 s' .* take one of p50, p90, p95, p99, p99.9"):
        plots.hockey_stick(summary=judged, record=made.record(), slo="p97 < 2 s")


def test_five_runs_have_an_interval_and_runs_that_contradict_show_nothing(made: SimpleNamespace) -> None:
    summary = load_study(made, [(2, [0.5 + 0.01 * i] * 80) for i in range(5)]).judge(SLO)
    ax = plots.hockey_stick(summary=summary, record=made.record(), slo=SLO)
    (bar,) = [segment for lines in ax.collections if hasattr(lines, "get_segments") for segment in lines.get_segments()]
    # t = 2.776 for 4 degrees of freedom, the standard deviation of 0.50 to 0.54 is 0.01581
    assert bar[:, 1].tolist() == pytest.approx(
        [0.52 - 2.776 * 0.01581 / 5**0.5, 0.52 + 2.776 * 0.01581 / 5**0.5], abs=1e-4
    )
    assert "stays within 2 s up to 2 images/s" in title(ax)
    contrary = summary.assign(verdict=["met", "met", "met", "missed", "met"])
    ax = plots.hockey_stick(summary=contrary, record=made.record(), slo=SLO)
    assert title(ax) == "where p95 passes 2 s is not shown"
    drifted = summary.assign(latency_p95_s=[0.5, 0.5, None, 0.5, 0.5])
    ax = plots.hockey_stick(summary=drifted, record=made.record(), slo=SLO)
    assert np.isnan(ax.lines[0].get_ydata()).all(), "the mean of the calmer runs is no mean"


def test_goodput_falls_where_the_promise_breaks(made: SimpleNamespace) -> None:
    summary = stick(made)
    ax = plots.goodput_curve(summary=summary, record=made.record(), slo=SLO)
    good = summary["goodput_images_per_s"]
    (line,) = [line for line in ax.lines if str(line.get_label()).startswith("goodput")]
    assert line.get_xdata().tolist() == pytest.approx([1, 2, 3, 4])
    assert line.get_ydata().tolist() == good.tolist()
    assert title(ax) == f"at most {good[1]:.3g} images/s came within 2 s, with 2 asked for; with 4, {good[3]:.3g}"
    assert "all of them came within 2 s" in texts(ax)
    one = plots.goodput_curve(summary=summary[:1], record=made.record(), slo=SLO)
    assert title(one) == "at most 1 images/s came within 2 s, with 1 asked for"


@pytest.mark.parametrize(
    ("kind", "words"),
    [("users", "of all latency, 50 % with 1 user and 50 % with 8 users was waiting"), ("rate", "8/s")],
)
def test_the_queue_s_share_is_of_users_or_of_rates(made: SimpleNamespace, kind: str, words: str) -> None:
    study = load_study(made, [(8, [1.0] * 50), (1, [1.0] * 50), (2, [1.0] * 50)], kind)
    ax = plots.queue_share(summary=study.summary, record=made.record())
    assert words in title(ax)
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 8]
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([50, 50, 50])
    assert ("users" in ax.get_xlabel()) == (kind == "users")
    one = plots.queue_share(summary=study.summary[:1], record=made.record())
    assert title(one).count("50 %") == 1
    silent = study.summary.assign(queue_share=None)
    assert "no data" in texts(plots.queue_share(summary=silent, record=made.record()))


OF_LOADS = [
    lambda **options: plots.hockey_stick(slo=SLO, **options),
    lambda **options: plots.goodput_curve(slo=SLO, **options),
    plots.queue_share,
]


@pytest.mark.parametrize("plot", OF_LOADS)
def test_no_run_and_invalid_ones_and_ten_thousand_are_drawn(plot: Any, made: SimpleNamespace, tmp_path: Path) -> None:
    summary = stick(made)
    for none in (summary[:0], pd.DataFrame(), summary.assign(valid=False), summary.drop(columns="rate")):
        ax = plot(summary=none, record=made.record())
        assert "no data: no valid run" in texts(ax)
        plots.save(ax, tmp_path / "none")
    ax = plot(summary=summary.assign(valid=[True, True, False, True]), record=made.record())
    assert title(ax).endswith("; 1 of 4 runs left out as not valid")
    many = pd.concat([summary.assign(rate=summary["rate"] + i / 2500) for i in range(2500)], ignore_index=True)
    plots.save(plot(summary=many, record=made.record()), tmp_path / "many")
    figure, panels = pyplot.subplots(1, 2)
    assert plot(summary=summary[:1], record=made.record(), ax=panels[1]) is panels[1]
    assert not panels[0].has_data()
    pyplot.close(figure)
