"""benchmarks/serving.py: its judgement, and one short run of servers that need no model."""

import json

import pytest

from benchmarks import serving, sides
from benchmarks.figures import Figure
from benchmarks.serving import Bench
from benchmarks.sides import Measured, Side


@pytest.mark.parametrize(
    ("values", "limits", "passed"),
    [
        ([1.0, 2.0, 9.0], {"low": 2.0}, True),
        ([1.0, 2.0, 9.0], {"high": 1.9}, False),
        ([1.0, 2.0, 9.0], {}, None),
        ([], {"high": 1.0}, False),
        ([0.8, 0.9, 0.9, 0.9, 0.9, 1.1], {"low": 1.0}, False),
        ([0.8, 0.9, 0.9, 0.9, 0.9, 1.1], {"low": 1.0, "by_interval": True}, True),
        ([0.8, 0.9, 0.9, 0.9, 0.9, 0.95], {"low": 1.0, "by_interval": True}, False),
    ],
)
def test_a_figure_is_held_to_its_limits(values, limits, passed):
    assert Figure("case", "name", values, **limits).passed is passed


def test_the_interval_of_a_median():
    assert Figure("case", "name", [5.0, 1.0, 3.0, 2.0, 4.0]).interval is None
    # misses 2 times in 64
    assert Figure("case", "name", [6.0, 5.0, 1.0, 3.0, 2.0, 4.0]).interval == (
        1.0,
        6.0,
    )
    assert Figure("case", "name", list(range(9))).interval == (1, 7)  # 20 in 512


def test_figures_are_of_one_repetition_each_and_a_missing_side_is_named():
    runs = {
        "a": [Measured(4.0, [0.1]), Measured(6.0, [0.2])],
        "b": [Measured(2.0, [0.3]), Measured(2.0, [0.3])],
    }
    bench = Bench({}, {"c": "not installed"}, 2, 1.0, {"case": runs})
    assert bench.over("case", "a", "b", "images_per_s").values == [2.0, 3.0]
    assert bench.less("case", "b", "a", "median_s").values == pytest.approx([0.2, 0.1])
    missing = bench.over("case", "a", "c", "images_per_s", low=1.0)
    assert (missing.not_measured, missing.passed) == ("not installed", False)
    runs["b"].append(Measured(0.0, []))
    assert bench.own("case", "b", "p95_s").not_measured == "a run had no answer within its window"


def test_what_was_measured_is_held_against_the_forecast_for_the_very_rows():
    curves = {"step_s": {"2": 0.1}, "encode_s": {"1": 0.0}, "decode_s": {"1": 0.0}}
    spec = {
        "batching": "serial",
        "max_batch_size": 1,
        "max_wait_ms": 0.0,
        "step_times": {"64x64": curves},
    }
    request = {"width": 64, "height": 64, "num_inference_steps": 10, "guidance_scale": None}
    # twice as slow as at warm-up: the images end at 2 s and 4 s
    answer = {
        "phase": "measure",
        "queue_s": 0.3,
        "total_s": 2.3,
    }
    rows = [request | answer | {"scheduled_s": due_s} for due_s in (0.0, 0.5)]
    runs = {
        "serial": [Measured(1.0, [2.0, 4.0], rows=rows)],
        "continuous": [Measured(1.0, [2.0, 4.0], rows=rows)],
    }
    up = {"serial": Side(None, "", {}), "continuous": Side(None, "", spec)}
    bench = Bench(up, {"dynamic": "left out"}, 1, 1.0, {"case": runs})
    assert bench.slowdown("case").values == pytest.approx([2.0])
    figure = bench.forecast("case", "serial")
    assert figure.values == pytest.approx([3.0 / 2.75])
    assert (figure.low, figure.high, figure.by_interval) == (0.85, 1.15, True)
    assert bench.forecast("case", "dynamic").not_measured == "left out"


def test_rounds_go_back_and_forth():
    order = []
    bench = Bench({"a": "A", "b": "B"}, {"c": "left out"}, 3, 1.0)
    bench.interleave(
        "case", {name: (name, lambda side, number: order.append((side, number))) for name in "abc"}
    )
    assert order == [("A", 0), ("B", 0), ("B", 1), ("A", 1), ("A", 2), ("B", 2)]


def test_a_side_that_does_not_start_says_why():
    with pytest.raises(sides.DidNotStart, match="invalid choice"), sides.start("unknown", None):
        pass


def test_a_short_run_ends_with_its_figures_as_json(capsys):
    status = serving.main(["nothing", "--quick"])
    *table, last_line = capsys.readouterr().out.splitlines()
    report = json.loads(last_line)
    assert status == (0 if report["passed"] else 1)
    ratios = [figure for figure in report["figures"] if "over" in figure["name"]]
    assert [figure["low"] for figure in ratios] == [0.5, 0.5]
    assert all(figure["value"] > 0 for figure in ratios)
    assert len(table) == 1 + len(report["figures"])
    assert report["figures"][-1] | {"value": 0, "passed": True} == report["figures"][-1]
