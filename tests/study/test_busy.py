"""What is said of other work beside a run: its mean, the limit, and the sentence."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchlib.machine import BUSY_SHARE
from benchlib.study import figure, run_plots
from benchlib.study.busy import (
    busy_limit,
    busy_sentence,
    busy_sentence_of,
    busy_words,
    cores_of,
    other_work_of,
    record_of,
    suspect_reason,
    taken_words,
)
from benchlib.study.store import Run, create_run, load_run
from benchlib.study.summary import summarise
from benchlib.telemetry import COLUMNS

NONE = {"others_cpu_cores": None, "steal_cores": None}
BUSY = {"others_cpu_cores": 1.31, "steal_cores": 0.0}


def samples(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns, columns=list(COLUMNS), dtype="float64")


def test_the_mean_counts_each_sample_for_the_time_since_the_one_before(
    made: SimpleNamespace,
) -> None:
    # the window is from 3 to 23 s
    telemetry = samples(
        time_s=[2.0, 3.0, 4.0, 7.0, 8.0, 23.5],
        others_cpu_cores=[np.nan, 2.0, 1.0, 0.2, np.nan, 2.0],
        steal_cores=[np.nan] * 6,
    )
    taken = other_work_of(made.record(), telemetry)
    assert taken == {"others_cpu_cores": pytest.approx((1 * 1 + 3 * 0.2) / 4), "steal_cores": None}


def test_an_old_run_and_a_run_without_a_window_say_nothing(made: SimpleNamespace) -> None:
    old = made.telemetry().drop(columns=["others_cpu_cores", "steal_cores"])
    assert other_work_of(made.record(), old) == NONE
    assert other_work_of(made.record(outcome=None), made.telemetry()) == NONE
    assert other_work_of(made.record(), made.telemetry(1)) == NONE
    assert suspect_reason(made.record(), NONE) is None
    assert busy_words(made.record()) is None
    assert busy_words(made.record(outcome=None)) is None
    got = summarise(made.record(), made.requests([made.row()]), old)
    assert got[["others_cpu_cores", "steal_cores", "suspect_reason"]].tolist() == [None] * 3


def test_the_limit_is_a_share_of_the_cores_that_may_be_used(made: SimpleNamespace) -> None:
    record = made.record()
    assert (cores_of(record), busy_limit(record)) == (2, 2 * BUSY_SHARE)
    contained = made.record(machine=record["machine"] | {"cores": 64, "cpu_limit_cores": 1.5})
    assert (cores_of(contained), busy_limit(contained)) == (1.5, 1.5 * BUSY_SHARE)
    at_limit = {"others_cpu_cores": 0.3, "steal_cores": 0.2}
    assert suspect_reason(record, at_limit) is None
    assert taken_words(at_limit, 2) == "other processes took 0.3 of 2 cores and the hypervisor 0.2"
    assert taken_words(NONE, 2) is None
    little = {"others_cpu_cores": 0.3, "steal_cores": 0.04}
    assert taken_words(little, 2) == "other processes took 0.3 of 2 cores"
    above = {"others_cpu_cores": 0.51, "steal_cores": None}
    assert suspect_reason(record, above) == "other processes took 0.51 of 2 cores (limit: 0.5)"


def test_one_sentence_tells_of_one_run_and_of_many() -> None:
    calm = {"others_cpu_cores": 0.1, "steal_cores": 0.0, "suspect_reason": None}
    busy = BUSY | {"suspect_reason": "other processes took 1.31 of 2 cores (limit: 0.5)"}
    busier = {"others_cpu_cores": "1.2", "steal_cores": "0.5", "suspect_reason": "much"}
    old = NONE | {"suspect_reason": ""}  # as summary.csv has it
    assert busy_sentence([]) is None
    assert busy_sentence([calm, old, {"run": "older still"}]) is None
    assert busy_sentence([busy]) == (
        "The machine was busy: other processes took 1.31 of 2 cores (limit: 0.5). "
        "Times may be too long."
    )
    assert busy_sentence([calm, busy, busier, old]) == (
        "The machine was busy in 2 of 4 runs: much in the busiest. Times may be too long."
    )
    frame = pd.DataFrame([calm, busy])  # whose missing values may be NaN
    assert "in 1 of 2 runs" in str(busy_sentence(frame.to_dict("records")))


@pytest.fixture
def busy_run(made: SimpleNamespace, tmp_path: Path) -> Run:
    """A run as it is kept: its samples say that others took 1.31 of 2 cores."""
    record = made.record()
    head = {name: record[name] for name in ("spec", "machine", "packages", "git")}
    folder = create_run(tmp_path, "study", head)
    folder.rows_path.write_text(json.dumps(made.row()) + "\n")
    telemetry = made.telemetry().assign(others_cpu_cores=1.31)
    return folder.finish("finished", record["outcome"], telemetry)


def test_a_busy_run_says_so_in_its_record_its_cell_and_its_figures(busy_run: Run) -> None:
    outcome = load_run(busy_run.path).record["outcome"]
    assert outcome["others_cpu_cores"] == pytest.approx(1.31)
    assert outcome["steal_cores"] == 0
    sentence = busy_words(busy_run.record)
    assert sentence is not None
    assert "1.31 of 2 cores (limit: 0.5)" in sentence
    ax = run_plots.memory_over_time(telemetry=busy_run.telemetry, record=busy_run.record)
    assert ax.get_label().endswith(sentence), "in the alt text"
    assert sentence in [text.get_text() for text in ax.texts], "in the small print"
    assert "the machine was busy, as other processes took 1.31 of 2 cores" in repr(busy_run)
    assert "yes, but the machine was busy" in busy_run._repr_html_()


def test_a_figure_of_many_runs_says_that_one_was_busy_or_tells_of_all(busy_run: Run) -> None:
    record = busy_run.record
    ax = figure.finish(figure.axes(None), record, "a finding", "Alt.", source="study x, 4 runs")
    assert "The machine was busy in at least one run: " in ax.get_label()
    told = "The machine was busy in 2 of 4 runs."
    ax = figure.finish(
        figure.axes(None), record, "a finding", "Alt.", source="study x, 4 runs", busy=told
    )
    assert ax.get_label().endswith(told)
    long = figure.finish(figure.axes(None), record, "a finding", "Alt.", busy="many words " * 30)
    heights = [drawn.figure.get_figheight() for drawn in (figure.axes(None), long)]
    assert heights[1] - heights[0] == pytest.approx(3 * 10.5 / 72), "as low figures are full"
    tops = [text.get_position()[1] for text in long.texts]
    assert tops == [-7, pytest.approx(-7 - 3 * 10.5)], "the caption lies below all lines"


def test_a_calm_run_says_what_others_took_in_its_small_print_alone(made: SimpleNamespace) -> None:
    record = made.record()
    record["outcome"] |= {"others_cpu_cores": 0.04, "steal_cores": 0.0}
    ax = run_plots.memory_over_time(telemetry=made.telemetry(), record=record)
    assert any("other processes took 0.04 of 2 cores" in text.get_text() for text in ax.texts)
    assert "busy" not in ax.get_label()


def test_a_figure_of_many_runs_gets_the_first_ones_record_and_the_busiest_ones_outcome(
    made: SimpleNamespace, busy_run: Run
) -> None:
    old = Run(made.record(outcome=None, run="old"), *made.run([1.0])[1:], Path("old"))
    first = Run(made.record(run="first"), *made.run([1.0])[1:], Path("first"))
    record = record_of([first, busy_run, old])
    assert record["spec"] == first.record["spec"]
    assert (record["run"], record["outcome"]) == (
        busy_run.record["run"],
        busy_run.record["outcome"],
    )
    assert record_of([first, old])["run"] == "first", "where nothing is known or nobody was busy"
    assert busy_sentence_of([first, old]) is None
    assert "in 1 of 3 runs" in str(busy_sentence_of([first, busy_run, old]))
    with pytest.raises(ValueError, match="runs: is empty"):
        record_of([])
