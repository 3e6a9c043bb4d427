"""Plans which images are made, how many of each, and when a size is warm.

Knows the parts of a budget, and how many images a figure needs. Ignorant of how an image is made
(measure.py), and of what the figures mean (judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchlib.budget import BudgetPlan, Part
from benchlib.questions.anatomy.judge import size_name
from benchlib.study.intervals import MIN_RUNS
from benchlib.study.wording import counted

WARM_IMAGES = 12
"""A size is warmed by at most so many images."""
FALL = 0.02
"""Steps that get less than this share faster from image to image no longer fall."""
LEAK_IMAGES = 40
"""Fewer images show no growth of memory (see intervals.growth)."""

LARGEST_WORTH = 10.0  # the answer's first sentence is of the largest image
LINE_WORTH = 9.0
ARITHMETIC_WORTH = 7.0
LEAK_WORTH = 6.0
MIDDLE_WORTH = 5.0


def is_warm(step_s: Sequence[float]) -> bool:
    """Whether the steps of one size no longer get faster, by the seconds of each image's step.

    The faster one of the last two images is compared with the fastest one before them. It must be
    no more than FALL faster. Noise makes single images slow, but none faster than the device can
    be, so the fastest ones tell. Clocks that rise, a search for the best convolution and an
    allocator that fills all end in steps of one length. A device that slows down is steady, too.
    """
    before, latest = step_s[:-2], step_s[-2:]
    return len(before) > 0 and min(latest) > (1 - FALL) * min(before)


@dataclass(frozen=True)
class ImageCase:
    """Images of one size in pixels and one number of steps; `seconds` is what an image takes."""

    size: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class ImageGroup:
    """Cases of one size that are made together; a round has an image of each."""

    cases: tuple[ImageCase, ...]
    worth: float
    least_rounds: int
    needs: str | None = None

    @property
    def name(self) -> str:
        """Such as "512x512: 10 and 50 steps"."""
        side = self.cases[0].size
        *others, last = [case.steps for case in self.cases]
        steps = " and ".join([*map(str, others), counted(last, "step")])
        return f"{size_name(side, side)}: {steps}"

    @property
    def round_s(self) -> float:
        return sum(case.seconds for case in self.cases)

    def part(self, repeat: int) -> Part:
        """The group as a part of a budget that wants `repeat` rounds."""
        least_rounds = min(self.least_rounds, repeat)
        return Part(
            self.name,
            seconds=repeat * self.round_s,
            least_s=least_rounds * self.round_s,
            worth=self.worth,
            needs=self.needs,
            image_s=self.round_s / len(self.cases),
        )


def image_groups(cases: Sequence[ImageCase]) -> list[ImageGroup]:
    """The cases in groups: for each size, its fewest and most steps, and those between.

    The line through an image's time needs MIN_RUNS images, and says most where these have the
    fewest and the most steps. The numbers of steps between only show whether the line is straight.
    """
    groups = []
    largest = max(case.size for case in cases)
    for size in dict.fromkeys(case.size for case in cases):
        own = sorted((case for case in cases if case.size == size), key=lambda case: case.steps)
        ends = (own[0], own[-1]) if len(own) > 1 else (own[0],)
        worth = LARGEST_WORTH if size == largest else LINE_WORTH
        line = ImageGroup(ends, worth, math.ceil(MIN_RUNS / len(ends)))
        groups.append(line)
        if len(own) > len(ends):
            groups.append(ImageGroup(tuple(own[1:-1]), MIDDLE_WORTH, 1, needs=line.name))
    return groups


def rounds_of(group: ImageGroup, plan: BudgetPlan) -> int:
    """How many rounds of a group the plan has seconds for; 0 where it is left out."""
    if group.name not in plan:
        return 0
    images = plan[group.name].images or 0
    return max(1, images // len(group.cases))


def in_rounds(groups: Sequence[ImageGroup], plan: BudgetPlan) -> list[list[ImageCase]]:
    """The rounds of images, every second one backwards, so that drift affects all cases alike.

    A group that has fewer rounds than others is left out of the last ones.
    """
    counts = [rounds_of(group, plan) for group in groups]
    rounds = []
    for number in range(max(counts, default=0)):
        cases: list[ImageCase] = []
        for group, count in zip(groups, counts, strict=True):
            if number < count:
                cases += group.cases
        if number % 2:
            cases.reverse()
        rounds.append(cases)
    return rounds
