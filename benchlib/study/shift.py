"""How many times as long equal work takes on one side as on another, with an interval.

Knows seconds by kind of work, in runs. Ignorant of requests, servers and verdicts. The script
benchmarks/compare_power.py measures how often a slowdown is caught, and how often chance is taken
for one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from benchlib.study.equal_work import ByWork
from benchlib.study.intervals import Floats, lag_1_of_ranks, t_quantile

FASTEST_OF = 2
"""The time of a run is the mean of the faster of every two images. Delays only add to a time."""

MIN_IMAGES = 5
"""The fewest images of equal work on each side that carry an interval."""

RUN_SHIFT = 0.01
"""The spread between runs that one run on each side takes for granted: a standard deviation.

Where runs may lie 1 % apart, one run on each side can't both find 3 % in 19 of 20 cases and be
misled in at most 1 of 20. With twenty images that scatter by 1 %, the first needs a limit of at
most 2.4 %, and the second a limit of at least 2.8 %. So this constant gives up the first.
"""

_LEAST_IN_SERIES = 8  # a shorter series says nothing of how its values follow each other


@dataclass(frozen=True)
class Shift:
    """How many times as long b takes as a.

    - `log_ratio`: the logarithm of the ratio b/a.
    - `half`: half the width of its interval, also a logarithm; None if the images are too few.
    - `typical_s`: the median seconds of those images of a that are compared.
    - `images`: how many images of a and of b are compared; any others have no like.
    - `is_of_one_run`: there is one run on each side, so `half` takes RUN_SHIFT for granted.
    """

    log_ratio: float
    half: float | None
    typical_s: float
    images: tuple[int, int]
    is_of_one_run: bool


def shift(
    a: Sequence[ByWork],
    b: Sequence[ByWork],
    *,
    in_turns: bool = False,
    misses: float = 0.05,
) -> Shift | None:
    """Returns how many times as long the runs `b` take as the runs `a`; None if no work is alike.

    The time of a run is the mean of the faster of every two of its images: other work on the
    machine can only delay an image, so the fast images say most about the model. That mean is the
    same for few and for many images (a U-statistic), and a stall or a heavy tail hardly moves it.
    The ratio of two runs is a mean of logarithms over the kinds of work. The ratio of the sides is
    the mean over each run of a with each run of b. With `in_turns`, it is the mean over the first
    run of a with the first of b, and so on: what changed from turn to turn then cancels.

    Images of one run share its conditions, so the interval is Student's t over runs. It is never
    shorter than the interval by the images' scatter, for a few runs may lie close by chance. The
    scatter counts images that resemble the image before as fewer.

    One run on each side can't show how far runs lie apart. Its interval holds the images' scatter,
    and a standard deviation of RUN_SHIFT for each run. Runs that lie farther apart escape it. The
    interval leaves out the truth in a share of `misses`.

    Sources: Chen & Revels, "Robust benchmarking in noisy environments", 2016 (why fast images);
    Hoeffding, Annals of Mathematical Statistics 19 (1948), and Arvesen there, 40 (1969), for
    U-statistics and their jackknife; Kalibera & Jones, "Rigorous benchmarking in reasonable time",
    ISMM 2013, for runs and their images as a nested model.
    """
    # 1) Images that have their like on the other side.
    kinds = _kinds(a) & _kinds(b)
    if not kinds:
        return None
    logs_a = _logs(a, kinds)
    logs_b = _logs(b, kinds)
    images_a = _counts(logs_a)
    images_b = _counts(logs_b)
    images = int(images_a.sum()), int(images_b.sum())

    # 2) Each run of a against each run of b, and what scatter explains of a run.
    ratios = np.array([[_ratio(x, y) for y in logs_b] for x in logs_a])
    series = [values for run in (*logs_a, *logs_b) for values in run.values()]
    inflation = _inflation(series)
    of_an_image = inflation * _variance_of_an_image(series)
    within_a = of_an_image / images_a
    within_b = of_an_image / images_b

    # 3) The ratio, and half its interval.
    turns = np.diagonal(ratios)
    is_in_turns = in_turns and len(a) == len(b) == len(turns) and bool(np.isfinite(turns).all())
    log_ratio = float(np.nanmean(turns if is_in_turns else ratios))
    variance = float(within_a.mean() / len(within_a) + within_b.mean() / len(within_b))
    freedom = max(1.0, sum(images) / inflation - 2)
    t = t_quantile(1 - misses / 2, freedom)
    is_of_one_run = ratios.size == 1
    if is_of_one_run:
        half = t * math.sqrt(variance + 2 * RUN_SHIFT**2)
    else:
        spread = _spread_of_turns if is_in_turns else _spread_of_runs
        half = max(t * math.sqrt(variance), spread(ratios, misses))

    # 4) The time of an image, for the reader.
    is_known = min(images) >= MIN_IMAGES and math.isfinite(half)
    logs = np.concatenate([_together(run) for run in logs_a])
    return Shift(
        log_ratio=log_ratio,
        half=half if is_known else None,
        typical_s=math.exp(np.median(logs)),
        images=images,
        is_of_one_run=is_of_one_run,
    )


# -- the images that are compared

_Logs = dict[str, Floats]
"""Logarithms of seconds by kind of work."""


def _kinds(runs: Sequence[ByWork]) -> set[str]:
    return {kind for run in runs for kind in run}


def _logs(runs: Sequence[ByWork], kinds: set[str]) -> list[_Logs]:
    """Returns the logarithms of each run's images of `kinds`; runs without any are left out."""
    logs = []
    for run in runs:
        of_run = {kind: np.log(seconds) for kind, seconds in run.items() if kind in kinds}
        if of_run:
            logs.append(of_run)
    return logs


def _counts(runs: Sequence[_Logs]) -> Floats:
    """Returns the number of images of each run."""
    counts = [len(_together(run)) for run in runs]
    return np.array(counts, dtype=float)


def _together(run: _Logs) -> Floats:
    return np.concatenate(list(run.values()))


# -- one run against another


def _ratio(x: _Logs, y: _Logs) -> float:
    """Returns the logarithm of the ratio y/x of two runs; NaN if they have no work in common.

    A kind counts by the images of both: n m / (n + m) is the inverse of its variance.
    """
    ratios = []
    weights = []
    for kind in x:
        if kind in y:
            n = len(x[kind])
            m = len(y[kind])
            of = min(FASTEST_OF, n, m)
            ratios.append(_fastest(y[kind], of) - _fastest(x[kind], of))
            weights.append(n * m / (n + m))
    if not ratios:
        return math.nan
    return float(np.average(ratios, weights=weights))


def _fastest(values: Floats, of: int) -> float:
    """Returns the mean of the lowest of every `of` of the values."""
    ordered = np.sort(values)
    above = np.arange(len(ordered))[::-1]
    # A value is the lowest of as many groups as can be drawn from the values above it.
    groups = special.binom(above, of - 1)
    return float(ordered @ groups / groups.sum())


def _variance_of_an_image(series: Sequence[Floats]) -> float:
    """Returns the variance of a run's time, times the number of images; NaN if unknown.

    It is the jackknife's, over all series that are long enough. With the value of rank i left out,
    the values below it lose one of those above them.
    """
    squares = 0.0
    images = 0
    for values in series:
        n = len(values)
        if n <= FASTEST_OF:
            continue
        ordered = np.sort(values)
        above = np.arange(n)[::-1]
        of_all = ordered * special.binom(above, FASTEST_OF - 1)
        of_fewer = ordered * special.binom(np.maximum(above - 1, 0), FASTEST_OF - 1)
        beyond = of_all.sum() - np.cumsum(of_all)
        before = np.cumsum(of_fewer) - of_fewer
        left_out = (before + beyond) / special.binom(n - 1, FASTEST_OF)
        squares += n * (n - 1) * float(left_out.var()) * n
        images += n
    return squares / images if images else math.nan


def _inflation(series: Sequence[Floats]) -> float:
    """Returns how many images count as one independent image, at least 1.

    That is (1 + r)/(1 - r), where r is the lag-1 autocorrelation of ranks, the mean of all series.
    A short series shows too little of it, so r is corrected: Marriott & Pope, Biometrika 41 (1954).
    """
    found = []
    lengths = []
    for values in series:
        n = len(values)
        if n >= _LEAST_IN_SERIES:
            r = lag_1_of_ranks(values)
            found.append((r + 1 / n) / (1 - 3 / n))
            lengths.append(n)
    if not found:
        return 1.0
    mean = float(np.average(found, weights=lengths))
    r = min(max(mean, 0.0), 0.9)
    return (1 + r) / (1 - r)


# -- half the interval, by how far runs lie apart


def _spread_of_turns(ratios: Floats, misses: float) -> float:
    """Returns half the t-interval of the mean over turns, which stand on the diagonal."""
    turns = np.diagonal(ratios)
    variance = float(turns.var(ddof=1)) / len(turns)
    return t_quantile(1 - misses / 2, len(turns) - 1) * math.sqrt(variance)


def _spread_of_runs(ratios: Floats, misses: float) -> float:
    """Returns half the t-interval of the mean over each run of a (a row) by each run of b.

    The variance between runs is taken to be the same on both sides, so that a single run borrows it
    from the other side.
    """
    rows = np.nanmean(ratios, axis=1)
    columns = np.nanmean(ratios, axis=0)
    squares = 0.0
    for side in (rows, columns):
        from_mean = side - side.mean()
        squares += float(from_mean @ from_mean)
    freedom = len(rows) + len(columns) - 2
    variance = squares / freedom * (1 / len(rows) + 1 / len(columns))
    return t_quantile(1 - misses / 2, freedom) * math.sqrt(variance)
