"""Time that is in no stage: what holds up the lane is told apart from what follows it."""

import numpy as np
import pandas as pd
import pytest

from benchlib.queueing.gaps import Gap, fit_gap, joined
from benchlib.serving.engine.compiled import lindley

SERVICE_S = 1.0
GAP_S = 0.03
AFTER_S = 0.2


def images_of(rate, number=80, seed=0):
    random = np.random.default_rng(seed)
    sent_s = np.cumsum(random.exponential(size=number)) / rate
    in_lane_s = lindley(sent_s, np.full(number, SERVICE_S + GAP_S)) - sent_s
    done_s = sent_s + in_lane_s + AFTER_S
    found = np.zeros(number, dtype=int)
    found[in_lane_s > SERVICE_S + GAP_S + 1e-9] = 1
    outside_s = np.full(number, 0.05)
    return pd.DataFrame(
        {"sent_s": sent_s, "done_s": done_s, "outside_s": outside_s, "found": found}
    )


def in_lane(images):
    sent_s = images["sent_s"].to_numpy()
    return lambda gap_s: lindley(sent_s, np.full(len(sent_s), SERVICE_S + gap_s)) - sent_s


def test_a_busy_run_tells_the_gap_from_what_follows():
    images = images_of(0.8)
    gap = fit_gap(in_lane(images), images, is_timed=True)
    assert gap.gap_s == pytest.approx(GAP_S, rel=0.05)
    assert gap.after_s.mean() == pytest.approx(AFTER_S, rel=0.05)


def test_a_run_that_is_one_long_queue_shows_its_gap():
    images = images_of(5.0)
    gap = fit_gap(in_lane(images), images, is_timed=True)
    assert gap.gap_s == pytest.approx(GAP_S, rel=0.01)
    assert gap.after_s.mean() == pytest.approx(AFTER_S, rel=0.1)


def test_without_a_queue_half_counts_as_gap_and_the_error_says_so():
    images = images_of(0.001, number=30)
    gap = fit_gap(in_lane(images), images, is_timed=True)
    unexplained_s = GAP_S + AFTER_S - 0.05
    assert gap.gap_s == pytest.approx(unexplained_s / 2, rel=0.01)
    assert gap.error_s == pytest.approx(gap.gap_s / 2)


def test_without_timings_nothing_is_a_gap():
    images = images_of(0.3)
    gap = fit_gap(in_lane(images), images, is_timed=False)
    assert gap.gap_s == 0.0
    assert gap.after_s == pytest.approx(GAP_S + AFTER_S)


def test_runs_are_weighted_by_their_images():
    gaps = [Gap(0.1, 0.01, np.array([1.0])), Gap(0.4, 0.02, np.array([2.0]))]
    frames = [pd.DataFrame(index=range(30)), pd.DataFrame(index=range(10))]
    both = joined(gaps, frames)
    assert both.gap_s == pytest.approx(0.175)
    assert both.error_s == pytest.approx(np.hypot(0.75 * 0.01, 0.25 * 0.02))
    assert list(both.after_s) == [1.0, 2.0]
