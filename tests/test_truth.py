"""Short runs of benchmarks/truth.py, held to what no other work on the machine can break.

Other work can only make a latency longer, so a run has lower bounds and no upper ones. Runs that
are written down by hand show that each strict limit passes a good generator and fails a bad one.
"""

import json
import sys
from types import SimpleNamespace

import pytest

from benchlib.load.arrivals import OpenLoop
from benchmarks import truth
from benchmarks.figures import Figure

CLOCK_S = 1e-6  # a row's moments are differences of floats


def written_run(moments):
    """A run by hand: one request for each (scheduled, begun, ended, done), in seconds."""
    rows = []
    seen = {}
    for index, (scheduled_s, begun_s, ended_s, done_s) in enumerate(moments):
        name = str(index)
        row = {"request_id": name, "phase": "measure", "scheduled_s": scheduled_s}
        rows.append(row | {"done_s": done_s, "latency_s": done_s - scheduled_s})
        seen[name] = {"received_s": scheduled_s, "begun_s": begun_s}
        seen[name] |= {"ended_s": ended_s, "answered_s": ended_s}
    end_s = max(done_s for *_, done_s in moments)
    in_flight = sum(row["latency_s"] for row in rows) / end_s
    outcome = SimpleNamespace(window_start_s=0.0, window_end_s=end_s, in_flight_mean=in_flight)
    return truth.Measured(outcome, rows, seen)


def passed(figures):
    return [figure.passed for figure in figures]


def test_a_fixed_latency_is_seen_as_the_server_records_it():
    unmatched, p50_gap_s, p99_gap_s = (figure.value for figure in truth.fixed(duration_s=2))
    assert unmatched == 0
    assert p50_gap_s >= -CLOCK_S
    assert p99_gap_s >= -CLOCK_S


@pytest.mark.parametrize(("gap_s", "is_seen"), [(0.001, True), (0.003, False), (-0.003, False)])
def test_a_gap_of_milliseconds_to_the_servers_record_fails(monkeypatch, gap_s, is_seen):
    moments = [(float(n), n, n + 0.05, n + 0.05 + gap_s) for n in range(100)]
    monkeypatch.setattr(truth, "measure", lambda *_, **__: written_run(moments))
    assert passed(truth.fixed()) == [True, is_seen, is_seen]


def test_the_open_loop_shows_a_stall_that_the_closed_one_hides(tmp_path):
    for figure in truth.stall(duration_s=6, service_s=0.002, figure=tmp_path / "new" / "stall.png"):
        assert figure.passed, figure
    assert (tmp_path / "new" / "stall.png").stat().st_size > 10_000


def test_no_latency_is_less_than_the_servers_record_or_the_queues():
    run = truth.measure(OpenLoop(16), 4, service_s=0.05, lanes=1)
    assert run.rows
    assert {row["request_id"] for row in run.rows} == run.seen.keys()

    # Each moment of a request follows the one before it, on the one clock of both processes.
    start_s = run.outcome.started_monotonic_s
    for row in run.rows:
        request = run.seen[row["request_id"]]
        sent_s = start_s + row["sent_s"]
        assert start_s + row["scheduled_s"] <= sent_s + CLOCK_S
        assert sent_s <= request["received_s"] + CLOCK_S
        assert request["answered_s"] <= start_s + row["done_s"] + CLOCK_S

    # The n-th answer comes no earlier than the queue's n-th: late arrivals can only delay the queue.
    free_s = 0.0
    for scheduled_s, done_s in zip(
        sorted(row["scheduled_s"] for row in run.rows),
        sorted(row["done_s"] for row in run.rows),
        strict=True,
    ):
        free_s = max(free_s, scheduled_s) + 0.05
        assert done_s >= free_s - CLOCK_S


def test_the_queues_expected_latencies_are_lindleys(monkeypatch):
    # By hand: the lane is free at 1.0, so the requests end 1.0, 2.0, 3.0 and 6.0 after the start.
    queue = [(0.0, 0.0, 1.0, 1.0), (0.5, 1.0, 2.0, 2.0), (1.0, 2.0, 3.0, 3.0), (5.0, 5.0, 6.0, 6.0)]
    monkeypatch.setattr(truth, "measure", lambda *_, **__: written_run(queue))
    figures = truth.queue(0.8)
    assert [figure.value for figure in figures] == pytest.approx([0, 0, 0])
    assert passed(figures) == [True, True, True]


def test_latencies_that_are_not_the_queues_fail(monkeypatch):
    # Every answer is seen 0.2 s late: 10 % of the longest latency, which is 2 s.
    late = [(0.0, 0.0, 1.0, 1.2), (0.5, 1.0, 2.0, 2.2), (1.0, 2.0, 3.0, 3.2), (5.0, 5.0, 6.0, 6.2)]
    monkeypatch.setattr(truth, "measure", lambda *_, **__: written_run(late))
    median_error_s, p99, gauge = figures = truth.queue(0.8)
    assert [median_error_s.value, p99.value, gauge.value] == pytest.approx([0.2, 0.1, 0])
    assert passed(figures) == [False, False, True]


def test_a_gauge_that_is_not_the_rows_fails(monkeypatch):
    run = written_run([(0.0, 0.0, 1.0, 1.0), (2.0, 2.0, 3.0, 3.0)])
    run.outcome.in_flight_mean *= 1.1
    monkeypatch.setattr(truth, "measure", lambda *_, **__: run)
    assert passed(truth.queue(0.8)) == [True, True, False]


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
def test_a_broken_limit_is_reported(monkeypatch, capsys, high, status):
    for case in ("fixed", "stall", "queue", "overload"):
        monkeypatch.setattr(truth, case, lambda *_, **__: [])
    monkeypatch.setattr(truth, "reach", lambda: [Figure.once("reach", "cores", 0.5, high=high)])
    monkeypatch.setattr(sys, "argv", ["truth.py"])
    assert truth.main() == status
    *_, line, report_line = capsys.readouterr().out.splitlines()
    assert line.split()[0] == ("FAIL" if status else "ok")
    assert json.loads(report_line)["passed"] == (not status)
    assert json.loads(report_line)["figures"][0]["high"] == high
