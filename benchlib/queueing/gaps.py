"""The time of an answer that is in no stage: what holds up the lane, and what follows its work.

Knows measured and simulated times. Ignorant of lanes and policies: a function simulates them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchlib.study.services import Floats, as_floats

GAPS_TRIED = 30


@dataclass(frozen=True)
class Gap:
    """Seconds lost at each call, their standard error, and the time that follows the lane's work."""

    gap_s: float
    error_s: float
    after_s: Floats


def fit_gap(in_lane_s: Callable[[float], Floats], images: pd.DataFrame, is_timed: bool) -> Gap:
    """The gap that leaves the least residuals.

    `in_lane_s` gives, for a gap, the simulated seconds of each image in the lane. A gap holds up
    all requests behind it; time that follows the lane's work does not. So the more calls went
    before an image since the lane was idle, the more a gap adds. Where no image waited, the two
    can't be told apart: then half counts as gap, and the error covers both.
    """
    # 1) The time in the server
    whole_s = as_floats(images["done_s"] - images["sent_s"])
    without_gap_s = in_lane_s(0.0)
    if not is_timed:
        found_empty = images["found"].to_numpy() == 0
        after_s = whole_s - without_gap_s
        return Gap(0.0, 0.0, np.maximum(after_s[found_empty], 0.0))
    outside_s = as_floats(images["outside_s"])
    in_server_s = whole_s - outside_s

    # 2) How much later a little gap makes each image
    little_s = 1e-3 * float(np.median(in_server_s))
    calls = (in_lane_s(little_s) - without_gap_s) / little_s
    own_calls = max(1.0, float(np.quantile(calls, 0.1)))

    # 3) The gap of the least spread, among gaps up to a tenth of a call
    def spread_s(gap_s: float) -> float:
        residual_s = in_server_s - in_lane_s(gap_s)
        middle_s = np.median(residual_s)
        distance_s = np.abs(residual_s - middle_s)
        return float(distance_s.mean())

    if calls.std() < 0.2 * calls.mean():
        unexplained_s = float(np.median(in_server_s - without_gap_s))
        gap_s = max(0.0, unexplained_s / own_calls / 2)
        error_s = gap_s / 2
    else:
        a_call_s = without_gap_s / np.maximum(calls, 1.0)
        most_s = 0.1 * float(np.median(a_call_s))
        gap_s = _lowest(spread_s, most_s)
        deviation_s = 1.25 * spread_s(gap_s)  # of normal errors, by their mean distance
        calls_spread = float(calls.std()) * math.sqrt(len(calls))
        error_s = deviation_s / calls_spread

    # 4) What is left follows the lane's work
    left_s = in_server_s - in_lane_s(gap_s)
    hand_over_s = max(0.0, float(left_s.mean()))
    after_s = outside_s + hand_over_s
    return Gap(gap_s, error_s, np.maximum(after_s, 0.0))


def _lowest(cost: Callable[[float], float], most: float) -> float:
    """The argument from 0 to `most` at which `cost` is least: tried far and wide, then nearby.

    A gap can change which requests share a batch, so the cost has jumps and many valleys.
    """
    shares = np.geomspace(1e-3, 1.0, GAPS_TRIED)
    tried = np.concatenate([[0.0], most * shares])
    costs = [cost(at) for at in tried]
    best = int(np.argmin(costs))
    before = max(0, best - 1)
    behind = min(len(tried) - 1, best + 1)
    nearby = np.linspace(tried[before], tried[behind], GAPS_TRIED)
    costs_nearby = [cost(at) for at in nearby]
    closest = int(np.argmin(costs_nearby))
    lowest = tried[best]
    if costs_nearby[closest] < costs[best]:
        lowest = nearby[closest]
    return float(lowest)


def joined(gaps: Sequence[Gap], frames: Sequence[pd.DataFrame]) -> Gap:
    """The gap of all runs together, each weighted by its images, and all times after the lane."""
    images = sum(len(frame) for frame in frames)
    gap_s = 0.0
    variance = 0.0
    for gap, frame in zip(gaps, frames, strict=True):
        share = len(frame) / images
        gap_s += share * gap.gap_s
        variance += (share * gap.error_s) ** 2
    after_s = np.concatenate([gap.after_s for gap in gaps])
    return Gap(gap_s, math.sqrt(variance), after_s)
