"""Comparison against ratios worked out by hand, its verdicts, and what it refuses to compare."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchlib.questions.compare.judge import _ratio, compare, compare_studies, study_fault
from benchlib.study.store import Study
from benchlib.study.summary import summarise
from benchmarks.interval_coverage import called, pairs


def job(
    made: SimpleNamespace,
    factor: float = 1.0,
    runs: int = 5,
    service: float | None = None,
    **changes: Any,
) -> list[Any]:
    """Runs whose figures are those of made.run times `factor`, 0.5 % apart.

    Their services are `service` times those of made.run, as far apart, or are not known."""
    _, requests, _ = run = made.run([0.4] * 100)
    summary = summarise(*run)
    if service is None:
        requests[["service_s", "encode_s", "denoise_s", "decode_s"]] = math.nan
    speeds = ("latency_p50_s", "latency_p95_s", "rss_peak_gib")

    def one(index: int) -> Any:
        scale = factor * (1 + 0.005 * (index - runs // 2))
        told = summary.copy()
        told[list(speeds)] = [1.0 * scale] * len(speeds)
        told["throughput_images_per_s"] = 10 / scale
        record = made.record(**changes)
        rows = requests
        if service is not None:
            rows = requests.assign(service_s=0.4 * service * scale / factor)
        return SimpleNamespace(
            record=record, spec=record["spec"], requests=rows, summary=lambda: told
        )

    return [one(index) for index in range(runs)]


@pytest.mark.parametrize(
    ("factor", "verdict", "memory"),
    [
        (1.0, "no difference beyond 5 %", "no difference beyond 5 %"),
        (1.1, "slower", "more"),
        (0.9, "faster", "less"),
        (1.04, "inconclusive", "inconclusive"),
    ],
)
def test_verdicts(made: SimpleNamespace, factor: float, verdict: str, memory: str) -> None:
    found = compare(job(made), job(made, factor))
    assert found.verdict == verdict
    assert found.table["verdict"].tolist() == [verdict] * 3 + [memory]
    assert found.table["ratio"].tolist() == pytest.approx([factor, factor, 1 / factor, factor])


def test_a_ratio_by_hand(made: SimpleNamespace) -> None:
    low, high = compare(job(made), job(made, 1.1)).table.loc["latency_p50_s", "interval"]
    # The logs of 0.99, 0.995, 1, 1.005, 1.01 have the standard deviation 0.0079061; t(0.99375, 8) is 3.2060.
    half = 3.2060 * 0.0079061 * math.sqrt(2 / 5)
    assert (math.log(low), math.log(high)) == pytest.approx(
        (math.log(1.1) - half, math.log(1.1) + half), abs=1e-5
    )


def test_the_older_name_of_comparisons_still_works(made: SimpleNamespace) -> None:
    runs_a, runs_b = job(made), job(made, 1.1)
    alone = compare(runs_a, runs_b).table.loc["latency_p50_s", "interval"]
    by_new_name = compare(runs_a, runs_b, comparisons=3).table.loc["latency_p50_s", "interval"]
    by_old_name = compare(runs_a, runs_b, of=3).table.loc["latency_p50_s", "interval"]
    assert by_old_name == by_new_name
    assert by_new_name[0] < alone[0], "three comparisons together have wider intervals"


def test_one_run_on_a_side_is_inconclusive(made: SimpleNamespace) -> None:
    found = compare(job(made), job(made, 2.0, runs=1))
    assert found.verdict == "inconclusive"
    assert "repeat" in found.table.loc["latency_p50_s", "note"]
    assert found.table.loc["latency_p50_s", "ratio"] == pytest.approx(2.0, rel=1e-3)


def test_an_invalid_run_is_not_compared(made: SimpleNamespace) -> None:
    broken = job(made)
    broken[3].summary()["valid"], broken[3].summary()["invalid_reason"] = (
        False,
        "the run was interrupted",
    )
    found = compare(job(made), broken)
    assert found.verdict == "invalid"
    assert set(found.table["note"]) == {"the run was interrupted"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("machine", {"machine": {"cpu": "another", "cores": 2}}),
        ("model", {"target": {"model": "sdxl"}}),
        ("workload", {"spec": {"workload": {"width": 64}}}),
        ("arrivals", {"spec": {"arrivals": {"kind": "closed_loop", "users": 5}}}),
    ],
)
def test_what_is_not_alike_is_refused_unless_allowed(
    made: SimpleNamespace, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"differ in {name} "):
        compare(job(made), job(made, **changes))
    assert (
        f"{name} differs, as allowed"
        in compare(job(made), job(made, **changes), allow=[name]).suspects
    )


def test_suspects_are_listed(made: SimpleNamespace) -> None:
    changes = {
        "packages": {"torch": "2.6.0"},
        "git": {"commit": "abc", "dirty": None},
        "target": {"recipe": "fast", "warm_up_s": 0.26122163},
    }
    suspects = compare(job(made), job(made, **changes)).suspects
    assert "packages.torch: 2.13.0+cpu -> 2.6.0" in suspects
    assert "git.commit: None -> abc" in suspects
    assert "target.recipe: baseline -> fast" in suspects
    assert "warm_up_s" not in "".join(suspects), "it is measured, and no cause"
    with pytest.raises(ValueError, match="at least one run"):
        compare([], job(made))
    for no_share in (0, 5, math.nan):
        with pytest.raises(ValueError, match=r"min_effect must be a share .*: 5 % is 0\.05"):
            compare(job(made), job(made), min_effect=no_share)


def test_planted_regressions_are_caught_and_nothing_else() -> None:
    assert called(pairs(0, 20, 1), "slower", "more") <= 1
    assert called(pairs(0.1, 20, 2), "slower") >= 19


def studies(
    made: SimpleNamespace, *factors: float, services: Any = None, **changes: Any
) -> list[Any]:
    """Nights whose figures are `factors` times those of the first night, and services too.

    `changes` go into the record of the last night.
    """
    told = [*[{}] * (len(factors) - 1), changes]
    services = services or [None] * len(factors)
    return [
        Study(Path(f"results/night-{night}"), tuple(job(made, factor, service=service, **change)))
        for night, (factor, service, change) in enumerate(zip(factors, services, told, strict=True))
    ]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, "no difference beyond 5 %"), (1.2, "worse"), (0.8, "better"), (1.04, "inconclusive")],
)
def test_the_last_study_is_judged_against_the_first(
    made: SimpleNamespace, factor: float, verdict: str
) -> None:
    found = compare_studies(studies(made, 1.0, 1.5, factor))
    assert found.verdict == verdict
    assert found.answer.startswith(f"night-2 against night-0: {verdict}")
    assert found.table["study"].tolist() == ["night-1"] * 4 + ["night-2"] * 4
    assert found.table["ratio"].tolist()[4:] == pytest.approx([factor, factor, 1 / factor, factor])
    told = json.loads(found.to_json())
    assert (told["study"], told["against"], told["verdict"]) == ("night-2", "night-0", verdict)
    assert len(told["figures"]) == 4


def test_a_slow_slide_shows_against_the_first(made: SimpleNamespace) -> None:
    steps = [1.04**night for night in range(4)]
    nights = studies(made, *steps)
    assert compare_studies(nights[-2:]).verdict == "inconclusive"
    assert compare_studies(nights).verdict == "worse"


def test_packages_are_held_against_the_night_before(made: SimpleNamespace) -> None:
    found = compare_studies(studies(made, 1, 1, 1, packages={"python": "3.11.7", "torch": "2.14"}))
    assert found.changes["night-1"] == ()
    assert "torch: 2.13.0+cpu -> 2.14" in found.changes["night-2"]
    assert "packages.torch: 2.13.0+cpu -> 2.14" in found.suspects


def test_loads_are_compared_each_with_its_like_and_more_widely(made: SimpleNamespace) -> None:
    both = [job(made, 1.0), job(made, 1.3, spec={"label": "busy"})]
    a, b = (Study(Path(name), (*both[0], *both[1])) for name in ("a", "b"))
    found = compare_studies([a, b])
    assert found.table["load"].unique().tolist() == ["closed-4", "busy"]
    assert found.table["ratio"].tolist() == pytest.approx([1.0] * 8)
    alone = compare_studies([Study(Path(name), tuple(both[0])) for name in ("a", "b")])
    assert found.table["high"].iloc[0] > alone.table["high"].iloc[0], (
        "two loads are judged together"
    )
    found = compare_studies([a, Study(Path("b"), tuple(both[0]))])
    assert (found.verdict, found.answer) == (
        "invalid",
        "b against a: invalid: busy: this load was not measured",
    )


def test_settings_that_vary_within_a_study_are_loads_of_their_own(made: SimpleNamespace) -> None:
    runs = (*job(made), *job(made, 0.5, target={"batching": "dynamic"}))
    found = compare_studies([Study(Path(name), runs) for name in ("a", "b")])
    assert found.table["load"].unique().tolist() == [
        "closed-4 batching=serial",
        "closed-4 batching=dynamic",
    ]
    assert found.verdict == "no difference beyond 5 %"


def spoil(study: Study, *places: int) -> None:
    """Makes the runs at `places` of a study invalid."""
    for place in places:
        summary = study.runs[place].summary()
        summary["valid"], summary["invalid_reason"] = False, "no request was scheduled"


def test_an_invalid_study_is_never_the_baseline(made: SimpleNamespace) -> None:
    nights = studies(made, 1.0, 1.0, 1.3)
    spoil(nights[0], 3)
    found = compare_studies(nights)
    assert found.answer.startswith("night-2 against night-1: worse")
    assert found.studies == ("night-1", "night-2")
    assert found.passed_over == {"night-0": "closed-4: no request was scheduled"}
    reason = "night-0 is no baseline, as it is invalid: closed-4: no request was scheduled"
    assert reason in str(found).splitlines()
    assert json.loads(found.to_json())["passed_over"] == found.passed_over


def test_a_good_study_after_invalid_ones_alone_is_not_called_invalid(made: SimpleNamespace) -> None:
    nights = studies(made, 1.0, 1.0, 1.0)
    for night in nights[:2]:
        spoil(night, 0, 1, 2, 3, 4)
    found = compare_studies(nights)
    assert found.answer == (
        "night-2 against night-0: inconclusive: closed-4: nothing to compare with, "
        "as night-0 is invalid: no request was scheduled"
    )
    assert "Measure more runs" not in str(found)
    found.raise_if_worse()
    assert not study_fault(nights[2])
    spoil(nights[2], 4)
    with pytest.raises(RuntimeError, match="night-2 against night-0: invalid: closed-4: no req"):
        compare_studies(nights).raise_if_worse()


def test_an_invalid_run_that_was_measured_again_does_not_count(made: SimpleNamespace) -> None:
    nights = studies(made, 1.0, 1.0)
    for seed, run in enumerate(nights[1].runs):
        run.record["point"] = {"seed": max(1, seed)}
    spoil(nights[1], 0)
    assert not study_fault(nights[1]), "its seed was measured again, by a valid run"
    assert compare_studies(nights).verdict == "no difference beyond 5 %"
    spoil(nights[1], 2)
    assert study_fault(nights[1]) == "closed-4: no request was scheduled"


def test_memory_that_is_not_known_leaves_nothing_open(made: SimpleNamespace) -> None:
    a, b = studies(made, 1, 1.3)
    for run in (*a.runs, *b.runs):
        run.summary()["rss_peak_gib"] = None
    assert compare_studies([a, b]).verdict == "worse"
    assert compare_studies([a, a.__class__(b.path, a.runs)]).verdict == "no difference beyond 5 %"


def test_more_memory_is_worse(made: SimpleNamespace) -> None:
    a, b = studies(made, 1, 1)
    for run in b.runs:
        run.summary()["rss_peak_gib"] *= 1.5
    found = compare_studies([a, b])
    assert (found.verdict, "memory 1.50 times" in found.answer) == ("worse", True)


def test_studies_that_can_not_be_compared(made: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="two or more"):
        compare_studies(studies(made, 1.0))
    with pytest.raises(ValueError, match=r"night-1, closed-4: the runs differ in machine .*allow="):
        compare_studies(studies(made, 1, 1, machine={"cpu": "another", "cores": 2}))
    with pytest.raises(ValueError, match="no load in common"):
        compare_studies(studies(made, 1, 1, spec={"label": "other"}))
    here, there = (Study(Path(name), tuple(job(made))) for name in ("here/load", "there/load"))
    assert compare_studies([here, there]).studies == ("here/load", "there/load")
    with pytest.raises(ValueError, match="different names"):
        compare_studies([here, here])


@pytest.mark.parametrize("rise", ["slower", "more"])
def test_a_ratio_lies_in_its_interval_also_where_that_has_no_width(rise: str) -> None:
    """Runs that are all alike have no spread, and a last digit decides."""
    for a, b in itertools.product((0.1, 0.3, 0.577, 1.1, 7.3), repeat=2):
        row = _ratio(np.log([a] * 4), np.log([b] * 4), rise, 0.05, 3)
        low, high = row["interval"]
        assert low <= row["ratio"] <= high
        assert row["ratio"] == pytest.approx(b / a)


def test_the_answer_names_what_got_worse_and_what_else_changed(made: SimpleNamespace) -> None:
    worse = compare_studies(studies(made, 1, 1.3, packages={"torch": "2.14"}))
    first, *lines = str(worse).splitlines()
    assert first == "night-1 against night-0: worse"
    assert lines[0].startswith("- closed-4: median latency 1.30 times (1.2")
    assert lines[3].startswith("- closed-4: memory 1.30 times")
    assert "Possible causes: packages.diffusers: 0.37.1 -> None" in lines[4]
    assert "packages.torch: 2.13.0+cpu -> 2.14" in lines[4]
    assert lines[-1] == "verdict.json and the figures are in results/night-1"
    same = compare_studies(studies(made, 1, 1))
    assert str(same).splitlines()[0] == "night-1 against night-0: no difference beyond 5 %"
    assert "Possible causes" not in str(same)
    unclear = compare_studies(studies(made, 1, 1.04))
    assert "Measure more runs" in str(unclear)


@pytest.mark.parametrize(
    ("factor", "fails"), [(1.0, False), (0.8, False), (1.04, False), (1.3, True)]
)
def test_a_gate_fails_where_the_last_study_is_worse(
    made: SimpleNamespace, factor: float, fails: bool
) -> None:
    found = compare_studies(studies(made, 1, factor))
    if fails:
        with pytest.raises(RuntimeError, match="night-1 against night-0: worse"):
            found.raise_if_worse()
    else:
        found.raise_if_worse()


# -- the time in the model


@pytest.mark.parametrize(
    ("service", "verdict"),
    [
        (1.0, "no difference beyond 2 %"),
        (1.03, "slower"),
        (0.97, "faster"),
        (1.02, "inconclusive"),
    ],
)
def test_the_time_in_the_model_leads_and_shows_3_percent(
    made: SimpleNamespace, service: float, verdict: str
) -> None:
    found = compare(job(made, service=1.0), job(made, service=service))
    assert found.table.index[0] == "service_s"
    row = found.table.loc["service_s"]
    assert row["verdict"] == verdict
    assert row["ratio"] == pytest.approx(service)
    assert (row["a"], row["b"]) == pytest.approx((0.4, 0.4 * service))
    assert found.verdict == verdict
    assert set(found.table["verdict"][1:]) == {"no difference beyond 5 %"}


def test_what_is_inconclusive_beside_the_time_in_the_model_does_not_decide(
    made: SimpleNamespace,
) -> None:
    found = compare_studies(studies(made, 1.0, 1.04, services=(1.0, 1.0)))
    assert found.table["verdict"].tolist()[1:] == ["inconclusive"] * 4
    assert found.verdict == "no difference beyond 2 %"
    assert "closed-4: time in the model of one image 1.00 times (0.989 to 1.01)" in found.answer
    assert "Left open by these runs: median latency, p95 latency, throughput, memory" in str(found)
    assert compare(job(made, service=1.0), job(made, 1.04, service=1.0)).verdict == (
        "no difference beyond 2 %"
    )


def test_a_queue_that_got_worse_is_worse_though_the_model_did_not(made: SimpleNamespace) -> None:
    found = compare_studies(studies(made, 1.0, 1.3, services=(1.0, 1.0)))
    assert found.verdict == "worse"
    assert "median latency 1.30 times" in found.answer
    assert "time in the model" not in found.answer


def test_a_time_in_the_model_that_one_side_lacks_leaves_nothing_open(made: SimpleNamespace) -> None:
    found = compare_studies(studies(made, 1.0, 1.0, services=(1.0, None)))
    assert found.table["note"][0] == "a run does not have this figure"
    assert found.verdict == "no difference beyond 5 %"
    assert compare(job(made, service=1.0), job(made)).verdict == "no difference beyond 5 %"


def test_one_run_on_each_side_says_what_its_interval_does_not_hold(made: SimpleNamespace) -> None:
    a, b = job(made, runs=1, service=1.0), job(made, runs=1, service=1.1)
    row = compare(a, b).table.loc["service_s"]
    assert row["verdict"] == "slower"
    assert "one run on each side: the interval allows for a shift of 1 %" in row["note"]
    found = compare_studies([Study(Path("a"), tuple(a)), Study(Path("b"), tuple(b))])
    assert found.verdict == "worse"
    assert "Take care: one run on each side" in str(found)
    slightly = compare(a, job(made, runs=1, service=1.02)).table.loc["service_s"]
    assert slightly["verdict"] == "inconclusive"
    assert "one run on each side" in slightly["note"]


def test_images_without_their_like_are_left_out_in_words(made: SimpleNamespace) -> None:
    a, b = job(made, service=1.0), job(made, service=1.0)
    for run in b:
        is_late = run.requests.index < 30
        run.requests = run.requests.assign(
            num_inference_steps=run.requests["num_inference_steps"].mask(is_late, 50)
        )
    assert compare(a, b).table.loc["service_s", "note"] == (
        "left out: 150 images without their like"
    )
    for run in b:
        run.requests = run.requests.assign(width=64)
    row = compare(a, b).table.loc["service_s"]
    assert row["note"] == "no image has its like, of equal work, on the other side"
    assert math.isnan(row["ratio"])


def test_a_given_min_effect_is_for_all_figures(made: SimpleNamespace) -> None:
    found = compare(job(made, service=1.0), job(made, service=1.03), min_effect=0.1)
    assert set(found.table["verdict"]) == {"no difference beyond 10 %"}
    fine = compare(job(made, service=1.0), job(made, service=1.0), min_effect=0.025)
    assert fine.table["verdict"].iloc[0] == "no difference beyond 2.5 %"


def test_runs_in_turns_cancel_what_changes_from_turn_to_turn(made: SimpleNamespace) -> None:
    a, b = job(made, service=1.0), job(made, service=1.03)
    for turn, (one, other) in enumerate(zip(a, b, strict=True)):
        for place, run in enumerate((one, other)):
            run.record["started_at"] = f"2026-11-23T16:45:{2 * turn + place:02}"
            run.requests = run.requests.assign(service_s=run.requests["service_s"] * 1.2**turn)
    assert compare(a, b).table.loc["service_s", "verdict"] == "slower"
    for number, run in enumerate([*a, *b]):
        run.record["started_at"] = f"2026-11-23T16:45:{number:02}"
    assert compare(a, b).table.loc["service_s", "verdict"] == "inconclusive"


def test_the_verdicts_of_earlier_studies_are_told(made: SimpleNamespace) -> None:
    found = compare_studies(studies(made, 1, 1, 1, services=(1, 1, 1.1)))
    assert found.verdicts == {"night-1": "no difference beyond 2 %", "night-2": "worse"}
    assert "Earlier, against night-0: night-1: no difference beyond 2 %" in str(found)


def test_a_cpu_that_computes_beside_a_gpu_has_the_memory_of_its_process(
    made: SimpleNamespace,
) -> None:
    runs = job(made)
    for run in runs:
        run.summary()["cuda_allocated_peak_gib"] = 0.0
    assert compare(runs, job(made)).table.loc["memory", "verdict"] == "no difference beyond 5 %"


def test_a_comparison_says_that_the_machine_was_busy(made: SimpleNamespace) -> None:
    both = studies(made, 1.0, 1.5)
    told = both[-1].runs[0].summary()
    told["suspect_reason"] = "other processes took 1.31 of 2 cores (limit: 0.5)"
    found = compare_studies(both)
    assert found.busy is not None
    assert found.busy.startswith("The machine was busy in ")
    assert "other processes took 1.31 of 2 cores" in found.busy
    assert found.busy in str(found)
    assert json.loads(found.to_json())["busy"] == found.busy
    said = (
        r"1\.50 times.*The machine was busy.*Possible causes: .*measure both again.*figures are in "
    )
    with pytest.raises(RuntimeError, match=said):
        found.raise_if_worse()
