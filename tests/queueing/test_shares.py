"""The ends of simulated shares, on series whose truth is known."""

import numpy as np
import pytest

from benchlib.queueing.shares import logit, share_of, simulated_share
from benchlib.study.simulated import Simulation

REQUESTS = 40_000


def independent(seed=0):
    return np.random.default_rng(seed).exponential(size=REQUESTS)


def test_without_a_late_request_the_rule_of_three_bounds_the_share():
    share, low, high = simulated_share(Simulation(independent()), 1000.0)
    assert (share, high) == (1.0, 1.0)
    assert 3 / REQUESTS <= 1 - low < 9 / REQUESTS


def test_requests_that_are_late_together_count_as_fewer():
    in_tens = np.repeat(independent()[: REQUESTS // 10], 10)
    share, low, _ = simulated_share(Simulation(in_tens), 1000.0)
    assert share == 1.0
    assert 1 - low == pytest.approx(3 / (REQUESTS / 20), rel=0.1)  # (1 + r)/(1 - r) is 19 here


def test_where_nobody_is_in_time_the_high_end_is_bounded_alike():
    share, low, high = simulated_share(Simulation(1 + independent()), 0.5)
    assert (share, low) == (0.0, 0.0)
    assert high == pytest.approx(3 / REQUESTS)


@pytest.mark.parametrize("in_time", [0.5, 0.95, 0.999, 0.9999])
def test_the_interval_of_independent_requests_holds_the_truth(in_time):
    limit_s = -np.log(1 - in_time)  # of an exponential latency
    held = 0
    for seed in range(100):
        _, low, high = simulated_share(Simulation(independent(seed)), limit_s)
        held += low <= in_time <= high
    assert held >= 90


def test_a_share_and_its_odds_are_one():
    for share in (0.001, 0.3, 0.95):
        assert share_of(logit(share)) == pytest.approx(share)
    assert (share_of(logit(0.0)), share_of(logit(1.0))) == (0.0, 1.0)
