"""The outcome of several workers, from rows that are written by hand."""

from array import array

import numpy as np
import pytest

from benchlib.load.arrivals import OpenLoop
from benchlib.load.clocks import Alignment, ClockReading
from benchlib.load.collected import Collected, WorkerTally, most_in_flight
from benchlib.load.plan import LoadPlan
from benchlib.load.workload import Workload

NAN = float("nan")


def packed(values):
    return array("d", values).tobytes()


def batch(rows, *, gauge=(), lags_s=(), hits=0, nonfinite=0):
    """A batch of rows, each (due, done) in seconds."""
    return {
        "lines": b"".join(b"{}\n" for _ in rows),
        "due_s": packed([due_s for due_s, _ in rows]),
        "done_s": packed([done_s for _, done_s in rows]),
        "lags_s": packed(lags_s),
        "gauge": list(gauge),
        "max_in_flight_hits": hits,
        "nonfinite_images": nonfinite,
    }


@pytest.fixture
def collect(tmp_path):
    """`collect([batches of worker 0], ..., duration_s=10)` gives the outcome."""

    def outcome(*workers, cut=None, wall_s=11.0, lost=None, **lengths):
        plan = LoadPlan("http://127.0.0.1:1", OpenLoop(1), Workload(), warmup_s=1.0, **lengths)
        collected = Collected(plan, str(tmp_path / "requests.jsonl"))
        for batches in workers:
            tally = WorkerTally()
            collected.enrol(tally)
            tally.alignment = Alignment(ClockReading(5.0, 0.001))
            for one in batches:
                collected.add(tally, one)
        collected.tallies[0].lost = lost
        collected.own_gauge += []
        return collected.outcome(cut, started_at="now", started_s=100.0, wall_s=wall_s)

    return outcome


def test_what_adds_up_is_added_and_the_busiest_process_counts(collect, tmp_path):
    gauge = [(2.0, 1, 0.0), (4.0, 3, 1.0)], [(2.0, 2, 0.0), (4.0, 2, 0.5)]
    outcome = collect(
        [batch([(0.5, 0.7), (2.0, 5.0)], gauge=gauge[0], lags_s=[0.1], hits=1)],
        [batch([(3.0, NAN)], gauge=gauge[1], lags_s=[0.3], nonfinite=2), batch([(4.0, 6.0)])],
        duration_s=9,
    )
    assert (outcome.scheduled, outcome.finished, outcome.censored) == (4, 3, 1)
    assert (outcome.window_start_s, outcome.window_end_s, outcome.status) == (1.0, 10.0, "finished")
    assert outcome.in_flight_mean == 2 + 2
    assert outcome.in_flight_max == 3, "at 4 s those of 2, 3 and 4 s are there"
    assert outcome.generator_cpu_cores == 0.5
    assert outcome.send_lag_p99_s == 0.3
    assert outcome.max_in_flight_hits == 1
    assert outcome.nonfinite_images == 0, "the last batch of each worker has its count so far"
    assert (tmp_path / "requests.jsonl").read_bytes() == b"{}\n" * 4
    workers = outcome.workers
    assert workers["lost"] == []
    assert workers["clock_error_s"] == pytest.approx(0.001)
    assert [one["requests"] for one in workers["each"]] == [2, 2]
    assert [one["worker"] for one in workers["each"]] == ["0", "1"]
    assert [one["clock_offset_s"] for one in workers["each"]] == [5.0, 5.0]


def test_a_number_of_requests_ends_the_window_with_the_last_answer(collect):
    outcome = collect([batch([(1.5, 2.0)])], [batch([(0.2, 9.0), (2.0, 4.0)])], requests=2)
    assert outcome.window_end_s == 4.0
    outcome = collect([batch([(1.5, 2.0)])], requests=1, cut="max_s", wall_s=8.0)
    assert outcome.window_end_s == 8.0


def test_a_run_without_rows_and_one_that_lost_a_worker_have_an_outcome_too(collect):
    nothing = collect([], [], duration_s=9)
    assert (nothing.scheduled, nothing.in_flight_max, nothing.in_flight_mean) == (0, None, None)
    words = "worker 0 was lost 3.0 s after the start"
    lost = collect([batch([(1.5, NAN)])], [], duration_s=9, cut=words, wall_s=3.5, lost=words)
    assert (lost.window_end_s, lost.workers["lost"], lost.censored) == (3.5, [words], 1)


def test_the_most_in_flight_counts_whoever_is_there_when_one_is_due():
    due_s = np.array([0.0, 1.0, 2.0, 3.0])
    done_s = np.array([2.0, NAN, 2.5, 4.0])
    assert most_in_flight(due_s, done_s, 0.0) == 2
    assert most_in_flight(due_s, np.full(4, NAN), 0.0) == 4
    assert most_in_flight(due_s, done_s, 9.0) is None
