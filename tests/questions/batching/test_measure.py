"""The requests that servers of all policies get, for any budget, and what is predicted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchlib import Budget, Workload, gains, plots
from benchlib.questions.batching import measure, parts
from benchlib.questions.batching.judge import judge_batching, rows_at_highest_rate
from benchlib.queueing.breaches import LEAST_IMAGES
from benchlib.study.store import Run, Study
from tests.queueing.simulated_runs import simulated_run

POLICIES = ("serial", "dynamic", "continuous")
ALONE = {"step_s": {"1": 0.05, "2": 0.05}, "encode_s": {"1": 0.01}, "decode_s": {"1": 0.01}}
BATCHES = {  # four at once cost little more than one
    "step_s": {"1": 0.05, "2": 0.05, "4": 0.06, "8": 0.07},
    "encode_s": {"1": 0.01, "2": 0.01, "4": 0.01},
    "decode_s": {"1": 0.01, "2": 0.01, "4": 0.01},
}
SHOWCASE = {"width": 64, "height": 64, "num_inference_steps": 10}


def spec(batching: str, curves: dict[str, Any]) -> dict[str, Any]:
    most = 1 if batching == "serial" else 4
    return {
        "batching": batching,
        "max_batch_size": most,
        "max_wait_ms": 0.0,
        "step_times": {"64x64": curves},
    }


@pytest.fixture
def servers() -> dict[str, Any]:
    specs = {name: spec(name, ALONE if name == "serial" else BATCHES) for name in POLICIES}
    return {name: SimpleNamespace(spec=one, url="http://a", pid=1) for name, one in specs.items()}


@pytest.fixture
def workload() -> Workload:
    return measure.mixed_workload(SHOWCASE)


def test_requests_have_from_a_fifth_to_twice_the_models_steps(workload: Workload) -> None:
    steps = {workload.request(index)["num_inference_steps"] for index in range(500)}
    assert steps == {2, 4, 6, 8, 10, 12, 14, 16, 18, 20}
    assert workload.request(0)["width"] == 64
    assert (
        measure.mixed_workload({**SHOWCASE, "num_inference_steps": 1}).request(3)[
            "num_inference_steps"
        ]
        >= 1
    )


@pytest.mark.parametrize("budget_min", [1e-9, 0.01, 0.8, 30])
def test_any_budget_gives_runs_that_can_be_measured(
    servers: dict[str, Any],
    workload: Workload,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    budget_min: float,
) -> None:
    points = []

    def record_points(given: Any, **options: Any) -> Study:
        points.extend(given)
        assert (options["budget_min"], options["resume"]) == (budget_min, False)
        return Study(tmp_path, ())

    monkeypatch.setattr(measure, "sweep", record_points)
    options: dict[str, Any] = {"rates": [2.0, 4.0], "repeat": 3, "results": tmp_path}
    runs = measure.compare_policies(servers, workload, budget_min=budget_min, **options)
    assert runs == ()
    assert [point.label for point in points] == [
        f"{name}-{rate}" for rate in (2, 4) for name in POLICIES
    ]
    for point in points:
        point.plan("http://localhost")  # refuses what can't be measured
        assert point.duration_s >= measure.LEAST_REQUESTS / point.arrivals.rate
    total_s = 3 * sum(point.duration_s for point in points)
    assert total_s <= max(60 * budget_min, 3 * 3 * (2.5 + 1.25) + 1e-6)


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now_s=0.0)


@pytest.fixture
def runs_made(
    monkeypatch: pytest.MonkeyPatch, made: SimpleNamespace, clock: SimpleNamespace
) -> list[Any]:
    """The runs that measure.py asks for, on servers whose images take as long as `clock` says."""
    asked: list[Any] = []
    clock.image_s = 0.57
    clock.status = "finished"

    def run_load(server: Any, arrivals: Any, _: Any, **options: Any) -> Run:
        took_s = clock.image_s * options["requests"]
        with options["budget"].running("run", None) as running:
            took_s = min(took_s, options.get("duration_s", took_s), running.max_s)
            clock.now_s += 1.0 + took_s
            running.load_s = took_s
            if clock.status == "interrupted":
                raise KeyboardInterrupt
        asked.append((server.spec["batching"], arrivals, options))
        images = max(1, round(took_s / clock.image_s))
        record, *frames = made.run(
            [clock.image_s] * images, gap_s=clock.image_s, status=clock.status
        )
        return Run(record, *frames, Path("run"))

    def sweep(points: Any, **options: Any) -> Study:
        for _ in range(options["repeat"]):
            for point in points:
                if point.duration_s > options["budget"].left_s:
                    break
                clock.now_s += 1.0 + point.duration_s + 2 * clock.image_s
                asked.append((point.label, point.arrivals, options))
        return Study(Path("study"), ())

    monkeypatch.setattr(measure, "run_load", run_load)
    monkeypatch.setattr(measure, "sweep", sweep)
    return asked


def go_through(
    servers: dict[str, Any], workload: Workload, budget: Budget, profile: str = "full"
) -> None:
    """Measures what the notebook measures, in its order."""
    plan = measure.plan_batching(servers, workload, budget=budget, profile=profile)
    _, plan = measure.fill_serial(servers["serial"], workload, plan)
    measure.send_rush(servers, workload, rate=1.0, requests=plan.images("rush"), budget=budget)
    measure.compare_planned(servers, workload, plan.after("rush"))


@pytest.mark.parametrize(("profile", "start_s"), [("quick", 5.0), ("full", 5.0), ("full", 90.0)])
@pytest.mark.parametrize("slower", [0.5, 1, 2, 5])
@pytest.mark.parametrize("minutes", [0.2, 0.5, 1, 2.5, 10, 40])
def test_all_parts_come_out_of_one_budget(
    servers: dict[str, Any],
    workload: Workload,
    runs_made: list[Any],
    clock: SimpleNamespace,
    tmp_path: Path,
    minutes: float,
    slower: float,
    profile: str,
    start_s: float,
) -> None:
    budget = Budget(minutes, results=tmp_path, clock=lambda: clock.now_s)
    clock.image_s *= slower
    clock.now_s += start_s
    go_through(servers, workload, budget, profile)
    assert runs_made[0][0] == "serial", "the closed run is made whatever the budget"
    first_s = start_s + 1.0 + clock.image_s * runs_made[0][2]["requests"]
    assert budget.used_s <= max(first_s, budget.seconds + max(15.0, 0.1 * budget.seconds))
    if minutes >= 10 and slower <= 2:
        assert budget.used_s >= 0.6 * budget.seconds, "what there is time for is measured"
        assert {label for label, *_ in runs_made} >= {"serial", "dynamic", "continuous"}


def test_a_small_budget_says_what_it_leaves_out_before_it_starts(
    servers: dict[str, Any],
    workload: Workload,
    runs_made: list[Any],
    clock: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = Budget(1.5, results=tmp_path, clock=lambda: clock.now_s)
    plan = measure.plan_batching(servers, workload, budget=budget, profile="full")
    told = capsys.readouterr().out
    assert "  closed loop of four users" in told
    assert "  compare at 1.4 requests/s" in told
    assert "compare at 0.876 requests/s is left out: it needs at least" in told
    assert runs_made == []
    found = plan.after("closed loop of four users").after("rush").comparison()
    assert [round(rate, 1) for rate in found.rates] == [1.4]
    assert 2 <= found.repeat <= 3
    assert all(
        seconds >= parts.LEAST_REQUESTS / rate
        for seconds, rate in zip(found.duration_s, found.rates, strict=True)
    )


@pytest.mark.parametrize(("minutes", "is_sent"), [(0.5, False), (1.2, True), (3.0, True)])
def test_a_rush_has_as_many_requests_as_calibrate_every_policy(
    servers: dict[str, Any],
    workload: Workload,
    runs_made: list[Any],
    clock: SimpleNamespace,
    tmp_path: Path,
    minutes: float,
    is_sent: bool,
) -> None:
    budget = Budget(minutes, results=tmp_path, clock=lambda: clock.now_s)
    go_through(servers, workload, budget)
    sent = [
        options["requests"]
        for _, _, options in runs_made[1:]
        if options.get("requests") is not None
    ]
    assert sent == ([20] * 3 if is_sent else [])
    assert parts.RUSH_REQUESTS >= LEAST_IMAGES


def test_rates_that_are_given_are_those_compared(
    servers: dict[str, Any],
    workload: Workload,
    tmp_path: Path,
) -> None:
    budget = Budget(60, results=tmp_path, clock=lambda: 0.0)
    options: dict[str, Any] = {"budget": budget, "profile": "full", "repeat": 5}
    plan = measure.plan_batching(servers, workload, rates=[0.5, 1.0], **options)
    found = plan.comparison()
    assert found.rates == (0.5, 1.0)
    assert found.repeat == 5


def test_after_an_interrupt_nothing_more_is_measured_and_the_step_times_answer(
    servers: dict[str, Any],
    workload: Workload,
    runs_made: list[Any],
    clock: SimpleNamespace,
    made: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = Budget(10, results=tmp_path, clock=lambda: clock.now_s)
    plan = measure.plan_batching(servers, workload, budget=budget, profile="quick")
    clock.status = "interrupted"
    _, plan = measure.fill_serial(servers["serial"], workload, plan)
    assert "serial makes 1.75 images/s by its step times" in capsys.readouterr().out
    options: dict[str, Any] = {"requests": plan.images("rush"), "budget": budget}
    rush = measure.send_rush(servers, workload, rate=1.0, **options)
    runs = measure.compare_planned(servers, workload, plan.after("rush"))
    assert (rush, runs, len(runs_made)) == ({}, (), 1)
    assert measure.check_forecast([*rush.values(), *runs]).empty
    ax = plots.gantts(requests=rush, record=made.record())
    assert "no data" in ax.get_title("left")
    cases = measure.predict_cases(servers, workload)
    answer = judge_batching(gains(runs), serial_images_per_s=1.7, rush=rush, predicted=cases)
    assert "The rush was not measured." in str(answer)
    assert "By the step times, at 90 % of serial's throughput" in str(answer)


def test_without_a_run_there_are_words_and_empty_plots(made: SimpleNamespace) -> None:
    record = made.record()
    found = gains(())
    for ax in (
        plots.latency_cdf(requests=rows_at_highest_rate(()), record=record),
        plots.gain(gains=found, record=record),
    ):
        assert "no data" in ax.get_title("left")
    rush = {"serial": Run(*made.run([1.0]), Path("run"))}
    predicted = measure.predict_cases(
        {name: SimpleNamespace(spec=spec(name, BATCHES)) for name in POLICIES},  # type: ignore[misc]
        measure.mixed_workload(SHOWCASE),
    )
    answer = judge_batching(found, serial_images_per_s=1.0, rush=rush, predicted=predicted)
    assert "continuous: not measured" in str(answer)


def test_a_run_without_an_image_has_no_throughput(made: SimpleNamespace) -> None:
    run = Run(*made.run([1.0] * 10), Path("run"))
    assert measure.measured_images_per_s(run) == run.summary()["throughput_images_per_s"] > 0
    failed = made.run([1.0] * 10)
    failed[1]["error"] = "503"
    with pytest.raises(RuntimeError, match="run: the throughput is not known: "):
        measure.measured_images_per_s(Run(*failed, Path("run")))


def test_the_more_there_is_to_share_the_more_continuous_gains(
    servers: dict[str, Any], workload: Workload
) -> None:
    predicted = measure.predict_gains(servers["continuous"].spec, workload, servers)
    ratio = predicted["continuous"] / predicted["serial"]
    alone_s = 0.01 + 11 * 0.05 + 0.01  # eleven steps on average
    assert (predicted.index * alone_s).tolist() == pytest.approx(measure.SIMULATED_LOADS, rel=0.05)
    assert ratio.iloc[0] > 0.9
    assert ratio.iloc[-1] < 0.5
    assert ratio.is_monotonic_decreasing


def test_a_policy_that_can_not_keep_up_has_no_mean(
    servers: dict[str, Any], workload: Workload
) -> None:
    slow = {"step_s": {"1": 0.05, "2": 0.05, "4": 0.15, "8": 0.3}}
    measured = spec("dynamic", BATCHES | slow)
    predicted = measure.predict_gains(measured, workload, servers)
    assert (predicted["serial"] < 60).all()
    assert predicted["dynamic"].iloc[-1] == float("inf")
    assert predicted["dynamic"].iloc[0] < 1


def test_each_case_changes_one_thing(servers: dict[str, Any], workload: Workload) -> None:
    cases = measure.predict_cases(servers, workload)
    assert cases["serial"].tolist() == [1.0] * 4
    busy, seldom, _, no_gain = cases["continuous"]
    assert busy < 0.5 < seldom
    assert no_gain > 0.8
    assert cases.index[-1] == measure.NO_GAIN


def test_the_forecast_is_held_against_the_runs_own_requests(made: SimpleNamespace) -> None:
    def run(batching: str, took_s: float) -> Run:
        target = spec(batching, BATCHES)
        arrivals = {"arrivals": {"kind": "open_loop", "rate": 0.1}}
        record, requests, telemetry = made.run(
            [took_s] * 3, gap_s=10.0, target=target, spec=arrivals
        )
        requests = requests.assign(width=64, height=64, num_inference_steps=8)
        return Run(record, requests, telemetry, Path("run"))

    runs = [run("serial", 0.42), run("serial", 0.42 + 1e-9), run("dynamic", 0.84)]
    table = measure.check_forecast(runs)
    assert table.index.tolist() == [(0.1, "dynamic"), (0.1, "serial")]
    assert table["warm_up_s"].tolist() == pytest.approx([0.42, 0.42])
    assert table["warm_up_off_percent"].tolist() == pytest.approx([-50.0, 0.0], abs=1e-6)
    assert table["replayed_s"].isna().all(), "three images calibrate nothing"


def test_a_replay_with_services_under_load_is_nearer_than_warm_up() -> None:
    runs = [simulated_run("serial", rate=1.1, requests=40)]
    table = measure.check_forecast(runs).loc[(1.1, "serial")]
    assert abs(table["off_percent"]) < 2
    assert table["warm_up_off_percent"] < -4, "calls under load are longer"
    assert measure.check_forecast(runs, {})["replayed_s"].isna().all()
