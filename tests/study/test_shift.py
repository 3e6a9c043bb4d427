"""How many times as long one side takes: against ratios by hand, and where there is no interval."""

import math
from itertools import combinations
from statistics import mean

import numpy as np
import pytest

from benchlib.study import shift as shift_module
from benchlib.study.shift import RUN_SHIFT, _fastest, _variance_of_an_image, shift

RANDOM = np.random.default_rng(7)
TWENTY = 1 + 0.01 * RANDOM.normal(size=20)


def one(values: object) -> dict[str, np.ndarray]:
    return {"work": np.asarray(values, dtype=float)}


def test_a_ratio_is_found_whatever_the_unit() -> None:
    found = shift([one(TWENTY)], [one(1.1 * TWENTY)])
    assert found is not None
    assert found.log_ratio == pytest.approx(math.log(1.1))
    assert found.typical_s == pytest.approx(np.median(TWENTY), rel=1e-4)
    assert (found.images, found.is_of_one_run) == ((20, 20), True)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_the_fastest_of_every_few_is_the_mean_over_all_groups(of: int) -> None:
    values = np.array([5.0, 1.0, 3.0, 3.0, 9.0, 2.0])
    assert _fastest(values, of) == pytest.approx(mean(map(min, combinations(values, of))))


def test_the_variance_is_the_jackknifes() -> None:
    values = np.array([5.0, 1.0, 3.0, 4.0, 9.0, 2.0])
    n = len(values)
    left_out = [_fastest(np.delete(values, place), 2) for place in range(n)]
    jackknife = (n - 1) * np.var(left_out)
    assert _variance_of_an_image([values]) == pytest.approx(n * jackknife)
    assert math.isnan(_variance_of_an_image([values[:2]]))


def test_a_stall_or_two_hardly_move_it() -> None:
    stalled = 1.05 * TWENTY
    stalled[[3, 11]] *= 2
    found = shift([one(TWENTY)], [one(stalled)])
    assert found is not None
    assert found.log_ratio == pytest.approx(math.log(1.05), abs=0.005)


def test_few_images_have_the_time_of_many() -> None:
    """Else a side with fewer images of a kind would seem slower or faster."""
    of_few = [_fastest(RANDOM.normal(size=2), 2) for _ in range(4000)]
    assert mean(of_few) == pytest.approx(_fastest(RANDOM.normal(size=100_000), 2), abs=0.05)


def test_unlike_work_is_never_mixed() -> None:
    few, many = TWENTY[:5], TWENTY[5:]
    a = [{"20 steps": few, "50 steps": 2.5 * many}]
    b = [{"20 steps": 1.03 * many, "50 steps": 1.03 * 2.5 * few, "80 steps": many}]
    found = shift(a, b)
    assert found is not None
    assert found.log_ratio == pytest.approx(math.log(1.03), abs=0.01)
    assert found.images == (20, 20), "80 steps have no like"
    assert shift([{"20 steps": few}], [{"50 steps": many}]) is None


def test_runs_that_lie_apart_widen_it() -> None:
    near = [one(TWENTY), one(TWENTY), one(TWENTY)]
    apart = [one(TWENTY * factor) for factor in (0.98, 1, 1.02)]
    narrow, wide = shift(near, near), shift(apart, apart)
    assert narrow is not None
    assert wide is not None
    # Twice the variance 0.02**2 over three runs, and t(0.975, 4) = 2.776.
    assert wide.half == pytest.approx(2.776 * 0.02 * math.sqrt(2 / 3), rel=0.01)
    assert narrow.half is not None
    assert narrow.half < 0.01
    turns = shift(apart, apart, in_turns=True)
    assert turns is not None
    assert turns.half == pytest.approx(narrow.half, rel=0.01), "what turns share cancels"


def test_turns_by_hand() -> None:
    a = [one([1.0] * 5)] * 3
    b = [one([factor] * 5) for factor in (1.0, 1.1, 1.21)]
    found = shift(a, b, in_turns=True)
    assert found is not None
    assert found.log_ratio == pytest.approx(math.log(1.1))
    # The standard deviation of three steps of log(1.1), and t(0.975, 2) = 4.303.
    assert found.half == pytest.approx(4.303 * math.log(1.1) / math.sqrt(3), rel=1e-3)


def test_one_run_on_each_side_takes_a_shift_for_granted() -> None:
    found = shift([one([1.0] * 20)], [one([1.0] * 20)])
    assert found is not None
    # Equal values have no scatter, so the shift alone is left; t(0.975, 33.6) = 2.033.
    assert found.half == pytest.approx(2.033 * math.sqrt(2) * RUN_SHIFT, rel=1e-3)


def test_images_that_resemble_the_one_before_count_as_fewer() -> None:
    rising = np.sort(TWENTY)
    mixed, ordered = (
        shift([one(TWENTY)] * 2, [one(TWENTY)] * 2),
        shift([one(rising)] * 2, [one(rising)] * 2),
    )
    assert mixed is not None
    assert ordered is not None
    assert mixed.half is not None
    assert ordered.half is not None
    assert ordered.half > 2 * mixed.half


def test_less_misses_take_a_wider_interval() -> None:
    plain, strict = (
        shift([one(TWENTY)], [one(TWENTY)]),
        shift([one(TWENTY)], [one(TWENTY)], misses=0.01),
    )
    assert plain is not None
    assert strict is not None
    assert plain.half is not None
    assert strict.half is not None
    assert strict.half > 1.2 * plain.half


@pytest.mark.parametrize("images", [1, shift_module.MIN_IMAGES - 1])
def test_too_few_images_have_a_ratio_and_no_interval(images: int) -> None:
    found = shift([one(TWENTY[:images])], [one(TWENTY)])
    assert found is not None
    assert found.half is None
    assert math.isfinite(found.log_ratio)


def test_runs_without_a_like_are_left_out() -> None:
    a = [{"x": TWENTY}, {"y": TWENTY}, {"x": TWENTY}]
    b = [{"x": 1.1 * TWENTY}, {"x": 1.1 * TWENTY}]
    found = shift(a, b, in_turns=True)
    assert found is not None
    assert found.images == (40, 40)
    assert found.log_ratio == pytest.approx(math.log(1.1))


def test_runs_may_share_work_with_some_runs_only() -> None:
    a = [{"x": TWENTY, "y": TWENTY}, {"x": TWENTY}]
    b = [{"y": 1.1 * TWENTY}, {"x": 1.1 * TWENTY}]
    found = shift(a, b, in_turns=True)
    assert found is not None
    assert found.log_ratio == pytest.approx(math.log(1.1))
    assert found.half is not None
