"""Whether batching pays: gains worked out by hand, and the answer in words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchlib.questions.batching.judge import (
    FORETOLD_COLUMNS,
    ForetoldGains,
    gain_words,
    gains,
    judge_batching,
    rows_at_highest_rate,
)
from benchlib.study.store import Run


def open_runs(
    made: SimpleNamespace, took_s: list[float], batching: str, rate: float = 2.0, **changes: Any
) -> list[Run]:
    """Runs with the seeds 0, 1, ..., of 20 requests each.

    `took_s` has the latency of the requests of each run.
    """
    spec = {"arrivals": {"kind": "open_loop", "rate": rate}}
    runs = []
    for seed, took in enumerate(took_s):
        record, *frames = made.run(
            [took] * 20, target={"batching": batching}, spec=spec | {"seed": seed}, **changes
        )
        runs.append(Run(record, *frames, Path("run")))
    return runs


def test_gains_compare_runs_of_one_seed_and_rate(made: SimpleNamespace) -> None:
    serial, other = (
        open_runs(made, [1.0, 4.0, 2.0], "serial"),
        open_runs(made, [0.5, 2.2, 0.9], "continuous"),
    )
    slow = open_runs(made, [1.0, 3.0], "serial", rate=1.0) + open_runs(
        made, [1.1, 2.9], "continuous", rate=1.0
    )
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
    assert last["interval"] == pytest.approx(
        (np.exp(logs.mean() - half), np.exp(logs.mean() + half))
    )
    assert found["verdict"].tolist()[:2] == ["not shown", "not shown"]
    swapped = gains([*serial, *other], over="continuous")
    assert swapped["verdict"].tolist() == ["higher", "higher"]
    assert swapped["ratio"].tolist() == pytest.approx([1 / last["ratio"]] * 2)


def test_gains_of_one_pair_have_no_interval_and_of_invalid_runs_there_are_none(
    made: SimpleNamespace,
) -> None:
    serial, other = open_runs(made, [1.0], "serial"), open_runs(made, [0.5], "dynamic")
    one = gains([*serial, *other]).iloc[0]
    assert (one["pairs"], one["interval"], one["verdict"]) == (1, None, "not shown")
    assert one["ratio"] == pytest.approx(0.5)
    invalid = open_runs(made, [0.5], "dynamic", status="interrupted")
    assert gains([*serial, *invalid]).empty
    assert gains([]).columns.tolist() == gains([*serial, *other]).columns.tolist()


def foretold(*rows: tuple[Any, ...], **refusals: str) -> ForetoldGains:
    return ForetoldGains(pd.DataFrame(rows, columns=FORETOLD_COLUMNS), refusals)


def answer(
    made: SimpleNamespace,
    runs: list[Run],
    continuous: float = 0.5,
    foretold: ForetoldGains | None = None,
) -> Any:
    predicted = pd.DataFrame(
        {"serial": [1.0, 1.0], "continuous": [continuous, 0.99], "dynamic": [0.8, 1.3]},
        index=["at 90 % of serial's throughput", "if batches gained nothing"],
    )
    rush = {
        name: open_runs(made, [took], name)[0] for name, took in (("serial", 2.0), ("dynamic", 1.0))
    }
    return judge_batching(
        gains(runs),
        serial_images_per_s=4.0,
        rush=rush,
        predicted=predicted,
        foretold=foretold,
    )


def test_the_answer_says_which_policy_pays_and_at_which_load(made: SimpleNamespace) -> None:
    serial = open_runs(made, [1.0, 1.1, 0.9], "serial")
    faster = open_runs(made, [0.50, 0.56, 0.46], "continuous")
    unclear = open_runs(made, [0.5, 1.6, 0.9], "dynamic")
    lines = str(answer(made, [*serial, *faster, *unclear])).splitlines()
    assert lines[0] == (
        "Continuous batching pays here, and dynamic batching is not shown to pay here, "
        "compared with serial."
    )
    assert lines[1] == "- continuous: yes"
    assert lines[2].startswith(
        "    at 2 requests/s (50 % of what serial can make), measured in 3 pairs of short "
        "runs, which begin without a queue: "
        "continuous's mean latency is 0.507 times serial's (0.4"
    )
    assert "; continuous's p95 latency is 0.507 times serial's (" in lines[2]
    assert lines[3] == "- dynamic: not shown"
    assert ": no difference from serial is shown (mean latency 0." in lines[4]
    assert " times serial's, p95 latency 0." in lines[4]
    assert lines[5] == (
        "In one rush of 20 requests, the mean latency was: serial 2 s, dynamic 1 s (no interval)."
    )
    assert lines[6] == (
        "By the step times, at 90 % of serial's throughput, the mean latency in a long run, as a "
        "multiple of serial's, is: continuous 0.5 times, dynamic 0.8 times."
    )
    assert lines[7] == (
        "By the step times, continuous gains less than 5 % in these cases: if batches gained nothing."
    )


def test_the_answer_says_no_where_a_policy_loses_and_when_it_depends(made: SimpleNamespace) -> None:
    serial, slower = (
        open_runs(made, [1.0, 1.1], "serial"),
        open_runs(made, [2.0, 2.2], "continuous"),
    )
    assert answer(made, [*serial, *slower]).pays("continuous") == "no"
    slow_at_low = open_runs(made, [1.0, 1.1], "serial", rate=1.0)
    fast_at_low = open_runs(made, [0.5, 0.55], "continuous", rate=1.0)
    both = answer(made, [*serial, *slower, *slow_at_low, *fast_at_low])
    assert "for others" in both.pays("continuous")
    assert str(both).startswith("Continuous batching has lower latency for some figures or loads")


def test_the_answer_also_comes_where_no_run_could_be_made(made: SimpleNamespace) -> None:
    text = str(answer(made, []))
    expected = "- continuous: not measured; by the step times it should pay at 90 % of serial's"
    assert expected in text
    assert "No two valid runs had the same requests" in text
    assert "serial 2 s" in text
    assert "continuous 0.5 times" in text, "the step times still tell what to expect"


def test_a_policy_that_can_not_keep_up_is_not_foretold_to_pay() -> None:
    predicted = pd.DataFrame(
        {"serial": [1.0], "continuous": [0.5], "dynamic": [np.inf]}, index=["when busy"]
    )
    found = judge_batching(gains([]), serial_images_per_s=4.0, rush={}, predicted=predicted)
    assert "- dynamic: not measured; by the step times it should not pay when busy" in str(found)
    assert "continuous 0.5 times, dynamic without end, as it can't keep up." in str(found)


def test_the_answer_also_comes_without_a_rush() -> None:
    predicted = pd.DataFrame({"serial": [1.0], "continuous": [0.5]}, index=["when busy"])
    found = judge_batching(gains([]), serial_images_per_s=4.0, rush={}, predicted=predicted)
    assert "The rush was not measured." in str(found)


def test_what_is_foretold_answers_where_pairs_of_runs_show_nothing(made: SimpleNamespace) -> None:
    serial = open_runs(made, [1.0, 1.1], "serial")
    unclear = open_runs(made, [0.5, 1.6], "continuous")
    found = foretold(
        (0.4, "continuous", "latency_mean_s", 0.1, (0.1, 0.2), "lower", 45),
        (2.0, "continuous", "latency_mean_s", 0.66, (0.55, 0.79), "lower", 45),
        (2.0, "continuous", "latency_p95_s", 0.6, (0.3, 1.2), "not shown", 45),
        (3.2, "continuous", "latency_mean_s", 0.0, (0.0, 0.5), "lower", 45),
        dynamic="18 images show too little; 20 are needed",
    )
    lines = str(answer(made, [*serial, *unclear], foretold=found)).splitlines()
    assert lines[1] == "- continuous: yes"
    assert lines[2] == (
        "    at 2 requests/s (50 % of what serial can make), foretold for the long run from 45 images measured under "
        "load: continuous's mean latency is 0.66 times serial's (0.55 to 0.79); no other difference "
        "is shown (p95 latency 0.3 to 1.2 times serial's)"
    )
    assert (
        "measured in 2 pairs of short runs, which begin without a queue: no difference from serial is shown (mean"
        in lines[3]
    )
    assert lines[4] == (
        "    at 3.2 requests/s (80 % of what serial can make), foretold for the long run from 45 images measured "
        "under load: continuous's mean latency stays finite, and serial can't keep up"
    )
    assert lines[5].startswith("- dynamic: not measured; by the step times it should pay at 90 %")
    assert lines[6] == (
        "    nothing is foretold from its runs: 18 images show too little; 20 are needed"
    )
    assert "in a long run, as a multiple of serial's" not in "".join(lines), "it is known better"
    without_runs = str(answer(made, [], foretold=found))
    assert "- continuous: yes" in without_runs
    assert "No two valid runs" not in without_runs


def test_where_calibrations_are_refused_the_answer_is_that_of_the_step_times(
    made: SimpleNamespace,
) -> None:
    refused = foretold(serial="8 images show too little; 20 are needed")
    text = str(answer(made, [], foretold=refused))
    assert "- continuous: not measured; by the step times it should pay" in text
    assert "nothing is foretold from its runs: of serial, 8 images show too little" in text
    assert "By the step times, at 90 % of serial's throughput, the mean latency" in text


def test_a_policy_that_can_not_keep_up_is_said_to_have_no_end() -> None:
    row = {"batching": "dynamic", "figure": "latency_mean_s", "verdict": "higher"}
    endless = row | {"ratio": np.inf, "interval": (1.1, np.inf)}
    assert gain_words(endless) == (
        "dynamic's mean latency has no end: it can't keep up, and serial can"
    )
    bounded = row | {"verdict": "lower", "ratio": 0.2, "interval": (0.0, 0.8)}
    assert gain_words(bounded) == (
        "dynamic's mean latency is at most 0.8 times serial's, as serial may not keep up"
    )
    unclear = endless | {"verdict": "not shown", "interval": (0.2, np.inf)}
    assert gain_words(unclear) == (
        "a difference of dynamic's mean latency from serial's is not shown"
    )


def test_the_rows_of_the_highest_rate_come_together(made: SimpleNamespace) -> None:
    runs = [
        *open_runs(made, [1.0, 2.0], "serial", rate=2.0),
        *open_runs(made, [9.0], "serial", rate=1.0),
        *open_runs(made, [3.0], "dynamic", rate=2.0),
    ]
    rows = rows_at_highest_rate(runs)
    assert {name: sorted(set(frame["latency_s"])) for name, frame in rows.items()} == {
        "serial": [1.0, 2.0],
        "dynamic": [3.0],
    }
    assert rows_at_highest_rate([]) == {}


def test_the_answer_says_that_the_machine_was_busy(made: SimpleNamespace) -> None:
    calm, busy = open_runs(made, [1.0, 1.1], "serial")
    predicted = pd.DataFrame({"serial": [1.0], "continuous": [0.5]}, index=["when busy"])
    found = judge_batching(
        gains([]),
        serial_images_per_s=4.0,
        rush={"serial": calm},
        predicted=predicted,
        runs=[made.busy(busy)],
    )
    assert "\nThe machine was busy in 1 of 2 runs: other processes took 1.31" in str(found)
