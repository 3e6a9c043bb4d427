"""sweep and find_capacity: order, budget, failures, resuming, kills; on a server of known behaviour."""

import os
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest

from benchlib import (
    Budget,
    ClosedLoop,
    OpenLoop,
    Point,
    Trace,
    Workload,
    find_capacity,
    load_study,
    run_load,
    serve,
    sweep,
    sweeps,
)
from benchlib import run as run_module
from benchlib.budget import RUN_COST
from benchlib.questions.capacity import measure as capacity_measure
from benchlib.questions.capacity.judge import Capacity
from benchlib.study import intervals, latency
from benchlib.study import slo as slo_module
from benchlib.study.folders import lock_study
from benchlib.study.store import Study

from .load.conftest import FakeServerProcess

pytestmark = pytest.mark.usefixtures("idle_machine")


@pytest.fixture(scope="module")
def fake():
    """Another project's server, in a process of its own: one request at a time."""
    server = FakeServerProcess(service_s=0.02, lanes=1)
    yield server
    server.close()


def points(url, users=(1, 2), **fields):
    return [{"target": url, "arrivals": ClosedLoop(n), "requests": 3} | fields for n in users]


def told(study):
    """Users, seed and status of each run, in the order of the runs."""
    return [
        (run.spec["arrivals"]["users"], run.spec["seed"], run.record["status"])
        for run in study.runs
    ]


def quiet(_):
    pass


def test_every_point_is_measured_there_and_back(fake, tmp_path, capsys):
    study = sweep(points(fake.url), study="s", repeat=2, results=tmp_path, on_progress=quiet)
    assert told(study) == [
        (1, 0, "finished"),
        (2, 0, "finished"),
        (2, 1, "finished"),
        (1, 1, "finished"),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "study s: 2 points, 4 runs, 0 of them done; the rest take at least 0.0 minutes",
        "  closed-1: about 3 requests a run support at best p50 without an interval",
        "  closed-2: about 3 requests a run support at best p50 without an interval",
        "run 1 of 4: closed-1",
        "run 2 of 4: closed-2",
        "run 3 of 4: closed-2",
        "run 4 of 4: closed-1",
    ]
    stored = load_study(tmp_path / "s")
    assert [run.record for run in stored.runs] == [run.record for run in study.runs]
    assert pd.read_csv(tmp_path / "s/summary.csv")["run"].tolist() == stored.summary["run"].tolist()
    assert ".lock.pid" not in os.listdir(tmp_path / "s")


def test_an_invalid_run_is_made_again_where_that_is_asked_for(fake, tmp_path, capsys):
    """The clock of an open loop asks for nothing within the window: there is nothing to count."""
    asks_at_0_and_0_1_s = OpenLoop(10, "constant")
    point = Point(asks_at_0_and_0_1_s, target=fake.url, duration_s=0.001, warmup_s=0.15)
    options = {"study": "s", "results": tmp_path, "on_progress": quiet}
    first = sweep([point], **options).runs[0]
    assert (first.record["status"], first.summary()["valid"]) == ("finished", False)
    assert sweep([point], **options).runs[0].path == first.path
    again = sweep([point], invalid_again=True, **options).runs[0]
    assert "1 point, 1 run, 0 of them done" in capsys.readouterr().out
    assert {run.path for run in load_study(tmp_path / "s").runs} == {first.path, again.path}
    good = points(fake.url, [2])
    kept = [sweep(good, invalid_again=True, **options).runs[0].path for _ in range(2)]
    valid = load_study(tmp_path / "s").runs[-1].summary()["valid"]
    assert (kept[0] == kept[1]) == valid


def test_what_is_done_is_not_done_again_wherever_the_server_is_now(fake, tmp_path, capsys):
    sweep(points(fake.url, [1]), study="s", results=tmp_path, on_progress=quiet)
    run_load(fake.url, ClosedLoop(1), requests=3, study="s", results=tmp_path, on_progress=quiet)
    more = [*points("http://127.0.0.1:1", [1]), *points(fake.url, [3])]  # nobody answers at port 1
    study = sweep(more, study="s", results=tmp_path, on_progress=quiet)
    assert [users for users, _, _ in told(study)] == [1, 3], "only the runs of its own points"
    assert [users for users, _, _ in told(load_study(tmp_path / "s"))] == [1, 1, 3]
    assert "2 points, 2 runs, 1 of them done" in capsys.readouterr().out
    again = sweep(more, study="s", results=tmp_path, on_progress=quiet)
    assert [run.path for run in again.runs] == [run.path for run in study.runs]
    anew = sweep(
        points(fake.url, [1]), study="s", results=tmp_path, resume=False, on_progress=quiet
    )
    assert len(anew.runs) == 1
    assert anew.runs[0].path not in {run.path for run in study.runs}
    last = sweep(more, study="s", results=tmp_path, on_progress=quiet)
    assert [run.path for run in last.runs] == [study.runs[1].path, anew.runs[0].path]
    planned = sweep(more, study="s", results=tmp_path, dry_run=True)
    assert [run.path for run in planned.runs] == [run.path for run in last.runs]
    changed = points(fake.url, [1], workload=Workload(width=64))
    assert len(sweep(changed, study="s", results=tmp_path, on_progress=quiet).runs) == 1
    assert len(load_study(tmp_path / "s").runs) == 5


def test_a_dry_run_prints_the_plan_and_measures_nothing(tmp_path, capsys):
    planned = [
        {
            "arrivals": ClosedLoop(1),
            "load": {"model": "tiny"},
            "serve": {"batching": "serial"},
            "requests": 400,
        },
        Point(ClosedLoop(2), duration_s=30.0, warmup_s=5.0, label="half-a-minute"),
    ]
    study = sweep(planned, study="s", repeat=3, results=tmp_path, dry_run=True)
    assert (study.runs, list(tmp_path.iterdir())) == ((), [])
    assert capsys.readouterr().out.splitlines() == [
        "study s: 2 points, 6 runs, 0 of them done; the rest take at least 1.8 minutes",
        "  closed-1, model=tiny, batching=serial: about 400 requests a run support at best p50, p90, p95, p99",
        "  half-a-minute: its first run will show how many requests it gets, and so which percentiles",
    ]


def test_a_schedule_is_counted_and_a_closed_loop_is_as_it_was(fake, tmp_path, capsys):
    point = Point(OpenLoop(10, "constant"), duration_s=8.0, warmup_s=2.0)
    assert sweeps._requests_expected(point, None) == 80
    assert sweeps._requests_expected(replace(point, requests=70), None) == 70
    assert sweeps._requests_expected(Point(Trace([0.1, 0.2, 0.3]), warmup_s=0.15), None) == 2
    timed = [{"target": fake.url, "arrivals": ClosedLoop(1), "duration_s": 0.5}]
    sweep(timed, study="s", results=tmp_path, on_progress=quiet)
    assert "its first run will show" in capsys.readouterr().out
    sweep(timed, study="s", results=tmp_path, repeat=2, dry_run=True)
    (run,) = load_study(tmp_path / "s").runs
    assert (
        f"about {int(run.summary()['throughput_images_per_s'] * 0.5)} requests a run support at best p50"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("q", latency.PERCENTILES)
def test_the_plan_promises_an_interval_just_where_independent_rows_carry_one(q):
    for n in (0, 1, 199, 200, 367, 368, 3687, 3688):
        plan = sweeps._carried(n).removesuffix("no percentile").partition("at best ")[2].split("; ")
        values = next(
            values
            for values in (np.random.default_rng(seed).random(n) for seed in range(20))
            if intervals.Estimates(values).is_independent
        )
        if latency.percentile(values, q) is None:
            assert f"p{100 * q:g}" not in re.split("[;, ]+", " ".join(plan))
        else:
            carried = intervals.Estimates(values).percentile_interval(q) is not None
            [promise] = [
                promise for promise in plan if f"p{100 * q:g}" in re.split("[, ]+", promise)
            ]
            assert ("without" in promise) is not carried


def test_the_plan_names_percentiles_with_and_without_intervals():
    said = "about 47 requests a run support at best p50, p90, p95 without intervals"
    assert sweeps._carried(47) == said
    assert sweeps._carried(200).endswith("at best p50, p90, p95; p99 without an interval")


@pytest.fixture
def loads(tiny, monkeypatch):
    """The arguments of each call of `load_pipeline`, which hands out the one tiny model."""
    calls = []

    def load_pipeline(**options):
        calls.append(options)
        if options["model"] == "absent":
            raise OSError("no such model")
        return tiny

    monkeypatch.setattr("benchlib.serving.model.loading.load_pipeline", load_pipeline)
    return calls


SMALL = {"workload": Workload(width=64, height=64, num_inference_steps=1), "requests": 1}


def test_a_model_is_loaded_only_where_it_changes_and_a_failed_point_is_passed_over(
    loads, tmp_path, capsys
):
    one, absent = {"model": "tiny", "seed": 1}, {"model": "absent"}
    mixed = [
        SMALL | {"arrivals": ClosedLoop(1), "load": one, "serve": {"max_queue": 3}},
        SMALL | {"arrivals": ClosedLoop(1), "load": absent},
        SMALL | {"arrivals": ClosedLoop(2), "load": one, "serve": {"max_queue": 4}},
        SMALL | {"arrivals": ClosedLoop(3), "load": one, "serve": {"batching": "unheard-of"}},
    ]
    study = sweep(mixed, study="s", repeat=2, results=tmp_path, on_progress=quiet)
    assert loads == [one, absent, one], "the second round begins with what the first one ended with"
    assert told(study)[:4] == [
        (1, 0, "finished"),
        (2, 0, "finished"),
        (3, 0, "failed"),
        (1, 0, "failed"),
    ]
    assert [run.spec["target"]["max_queue"] for run in study.runs[:2]] == [3, 4]
    bad_setting, bad_model = study.runs[2:4]
    assert bad_setting.record["error"].startswith("ValueError: batching: ")
    assert "'unheard-of'" in bad_setting.record["error"]
    assert bad_model.record["error"] == "OSError: no such model"
    assert (bad_model.spec["target"]["model"], bad_model.spec["target"]["url"]) == ("absent", None)
    assert bad_model.summary()["invalid_reason"] == "the run failed: OSError: no such model"
    assert "passed over: OSError: no such model" in capsys.readouterr().out
    assert len(load_study(tmp_path / "s").runs) == 8
    loads.clear()
    study = sweep(mixed, study="s", repeat=2, results=tmp_path, on_progress=quiet)
    assert len(study.runs) == 8, "a run for each point, new or finished before"
    stored = load_study(tmp_path / "s").runs
    assert len(stored) == 12, "what failed is tried again, what is finished is not"
    assert loads == [one, absent, one]


def test_running_servers_differ_by_what_they_serve(tiny, tmp_path):
    serial = {"batching": "serial"}
    with (
        serve(tiny, name="one", max_queue=5, **serial) as one,
        serve(tiny, name="two", max_queue=6, **serial) as two,
    ):
        both = [SMALL | {"arrivals": ClosedLoop(1), "target": server} for server in (one, two)]
        study = sweep(both, study="s", results=tmp_path, on_progress=quiet)
        assert [run.spec["target"]["max_queue"] for run in study.runs] == [5, 6]
        assert len(sweep(both, study="s", results=tmp_path, on_progress=quiet).runs) == 2


def test_a_generator_that_dies_ends_its_point_only(fake, tmp_path):
    killed = []

    def kill_the_first(_):
        if not killed:
            killed.extend(
                child
                for child in psutil.Process().children()
                if "benchlib.load.child" in child.cmdline()
            )
            for child in killed:
                child.kill()

    study = sweep(points(fake.url), study="s", results=tmp_path, on_progress=kill_the_first)
    assert told(study) == [(1, 0, "failed"), (2, 0, "finished")]
    assert pd.read_csv(tmp_path / "s/summary.csv")["status"].tolist() == ["failed", "finished"]


def test_a_budget_is_shared_and_kept(fake, tmp_path, monkeypatch, capsys):
    timed = points(fake.url, (1, 2), requests=None, warmup_s=0.1)
    fixed = points(fake.url, [3])
    clock_s = [0.0]  # each run takes 2 s of it, which is more than its share
    monkeypatch.setattr(sweeps, "time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    measure = run_module.Writer.measure

    def slow_measure(*arguments):
        clock_s[0] += 2.0
        return measure(*arguments)

    monkeypatch.setattr(run_module.Writer, "measure", slow_measure)
    options = {"study": "s", "budget_min": 1 / 20, "results": tmp_path, "on_progress": quiet}
    study = sweep([*timed, *fixed], **options)
    assert [run.spec["duration_s"] for run in study.runs] == pytest.approx([0.65, 0.65])
    assert "the budget is spent and 1 run is left: sweep again to go on" in capsys.readouterr().out
    study = sweep([*timed, *fixed], **options)
    assert [users for users, _, _ in told(study)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("points is empty", {"points": []}),
        (r"points\[1\] takes arrivals, .*colour", {"points": [*points("http://a", [1]), {"colour": "red"}]}),
        (r"points\[1\] is points\[0\] again", {"points": points("http://a", [1, 1])}),
        (r"points\[0\]: .*duration_s, requests or both", {"points": points("http://a", requests=None)}),
        (r"points\[0\]: url", {"points": points("nowhere")}),
        (r"points\[0\]: target must be a Server", {"points": points(3)}),
        (r"points\[0\]: arrivals must be like", {"points": points("http://a", arrivals=4)}),
        (r"points\[0\]: workload must be like", {"points": points("http://a", workload=None)}),
        (r"points\[0\]: load and serve must be dicts", {"points": points(None, load="tiny")}),
        (r"points\[0\]: target is a running server", {"points": points("http://a", load={"model": "tiny"})}),
        (r"points\[0\]: .*not JSON", {"points": [{"arrivals": ClosedLoop(1), "requests": 1, "load": {"a": object}}]}),
        (r"points\[0\]: duration_s", {"points": points("http://a", requests=None, warmup_s=60), "budget_min": 1}),
        ("leaves 45 s for this point, and its warm-up takes 60 s: give more minutes",
         {"points": points("http://a", requests=None, warmup_s=60)[:1], "budget_min": 1}),
        ("budget_min", {"budget_min": 0}),
        ("repeat", {"repeat": 0}),
        ("study", {"study": "../up"}),
        ("label", {"points": points("http://a", label="a/b")}),
    ],
)  # fmt: skip
def test_a_bad_sweep_is_named_before_anything_is_measured(tmp_path, message, changed):
    with pytest.raises(ValueError, match=message):
        sweep(**{"points": points("http://a"), "study": "s", "results": tmp_path} | changed)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_another_writes_is_left_alone(fake, tmp_path):
    with lock_study(tmp_path, "s"):
        with pytest.raises(RuntimeError, match=f"by process {os.getpid()}"):
            sweep(points(fake.url), study="s", results=tmp_path)
        with pytest.raises(RuntimeError, match=f"by process {os.getpid()}"):
            run_load(fake.url, ClosedLoop(1), requests=1, study="s", results=tmp_path)
        sweep(points(fake.url), study="s", results=tmp_path, dry_run=True)
    assert os.listdir(tmp_path / "s") == [".lock"]


def test_repeated_runs_come_as_a_study_of_their_own(fake, tmp_path):
    run_load(fake.url, ClosedLoop(1), requests=2, study="s", results=tmp_path, on_progress=quiet)
    again = run_load(
        fake.url,
        ClosedLoop(1),
        requests=2,
        repeat=3,
        seed=5,
        study="s",
        results=tmp_path,
        on_progress=quiet,
    )
    assert isinstance(again, Study)
    assert [run.spec["seed"] for run in again.runs] == [5, 6, 7]
    assert (again.summary["latency_p50_s"] > 0.015).tolist() == [True] * 3
    assert len(pd.read_csv(tmp_path / "s/summary.csv")) == 4


# ---- capacity


@pytest.fixture
def by_users(monkeypatch):
    """Arrivals with as many users as the rate, and a promise that up to four users find kept."""
    users = []

    def closed_loop(rate, **_):
        users.append(max(1, round(rate)))
        return ClosedLoop(users[-1])

    monkeypatch.setattr(capacity_measure, "OpenLoop", closed_loop)
    slo = SimpleNamespace(judge=lambda _: "met" if users[-1] <= 4 else "missed")
    monkeypatch.setattr(slo_module, "Slo", SimpleNamespace(parse=lambda _: slo))


@pytest.mark.usefixtures("by_users")
def test_a_capacity_is_found_by_runs_that_are_kept(fake, tmp_path):
    options = {
        "trial_s": 0.4,
        "trial_requests": 1,
        "precision": 1,
        "results": tmp_path,
        "on_progress": quiet,
    }
    found = find_capacity(fake.url, start_rate=2, **options)
    assert (found.rate, found.interval) == (4, (4, 8))
    runs = load_study(tmp_path / "capacity").runs
    assert [rate for rate, _ in found.trials] == [run.spec["arrivals"]["users"] for run in runs]
    assert [run.spec["seed"] for run in runs] == list(range(len(runs))), (
        "no trial repeats another's arrivals"
    )
    untried = find_capacity(fake.url, budget_min=1e-3, **options)
    assert len(untried.trials) == 0
    assert "no trial was made, as one takes" in untried.note
    assert "give budget_min=" in untried.note


@pytest.mark.usefixtures("by_users")
def test_the_capacity_of_openais_route_is_found_by_asking_that(fake, tmp_path):
    before = len(fake.seen())
    options = {
        "trial_s": 0.1,
        "trial_requests": 1,
        "precision": 1,
        "results": tmp_path,
        "on_progress": quiet,
    }
    find_capacity(fake.url, start_rate=4, api="openai", **options)
    assert {request["path"] for request in fake.seen()[before:]} == {"/v1/images/generations"}
    assert {run.spec["api"] for run in load_study(tmp_path / "capacity").runs} == {"openai"}


def test_a_generator_that_falls_behind_shows_nothing_of_the_server(fake, tmp_path, monkeypatch):
    def one_trial(judge, **_):
        return Capacity(None, (None, None), ((50.0, judge(50.0)),), "one trial")

    monkeypatch.setattr(capacity_measure, "find_highest", one_trial)

    def verdict(url, says):
        monkeypatch.setattr(
            slo_module,
            "Slo",
            SimpleNamespace(parse=lambda _: SimpleNamespace(judge=lambda _: says)),
        )
        found = find_capacity(
            url, trial_s=0.3, trial_requests=1, results=tmp_path, on_progress=quiet
        )
        return found.trials[0][1]

    monkeypatch.setattr(run_module, "asdict", lambda _: {"send_lag_p99_s": 0.0})
    assert [verdict(fake.url, says) for says in ("met", "missed")] == ["met", "missed"]
    monkeypatch.setattr(run_module, "asdict", lambda _: {"send_lag_p99_s": 0.5})
    assert [verdict(fake.url, says) for says in ("met", "missed")] == ["met", "not shown"]
    assert {
        run.spec["arrivals"]["max_in_flight"] for run in load_study(tmp_path / "capacity").runs
    } == {10_000}
    assert verdict("http://127.0.0.1:1", "missed") == "missed", (
        "no images at all: that is no fault of the generator"
    )


# ---- a budget of several cells


def interrupt(_):
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_of_a_budget_is_returned_and_the_next_one_refused(
    fake, tmp_path, capsys
):
    budget = Budget(5, results=tmp_path)
    load = {"study": "s", "results": tmp_path, "budget": budget}
    finished = run_load(fake.url, ClosedLoop(1), requests=3, on_progress=quiet, **load)
    assert finished.record["status"] == "finished"
    assert finished.spec["max_s"] > 60, "it would be cut when the budget's tolerance ends"
    assert budget.cost(RUN_COST, -1.0) >= 0
    run = run_load(fake.url, ClosedLoop(2), duration_s=60, on_progress=interrupt, **load)
    assert run.record["status"] == "interrupted"
    assert run.path.parent == tmp_path / "s"
    assert "closed-2: interrupted: the answer uses what was measured" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="budget: it was interrupted"):
        run_load(fake.url, ClosedLoop(1), requests=3, on_progress=quiet, **load)


def test_an_interrupt_ends_a_budgets_sweep_and_its_runs_are_returned(fake, tmp_path, capsys):
    budget = Budget(5, results=tmp_path)
    planned = points(fake.url, (1,)) + points(fake.url, (2, 3), requests=None, duration_s=60)

    def second_run(progress):
        if progress.time_left_s and progress.time_left_s > 30:
            interrupt(progress)

    options = {"study": "s", "results": tmp_path, "on_progress": second_run}
    study = sweep(planned, budget=budget, **options)
    assert told(study) == [(1, 0, "finished"), (2, 0, "interrupted")]
    assert "runs are left" not in capsys.readouterr().out
    assert "max_s" in study.runs[0].record["point"]
    assert study.runs[0].record["point"]["max_s"] is None, "the point stays as it was asked for"


def test_no_run_begins_that_is_longer_than_what_is_left_of_a_budget(fake, tmp_path, capsys):
    budget = Budget(1, results=tmp_path)
    planned = points(fake.url, (1,)) + points(fake.url, (2,), requests=None, duration_s=61)
    study = sweep(planned, budget=budget, study="s", results=tmp_path, on_progress=quiet)
    assert told(study) == [(1, 0, "finished")]
    assert "the budget is spent and 1 run is left" in capsys.readouterr().out


def test_another_unet_makes_another_case_and_older_records_stay_the_same_case(monkeypatch):
    """Records of before have no field `unet`, so a point without one must not have it either."""
    point = Point(ClosedLoop(1), target="http://127.0.0.1:1", requests=1)
    specs = [{"model": "sdxl"}, {"model": "sdxl", "unet": None}, {"model": "sdxl", "unet": "lcm"}]
    cases = []
    for spec in specs:
        monkeypatch.setattr(run_module, "server_spec", lambda _, spec=spec: spec)
        cases.append(point.to_dict())
    assert cases[0] == cases[1] != cases[2]
    assert "unet" not in cases[1]["target"]
