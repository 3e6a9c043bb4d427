"""The random numbers of a simulated lane, and the lanes that other runs might have shown."""

import numpy as np
import pytest

from benchlib import calibrate
from benchlib.queueing import lanes
from benchlib.queueing.lanes import Draws, SerialLane
from benchlib.queueing.work import AskedWork
from tests.queueing.simulated_runs import GAP_S, simulated_run


def test_arrivals_have_exactly_the_rate_asked_for():
    """Also where the seed's gaps are 0.45 % too long in all."""
    arrived_s = Draws.of(400_000, seed=20_261_127).arrived_s(2.0)
    assert arrived_s[-1] == pytest.approx(200_000)
    assert np.diff(arrived_s).std() == pytest.approx(0.5, rel=0.01)


def test_the_first_draws_of_many_have_the_rate_too():
    draws = Draws.of(10_000, seed=1).first(2_000)
    assert draws.arrived_s(4.0)[-1] == pytest.approx(500)


def serial_lane(images: int, seed: int = 1) -> SerialLane:
    """The lane of a run of mixed steps, on a server of 1 % noise."""
    run = simulated_run(
        "serial", rate=0.9, requests=images, steps=(10, 20, 30), noise="1 %", seed=seed
    )
    lane = calibrate(run).lane
    assert isinstance(lane, SerialLane)
    return lane


@pytest.mark.parametrize("images", [20, 200, 2000])
def test_the_services_of_the_control_have_the_mean_and_the_variance_of_the_lanes(images: int):
    """Ten of 2,000 services stood for all once. Their variance was 10 % too small."""
    lane = serial_lane(images)
    drawn_s, possible_s, chances = lane.one_by_one(Draws.of(1_000_000, seed=2))
    assert chances.sum() == pytest.approx(1)
    mean_s = chances @ possible_s
    assert mean_s == pytest.approx(lane.service_s, rel=1e-9)
    variance = chances @ (possible_s - mean_s) ** 2
    assert variance == pytest.approx(drawn_s.var(), rel=0.005)


def test_thinned_services_keep_their_mean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "MOST_POSSIBLE", 60)
    lane = serial_lane(200)
    _, possible_s, chances = lane.one_by_one(Draws.of(10, seed=2))
    assert len(possible_s) == 60
    assert chances @ possible_s == pytest.approx(lane.service_s, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_request_of_more_steps_has_more_gaps(seed: int):
    """With one gap for all requests, its estimate was off by 16 % in runs of 20 images."""
    lane = serial_lane(20, seed)
    assert lane.gap_s == pytest.approx(22 * GAP_S, rel=0.02)
    steps = np.array([10, 20, 30])
    work = AskedWork(steps=steps, rows=np.full(3, 2), size=np.zeros(3, dtype=np.int64))
    assert lane.gap_s * lane.calls_of(work) == pytest.approx(GAP_S * (steps + 2), rel=0.02)


def test_other_runs_have_other_costs_of_the_same_work():
    """The cost of few steps is known less well than the mean service of all."""
    runs = [serial_lane(60, seed).expected_s for seed in range(30)]
    few_steps_s = np.array([expected_s[0] for expected_s in runs])
    lane = serial_lane(60)
    random = np.random.default_rng(3)
    others = [lane.resampled(random) for _ in range(200)]
    told_s = np.array([other.expected_s[0] for other in others])
    assert told_s.std() == pytest.approx(few_steps_s.std(), rel=0.4)
    levels = np.array([other.level for other in others])
    assert levels.std() / lane.level == pytest.approx(0.01 / np.sqrt(60), rel=0.3)
