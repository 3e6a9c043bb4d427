"""The parts of notebook 03: which runs are wanted, at which rates, and how many images each takes.

Knows shares of a capacity and the budget's parts. Ignorant of how a run is made (measure.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchlib.budget import Part
from benchlib.study.wording import counted, number

CALIBRATE = "calibrate"
CONFIRM = "confirm below the capacity"
ABOVE = "show it broken above"
AT_RATE = "confirm at {}/s"
CALIBRATE_AT = 0.8
CONFIRM_AT = 0.95
ABOVE_AT = 1.1
"""Shares of the capacity at which these runs are made.

At 0.7 of its capacity a server on an H200 shared no step, so the run did not show what that costs.
"""
LOWEST_SHARE = 0.5
HIGHEST_SHARE = 1.3
"""A wide interval does not move the confirming runs beyond these shares of the capacity."""

LEAST_ESTIMATE = 20
"""No estimate is made from fewer images."""
LEAST_IMAGES = {CALIBRATE: (60, 40, LEAST_ESTIMATE), CONFIRM: (30,), ABOVE: (30,)}
"""The images that a run at a rate needs; of several numbers the first that the budget carries."""
MOST_IMAGES = {CALIBRATE: 100, CONFIRM: 250, ABOVE: 80}
"""60 images foretell a p95 within about 3 %. More than 100 are better spent on confirming."""
USERS_IMAGES = (20, 60)
WORTH = {CALIBRATE: 10.0, CONFIRM: 5.0, ABOVE: 3.0}
WORTH_OF_USERS = 1.0
WARMUP_IMAGES = 3
MOST_USERS = 2000
"""More users would get too few of the simulated images each (see Calibration.user_throughput)."""


def rates_to_confirm(
    capacity: float,
    interval: tuple[float, float] | None,
    given: Sequence[float] | None = None,
) -> list[tuple[str, float]]:
    """The name and rate of each confirming run: below the capacity, and above it.

    A wide `interval` moves them apart, so that the promise should be kept at one and broken at the
    other. The user's `given` rates replace both.
    """
    if given is not None:
        return [(AT_RATE.format(name), rate) for name, rate in _named(given)]
    low, high = interval or (capacity, capacity)
    below = max(LOWEST_SHARE * capacity, min(CONFIRM_AT * capacity, low))
    above = min(HIGHEST_SHARE * capacity, max(ABOVE_AT * capacity, high))
    return [(CONFIRM, below), (ABOVE, above)]


def _named(rates: Sequence[float]) -> list[tuple[str, float]]:
    """Each rate behind its name: three digits, or as many as tell the rates apart."""
    ways = (number, "{:.6g}".format, repr)
    names: list[str] = []
    for way in ways:
        names = [way(rate) for rate in rates]
        if len(set(names)) == len(set(rates)) and "0" not in names:
            break
    return list(zip(names, rates, strict=True))


def least_images(name: str) -> tuple[int, ...]:
    """How many images the run of that name needs: the number wanted first, then fewer."""
    return LEAST_IMAGES.get(name, LEAST_IMAGES[CONFIRM])


def part_at_rate(
    name: str,
    rate: float,
    run_s: float,
    least: int = LEAST_ESTIMATE,
    most_images_per_s: float = math.inf,
) -> Part:
    """The part of an open loop at `rate` that needs `least` images.

    A run takes `run_s` seconds besides its images. They come at `rate`, but are made at
    `most_images_per_s` at most: a run waits for the last one.
    """
    kind = name if name in MOST_IMAGES else CONFIRM
    image_s = 1 / min(rate, most_images_per_s)
    overhead_s = run_s + WARMUP_IMAGES * image_s
    return Part(
        name,
        seconds=overhead_s + MOST_IMAGES[kind] * image_s,
        least_s=overhead_s + least * image_s,
        worth=WORTH[kind],
        overhead_s=overhead_s,
        image_s=image_s,
        needs=None if name == CALIBRATE else CALIBRATE,
    )


def part_of_users(users: int, most_users: int, rate: float, run_s: float) -> Part:
    """The part of a closed loop of `users`, who get `rate` images/s; the most users tell most."""
    least, most = USERS_IMAGES
    overhead_s = run_s + users / rate
    return Part(
        f"a closed loop of {counted(users, 'user')}",
        seconds=overhead_s + most / rate,
        least_s=overhead_s + least / rate,
        worth=WORTH_OF_USERS * users / most_users,
        overhead_s=overhead_s,
        image_s=1 / rate,
        needs=CALIBRATE,
    )


def spread_out(users: Sequence[int], most: int = 16) -> list[int]:
    """Numbers of users from 1 to the highest, `users` among them, for a smooth line."""
    highest = max(users)
    step = max(1, highest // most)
    return sorted({1, *range(step, highest + 1, step), *users})
