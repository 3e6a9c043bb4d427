"""Figures of one run with 95 % intervals: images/s window by window, ratios, and percentiles.

Knows arrays of seconds. Ignorant of servers and replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from benchlib.study.intervals import t_quantile

Floats = np.ndarray[Any, np.dtype[np.float64]]
Whole = np.ndarray[Any, np.dtype[np.int64]]

DRAWS = 2000
FEWEST_WINDOWS = 5
Z_95 = 1.96


def made_by_window(begun_s: Floats, done_s: Floats, edges_s: Sequence[float]) -> Floats:
    """The images/s of each window between two edges.

    An image counts in each second of its making by the same share. So a window that cuts through a
    batch counts the part of the batch that lies inside.
    """
    took_s = done_s - begun_s
    rates = []
    for left_s, right_s in pairwise(edges_s):
        inside_s = np.minimum(done_s, right_s) - np.maximum(begun_s, left_s)
        images = np.sum(np.maximum(inside_s, 0.0) / took_s)
        rates.append(images / (right_s - left_s))
    return np.array(rates)


def ratio_of_means(top: Floats, bottom: Floats) -> tuple[float, tuple[float, float] | None]:
    """The ratio of two means with its interval; None with fewer than FEWEST_WINDOWS values.

    The values of both are taken as independent. The error is that of the delta method, and the
    degrees of freedom are Welch's (Biometrika 34, 1947).
    """
    ratio = float(top.mean() / bottom.mean())
    if min(len(top), len(bottom)) < FEWEST_WINDOWS:
        return ratio, None
    squares = []
    for values in (top, bottom):
        error = values.std(ddof=1) / math.sqrt(len(values)) / values.mean()
        squares.append(float(error**2))
    total = sum(squares)
    if total == 0:
        return ratio, (ratio, ratio)
    by_each = squares[0] ** 2 / (len(top) - 1) + squares[1] ** 2 / (len(bottom) - 1)
    half = t_quantile(0.975, total**2 / by_each) * ratio * math.sqrt(total)
    return ratio, (ratio - half, ratio + half)


def block_interval(
    statistic: Callable[[Whole], float], n: int, block: int
) -> tuple[float, float] | None:
    """The interval of a statistic of `n` values that depend on their neighbours, by a bootstrap.

    `statistic` gets the places of the values, which may repeat. They are drawn in blocks of
    neighbours, and the first value follows the last. The draws are the same each time. Few blocks
    vary too little, so the interval is widened around the statistic, as Student's t is wider than
    the normal curve. None with fewer than FEWEST_WINDOWS blocks.

    Source: Politis and Romano, "A circular block-resampling procedure" (1992).
    `python -m benchmarks.scale_coverage` shows how often the interval holds the truth.
    """
    # 1) Draw
    blocks = -(-n // block)
    if blocks < FEWEST_WINDOWS:
        return None
    random = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        starts = random.integers(0, n, blocks)
        places = (starts[:, None] + np.arange(block)) % n
        found.append(statistic(places.ravel()[:n]))

    # 2) Widen
    value = statistic(np.arange(n))
    low, high = np.quantile(found, (0.025, 0.975))
    t = t_quantile(0.975, blocks - 1)
    wider = t / Z_95 * math.sqrt(blocks / (blocks - 1))
    return float(value + wider * (low - value)), float(value + wider * (high - value))
