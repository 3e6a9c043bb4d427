"""Intervals for successive values that may depend on each other, and tests for independence.

Knows series of numbers in the order of time, and independent runs. Ignorant of requests and
servers. All intervals are of 95 %. An estimate that the series can't carry is None, and
`rows_needed` says how many values would carry it. The script benchmarks/interval_coverage.py
measures how often the intervals hold the truth.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from scipy import special

Interval = tuple[float, float] | None
Floats = np.ndarray[Any, np.dtype[np.float64]]

MIN_ROWS = 200
"""The fewest values that are tested for dependence: 100 values still hide some busy queues."""
MIN_DEPENDENT_ROWS = 2000
"""The fewest dependent values with an interval: of shorter series, only too calm ones pass."""
BATCHES = 20
MIN_RUNS = 5
MIN_TREND = 40
"""The fewest values that are tested for drift or growth."""

_Z_95 = float(special.ndtri(0.975))
_Z_99 = 2.58


class Estimates:
    """The estimates that one series of numbers carries.

    `values` are in the order of time. A NaN stands for a value that is longer than all others. Each
    part is worked out once, for all estimates of the series.
    """

    def __init__(self, values: Iterable[float]) -> None:
        self.values = _floats(values)
        self.n = len(self.values)

    @cached_property
    def is_independent(self) -> bool:
        """Whether the values in this order show no autocorrelation; NaN is the longest value.

        | test on             | shows                  | at  | source                              |
        |---------------------|------------------------|-----|-------------------------------------|
        | values, lag 1       | a queue                | 5 % | normal limit of von Neumann's ratio |
        | ranks, lag 1        | one under a heavy tail | 5 % | Bartels, JASA 77 (1982)             |
        | ranks, lags 1 to 10 | a closed loop's period | 1 % | Ljung & Box, Biometrika 65 (1978)   |
        """
        lags = min(10, self.n // 5)
        if lags < 1 or np.ptp(self._bounded) == 0:
            return True
        limit = _Z_95 / math.sqrt(self.n)
        if abs(self._lag_1) > limit:
            return False
        of_ranks = _autocorrelations(_ranks(self._bounded), lags)
        if abs(of_ranks[0]) > limit:
            return False
        total = 0.0
        for lag, r in enumerate(of_ranks, 1):
            pairs = self.n - lag
            total += r**2 / pairs
        portmanteau = self.n * (self.n + 2) * total
        by_chance = special.chdtri(lags, 0.01)
        return portmanteau <= float(by_chance)

    def rows_needed(self, q: float | None = None) -> int:
        """How many values of this kind carry an interval of the mean, or of the percentile `q`.

        A series that carries the interval needs at most its own number of values. Independent
        values need MIN_ROWS; a percentile also needs an order statistic on either side of it.
        Dependent values need the highest of:

        | rows                                 | why                                               |
        |--------------------------------------|---------------------------------------------------|
        | MIN_DEPENDENT_ROWS                   | where like follows like (r > 0), else MIN_ROWS    |
        | 400 (1 + r)/(1 - r)                  | r is the lag-1 autocorrelation                    |
        | 200 correlation times of batch means | they show dependence that lasts longer than lag 1 |
        | twice as many as there are           | where BATCHES batch means are dependent           |

        Beyond 95 %, a percentile needs 20/(1-q) in place of 400. The factors are ours: below them
        the simulated coverage falls under 93 %.
        """
        if self.n >= MIN_ROWS and not self.is_independent:
            least = MIN_DEPENDENT_ROWS if self._lag_1 > 0 else MIN_ROWS
            return max(least, self._dependent_rows(q))
        if q is None:
            return MIN_ROWS
        # All n values lie on one side of the percentile with the chance (1 - tail)^n, which must be
        # below 2.5 %.
        bounded_from = math.log(0.025) / math.log(1 - _tail(q))
        return max(MIN_ROWS, math.ceil(bounded_from))

    def _dependent_rows(self, q: float | None) -> int:
        by_lag_1, by_batches = self._correlation_times
        factor = max(400, 20 / _tail(q))
        needed = max(factor, factor * by_lag_1, 200 * by_batches)
        # Correlated batch means (at 1 %) show that the batches are too short, or that the series
        # drifts.
        limit = _Z_99 / math.sqrt(BATCHES)
        if abs(self._batch_correlation) > limit:
            needed = max(needed, 2 * self.n)
        return math.ceil(needed - 1e-9)

    def effective_number(self) -> int:
        """How many independent values the series is worth, at least 1; all of them if independent.

        The number is n over the correlation time: (1 + r)/(1 - r), or the variance inflation of
        batch means if that is more.
        """
        if self.is_independent:
            return self.n
        longest = max(1.0, *self._correlation_times)
        return max(1, int(self.n / longest))

    def mean_interval(self) -> Interval:
        """The mean's interval, in the values' unit; None where the series can't carry it.

        Student's t, corrected for skewness: over the values, or over BATCHES batch means where they
        are dependent. Among dependent series close to the shortest length, the ones that pass are
        misleadingly calm. Their interval is widened 4.5 times, falling to 1 at 1.5 times that
        length. Sources: Willink, "A confidence interval and test for the mean of an asymmetric
        distribution", Communications in Statistics 34 (2005). For batch means: Tafazzoli & Wilson,
        "Skart", IIE Transactions 43 (2011).
        """
        is_complete = np.isfinite(self.values).all()
        if not is_complete or self.rows_needed() > self.n:
            return None
        if self.is_independent:
            return _t_interval(self.values)
        length = self.n / self._dependent_rows(None)  # 1 is the shortest that carries an interval
        missing = max(0.0, 3 - 2 * length)
        widening = 1 + 3.5 * missing**2
        means = _batch_means(self.values)
        return _t_interval(means, widening)

    def percentile_interval(self, q: float) -> Interval:
        """The interval of the percentile `q`: two of the values; None if the series can't carry it.

        Order statistics by the binomial (Hahn & Meeker, "Statistical Intervals", 1991, section
        5.2). Dependent values count as fewer independent ones, which moves the two ranks apart.
        """
        if not 0 < q < 1 or self.rows_needed(q) > self.n:
            return None
        effective = self.n if self.is_independent else self._effective_for(q)
        low, high = order_ranks(effective, q)
        if low < 1 or high > effective:
            return None
        first = self._of_rank(math.floor(low * self.n / effective))
        last = self._of_rank(math.ceil(high * self.n / effective))
        if not math.isfinite(last):
            return None
        return first, last

    def _effective_for(self, q: float) -> int:
        """How many independent values the series is worth for the percentile `q`.

        The number is n over the variance inflation of the share below the percentile, among BATCHES
        batches. Student's t takes the place of the normal. Near the shortest length the interval is
        widened as the mean's is, up to 2.4 times. Sources: Woodruff, JASA 47 (1952); Korn &
        Graubard, Survey Methodology 24 (1998).
        """
        point = self._of_rank(math.ceil(self.n * q - 1e-9))
        is_below = self.values <= point
        below = is_below.astype(float)
        of_values = max(float(below.var()), 1 / self.n)
        size = self.n // BATCHES
        inflation = size * _sample_variance(_batch_means(below)) / of_values
        length = self.n / self._dependent_rows(q)  # 1 is the shortest that carries an interval
        widening = max(1.0, 5.2 - 2.8 * length)
        # A number k times as small widens an interval by the root of k.
        for_t = t_quantile(0.975, BATCHES - 1) / _Z_95
        smaller = (for_t * widening) ** 2
        return int(self.n / max(1.0, inflation) / smaller)

    def _of_rank(self, rank: int) -> float:
        """The value of a rank from 1, in rising order; infinity for an unknown value."""
        return float(self._ordered[rank - 1])

    @cached_property
    def _bounded(self) -> Floats:
        """The values, each missing one replaced by the longest of the others."""
        missing = ~np.isfinite(self.values)
        if not missing.any():
            return self.values
        longest = self.values[~missing].max(initial=0.0)
        return np.where(missing, longest, self.values)

    @cached_property
    def _ordered(self) -> Floats:
        missing = np.isnan(self.values)
        values = np.where(missing, np.inf, self.values)
        return np.sort(values)

    @cached_property
    def _lag_1(self) -> float:
        (r,) = _autocorrelations(self._bounded, 1)
        return r

    @cached_property
    def _batch_correlation(self) -> float:
        means = _batch_means(self._bounded)
        (r,) = _autocorrelations(means, 1)
        return r

    @cached_property
    def _correlation_times(self) -> tuple[float, float]:
        """How many successive values are worth one independent value: by lag 1, by batch means."""
        r = min(self._lag_1, 1 - 1 / self.n)
        by_lag_1 = (1 + r) / (1 - r)
        size = self.n // BATCHES
        if not size:
            return by_lag_1, 1.0
        means = _batch_means(self._bounded)
        inflation = size * _sample_variance(means) / float(self._bounded.var())
        return by_lag_1, inflation


def runs_interval(values: Sequence[float]) -> Interval:
    """The interval of independent runs' mean, by Student's t; None for fewer than MIN_RUNS runs."""
    n = len(values)
    if n < MIN_RUNS:
        return None
    mean = float(np.mean(values))
    error = math.sqrt(_sample_variance(values) / n)
    half = t_quantile(0.975, n - 1) * error
    return mean - half, mean + half


def few_interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of independent values, which may be few and skewed.

    Student's t with Willink's correction (see `Estimates.mean_interval`); None for fewer than
    MIN_RUNS values. The caller knows that the values are independent: they are not tested.
    """
    if len(values) < MIN_RUNS:
        return None
    return _t_interval(_floats(values))


Fit = tuple[float, Interval, float, Interval]


def line(x: Iterable[float], y: Iterable[float]) -> Fit | None:
    """Intercept and slope of y on x by least squares, each followed by its interval.

    The intervals are by Student's t and take y's errors as independent and alike. They are None
    where fewer than 3 degrees of freedom are left. The fit is None where x has fewer than two
    different values.
    """
    xs = _floats(x)
    ys = _floats(y)
    if len(xs) < 2 or np.ptp(xs) == 0:
        return None
    from scipy.stats import linregress  # takes half a second to import

    fit = linregress(xs, ys)
    intercept = float(fit.intercept)
    slope = float(fit.slope)
    df = len(xs) - 2
    if df < 3:
        return intercept, None, slope, None
    t = t_quantile(0.975, df)
    intercept_half = t * float(fit.intercept_stderr)
    slope_half = t * float(fit.stderr)
    return (
        intercept,
        (intercept - intercept_half, intercept + intercept_half),
        slope,
        (slope - slope_half, slope + slope_half),
    )


def growth(values: Iterable[float]) -> tuple[float, Interval] | None:
    """The growth from one value to the next, and its interval; None below MIN_TREND values.

    The first quarter is left out, as caches fill. The rest is cut into 10 blocks, and the interval
    comes from the differences between the means of successive blocks. A level that wanders or jumps
    has few such differences, so they show nothing. A line through all values would take such a
    level for a trend.
    """
    series = _floats(values)
    n = len(series)
    if n < MIN_TREND:
        return None
    filled = series[n // 4 :]
    size = len(filled) // 10
    steps = np.diff(_batch_means(filled, 10)) / size
    mean = float(steps.mean())
    # In a random walk two neighbouring differences correlate by 1/4: the variance of their mean is
    # 1.5 times as large.
    error = math.sqrt(1.5 * _sample_variance(steps) / len(steps))
    half = t_quantile(0.975, len(steps) - 1) * error
    return mean, (mean - half, mean + half)


def is_stable(values: Iterable[float]) -> bool | None:
    """False where the values still drift; None below MIN_TREND values.

    They drift where two things hold. Their 10 batch means rise or fall so steadily that chance
    would do so once in 1,000 times. And the last three batches are more than 10 % off the first
    three. Source: Mann, "Nonparametric tests against trend", Econometrica 13 (1945).
    """
    series = Estimates(values)._bounded
    n = len(series)
    if n < MIN_TREND:
        return None
    means = _batch_means(series[: n - n % 10], 10)
    rises = 0.0  # pairs of batches that rise, less those that fall
    for earlier, later in combinations(means, 2):
        rises += np.sign(later - earlier)
    first = means[:3].mean()
    last = means[-3:].mean()
    is_trend = abs(rises) >= 33
    is_large = abs(last - first) > 0.1 * min(first, last)
    return not (is_trend and is_large)


@lru_cache(maxsize=4096)
def order_ranks(n: int, q: float) -> tuple[int, int]:
    """The ranks (from 1) of the two ordered values that hold the percentile `q` between them.

    A rank of 0 or n + 1 means that there is no such value. Bisection is faster than
    scipy.stats.binom.
    """

    def chance_of_at_most(k: int) -> float:
        return binomial_cdf(k, n, q)

    low = bisect_right(range(n), 0.025, key=chance_of_at_most)
    high = bisect_left(range(n), 0.975, key=chance_of_at_most) + 1
    return low, high


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(at most k of n), each with probability p."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    chance = special.bdtr(k, n, p)
    return float(chance)


def t_quantile(p: float, df: float) -> float:
    """Student's t that a share `p` does not exceed; `df` may be a fraction."""
    t = special.stdtrit(df, p)
    return float(t)


def lag_1_of_ranks(values: Floats) -> float:
    """The correlation of each value's rank with that of the value before; 0 if all are alike."""
    (r,) = _autocorrelations(_ranks(values), 1)
    return r


def _t_interval(values: Floats, widening: float = 1.0) -> Interval:
    """The interval of a mean by Student's t, with Willink's correction for skewness."""
    n = len(values)
    mean = float(values.mean())
    deviation = float(values.std())
    if deviation == 0:
        return mean, mean
    error = widening * deviation / math.sqrt(n - 1)
    standardised = (values - mean) / deviation
    skewness = float((standardised**3).mean())
    a = skewness / (6 * math.sqrt(n))
    t = t_quantile(0.975, n - 1)
    below = error * _skewed(t, a)
    above = error * _skewed(-t, a)
    return mean - below, mean - above


def _skewed(t: float, a: float) -> float:
    """The ratio r of a skewed mean whose symmetric transform r + a + 2ar^2 + (4/3)a^2r^3 is `t`."""
    if abs(a) < 1e-3:
        return t
    # Times 6a, the transform is (1 + 2ar)^3 - 1 + 6a^2, which can be solved for r.
    cube = 1 + 6 * a * (t - a)
    root = float(np.cbrt(cube))
    return (root - 1) / (2 * a)


def _tail(q: float | None) -> float:
    """The smaller share beside the percentile `q`; a mean (None) counts as the median."""
    if q is None:
        return 0.5
    return min(q, 1 - q)


def _floats(values: Iterable[float]) -> Floats:
    if not hasattr(values, "__array__"):
        values = list(values)
    return np.asarray(values, dtype=float)


def _ranks(series: Floats) -> Floats:
    """The rank of each value, from 1; equal values have the mean of their ranks."""
    _, where, counts = np.unique(series, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2
    ranks: Floats = mean_rank[where]
    return ranks


def _autocorrelations(series: Floats, lags: int) -> list[float]:
    """The autocorrelations at lags 1 to `lags`; 0 where all values are alike."""
    centred = series - series.mean()
    square = float(centred @ centred)
    if not square:
        return [0.0] * lags
    found = []
    for lag in range(1, lags + 1):
        product = centred[lag:] @ centred[:-lag]
        found.append(float(product) / square)
    return found


def _batch_means(series: Floats, batches: int = BATCHES) -> Floats:
    """The means of successive batches of one size; first values that fill no batch are left out."""
    size = len(series) // batches
    left_out = len(series) - size * batches
    rows = series[left_out:].reshape(batches, size)
    means: Floats = rows.mean(axis=1)
    return means


def _sample_variance(values: Sequence[float] | Floats) -> float:
    return float(np.var(values, ddof=1))
