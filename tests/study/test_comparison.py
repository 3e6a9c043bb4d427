"""Comparison against ratios worked out by hand, its verdicts, and what it refuses to compare."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchlib.study.comparison import compare, gains, over_runs
from benchlib.study.statistics import summarise
from benchlib.study.store import Run
from benchmarks.coverage import called, pairs


def test_over_runs_by_hand() -> None:
    mean, interval, cv, warning = over_runs([1, 2, 3, 4, 5])
    assert (mean, warning) == (3, None)
    assert interval == pytest.approx((1.0367, 4.9633), abs=1e-4)  # 2.7764 * 1.5811 / sqrt(5)
    assert cv == pytest.approx(0.52705, abs=1e-5)
    assert over_runs([2.0]) == (2.0, None, None, None)
    with pytest.raises(ValueError, match="values: none"):
        over_runs([])


def test_runs_that_disagree_are_warned_of() -> None:
    near = [(0.9, 1.1), (0.92, 1.12), (0.95, 1.15)]
    assert over_runs([1.0, 1.02, 1.05], near)[3] is None
    assert "disagree" in str(over_runs([1.0, 1.02, 1.5], [*near[:2], (1.4, 1.6)])[3])
    assert over_runs([1.0, 1.5], [None, (1.4, 1.6)])[3] is None


def job(made: SimpleNamespace, factor: float = 1.0, runs: int = 5, **changes: Any) -> list[Any]:
    """Runs whose figures are those of made.run times `factor`, 0.5 % apart."""
    summary = summarise(*made.run([0.4] * 100))
    speeds = ("latency_p50_s", "latency_p95_s", "rss_peak_gib")

    def one(index: int) -> Any:
        scale = factor * (1 + 0.005 * (index - runs // 2))
        told = summary.copy()
        told[list(speeds)] = [1.0 * scale] * len(speeds)
        told["throughput_images_per_s"] = 10 / scale
        return SimpleNamespace(record=made.record(**changes), summary=lambda: told)

    return [one(index) for index in range(runs)]


@pytest.mark.parametrize(
    ("factor", "verdict", "memory"),
    [
        (1.0, "no difference beyond 5%", "no difference beyond 5%"),
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
    assert (math.log(low), math.log(high)) == pytest.approx((math.log(1.1) - half, math.log(1.1) + half), abs=1e-5)


def test_one_run_on_a_side_is_inconclusive(made: SimpleNamespace) -> None:
    found = compare(job(made), job(made, 2.0, runs=1))
    assert found.verdict == "inconclusive"
    assert "repeat" in found.table.loc["latency_p50_s", "note"]
    assert found.table.loc["latency_p50_s", "ratio"] == pytest.approx(2.0, rel=1e-3)


def test_an_invalid_run_is_not_compared(made: SimpleNamespace) -> None:
    broken = job(made)
    broken[3].summary()["valid"], broken[3].summary()["invalid_reason"] = False, "the run was interrupted"
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
def test_what_is_not_alike_is_refused_unless_allowed(made: SimpleNamespace, name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"differ in {name} "):
        compare(job(made), job(made, **changes))
    assert f"{name} differs, as allowed" in compare(job(made), job(made, **changes), allow=[name]).suspects


def test_suspects_are_listed(made: SimpleNamespace) -> None:
    changes = {"packages": {"torch": "2.6.0"}, "git": {"commit": "abc", "dirty": None}, "target": {"recipe": "fast"}}
    suspects = compare(job(made), job(made, **changes)).suspects
    assert "packages.torch: 2.13.0+cpu -> 2.6.0" in suspects
    assert "git.commit: None -> abc" in suspects
    assert "target.recipe: baseline -> fast" in suspects
    with pytest.raises(ValueError, match="at least one run"):
        compare([], job(made))
    with pytest.raises(ValueError, match="min_effect"):
        compare(job(made), job(made), min_effect=0)


def test_planted_regressions_are_caught_and_nothing_else() -> None:
    assert called(pairs(0, 20, 1), "slower", "more") <= 1
    assert called(pairs(0.1, 20, 2), "slower") >= 19


def open_runs(
    made: SimpleNamespace, took_s: list[float], batching: str, rate: float = 2.0, **changes: Any
) -> list[Run]:
    """Runs with the seeds 0, 1, ..., of 20 requests each, which take as long as `took_s` says of the run."""
    spec = {"arrivals": {"kind": "open_loop", "rate": rate}}
    runs = []
    for seed, took in enumerate(took_s):
        record, *frames = made.run([took] * 20, target={"batching": batching}, spec=spec | {"seed": seed}, **changes)
        runs.append(Run(record, *frames, Path("run")))
    return runs


def test_gains_compare_runs_of_one_seed_and_rate(made: SimpleNamespace) -> None:
    serial, other = open_runs(made, [1.0, 4.0, 2.0], "serial"), open_runs(made, [0.5, 2.2, 0.9], "continuous")
    slow = open_runs(made, [1.0, 3.0], "serial", rate=1.0) + open_runs(made, [1.1, 2.9], "continuous", rate=1.0)
    alone = open_runs(made, [1.0], "dynamic", rate=9.0)
    found = gains([*reversed(other), *serial, *slow, *alone])
    keys = [(rate, figure) for rate in (1.0, 2.0) for figure in ("latency_mean_s", "latency_p95_s")]
    assert list(zip(found["rate"], found["figure"], strict=True)) == keys
    assert (found["batching"] == "continuous").all()
    logs = np.log([0.5, 0.55, 0.45])
    half = 4.302653 * logs.std(ddof=1) / np.sqrt(3)
    last = found.iloc[-1]
    assert (last["pairs"], last["verdict"]) == (3, "lower")
    assert last["ratio"] == pytest.approx(np.exp(logs.mean()))
    assert last["interval"] == pytest.approx((np.exp(logs.mean() - half), np.exp(logs.mean() + half)))
    assert found["verdict"].tolist()[:2] == ["not shown", "not shown"]
    swapped = gains([*serial, *other], over="continuous")
    assert swapped["verdict"].tolist() == ["higher", "higher"]
    assert swapped["ratio"].tolist() == pytest.approx([1 / last["ratio"]] * 2)


def test_gains_of_one_pair_have_no_interval_and_of_invalid_runs_there_are_none(made: SimpleNamespace) -> None:
    serial, other = open_runs(made, [1.0], "serial"), open_runs(made, [0.5], "dynamic")
    one = gains([*serial, *other]).iloc[0]
    assert (one["pairs"], one["interval"], one["verdict"]) == (1, None, "not shown")
    assert one["ratio"] == pytest.approx(0.5)
    invalid = open_runs(made, [0.5], "dynamic", status="interrupted")
    assert gains([*serial, *invalid]).empty
    assert gains([]).columns.tolist() == gains([*serial, *other]).columns.tolist()
