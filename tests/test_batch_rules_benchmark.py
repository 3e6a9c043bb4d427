"""The table of two rules for the size of a batch says what is worse, by hand."""

import numpy as np
import pytest

from benchlib.serving.engine.compiled import Requests
from benchmarks import batch_rules

CELL = ("h100", "20", "closed", 8.0)


def figures(images_per_s, mean_s):
    return [images_per_s, mean_s, 1.0, 1.0, 1.0]


def test_a_row_is_worse_if_its_interval_lies_beyond_the_margin():
    paces = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    without = [figures(pace, pace) for pace in paces]
    slower = [figures(0.9 * pace, 1.1 * pace) for pace in paces]
    one = batch_rules.row(CELL, without, slower)
    assert one["worse"] == ["images_per_s", "mean_s"]
    assert one["images_per_s_ratio"] == pytest.approx([0.9, 0.9, 0.9])
    assert batch_rules.row(CELL, slower, without)["worse"] == []
    halved_or_doubled = [figures(0.5, 0.5), figures(4.0, 4.0)] * 3
    ones = [figures(1.0, 1.0), figures(2.0, 2.0)] * 3
    assert batch_rules.row(CELL, ones, halved_or_doubled)["worse"] == []


def test_figures_of_lone_requests():
    # One comes every 10 s: 10 ms of encoding, 20 steps of 44 ms, and 45 ms of decoding.
    number = 60
    steps = np.full(number, 20)
    arrived_s = np.arange(number) * 10.0
    requests = Requests(arrived_s, steps, np.full(number, 2), np.zeros(number, np.int64))
    alone_s = 0.010 + 20 * 0.044 + 0.045
    rate, mean_s, p50_s, p95_s, tail = batch_rules.figures(batch_rules.simulated("h100", requests))
    assert rate == pytest.approx(60 / (590 + alone_s))
    assert [mean_s, p50_s, p95_s, tail] == pytest.approx([alone_s] * 3 + [1.0])
