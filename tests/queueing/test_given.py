"""What calibrate and foretell can't take is refused by name, with the fix."""

import math

import numpy as np
import pandas as pd
import pytest

import benchlib as bl
from tests.queueing.simulated_runs import simulated_run

SERIAL = {"batching": "serial"}
SHOWCASE = {"width": 1024, "height": 1024, "num_inference_steps": 20}


@pytest.fixture(scope="module")
def shared():
    run = simulated_run("continuous", rate=1.0, requests=20)
    return run.spec["target"] | {"showcase": SHOWCASE}


@pytest.mark.parametrize("second", [0, 0.0, -1, math.nan, math.inf, "x", None, True])
def test_an_image_takes_a_finite_time_above_0(second):
    with pytest.raises(ValueError, match=r"image_s\[1\] must be a finite number above 0, got"):
        bl.foretell(SERIAL, [1.0, second])


@pytest.mark.parametrize("bare", [1.2, None, "1.2", {1.2: 1}, np.float64(1.2), np.array(1.2)])
def test_seconds_that_are_no_list_are_refused(bare):
    with pytest.raises(
        ValueError, match=r"image_s: .* is no list; give the seconds as \[1.2, 1.3\]"
    ):
        bl.foretell(SERIAL, bare)


@pytest.mark.parametrize("nothing", [[], (), np.array([])])
def test_no_image_is_refused(nothing):
    with pytest.raises(ValueError, match="image_s is empty"):
        bl.foretell(SERIAL, nothing)


@pytest.mark.parametrize(
    "seconds", [(1.0, 3.0), np.array([1, 3], np.float32), pd.Series([1.0, 3.0]), iter([1, 3])]
)
def test_any_list_of_numbers_will_do(seconds):
    plan = bl.foretell(SERIAL, seconds)
    assert (plan.service_s, plan.images) == (2.0, 2)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (None, "spec: None is no spec; it must be a server's spec, as server.spec is"),
        ("tiny", "spec: 'tiny' is no spec"),
        ({}, "spec has no batching"),
        ({"batching": None}, "spec has no batching"),
        ({"batching": "fast"}, "spec: batching 'fast' must be one of serial, dynamic, continuous"),
    ],
)
def test_what_is_no_spec_is_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        bl.foretell(spec, [1.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step_times": {}}, "spec has no step_times"),
        ({"step_times": None}, "spec has no step_times"),
        ({"showcase": None}, "spec has no showcase"),
        ({"showcase": {"width": 64, "height": 64}}, "its showcase has no num_inference_steps"),
        ({"showcase": SHOWCASE | {"width": "64"}}, "showcase: width must be a whole number"),
        ({"max_batch_size": None}, "spec has no max_batch_size"),
        ({"max_batch_size": 0}, "max_batch_size must be a whole number of 1 or more, got 0"),
        ({"max_wait_ms": -1}, "max_wait_ms must be a finite number of 0 or more, got -1"),
        ({"replicas": 2}, "spec: its server has 2 replicas, and one card is simulated"),
    ],
)
def test_a_field_of_a_spec_that_can_not_be_is_named(shared, changes, words):
    with pytest.raises(ValueError, match=words):
        bl.foretell(shared | changes, [1.0])


def test_a_server_that_does_not_wait_is_foretold(shared):
    assert bl.foretell(shared | {"max_wait_ms": 0}, [1.0]).service_s == pytest.approx(1.0)


def test_what_is_no_workload_is_refused():
    with pytest.raises(ValueError, match="is no workload; give a bl"):
        bl.foretell(SERIAL, [1.0], {"width": 64})


@pytest.mark.parametrize("given", ["results/load", None, 5, {"run": 1}])
def test_what_is_no_run_can_not_be_calibrated(given):
    with pytest.raises(ValueError, match=r"^runs: .* is no run; give a run, or a list of runs, as"):
        bl.calibrate(given)


def test_one_that_is_no_run_among_runs_is_named():
    run = simulated_run("serial", rate=0.75, requests=20)
    with pytest.raises(ValueError, match=r"^runs\[1\]: None is no run"):
        bl.calibrate([run, None])


def test_runs_may_come_in_any_order_of_any_kind():
    run = simulated_run("serial", rate=0.75, requests=20)
    assert bl.calibrate(one for one in [run]).images == 20
