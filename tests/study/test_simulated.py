"""Figures of a long simulation: against formulas, and against their own spread over seeds."""

import numpy as np
import pytest

from benchlib.study.simulated import SEGMENTS, Control, Simulation

LENGTH = 40_000


def queue_waits(load, service_s, seed):
    """The waits of a queue with Poisson arrivals and these services, whose mean is 1."""
    gaps = np.random.default_rng(seed).exponential(size=len(service_s))
    arrived_s = np.cumsum(gaps / gaps.mean()) / load
    work_s = np.cumsum(service_s)
    begun_s = np.maximum.accumulate(arrived_s - (work_s - service_s)) + work_s - service_s
    return np.maximum(begun_s - arrived_s, 0.0)


def simulation(load, seed, length=LENGTH):
    """Latencies of a queue whose services vary, and the control whose services do not."""
    services_s = np.random.default_rng(seed + 1000).normal(1, 0.05, length)
    latency_s = queue_waits(load, services_s, seed) + services_s
    waits_s = queue_waits(load, np.ones(length), seed)
    return Simulation(latency_s, Control.poisson(waits_s, load, np.ones(1)))


def test_the_mean_wait_of_equal_services_is_that_of_the_formula():
    control = Control.poisson(np.zeros(1), 0.8, np.ones(3))
    assert control.mean_s == pytest.approx(2.0)  # 0.8 / (2 * 0.2)


def test_the_tail_of_equal_services_is_that_of_erlang():
    # Erlang's exact distribution, from the benchmark of intervals.
    from benchmarks.interval_coverage import wait_cdf

    control = Control.poisson(np.zeros(1), 0.8, np.ones(1))
    for wait_s in (5.0, 8.0, 12.0):
        exact = 1 - wait_cdf(wait_s, 0.8)
        assert control.factor * np.exp(-control.decay * wait_s) == pytest.approx(exact, rel=1e-3)
    assert control.exceeded_by(0.05) == pytest.approx(6.7, abs=0.2)


def test_the_tail_is_not_used_for_short_waits():
    control = Control.poisson(np.zeros(1), 0.8, np.ones(1))
    assert control.exceeded_by(0.5) is None
    assert control.exceeded_by(0.0) is None


def test_the_mean_is_that_of_pollaczek_and_khinchine():
    mean_s, error_s = simulation(0.8, 0).mean()
    true_s = 1 + 0.8 * (1 + 0.05**2) / (2 * 0.2)
    assert abs(mean_s - true_s) < 4 * error_s
    assert error_s < 0.02


@pytest.mark.parametrize(("q", "most"), [(0.5, 0.95), (0.95, 0.3), (0.99, 0.4)])
def test_the_control_makes_a_percentile_more_exact(q, most):
    plain = []
    helped = []
    errors = []
    for seed in range(12):
        one = simulation(0.85, seed)
        plain.append(np.quantile(one.latency_s, q))
        point, error = one.percentile(q)
        helped.append(point)
        errors.append(error)
    assert np.std(helped) < most * np.std(plain)
    assert 0.4 < np.std(helped) / np.mean(errors) < 2.5


@pytest.mark.parametrize("q", [0.95, 0.99])
def test_near_saturation_each_seed_is_as_far_off_as_it_says(q):
    """Of 800,000 requests at 0.95, the share above the true p99 may be half as large, or twice."""
    services_s = np.random.default_rng(0).normal(1, 0.05, LENGTH)
    wait_s = Control.poisson(np.zeros(1), 0.95, services_s).exceeded_by(1 - q)
    off = []
    for seed in range(24):
        point, error = simulation(0.95, seed, 20 * LENGTH).percentile(q)
        off.append((point - 1 - wait_s) / error)
    assert np.abs(np.median(off)) < 1.0
    assert np.mean(np.abs(off) < 1.96) > 0.8
    assert np.max(np.abs(off)) < 6.0


def test_a_share_has_the_error_of_its_segments():
    latency_s = np.tile([1.0, 3.0], LENGTH // 2)
    share, error = Simulation(latency_s).share_within(2.0)
    assert share == pytest.approx(0.5)
    assert error == pytest.approx(0.0, abs=1e-3)


def test_a_share_without_a_late_request_is_not_certain():
    latency_s = np.ones(LENGTH)
    share, error = Simulation(latency_s).share_within(2.0)
    assert share == 1.0
    assert 0 < error < SEGMENTS / LENGTH


def test_the_start_of_a_queue_is_left_out():
    latency_s = np.ones(LENGTH)
    latency_s[: LENGTH // 40] = 100.0
    assert Simulation(latency_s).mean()[0] == 1.0
