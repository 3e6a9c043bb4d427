"""Intervals of one run's figures: windows by hand, and what widens an interval."""

import numpy as np
import pytest

from benchmarks import scale_coverage
from benchmarks.run_intervals import block_interval, made_by_window, ratio_of_means


def test_an_image_counts_in_each_window_by_the_share_of_its_making():
    begun_s = np.array([0.0, 1.0, 9.0])
    done_s = np.array([4.0, 3.0, 11.0])
    windows = made_by_window(begun_s, done_s, [0.0, 2.0, 4.0, 10.0])
    assert windows == pytest.approx([(0.5 + 0.5) / 2, (0.5 + 0.5) / 2, 0.5 / 6])


def test_the_ratio_of_two_means():
    random = np.random.default_rng(0)
    top = random.normal(4.0, 0.1, 10)
    bottom = random.normal(2.0, 0.1, 10)
    ratio, (low, high) = ratio_of_means(top, bottom)
    assert ratio == top.mean() / bottom.mean()
    assert low < 2.0 < high
    assert high - low == pytest.approx(2 * 2.2 * 2 * np.hypot(0.05, 0.025) / 10**0.5, rel=0.5)
    assert ratio_of_means(np.full(6, 3.0), np.full(6, 2.0)) == (1.5, (1.5, 1.5))
    assert ratio_of_means(top[:4], bottom) == (pytest.approx(2.0, rel=0.1), None)


def test_blocks_keep_neighbours_together():
    """Values that stay for 20 have few independent values: the interval of their mean is wider."""
    random = np.random.default_rng(1)
    level = np.repeat(random.normal(0.0, 1.0, 10), 20)
    widths = {}
    for block in (1, 20):
        low, high = block_interval(lambda places: float(level[places].mean()), len(level), block)
        assert low < level.mean() < high
        widths[block] = high - low
    assert widths[20] > 3 * widths[1]
    assert block_interval(lambda _: 1.0, 40, 10) is None


def test_coverage_is_shown_for_each_interval(capsys):
    assert scale_coverage.main(["--runs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "share of linear",
        "mixed p95 ratio",
        "mixed mean ratio",
    ]
    assert all("held by" in line for line in lines)
