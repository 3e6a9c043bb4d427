"""The mark for routers, by hand: the oldest are alone, the youngest in pairs, and all may move."""

import pytest

from benchlib.serving.engine.step_times import StepTimes
from benchmarks.moved_freely import latencies_s, pair_speed


def test_a_request_for_each_card_takes_its_own_time():
    assert latencies_s([0.0, 0.5], [1.0, 2.0], 2, 0.6) == pytest.approx([1.0, 2.0])


def test_two_on_one_card_are_a_pair_and_the_third_waits():
    # The pair is done at 1 / 0.6 s. Then the third is alone.
    expected_s = [1 / 0.6, 1 / 0.6, 1 / 0.6 + 1.0]
    assert latencies_s([0.0] * 3, [1.0] * 3, 1, 0.6) == pytest.approx(expected_s)


def test_the_oldest_is_alone_and_the_others_part_when_its_card_is_free():
    # The oldest is done at 1 s. Each of the pair has done 0.6 s of its work, and is alone from then on.
    assert latencies_s([0.0] * 3, [1.0] * 3, 2, 0.6) == pytest.approx([1.0, 1.4, 1.4])


def test_a_latency_counts_from_the_arrival():
    # Alone until 0.5 s, then a pair: the first needs 0.5 / 0.5 s more. The second has 0.5 s left then.
    assert latencies_s([0.0, 0.5], [1.0, 1.0], 1, 0.5) == pytest.approx([1.5, 1.5])


def test_the_speed_in_a_pair_by_hand():
    times = StepTimes({2: 1.0, 4: 1.6}, {1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.9})
    assert pair_speed(times, steps=9) == pytest.approx(10 / 15.8)
