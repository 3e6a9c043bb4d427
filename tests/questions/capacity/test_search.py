"""The search for a capacity, on queues of known capacity."""

import math

import numpy as np
import pytest

from benchlib.questions.capacity.search import Capacity, find_highest

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
