"""Each test for structure: a series that has it, by hand, and many series that have none."""

import numpy as np
import pytest

from benchlib.study import misfit


def noise(n, seed=0):
    return 1 + 0.01 * np.random.default_rng(seed).standard_normal(n)


def by_chance(values):
    return misfit.permuted(values, np.random.default_rng(1))


def test_a_steady_rise_is_a_drift_of_its_size():
    ratio = noise(60) + np.linspace(0, 0.1, 60)
    found = misfit.drift(ratio, by_chance(ratio))
    assert found.share == pytest.approx(0.1, abs=0.02)
    assert "slower in the run" in found.words


def test_a_drift_too_small_to_matter_is_none():
    ratio = 1 + np.linspace(0, 0.005, 60)
    assert misfit.drift(ratio, by_chance(ratio)) is None


def test_a_slow_stretch_is_found_where_it_was():
    ratio = noise(100)
    ratio[40:50] *= 1.3
    found = misfit.slow_window(ratio, np.arange(100.0), by_chance(ratio))
    assert "to 49 s took 31 % longer" in found.words
    # The window has 12 of 100 images; up to 5.57 times as many may come.
    assert found.share == pytest.approx(0.31 * 5.57 * 0.12, rel=0.05)


def test_a_pause_is_one_service_far_above_all_others():
    ratio = noise(40)
    ratio[20] = 4.0
    found = misfit.pause(ratio)
    assert found.words.startswith("one image took up to 4.0 times as long")
    assert found.share == pytest.approx(3 / 40 * 5.57, rel=0.02)


def test_a_pause_of_a_whole_batch_is_found_if_it_is_long():
    ratio = noise(60)
    ratio[20:25] = 4.0
    assert misfit.pause(ratio) is None  # so many images of their own are a tail
    assert misfit.pause(ratio, together=5).words.startswith("5 images")
    ratio[20:25] = 1.5
    assert misfit.pause(ratio, together=5) is None


def test_a_tail_is_no_pause():
    ratio = 1 + 0.03 * np.random.default_rng(0).exponential(size=60)
    assert misfit.pause(ratio) is None


def test_services_that_grow_with_the_queue_are_found():
    found = np.random.default_rng(2).integers(0, 10, 80).astype(float)
    ratio = noise(80) + 0.02 * found
    breach = misfit.grows_with_queue(ratio, found, by_chance(ratio))
    assert breach.share == pytest.approx(0.02 * 9, abs=0.03)
    assert misfit.grows_with_queue(noise(80), np.zeros(80), by_chance(ratio)) is None


def test_batches_that_cost_otherwise_are_found():
    batch = np.random.default_rng(2).integers(1, 9, 80).astype(float)
    ratio = noise(80) + 0.02 * batch
    assert misfit.depends_on_batch(ratio, batch, by_chance(ratio)).share > 0.1


def test_residuals_that_grow_with_the_queue_are_found():
    found = np.random.default_rng(2).integers(0, 10, 80).astype(float)
    residual_s = 0.01 * np.random.default_rng(3).standard_normal(80) + 0.05 * found
    breach = misfit.residual_structure(residual_s, 2.0, found, by_chance(residual_s))
    assert breach.scale == "latency"
    assert breach.share == pytest.approx(0.05 * 9 / 2, abs=0.03)


def test_large_residuals_are_not_explained():
    latency_s = np.full(40, 2.0)
    assert misfit.unexplained(np.full(40, 0.5), latency_s, 0.01).share == pytest.approx(0.25)
    assert misfit.unexplained(np.full(40, 0.01), latency_s, 0.01) is None


def test_a_slow_client_is_named():
    outside_s = np.full(60, 0.01)
    outside_s[::5] = 0.4
    found = misfit.slow_client(outside_s, 1.0)
    assert found.share == pytest.approx(0.39)
    assert misfit.slow_client(np.full(60, 0.4), 1.0) is None


def test_chance_alone_seldom_shows_structure():
    alarms = 0
    for seed in range(200):
        ratio = noise(40, seed)
        rows = misfit.permuted(ratio, np.random.default_rng(seed))[:399]
        alarms += misfit.drift(ratio + 1, rows + 1) is not None
        alarms += misfit.slow_window(ratio, np.arange(40.0), rows) is not None
    assert alarms <= 6  # 400 tests at 0.3 %, most of which find less than matters


def test_blocks_stay_together():
    rows = misfit.permuted(np.arange(10.0), np.random.default_rng(0), block=5)
    halves = np.sort(rows[:, :5], axis=1)
    assert set(halves[:, 0]) == {0.0, 5.0}


def test_a_run_that_was_slower_than_the_others_is_noticed():
    slower = 1.05 * noise(40, seed=2)
    found = misfit.unlike_runs([noise(60), slower], np.random.default_rng(0), block=1)
    assert found.share == pytest.approx(0.05, abs=0.01)
    assert "longer in one run than in another" in found.words


@pytest.mark.parametrize("images", [(60, 40), (60, 5, 80), (5000, 3000)])
def test_runs_that_are_alike_show_no_breach(images):
    alarms = 0
    for seed in range(20):
        runs = [noise(number, seed=100 * seed + i) for i, number in enumerate(images)]
        alarms += misfit.unlike_runs(runs, np.random.default_rng(0), block=1) is not None
    assert alarms <= 1


def test_one_run_is_like_itself():
    assert misfit.unlike_runs([noise(60)], np.random.default_rng(0), block=1) is None
    assert misfit.unlike_runs([noise(60), noise(0)], np.random.default_rng(0), block=1) is None
