"""Short runs of benchmarks/truth.py with bounds that a busy machine keeps; the strict ones are its own."""

import json
import sys

import pytest

from benchmarks import truth
from benchmarks.figures import Figure


def test_a_fixed_latency_is_seen_as_the_server_records_it():
    unmatched, p50_gap_s, p99_gap_s = (figure.value for figure in truth.fixed(duration_s=2))
    assert unmatched == 0
    assert abs(p50_gap_s) < 0.1
    assert abs(p99_gap_s) < 1


def test_the_open_loop_tells_of_a_stall_that_the_closed_one_hides(tmp_path):
    for figure in truth.stall(duration_s=6, service_s=0.002, figure=tmp_path / "new" / "stall.png"):
        assert figure.passed, figure
    assert (tmp_path / "new" / "stall.png").stat().st_size > 10_000


def test_each_latency_is_that_of_the_queue():
    median_error_s, p99, gauge = (figure.value for figure in truth.queue(0.8, duration_s=4))
    assert median_error_s < 0.1
    assert abs(gauge) < 0.5
    assert abs(p99) < 1


def test_an_overloaded_server_looks_overloaded():
    throughput, growth, unstable = (
        figure.value for figure in truth.overload(duration_s=4, warmup_s=1)
    )
    assert abs(throughput) < 0.3
    assert growth > 0.1
    assert unstable == 1


def test_every_request_of_a_quick_rate_is_a_row():
    figures = truth.reach(rate=200, duration_s=2)
    assert [figure.value for figure in figures[:2]] == [0, 0]
    assert all(figure.value > 0 for figure in figures[2:])


@pytest.mark.parametrize(("high", "status"), [(1.0, 0), (0.1, 1)])
def test_a_broken_limit_is_told(monkeypatch, capsys, high, status):
    for case in ("fixed", "stall", "queue", "overload"):
        monkeypatch.setattr(truth, case, lambda *_, **__: [])
    monkeypatch.setattr(truth, "reach", lambda: [Figure.once("reach", "cores", 0.5, high=high)])
    monkeypatch.setattr(sys, "argv", ["truth.py"])
    assert truth.main() == status
    *_, line, told = capsys.readouterr().out.splitlines()
    assert line.split()[0] == ("FAIL" if status else "ok")
    assert json.loads(told)["passed"] == (not status)
    assert json.loads(told)["figures"][0]["high"] == high
