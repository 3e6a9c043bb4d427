"""A level that changes over time, as the corners of a line: the geometry of a ramp.

Pure. Ignorant of what the level is: users, or requests per second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

Corner: TypeAlias = tuple[float, float]
"""A moment in seconds, and the level there. Between two corners the line is straight."""


def ramp_corners(start: float, end: float, over_s: float, stairs: int | None) -> list[Corner]:
    """The corners of a ramp from 0 to `over_s`; a stair is two corners at one moment."""
    if stairs is None:
        return [(0.0, start), (over_s, end)]
    corners: list[Corner] = []
    for step in range(stairs):
        rise = (end - start) * step / (stairs - 1)
        level = start + rise
        from_s = over_s * step / stairs
        until_s = over_s * (step + 1) / stairs
        corners += [(from_s, level), (until_s, level)]
    return corners


def first_moment_s(corners: Sequence[Corner], level: float) -> float:
    """When the line first reaches `level`, in seconds; the level must lie on the line."""
    for corner, following in pairwise(corners):
        from_s, low = corner
        until_s, high = following
        if low == high:
            continue
        share = (level - low) / (high - low)
        if 0 <= share <= 1:
            return from_s + share * (until_s - from_s)
    raise AssertionError("a level between the first and the last is on the line")


def moments_of_areas(areas: Iterator[float], corners: Sequence[Corner]) -> Iterator[float]:
    """The moments when the area under the line, from 0 on, reaches each of the rising `areas`."""
    area = next(areas)
    past = 0.0
    for corner, following in pairwise(corners):
        from_s, low = corner
        until_s, high = following
        length_s = until_s - from_s
        slope = 0.0
        under = 0.0
        if length_s:
            slope = (high - low) / length_s
        if low or high:
            under = (low + high) / 2 * length_s
        while area < past + under:
            # Solves low * t + slope / 2 * t**2 = rest, in a form that also holds for a slope of 0.
            rest = area - past
            square = low * low + 2 * slope * rest
            root = math.sqrt(max(0.0, square))
            yield from_s + 2 * rest / (low + root)
            area = next(areas)
        past += under
