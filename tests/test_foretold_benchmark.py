"""The benchmark of what is foretold: its figures, and that a busy process ends with its block."""

import multiprocessing
from dataclasses import replace

import pytest

from benchmarks.foretold import Case, busy_processes, judged
from benchmarks.planted_lanes import simulated_run

CASE = Case(
    batching="serial",
    busy=1,
    rate=2.0,
    images=60,
    status="stands",
    raw_s=1.5,
    foretold_s=2.2,
    interval_s=(1.9, 2.5),
    own_s=2.1,
    measured_s=2.0,
    verdict="confirmed",
)


def test_errors_are_shares_of_what_the_long_run_measured():
    assert CASE.error == pytest.approx(0.1)
    assert CASE.raw_error == pytest.approx(-0.25)
    assert CASE.own_error == pytest.approx(0.05)
    assert CASE.is_covered is True
    assert replace(CASE, measured_s=3.0).is_covered is False
    refused = replace(CASE, foretold_s=None, interval_s=None, own_s=None)
    assert (refused.error, refused.is_covered, refused.own_error) == (None, None, None)


def test_a_case_is_a_row_of_the_table():
    assert str(CASE) == (
        "| serial | 1 | 2/s | stands | 1.5 s | 2.2 s (1.9 to 2.5) | 2.1 s | 2 s | confirmed |"
    )


def test_a_busy_process_ends_with_its_block():
    with busy_processes(1):
        assert len(multiprocessing.active_children()) == 1
    assert not multiprocessing.active_children()


def test_the_long_runs_own_arrivals_are_simulated_with_the_short_runs_services():
    options = {"rate": 0.9, "steps": (20,), "noise": "1 %"}
    short = simulated_run("serial", requests=60, seed=1, **options)
    long = simulated_run("serial", requests=600, seed=2, **options)
    case = judged(short, long, slo="p95 < 4 s", busy=0)
    assert (case.batching, case.rate, case.images, case.verdict) == ("serial", 0.9, 60, "confirmed")
    assert abs(case.own_error) < 0.01
    assert abs(case.error) > 0.01
