"""The search for a capacity, on queues of known capacity; and the answer in words."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchlib.questions.capacity.judge import (
    Capacity,
    find_highest,
    judge_load,
    littles_law,
    most_images_per_s,
)
from benchlib.study.store import Run, Study

T_19 = 2.093  # the 97.5th percentile of Student's t with 19 degrees of freedom


def latencies_s(random, rate, service_s):
    """Lindley's recursion: Poisson arrivals of `rate` at one server that is empty at first."""
    waits_s, wait_s = [], 0.0
    for gap_s, work_s in zip(random.exponential(1 / rate, len(service_s)), service_s, strict=True):
        wait_s = max(0.0, wait_s - gap_s)
        waits_s.append(wait_s)
        wait_s += work_s
    return np.array(waits_s) + service_s


def judge(latency_s, share, limit_s):
    """Whether `share` of the requests took at most `limit_s`.

    It goes by the t-interval over 20 batches, and leaves the start out.
    """
    batches = (
        (latency_s[len(latency_s) // 10 :] <= limit_s)[-20 * (len(latency_s) // 25) :]
        .reshape(20, -1)
        .mean(1)
    )
    margin = T_19 * batches.std(ddof=1) / math.sqrt(20)
    if batches.mean() - margin >= share:
        return "met"
    return "missed" if batches.mean() + margin < share else "not shown"


def mm1(random, rate, n=2000):
    return judge(latencies_s(random, rate, random.exponential(0.1, n)), 0.95, 1.0)


def md1(random, rate, n=2000):
    return judge(latencies_s(random, rate, np.full(n, 0.1)), 0.5, 0.15)


# M/M/1, 10/s: a sojourn is exponential with rate 10 - x, so p95 = ln 20 / (10 - x), which is 1 s at x = 10 - ln 20.
# M/D/1, 0.1 s: P(wait <= t) = (1 - rho) exp(rho t / 0.1 s) for t < 0.1 s (Erlang 1909), so half take at most 0.15 s
# where (1 - rho) exp(rho / 2) = 1/2, which is rho = 0.63625: 0.36375 * 1.37455 = 0.49999.
@pytest.mark.parametrize(("queue", "truth"), [(mm1, 10 - math.log(20)), (md1, 6.3625)])
@pytest.mark.parametrize("start", [1.0, 300.0])
def test_the_capacity_of_a_queue_is_found(queue, truth, start):
    inside, widths, trials = 0, [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        found = find_highest(lambda rate, random=random: queue(random, rate), start=start)
        low, high = found.interval
        assert found.rate == low
        inside += low <= truth <= high
        widths.append(high / low)
        trials.append(len(found.trials))
    assert inside >= 18
    assert np.median(widths) < 1.5
    assert np.median(trials) < 50


def exact(capacity):
    return lambda rate: "met" if rate <= capacity else "missed"


@pytest.mark.parametrize("capacity", [0.02, 0.9, 1.0, 7.3, 640.0])
def test_without_noise_the_interval_is_as_narrow_as_asked(capacity):
    found = find_highest(exact(capacity), precision=0.02)
    low, high = found.interval
    assert low <= capacity < high <= 1.02 * low
    assert found.note == "as narrow as requested"
    verdicts = dict(found.trials)
    assert len(found.trials) == 2 * len(verdicts), "each rate twice, as its two trials agree"
    assert all(verdict == exact(capacity)(rate) for rate, verdict in verdicts.items())


def test_what_stays_open_is_closed_in_from_both_sides():
    found = find_highest(
        lambda rate: "met" if rate < 5 else "missed" if rate > 7 else "not shown", most_trials=3
    )
    low, high = found.interval
    assert 5 / 1.05 < low < 5 < 7 < high < 7 * 1.05
    assert found.note == "as narrow as requested beside the rates that stay open"
    assert max(sum(rate == tried for tried, _ in found.trials) for rate, _ in found.trials) == 2, (
        "a third settles nothing"
    )


def test_trials_that_contradict_each_other_leave_a_rate_open():
    says = iter(["met", "missed"] * 100)
    found = find_highest(lambda rate: next(says) if rate == 1 else exact(1)(rate), most_trials=4)
    assert [verdict for rate, verdict in found.trials if rate == 1] == [
        "met",
        "missed",
        "met",
        "missed",
    ]
    assert found.interval[0] < 1 < found.interval[1]


@pytest.mark.parametrize(
    ("capacity", "rate", "interval", "note"),
    [
        (0.001, None, (None, 0.01), "no rate down to 0.01/s was shown to meet it"),
        (1e9, 1000, (1000, None), "no rate up to 1000/s was shown to miss it"),
    ],
)
def test_beyond_what_is_tried_is_said(capacity, rate, interval, note):
    found = find_highest(exact(capacity))
    assert (found.rate, found.interval, found.note) == (rate, interval, note)


@pytest.mark.parametrize("trials", range(12))
def test_the_budget_is_kept(trials):
    left = [exact(5)] * trials
    found = find_highest(lambda rate: left.pop()(rate) if left else None)
    assert len(found.trials) == trials
    assert found.note.startswith("the budget is spent")
    assert found.rate == (None, 1, 2, 4, 4, 4)[trials // 2]
    assert found.interval[1] == (
        None if trials < 8 else 8 if trials < 10 else pytest.approx(32**0.5)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start", 0),
        ("start", 2000.0),
        ("precision", 0),
        ("precision", math.nan),
        ("most_trials", 1),
    ],
)
def test_a_bad_argument_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        find_highest(exact(1), **{field: value})


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((1.38, 1.42), "is 1.38 to 1.42 images/s."),
        ((1.38, None), "is at least 1.38 images/s. No rate was shown to break it."),
        ((None, 3.5), "is less than 3.5 images/s. No rate was shown to keep it."),
        ((None, None), "is not shown: a longer search is needed (a larger budget_min)."),
    ],
)
def test_a_capacity_in_words(interval, words):
    found = Capacity(interval[0], interval, (), "the budget is spent", "p95 < 2 s")
    assert str(found) == f"The capacity within p95 < 2 s {words}"
    unnamed = Capacity(interval[0], interval, (), "the budget is spent")
    assert str(unnamed) == f"The capacity within the promise {words}"


def closed_loops(made, *latencies_s, **changes):
    """A run of a closed loop of 1, 2, ... users whose images took so long."""
    runs = []
    for users, took_s in enumerate(latencies_s, start=1):
        arrivals = {"kind": "closed_loop", "users": users, "think_time_s": 0.0}
        gap_s = np.mean(took_s) / users
        record, requests, telemetry = made.run(
            took_s, gap_s=gap_s, spec={"arrivals": arrivals}, **changes
        )
        runs.append(Run(record, requests, telemetry, Path("results/load/run")))
    return Study(Path("results/load"), tuple(runs))


def test_littles_law_holds_in_a_closed_loop(made):
    table = littles_law(closed_loops(made, [0.5] * 100, [0.5] * 100))
    assert table["users"].tolist() == [1, 2]
    assert table["product"].tolist() == pytest.approx([1, 2], rel=0.05)
    assert table["passed"].tolist() == [None, None], "there was no gauge"
    gauged = littles_law(closed_loops(made, [0.5] * 100, outcome={"in_flight_mean": 1.01}))
    assert gauged["passed"].tolist() == [True]
    assert gauged["difference"][0] < gauged["limit"][0]
    drifting = littles_law(closed_loops(made, [0.01 * i for i in range(1, 100)]))
    assert drifting["product"].tolist() == [None], "latency has no mean"


FOUND = Capacity(2.0, (2.0, 3.0), (), "as narrow as requested", "p95 < 0.6 s")
NOT_FOUND = Capacity(None, (None, None), (), "the budget is spent", "p95 < 0.6 s")
NO_RUNS = Study(Path("results/load"), ())


def at_rates(made, **latencies_s):
    """A run of an open loop at each rate whose images took so long."""
    runs = []
    for name, took_s in latencies_s.items():
        rate = float(name.removeprefix("rate_"))
        arrivals = {"kind": "open_loop", "rate": rate}
        record, requests, telemetry = made.run(took_s, gap_s=1 / rate, spec={"arrivals": arrivals})
        runs.append(Run(record, requests, telemetry, Path("results/load/run")))
    return Study(Path("results/load"), tuple(runs))


def test_the_answer_has_the_most_images_the_users_and_the_capacity(made):
    closed = closed_loops(made, [0.5] * 100, [0.5] * 100, [0.7] * 100)
    answer = judge_load(closed, NO_RUNS, FOUND, slo="p95 < 0.6 s")
    assert str(answer).splitlines() == [
        "It makes at most 4.2 images/s, with 3 users at a time.",
        "It keeps p95 < 0.6 s with up to 2 users at a time.",
        "The capacity within p95 < 0.6 s is 2 to 3 images/s.",
        "Rows, records and figures are in results/load",
    ]


def test_the_answer_of_short_runs_has_what_was_seen(made):
    closed = closed_loops(made, [0.5] * 20, [0.5] * 20, [0.7] * 20, [0.5] * 20)
    rates = at_rates(made, rate_2=[0.5] * 20, rate_3=[0.5] * 18 + [0.7] * 2, rate_4=[0.5] * 20)
    _, users, rate, _ = str(judge_load(closed, rates, NOT_FOUND, slo="p95 < 0.6 s")).splitlines()
    assert users == (
        "It is not shown to keep p95 < 0.6 s with any number of users. "
        "In these runs, too short to show it, it did with up to 2 users at a time."
    )
    assert rate.endswith("In these runs it kept the promise up to 2 images/s.")


def test_the_answer_says_what_no_run_shows(made):
    answer = judge_load(closed_loops(made, [0.7] * 100), NO_RUNS, NOT_FOUND, slo="p95 < 0.6 s")
    _, users, rate, _ = str(answer).splitlines()
    assert users == "It is not shown to keep p95 < 0.6 s with any number of users."
    assert rate.endswith("is not shown: a longer search is needed (a larger budget_min).")
    failed = closed_loops(made, [0.5] * 100, status="failed", error="no room")
    for study in (failed, NO_RUNS):
        nothing = judge_load(study, NO_RUNS, FOUND, slo="p95 < 0.6 s")
        assert str(nothing).startswith("No valid run shows how many images it makes.\n")
        assert most_images_per_s(study) is None
