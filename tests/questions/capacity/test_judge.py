"""Little's law, and the answer of notebook 03 in words."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchlib.questions.capacity.judge import judge_load, littles_law, most_images_per_s
from benchlib.questions.capacity.outlook import Outlook
from benchlib.questions.capacity.search import Capacity
from benchlib.study.store import Run, Study
from tests.questions.capacity.made_outlook import FIELDS


def closed_loops(made, *latencies_s, **changes):
    """A run of a closed loop of 1, 2, ... users whose images took so long."""
    runs = []
    for users, took_s in enumerate(latencies_s, start=1):
        arrivals = {"kind": "closed_loop", "users": users, "think_time_s": 0.0}
        gap_s = np.mean(took_s) / users
        record, requests, telemetry = made.run(
            took_s, gap_s=gap_s, spec={"arrivals": arrivals}, **changes
        )
        runs.append(Run(record, requests, telemetry, Path("results/load/run")))
    return Study(Path("results/load"), tuple(runs))


def test_an_estimate_that_runs_contradict_gives_way_to_what_was_measured(made):
    judge = SimpleNamespace(rate=1.25, images=95, verdict="not confirmed", reason="it took 3 s")
    contradicted = outlook(confirmations=(judge,))
    closed = closed_loops(made, [1.0] * 100)
    said = str(judge_load(closed, NO_RUNS, None, slo="p95 < 2 s", outlook=contradicted))
    assert "is not shown: the runs contradict what was foretold" in said
    assert "(foretold)" not in said
    assert "It makes at most " in said


def test_littles_law_holds_in_a_closed_loop(made):
    table = littles_law(closed_loops(made, [0.5] * 100, [0.5] * 100))
    assert table["users"].tolist() == [1, 2]
    assert table["product"].tolist() == pytest.approx([1, 2], rel=0.05)
    assert table["passed"].tolist() == [None, None], "there was no gauge"
    gauged = littles_law(closed_loops(made, [0.5] * 100, outcome={"in_flight_mean": 1.01}))
    assert gauged["passed"].tolist() == [True]
    assert gauged["difference"][0] < gauged["limit"][0]
    drifting = littles_law(closed_loops(made, [0.01 * i for i in range(1, 100)]))
    assert drifting["product"].tolist() == [None], "latency has no mean"


FOUND = Capacity(2.0, (2.0, 3.0), (), "as narrow as requested", "p95 < 0.6 s")
NOT_FOUND = Capacity(None, (None, None), (), "the budget is spent", "p95 < 0.6 s")
NO_RUNS = Study(Path("results/load"), ())


def at_rates(made, **latencies_s):
    """A run of an open loop at each rate whose images took so long."""
    runs = []
    for name, took_s in latencies_s.items():
        rate = float(name.removeprefix("rate_"))
        arrivals = {"kind": "open_loop", "rate": rate}
        record, requests, telemetry = made.run(took_s, gap_s=1 / rate, spec={"arrivals": arrivals})
        runs.append(Run(record, requests, telemetry, Path("results/load/run")))
    return Study(Path("results/load"), tuple(runs))


def test_the_answer_has_the_most_images_the_users_and_the_capacity(made):
    closed = closed_loops(made, [0.5] * 100, [0.5] * 100, [0.7] * 100)
    answer = judge_load(closed, NO_RUNS, FOUND, slo="p95 < 0.6 s")
    assert str(answer).splitlines() == [
        "It makes at most 4.2 images/s, with 3 users at a time.",
        "It keeps p95 < 0.6 s with up to 2 users at a time.",
        "The capacity within p95 < 0.6 s is 2 to 3 images/s.",
        "Rows, records and figures are in results/load",
    ]


def test_the_answer_of_short_runs_has_what_was_seen(made):
    closed = closed_loops(made, [0.5] * 20, [0.5] * 20, [0.7] * 20, [0.5] * 20)
    rates = at_rates(made, rate_2=[0.5] * 20, rate_3=[0.5] * 18 + [0.7] * 2, rate_4=[0.5] * 20)
    _, users, rate, _ = str(judge_load(closed, rates, NOT_FOUND, slo="p95 < 0.6 s")).splitlines()
    assert users == (
        "It is not shown to keep p95 < 0.6 s with any number of users. "
        "In these runs, too short to show it, it did with up to 2 users at a time."
    )
    assert rate.endswith("In these runs it kept the promise up to 2 images/s.")


def test_the_answer_says_what_no_run_shows(made):
    answer = judge_load(closed_loops(made, [0.7] * 100), NO_RUNS, NOT_FOUND, slo="p95 < 0.6 s")
    _, users, rate, _ = str(answer).splitlines()
    assert users == "It is not shown to keep p95 < 0.6 s with any number of users."
    assert rate.endswith("is not shown: a longer search is needed (a larger budget_min).")
    failed = closed_loops(made, [0.5] * 100, status="failed", error="no room")
    of_rates = judge_load(NO_RUNS, at_rates(made, rate_2=[0.5] * 20), None, slo="p95 < 0.6 s")
    assert str(of_rates).startswith("The runs at a rate made up to 2 images/s.\n")
    for study in (failed, NO_RUNS):
        nothing = judge_load(study, NO_RUNS, FOUND, slo="p95 < 0.6 s")
        assert str(nothing).startswith("No valid run shows how many images it makes.\n")
        assert most_images_per_s(study) is None


def outlook(**changes):
    return Outlook(**FIELDS | changes)


def test_littles_law_of_no_run_has_its_columns(made):
    none = littles_law(NO_RUNS)
    assert len(none) == 0
    assert list(none.columns) == list(littles_law(closed_loops(made, [0.5] * 100)).columns)


def test_what_was_foretold_is_the_answer():
    answer = judge_load(NO_RUNS, NO_RUNS, None, slo="p95 < 2 s", outlook=outlook())
    first, *_, last = str(answer).splitlines()
    assert first.startswith("On this machine SDXL (sdxl-random; baseline, continuous) should keep")
    assert last == "Rows, records and figures are in results/load"


def test_what_the_runs_show_by_themselves_follows_a_refusal(made):
    refused = outlook(refusal="another process was busy", rate=None, interval=None)
    closed = closed_loops(made, [0.5] * 100)
    answer = judge_load(closed, NO_RUNS, FOUND, slo="p95 < 0.6 s", outlook=refused)
    assert str(answer).splitlines()[:2] == [
        "No capacity is foretold for SDXL (sdxl-random; baseline, continuous): "
        "another process was busy.",
        "It makes at most 2 images/s, with 1 user at a time.",
    ]


def test_the_answer_says_that_the_machine_was_busy_and_counts_each_run_once(made):
    closed = closed_loops(made, [0.5] * 100, [0.5] * 100)
    rates = at_rates(made, rate_2=[0.5] * 20)
    busy = made.busy(rates.runs[0])
    trials = Capacity(2.0, (2.0, 3.0), (busy,), "as narrow as requested", "p95 < 0.6 s")
    answer = judge_load(closed, Study(rates.path, (busy,)), trials, slo="p95 < 0.6 s")
    assert str(answer).splitlines()[1].startswith("The machine was busy in 1 of 3 runs: other ")
