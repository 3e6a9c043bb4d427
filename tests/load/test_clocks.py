"""How far two clocks are apart, on a made-up way between them."""

import random

import pytest

from benchlib.load.clocks import Alignment, ClockReading, Echo, read_clock

OFFSET_S = 1000.0


def echoes(count, *, offset_s=OFFSET_S, seed=0):
    """Messages that take 0.1 to 5 ms each way, unevenly, to a clock that is ahead."""
    draw = random.Random(seed).expovariate
    now_s = 50.0
    for _ in range(count):
        there_s, back_s = (1e-4 + draw(1000) for _ in range(2))
        yield Echo(now_s, now_s + there_s + offset_s, now_s + there_s + back_s)
        now_s += 0.01


@pytest.mark.parametrize("seed", range(20))
def test_the_offset_is_within_what_is_said_of_it(seed):
    reading = read_clock(echoes(16, seed=seed))
    assert abs(reading.offset_s - OFFSET_S) <= reading.within_s
    assert reading.within_s <= min(one.round_trip_s for one in echoes(16, seed=seed)) / 2


def test_more_echoes_never_make_it_worse():
    within_s = [read_clock(echoes(count)).within_s for count in (1, 4, 16, 64)]
    assert within_s == sorted(within_s, reverse=True)


def test_clocks_that_cannot_be_told_apart_are_one():
    alignment = Alignment(ClockReading(0.0002, 0.0003))
    assert (alignment.used_offset_s, alignment.drift_s) == (0.0, None)
    assert alignment.error_s == pytest.approx(0.0005)
    assert Alignment(ClockReading(-0.0004, 0.0003)).used_offset_s == -0.0004


def test_a_clock_that_runs_fast_is_seen_at_the_end_and_counts_as_error():
    begin = read_clock(echoes(16, seed=1))
    end = read_clock(echoes(16, offset_s=OFFSET_S + 0.006, seed=2))
    alignment = Alignment(begin, end)
    assert alignment.drift_s == pytest.approx(0.006, abs=begin.within_s + end.within_s)
    assert alignment.used_offset_s == begin.offset_s
    assert 0.006 - begin.within_s <= alignment.error_s <= 0.006 + 2 * end.within_s + begin.within_s
