"""The benchmark of foretold answers: its faults are in the runs, and its limits are limits."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import answers
from benchmarks.planted_lanes import LAST_FIRST, Fault, simulated_run


def latencies(**options):
    run = simulated_run("serial", rate=0.9, requests=60, **options)
    return run.requests["latency_s"].to_numpy()


def test_each_lane_and_length_comes_as_often():
    found = answers.studies(2 * len(answers.LANES) * len(answers.IMAGES), seed=0)
    counts = pd.Series([(study.lane, study.images) for study in found]).value_counts()
    assert set(counts) == {2}


def test_last_in_first_out_serves_all_and_keeps_the_mean():
    first = latencies()
    last = latencies(fault=Fault(policy=LAST_FIRST))
    # Of equal services, the order changes who waits, not how long all wait together.
    assert last.mean() == pytest.approx(first.mean(), rel=0.02)
    assert last.std() > 1.2 * first.std()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(stall=3),
        Fault(slow_tenth=0.3),
        Fault(drift=0.15),
        Fault(leak=0.05),
        Fault(leak=0.05, leak_is_outside=True),
        Fault(client=0.3),
    ],
)
def test_a_planted_fault_makes_latencies_longer(fault):
    assert latencies(fault=fault).mean() > 1.01 * latencies().mean()


def test_a_hidden_leak_is_in_no_stage():
    leak = Fault(leak=0.05, leak_is_outside=True)
    sound = simulated_run("serial", rate=0.9, requests=60).requests
    leaking = simulated_run("serial", rate=0.9, requests=60, fault=leak).requests
    assert np.allclose(sound["denoise_s"], leaking["denoise_s"])
    assert leaking["wait_s"].mean() > sound["wait_s"].mean() + 0.01


def test_an_answer_is_held_against_the_truth():
    lane = answers.Lane("serial", "equal", "1 %")
    truth = answers.truth_of(lane, share=0.02)
    study = answers.Study(lane, images=60, run_load=0.7, load=0.7, promised=0.85, seed=1)
    row = answers.answered((study, truth))
    assert row["status"] == "stands"
    assert row["error"] < 0.02
    assert row["capacity_width"] < 0.05
    assert row["p95_s_low"] < row["p95_s_high"]


def test_a_row_that_covers_too_little_is_not_ok():
    held = [True] * 60 + [False] * 40
    table = pd.DataFrame(dict.fromkeys(answers.FIGURES, held))
    table["status"] = "stands"
    table["capacity_width"] = 0.01
    table["noise"] = "1 %"
    (row,) = answers.coverage(table, ["noise"]).to_dict("records")
    assert row["all"] == pytest.approx(0.6)
    assert not row["ok"]
    for name in answers.FIGURES:
        table[name] = True
    (row,) = answers.coverage(table, ["noise"]).to_dict("records")
    assert row["ok"]
