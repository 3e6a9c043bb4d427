"""Pairs of large pictures are compared in other processes, with the same result."""

import numpy as np
import pytest

from benchlib.questions.settings import comparing
from benchlib.questions.settings.comparing import Images, compare_pairs


@pytest.fixture
def images():
    """A pair that differs, one that is equal, and two more that differ."""
    random = np.random.default_rng(0)
    before = random.integers(0, 200, (32, 48, 3), dtype=np.uint8)
    made = []
    for seed, change in ((1, 3), (2, 0), (3, 9), (4, 27)):
        made.append(Images(before, before + np.uint8(change), f"prompt {seed}", seed))
    return made


def test_other_processes_compare_as_this_one_does(images, monkeypatch):
    here = compare_pairs(images)
    monkeypatch.setattr(comparing, "LARGE_PIXELS", 1)
    monkeypatch.setattr(comparing, "MOST_PROCESSES", 2)
    monkeypatch.setattr(comparing, "_cores", lambda: 2)
    elsewhere = []
    real = comparing._compare_elsewhere

    def watched(hand):
        elsewhere.append([one.seed for one in hand])
        return real(hand)

    monkeypatch.setattr(comparing, "_compare_elsewhere", watched)
    assert compare_pairs(images) == here
    assert sorted(elsewhere) == [[1, 4], [3]]
    assert [pair.identical for pair in here] == [False, True, False, False]


def test_a_process_that_fails_says_why(images, monkeypatch):
    monkeypatch.setattr(comparing, "LARGE_PIXELS", 1)
    monkeypatch.setattr(comparing, "_cores", lambda: 2)
    bad = images[0]._replace(after=np.zeros((32, 40, 3), dtype=np.uint8))
    with pytest.raises(
        RuntimeError, match=r"(?s)comparing pictures failed: .*give two of one size"
    ):
        compare_pairs([bad, images[2]])
