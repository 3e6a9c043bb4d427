"""What a setting changes besides its way to batch: a recipe, and perhaps fewer steps.

    parse_variant("fastest-exact in 4 steps")  # Variant(recipe="fastest-exact", steps=4)

Knows how a variant is written in the column `recipe` of a frame of settings. Ignorant of how a
variant is tried (measure_alone.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchlib.study.wording import counted

_IN_STEPS = re.compile(r"(?P<recipe>\S+) in (?P<steps>\d+) steps?")


@dataclass(frozen=True)
class Variant:
    """A recipe, and the steps of each image. None stands for the steps of the baseline."""

    recipe: str
    steps: int | None = None

    def __str__(self) -> str:
        if self.steps is None:
            return self.recipe
        return f"{self.recipe} in {counted(self.steps, 'step')}"


def parse_variant(name: str) -> Variant:
    """The variant that `str()` of a variant wrote."""
    written = _IN_STEPS.fullmatch(name)
    if written is None:
        return Variant(name)
    return Variant(written["recipe"], int(written["steps"]))
