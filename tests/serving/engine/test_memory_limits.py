"""The limits that a lack of memory sets: their fall, their rise, and the log lines."""

import pytest

from benchlib.serving.engine.memory_limits import RETRY_CALLS, MemoryLimits

SMALL, LARGE = (64, 64), (128, 64)


@pytest.fixture
def limits():
    limits = MemoryLimits()
    limits.failed("step", SMALL, 7)
    return limits


def test_a_limit_is_half_of_the_batch_that_failed_and_holds_for_its_part_and_size_alone(limits):
    assert limits.most("step", SMALL) == 3
    assert limits.most("step", LARGE) is None
    assert limits.most("decode", SMALL) is None


def test_a_limit_doubles_after_enough_calls_that_were_as_large_as_it_allows(limits):
    for _ in range(RETRY_CALLS - 1):
        limits.went_well("step", SMALL, 3)
        limits.went_well("step", SMALL, 2)
        limits.went_well("decode", SMALL, 3)
    assert limits.most("step", SMALL) == 3
    limits.went_well("step", SMALL, 3)
    assert limits.most("step", SMALL) == 6


def test_a_failure_begins_the_count_anew(limits):
    for _ in range(RETRY_CALLS - 1):
        limits.went_well("step", SMALL, 3)
    limits.failed("step", SMALL, 2)
    limits.went_well("step", SMALL, 1)
    assert limits.most("step", SMALL) == 1


def test_each_change_is_logged(limits, caplog):
    for _ in range(RETRY_CALLS):
        limits.went_well("step", SMALL, 3)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "step of 64x64: at most 6 at once from here on" in record.getMessage()


def test_a_batch_of_one_can_not_be_halved(limits):
    with pytest.raises(ValueError, match="a batch of 1 can't be halved"):
        limits.failed("step", SMALL, 1)
