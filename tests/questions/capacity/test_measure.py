"""What notebook 03 measures on one server: its plan, its parts, and what stays of an interrupt."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import benchlib as bl
from benchlib.budget import Budget
from benchlib.questions.capacity import measure
from benchlib.questions.capacity.load_parts import ABOVE, CALIBRATE, CONFIRM
from benchlib.questions.capacity.measure import CapacityPlan, LoadTest, plan_capacity
from benchlib.questions.capacity.search import Capacity
from benchlib.serving.engine.step_times import StepTimesBySize
from benchlib.study.store import Run, create_run
from tests.queueing.simulated_runs import SIZE, TIMES, simulated_run

PLAN = CapacityPlan(steps=20, alone_s=(0.79, 0.8), slo="p95 < 3 s", minutes=5.0)


class Pipe:
    """Makes images of which the third took least."""

    spec: dict[str, Any] = {  # noqa: RUF012 - nobody changes it
        "showcase": {"width": 64, "height": 64, "num_inference_steps": 20}
    }

    def __init__(self, *times_s: float) -> None:
        self.times_s = iter(times_s or (0.9, 0.3, 0.2, 0.3, 0.3, 0.3))
        self.requests: list[Any] = []

    def generate(self, request: Any) -> SimpleNamespace:
        self.requests.append(request)
        return SimpleNamespace(timings=SimpleNamespace(total_s=next(self.times_s)))


@pytest.mark.parametrize(
    ("options", "steps", "minutes", "slo"),
    [
        ({"profile": "quick"}, 5, 2, "p95 < 0.8 s"),
        ({"profile": "full"}, 20, 8, "p95 < 0.8 s"),
        ({"profile": "full", "budget_min": 7}, 20, 7, "p95 < 0.8 s"),
        ({"profile": "quick", "slo": "p90 < 1 s"}, 5, 2, "p90 < 1 s"),
    ],
)
def test_the_plan_follows_from_one_image(
    options: dict[str, Any], steps: int, minutes: float, slo: str
) -> None:
    pipe: Any = Pipe()
    plan = plan_capacity(pipe, **options)
    assert (plan.steps, plan.minutes, plan.slo) == (steps, minutes, slo)
    assert plan.image_s == 0.2, "the shortest time is what an image takes alone"
    assert plan.alone_s == (0.3, 0.2, 0.3, 0.3, 0.3), "the first image warms the model up"
    assert {request.num_inference_steps for request in pipe.requests} == {steps}
    assert plan.workload.num_inference_steps == steps


def test_slow_images_are_made_less_often() -> None:
    pipe: Any = Pipe(60.0, 9.0, 9.0)
    alone_s = plan_capacity(pipe, profile="full").alone_s
    assert alone_s == (9.0, 9.0), "what the first image compiled does not count"


class StoppedPipe(Pipe):
    """The user stops the cell while the last of these images is made."""

    def generate(self, request: Any) -> SimpleNamespace:
        try:
            return super().generate(request)
        except StopIteration:
            raise KeyboardInterrupt from None


def test_an_interrupt_ends_the_plan_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    late: Any = StoppedPipe(0.9, 0.3, 0.2)
    assert plan_capacity(late, profile="full").alone_s == (0.3, 0.2)
    assert "interrupted: the answer uses what was measured" in capsys.readouterr().out
    early: Any = StoppedPipe(0.9)
    with pytest.raises(KeyboardInterrupt, match="run this cell again") as stopped:
        plan_capacity(early, profile="full")
    assert stopped.value.__suppress_context__, "the pipeline's own frames would fill the screen"


def test_an_interrupt_while_the_load_test_foretells_is_short(
    bench: "Bench", monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchlib.queueing.estimates.foretell", interrupted)
    with pytest.raises(KeyboardInterrupt, match="run this cell again") as stopped:
        bench.load_test(8)
    assert stopped.value.__suppress_context__


def test_an_image_that_was_held_up_does_not_foretell_anything(bench: "Bench") -> None:
    usual = bench.load_test(8).capacity.rate
    bench.plan = replace(PLAN, alone_s=(0.79, 0.8, 5.0))
    assert bench.load_test(8).capacity.rate == usual


def test_the_plan_in_words() -> None:
    assert str(replace(PLAN, steps=1)) == (
        "One image of 1 step takes 0.79 s alone. The promise: p95 < 3 s. "
        "Measuring takes about 5 minutes."
    )


SPEC = {
    "model": "sdxl-random",
    "recipe": "baseline",
    "batching": "serial",
    "max_batch_size": 1,
    "max_wait_ms": 5.0,
    "showcase": {"width": SIZE[0], "height": SIZE[1], "num_inference_steps": 20},
    "step_times": StepTimesBySize({SIZE: TIMES}).to_spec(),
}


class Bench:
    """A made-up server and clock: `make` says how a run goes; a run takes its arrivals' time."""

    def __init__(self, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        self.made = made
        self.plan = PLAN
        self.path = tmp_path
        self.now_s = 0.0
        self.points: list[Any] = []
        self.faults: dict[int, dict[str, Any]] = {}
        self.interrupt_at: int | None = None
        (tmp_path / measure.STUDY).mkdir()
        monkeypatch.setattr(measure, "writing", self.writing)

    def load_test(self, minutes: float, **options: Any) -> LoadTest:
        budget = Budget(minutes, results=self.path, clock=lambda: self.now_s)
        server: Any = SimpleNamespace(spec=SPEC)
        return LoadTest(server, self.plan, budget, results=self.path, **{"users": [2]} | options)

    @contextmanager
    def writing(self, *_: Any) -> Any:
        self.writer: Any = SimpleNamespace(runs=[], measure=self.measure)
        yield self.writer

    def measure(self, point: Any, _: Any) -> Run:
        number = len(self.points)
        self.points.append(point)
        rate = getattr(point.arrivals, "rate", 1.0)
        requests = point.requests or 40
        self.now_s += 3 + requests / rate
        fault = dict(self.faults.get(number, {}))
        if "slower" in fault:
            fault["factors"] = np.full(requests, fault.pop("slower"))
            fault["factors"] *= np.random.default_rng(number).uniform(0.98, 1.02, requests)
        run = simulated_run("serial", rate=rate, requests=requests, seed=number, **fault)
        asked = {"arrivals": point.arrivals.to_dict(), "workload": point.workload.to_dict()}
        changes: dict[str, Any] = {"spec": asked, "target": run.spec["target"]}
        if number == self.interrupt_at:
            changes |= {"status": "interrupted"}
        record = self.made.record(**changes)
        telemetry = self.made.telemetry(3)
        kept = Run(record, run.requests, telemetry, self.path)
        self.writer.runs.append(kept)
        if number == self.interrupt_at:
            raise KeyboardInterrupt
        return kept


@pytest.fixture
def bench(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return Bench(made, monkeypatch, tmp_path)


def answer(load: LoadTest) -> str:
    options = {"slo": PLAN.slo, "outlook": load.outlook}
    return str(bl.judge_load(load.closed, load.at_rates, load.searched, **options))


def test_a_run_calibrates_and_others_confirm(bench: Bench) -> None:
    load = bench.load_test(8)
    assert "calibrate " in str(load)
    assert load.calibrate().status == "stands"
    assert load.capacity.images >= 60
    table = load.confirm()
    assert table["verdict"].tolist() == ["calibrates", "confirmed", "confirmed"]
    assert load.calibration.images == table["images"].sum(), "all runs make the final estimate"
    load.send_users()
    assert [run.spec["arrivals"]["users"] for run in load.closed.runs] == [2]
    assert load.budget.used_s <= 8 * 60 * 1.1

    rates = [run.spec["arrivals"]["rate"] for run in load.at_rates.runs]
    low, high = load.capacity_ends
    assert rates[0] == pytest.approx(0.8 * 0.72, rel=0.15)
    assert rates[1] < low < high < rates[2]
    words = answer(load)
    assert f"foretold from {table['images'][0]} images and confirmed by " in words
    assert "It keeps p95 < 3 s with up to 2 users at a time" in words


def test_what_the_budget_can_not_carry_is_left_out_in_words(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    load = bench.load_test(2.5)
    assert load.calibrate().images >= 20
    load.confirm()
    load.send_users()
    assert load.budget.used_s <= 2.5 * 60 + 15
    assert "is left out: it needs at least" in capsys.readouterr().out
    assert "images/s" in answer(load)


def test_a_run_that_explains_nothing_is_made_once_more(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.faults[0] = {"policy": "dynamic", "noise": 0.4}
    load = bench.load_test(8)
    load.calibrate()
    assert load.first is not None
    assert load.first.status == "stands"
    assert len(load.at_rates.runs) == 2
    assert "It is measured once more" in capsys.readouterr().out


def test_a_server_that_nothing_explains_is_searched_by_its_latencies(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1):
        bench.faults[number] = {"policy": "dynamic", "noise": 0.4}
    found = Capacity(0.5, (0.5, 0.6), ((0.5, "met"),), "the budget is spent", PLAN.slo)
    asked: dict[str, Any] = {}

    def search(*_: Any, **options: Any) -> Capacity:
        asked.update(options)
        return found

    monkeypatch.setattr(measure, "find_capacity", search)
    load = bench.load_test(8)
    assert load.calibrate().refusal is not None
    assert asked["budget_min"] <= load.budget.left_s / 60
    assert load.capacity_ends == (0.5, 0.6)
    assert load.confirm()["verdict"].tolist() == [], "there is no estimate to confirm"
    assert load.curve().empty
    assert load.foretold_users().empty
    said = answer(load)
    assert said.startswith("No capacity is foretold for SDXL (sdxl-random; baseline, serial): ")
    assert "The capacity within p95 < 3 s is 0.5 to 0.6 images/s." in said


def test_an_interrupt_of_the_search_keeps_its_trials(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1):
        bench.faults[number] = {"policy": "dynamic", "noise": 0.4}

    def search(*_: Any, results: Path, **__: Any) -> Capacity:
        folder = create_run(results, measure.STUDY, bench.made.record())
        folder.finish("interrupted", None, bench.made.telemetry(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "find_capacity", search)
    load = bench.load_test(8)
    load.calibrate()
    assert repr(load).startswith("<LoadTest: The ")
    assert "runs made" in load._repr_html_()
    assert load.searched is not None
    assert (load.searched.note, len(load.searched.runs)) == ("it was interrupted", 1)
    assert "No capacity is foretold" in answer(load)


def test_a_server_that_became_slower_gets_a_new_estimate(bench: Bench) -> None:
    load = bench.load_test(12)
    load.calibrate()
    before = load.capacity.rate
    for number in range(1, 9):
        bench.faults[number] = {"slower": 1.3}
    table = load.confirm()
    assert table["verdict"].tolist()[:3] == ["calibrates", "not confirmed", "confirmed"]
    assert table["judges"].tolist()[:3] == ["earlier", "earlier", "latest"]
    assert load.capacity.rate is not None
    assert before is not None
    assert load.capacity.rate < 0.85 * before
    assert "An earlier estimate failed" in answer(load)
    assert "and confirmed by" in answer(load)


def test_an_interrupt_keeps_what_was_measured_and_the_answer_follows(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.interrupt_at = 1
    load = bench.load_test(8)
    load.calibrate()
    load.confirm()
    load.send_users()
    assert len(bench.points) == 2, "nothing is begun after the interrupt"
    assert f"{CONFIRM}: interrupted" in capsys.readouterr().out
    assert len(load.at_rates.runs) == 2
    assert "On this machine SDXL (sdxl-random; baseline, serial) keeps p95 < 3 s" in answer(load)


def test_an_interrupt_of_the_first_run_leaves_what_images_alone_foretell(bench: Bench) -> None:
    bench.interrupt_at = 0
    load = bench.load_test(0.5)
    load.calibrate()
    load.confirm()
    assert len(bench.points) == 1
    assert "images/s" in answer(load)
    assert len(load.curve()) > 5


def test_given_rates_are_those_of_the_confirming_runs(bench: Bench) -> None:
    load = bench.load_test(8, rates=[0.3, 0.5])
    load.calibrate()
    table = load.confirm()
    assert table["rate"].tolist()[1:] == [0.3, 0.5]
    assert {CALIBRATE, ABOVE} & {"confirm at 0.3/s"} == set()


def test_a_rate_above_the_saturation_is_planned_by_what_the_server_makes(bench: Bench) -> None:
    load = bench.load_test(8, rates=[100.0])
    load.calibrate()
    table = load.confirm()
    assert table["verdict"].tolist() == ["calibrates", "confirmed"]
    _, above = load.at_rates.runs
    most = load.calibration.most_images_per_s
    assert bench.points[1].max_s > len(above.requests) / most, "it is not cut while it answers"
    assert "images at 100/s (" in answer(load)


BAD_LISTS = [
    ({"users": []}, r"users must be a list with at least one value, got \[\]"),
    ({"users": 4}, "users must be a list with at least one value, got 4"),
    ({"users": [1, 0]}, r"users\[1\] must be a whole number from 1 to 2000, got 0"),
    ({"users": [2001]}, r"users\[0\] must be a whole number from 1 to 2000, got 2001"),
    ({"rates": []}, "rates must be a list with at least one value"),
    ({"rates": 0.5}, "rates must be a list with at least one value, got 0.5"),
    ({"rates": [0.5, 0.0]}, r"rates\[1\] must be a finite number above 0, got 0.0"),
    ({"rates": [float("inf")]}, r"rates\[0\] must be a finite number above 0, got inf"),
    ({"rates": "fast"}, "rates must be a list with at least one value, got 'fast'"),
]


@pytest.mark.parametrize(("options", "words"), BAD_LISTS)
def test_users_and_rates_that_can_not_be_are_named(
    bench: Bench, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        bench.load_test(8, **options)


def test_many_users_get_images_enough_to_be_foretold(bench: Bench) -> None:
    foretold = bench.load_test(8, users=[1000]).foretold_users()
    most = foretold.iloc[-1]
    assert most["users"] == 1000
    assert most["images_per_s"] == pytest.approx(1 / 0.795, rel=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "quik"}, "profile must be one of quick, full, got 'quik'"),
        ({"budget_min": 0}, "budget_min must be a finite number above 0, got 0"),
        ({"budget_min": float("nan")}, "budget_min must be a finite number above 0, got nan"),
        ({"slo": "fast"}, "slo: 'fast' is not understood"),
    ],
)
def test_a_plan_that_can_not_be_makes_no_image(options: dict[str, Any], words: str) -> None:
    pipe: Any = Pipe()
    with pytest.raises(ValueError, match=f"^{words}"):
        plan_capacity(pipe, **{"profile": "quick"} | options)
    assert not pipe.requests


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget_min": float("nan")}, "budget_min must be a finite number of 0 or more, got nan"),
        ({"trial_s": 0}, "trial_s must be a finite number above 0, got 0"),
        ({"trial_requests": 0}, "trial_requests must be a whole number of 1 or more, got 0"),
    ],
)
def test_a_search_that_can_not_be_makes_no_trial(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        measure.find_capacity("http://127.0.0.1:9", **options)


def test_a_promise_that_no_rate_keeps_is_said(bench: Bench) -> None:
    load = bench.load_test(8)
    load.plan = replace(PLAN, slo="p95 < 0.5 s")
    load.calibrate()
    load.confirm()
    assert "at no rate: an image that has the server to itself takes 0.8" in answer(load)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("minutes", [0.05, 0.2, 0.5])
def test_the_run_that_calibrates_is_made_however_small_the_budget(bench, minutes):
    load = bench.load_test(minutes)
    load.calibrate()
    (first,) = load.at_rates.runs
    assert len(first.requests) >= 20, "a shorter run would show nothing"


def test_a_real_server_is_measured_and_answered_for(tmp_path: Path) -> None:
    pipe = bl.load_pipeline("tiny")
    plan = plan_capacity(pipe, profile="quick")
    with bl.serve(pipe, batching="serial") as server:
        load = LoadTest(server, plan, Budget(0.5, results=tmp_path), users=[2], results=tmp_path)
        load.calibrate()
        table = load.confirm()
        load.send_users()
        outlook = load.outlook
    assert len(load.at_rates.runs) >= 1
    assert set(table["verdict"]) <= {
        "calibrates",
        "confirmed",
        "not confirmed",
        "too short",
        "not judged",
    }
    assert "the tiny model, not SDXL (tiny; baseline, serial)" in outlook.lines()[0]
