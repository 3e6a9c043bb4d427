"""Which images are made: groups, rounds, and steps that fall until they are steady."""

import numpy as np
import pytest

from benchlib import Budget
from benchlib.questions.anatomy.rounds import (
    WARM_IMAGES,
    ImageCase,
    image_groups,
    in_rounds,
    is_warm,
)

CASES = [
    ImageCase(size, steps, 0.001 * size * steps) for size in (512, 1024) for steps in (10, 20, 50)
]


def warmed_by(step_s):
    """How many images a size is warmed by, if their steps take these seconds."""
    for images in range(WARM_IMAGES):
        if is_warm(step_s[:images]):
            return images
    return WARM_IMAGES


@pytest.mark.parametrize(
    ("step_s", "images"),
    [
        ([0.05] * 12, 3),
        ([5.0, 0.05, 0.05, 0.05, 0.05], 4),  # a first call that compiles
        ([0.088, 0.08, 0.07, 0.06, 0.052, 0.05, 0.05, 0.05, 0.05], 8),  # clocks that rise
        ([0.05, 0.051, 0.053, 0.06], 3),  # a device that gets warm and slow
        ([0.05 * 0.9**n for n in range(20)], WARM_IMAGES),  # it never ends
    ],
)
def test_a_size_is_warm_when_its_steps_no_longer_fall(step_s, images):
    assert warmed_by(step_s) == images


def test_noise_does_not_keep_a_size_from_being_warm():
    random = np.random.default_rng(0)
    images = [warmed_by(list(0.05 * (1 + random.exponential(0.1, 20)))) for _ in range(500)]
    assert np.mean(images) < 6


def plan(minutes, tmp_path, repeat=10):
    groups = image_groups(CASES)
    budget = Budget(minutes, results=tmp_path, clock=lambda: 0.0)
    return groups, budget.plan([group.part(repeat) for group in groups])


def test_the_ends_of_a_line_are_one_group_and_the_steps_between_another(tmp_path):
    groups, whole = plan(None, tmp_path)
    assert [group.name for group in groups] == [
        "512x512: 10 and 50 steps",
        "512x512: 20 steps",
        "1024x1024: 10 and 50 steps",
        "1024x1024: 20 steps",
    ]
    rounds = in_rounds(groups, whole)
    assert len(rounds) == 10
    assert [(case.size, case.steps) for case in rounds[0]] == [
        (512, 10), (512, 50), (512, 20), (1024, 10), (1024, 50), (1024, 20),
    ]  # fmt: skip
    assert rounds[1] == rounds[0][::-1]


def test_a_small_budget_keeps_the_largest_size_and_enough_images_for_its_line(tmp_path):
    groups, small = plan(200 / 60, tmp_path)
    assert [share.name for share in small.parts] == ["1024x1024: 10 and 50 steps"]
    rounds = in_rounds(groups, small)
    assert len(rounds) == 3, "six images, as a line needs five"
    assert {case.size for one_round in rounds for case in one_round} == {1024}


def test_sizes_go_before_the_steps_between(tmp_path):
    groups, more = plan(280 / 60, tmp_path)
    assert [share.name for share in more.parts] == [
        "512x512: 10 and 50 steps",
        "1024x1024: 10 and 50 steps",
    ]
    assert len(in_rounds(groups, more)) == 3


def test_one_number_of_steps_is_a_group_of_its_own(tmp_path):
    (group,) = image_groups([ImageCase(64, 4, 0.1)])
    assert (group.name, group.least_rounds) == ("64x64: 4 steps", 5)
    assert group.part(2).least_s == group.part(2).seconds == pytest.approx(0.2)
    budget = Budget(0.1 / 60, results=tmp_path, clock=lambda: 0.0)
    assert len(in_rounds([group], budget.plan([group.part(50)]))) == 5, "kept all the same"
