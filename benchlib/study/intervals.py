"""Intervals that hold where successive latencies depend on each other, and tests for independence and steady state.

Knows series of numbers in time order. Ignorant of requests and runs. All intervals are of 95 %; an estimate that the
series can't carry is None, and `rows_needed` says how many values would carry it. The coverage that was measured is in
benchmarks/coverage.py's table.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

Interval = tuple[float, float] | None
Series = np.ndarray[Any, np.dtype[np.float64]]

MIN_ROWS = 200
"""Fewer values are taken for neither dependent nor independent: at 100 the test still misses some busy queues."""
MIN_DEPENDENT_ROWS = 2000
"""Fewer carry nothing where they depend on each other: only the calmest series would pass, and cover too little."""
BATCHES = 20
_Z = NormalDist().inv_cdf(0.975)


class Estimates:
    """What one series carries: `values` in time order, NaN for one that is known only to be longer than all others.

    Each part is worked out once, for all estimates of the series.
    """

    def __init__(self, values: Iterable[float]) -> None:
        self.values: Series = np.asarray(
            values if hasattr(values, "__array__") else list(values), dtype=float
        )
        self.n = len(self.values)

    @cached_property
    def is_independent(self) -> bool:
        """Whether the values in this order show no autocorrelation; NaN is as long as the longest.

        Tested at lag 1 on the values, where a queue shows, and on their ranks, which a heavy tail doesn't mask (the
        normal limit of von Neumann's ratio; Bartels, JASA 77, 1982; each at 5 %), and on the ranks at up to 10 lags
        together, where a closed loop's period shows (Ljung & Box, Biometrika 65, 1978; at 1 %).
        """
        n, lags = self.n, min(10, self.n // 5)
        if lags < 1 or np.ptp(self._bounded) == 0:
            return True
        if abs(self._lag_1) > _Z / math.sqrt(n):
            return False
        _, where, counts = np.unique(self._bounded, return_inverse=True, return_counts=True)
        found = _autocorrelations((np.cumsum(counts) - (counts - 1) / 2)[where], lags)
        if abs(found[0]) > _Z / math.sqrt(n):
            return False
        portmanteau = n * (n + 2) * sum(r**2 / (n - lag) for lag, r in enumerate(found, 1))
        return portmanteau <= chi_square_quantile(0.99, lags)

    def rows_needed(self, q: float | None = None) -> int:
        """How many values of this kind carry an interval of the mean, or of the percentile `q`: at most their own
        number where these do.

        Independent values: MIN_ROWS, or for a percentile the number at which an order statistic bounds it on both
        sides. Dependent ones: MIN_DEPENDENT_ROWS where like follows like; 400 times (percentiles beyond 95 %:
        20/(1-q) times) the correlation time (1 + r)/(1 - r) of their lag-1 autocorrelation r; and 200 times that of
        BATCHES batch means, which must themselves be uncorrelated. The factors are ours: below them the simulated
        coverage falls under 93 %.
        """
        tail = 0.5 if q is None else min(q, 1 - q)
        if self.n < MIN_ROWS or self.is_independent:
            return max(
                MIN_ROWS, 0 if q is None else math.ceil(math.log(0.025) / math.log(1 - tail))
            )
        return max(MIN_DEPENDENT_ROWS if self._lag_1 > 0 else MIN_ROWS, self._dependent_rows(q))

    def _dependent_rows(self, q: float | None) -> int:
        tail = 0.5 if q is None else min(q, 1 - q)
        lag_1, batches = self._correlation_times
        needed = max(max(400, 20 / tail) * max(1, lag_1), 200 * batches)
        if abs(self._batch_correlation) > 2.58 / math.sqrt(
            BATCHES
        ):  # 1 %: the batches are too short, or it drifts
            needed = max(needed, 2 * self.n)
        return math.ceil(needed - 1e-9)

    def effective_number(self) -> int:
        """How many independent values these are worth: n over the correlation time (1 + r)/(1 - r), or over the
        variance inflation of batch means where that is more; n itself where they show no dependence. At least 1."""
        return (
            self.n
            if self.is_independent
            else max(1, int(self.n / max(1.0, *self._correlation_times)))
        )

    def mean_interval(self) -> Interval:
        """The mean's interval, in the values' unit; None where they carry none (see rows_needed).

        Student's t over the values, or over BATCHES batch means where they depend on each other, corrected for
        skewness. Of dependent series near the limit those pass which look calmer than they are: the interval of one
        just long enough is 4.5 times as wide, of one half as long again no wider. Sources: Willink, "A confidence
        interval and test for the mean of an asymmetric distribution", Communications in Statistics 34 (2005); batch
        means as in Tafazzoli & Wilson, "Skart", IIE Transactions 43 (2011).
        """
        if not np.isfinite(self.values).all() or self.rows_needed() > self.n:
            return None
        if self.is_independent:
            return _t_interval(self.values, 1)
        widening = 1 + 3.5 * max(0.0, 3 - 2 * self.n / self._dependent_rows(None)) ** 2
        return _t_interval(_batch_means(self.values), widening)

    def percentile_interval(self, q: float) -> Interval:
        """The interval of the percentile `q`, two of the values; None where they carry none (see rows_needed).

        Independent values: order statistics by the binomial (Hahn & Meeker, "Statistical Intervals", 1991, section
        5.2). Dependent ones: the same ranks for an effective number of values, n over the variance inflation of the
        share below the percentile among BATCHES batches, with Student's t for the normal (Korn & Graubard, Survey
        Methodology 24, 1998; for a quantile as by Woodruff, JASA 47, 1952); widened near the limit like the mean's, by
        up to 2.4.
        """
        n = effective = self.n
        if not 0 < q < 1 or self.rows_needed(q) > n:
            return None
        ordered = self._ordered
        if not self.is_independent:
            below = (self.values <= ordered[math.ceil(n * q - 1e-9) - 1]).astype(float)
            inflation = max(
                1, (n // BATCHES) * float(_batch_means(below).var(ddof=1) / max(below.var(), 1 / n))
            )
            widening = max(1.0, 5.2 - 2.8 * n / self._dependent_rows(q))
            effective = int(n / inflation * (_Z / t_quantile(0.975, BATCHES - 1) / widening) ** 2)
        low, high = order_ranks(effective, q)
        if low < 1 or high > effective:
            return None
        first, last = math.floor(low * n / effective) - 1, math.ceil(high * n / effective) - 1
        return (
            (float(ordered[first]), float(ordered[last])) if math.isfinite(ordered[last]) else None
        )

    @cached_property
    def _bounded(self) -> Series:
        missing = ~np.isfinite(self.values)
        return (
            np.where(missing, self.values[~missing].max(initial=0.0), self.values)
            if missing.any()
            else self.values
        )

    @cached_property
    def _ordered(self) -> Series:
        return np.sort(np.where(np.isnan(self.values), np.inf, self.values))

    @cached_property
    def _lag_1(self) -> float:
        return _autocorrelations(self._bounded, 1)[0]

    @cached_property
    def _batch_correlation(self) -> float:
        return _autocorrelations(_batch_means(self._bounded), 1)[0]

    @cached_property
    def _correlation_times(self) -> tuple[float, float]:
        """How many successive values are worth one independent one, by the lag-1 autocorrelation and by batch means."""
        r, size = min(self._lag_1, 1 - 1 / self.n), self.n // BATCHES
        batches = (
            size * float(_batch_means(self._bounded).var(ddof=1) / self._bounded.var())
            if size
            else 1.0
        )
        return (1 + r) / (1 - r), batches


def runs_interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of at least 5 independent runs' figures, by Student's t; None for fewer."""
    if len(values) < 5:
        return None
    half = (
        t_quantile(0.975, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    )
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def line(x: Iterable[float], y: Iterable[float]) -> tuple[float, Interval, float, Interval] | None:
    """Intercept and slope of y on x by ordinary least squares, each with its interval by Student's t.

    The interval takes y's errors as independent and alike; it is None where fewer than 3 degrees of freedom are left,
    and the line is where x has fewer than two values. Source: Draper & Smith, "Applied Regression Analysis", 1.4.
    """
    xs, ys = np.asarray(list(x), dtype=float), np.asarray(list(y), dtype=float)
    spread, df = float(((xs - xs.mean()) ** 2).sum()) if len(xs) else 0.0, len(xs) - 2
    if not spread:
        return None
    slope = float(((xs - xs.mean()) * ys).sum()) / spread
    intercept = float(ys.mean()) - slope * float(xs.mean())
    if df < 3:
        return intercept, None, slope, None
    error = t_quantile(0.975, df) * math.sqrt(
        float(((ys - intercept - slope * xs) ** 2).sum()) / df
    )
    beside, along = (
        error * math.sqrt(1 / len(xs) + float(xs.mean()) ** 2 / spread),
        error / math.sqrt(spread),
    )
    return (
        intercept,
        (intercept - beside, intercept + beside),
        slope,
        (slope - along, slope + along),
    )


def growth(values: Iterable[float]) -> tuple[float, Interval] | None:
    """By how much `values` grow from one to the next, and the interval; None for fewer than 40.

    The first quarter is left out, as caches fill. The rest is cut into 10 blocks, and the interval is of the
    differences between the means of successive blocks: a level that wanders or jumps has few of them, and so shows
    nothing, where a line through all values would take it for a trend. In a random walk two neighbouring differences
    correlate by 1/4, so the variance of their mean is half as much again as that of independent ones.
    """
    series = np.asarray(list(values), dtype=float)
    size = (len(series) - len(series) // 4) // 10
    if len(series) < 40:
        return None
    steps = np.diff(series[-10 * size :].reshape(10, size).mean(axis=1)) / size
    mean, spread = float(steps.mean()), math.sqrt(1.5)
    interval = runs_interval(list(steps))
    return mean, interval and (
        mean + (interval[0] - mean) * spread,
        mean + (interval[1] - mean) * spread,
    )


def mser5(values: Iterable[float]) -> int:
    """How many of the first values belong to the start-up: MSER-5's cut, a multiple of 5, at most half of them.

    Source: White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69 (1997):
    the cut that leaves the mean of the rest, in batches of 5, with the smallest standard error.
    """
    series = Estimates(values)._bounded
    means = series[: len(series) // 5 * 5].reshape(-1, 5).mean(axis=1)
    errors = (
        [float(np.var(means[cut:])) / (len(means) - cut) for cut in range(len(means) // 2 + 1)]
        if len(means)
        else [0]
    )
    return 5 * int(np.argmin(errors))


def is_stable(values: Iterable[float]) -> bool | None:
    """False where the values still drift, None where fewer than 40 can't say.

    They drift where 10 batch means rise or fall so steadily that chance would do it once in 1,000 times (Mann,
    "Nonparametric tests against trend", Econometrica 13, 1945) and their last third is 10 % off their first.
    """
    series = Estimates(values)._bounded
    if len(series) < 40:
        return None
    means = series[: len(series) // 10 * 10].reshape(10, -1).mean(axis=1)
    rises = sum(float(np.sign(means[i + 1 :] - means[i]).sum()) for i in range(10))
    first, last = means[:3].mean(), means[-3:].mean()
    return not (abs(rises) >= 33 and abs(last - first) > 0.1 * min(first, last))


@lru_cache(maxsize=4096)
def order_ranks(n: int, q: float) -> tuple[int, int]:
    """The ranks (from 1) of the ordered values that hold the percentile `q` between them; 0 or n + 1: there is none."""
    low = bisect_right(range(n), 0.025, key=lambda k: binomial_cdf(k, n, q))
    return low, bisect_left(range(n), 0.975, key=lambda k: binomial_cdf(k, n, q)) + 1


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(at most k of n), each with probability p."""
    return 1.0 if k >= n else 0.0 if k < 0 else _incomplete_beta(n - k, k + 1, 1 - p)


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """Student's t that a share `p` >= 0.5 does not exceed, by bisection; `df` may be a fraction."""
    low, high = 0.0, 1e4
    while high - low > 1e-10 * (1 + low):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if 1 - _incomplete_beta(df / 2, 0.5, df / (df + middle**2)) / 2 < p
            else (low, middle)
        )
    return high


def chi_square_quantile(p: float, df: int) -> float:
    """Wilson & Hilferty's approximation (1931), within 1 % from 3 degrees of freedom on."""
    return df * (1 - 2 / (9 * df) + NormalDist().inv_cdf(p) * math.sqrt(2 / (9 * df))) ** 3


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function by its continued fraction (DLMF 8.17.22), Lentz's way."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-13:
            break
    return math.exp(front) / a * value


def _t_interval(values: Series, widening: float) -> Interval:
    n, mean, deviation = len(values), float(values.mean()), float(values.std())
    if deviation == 0:
        return mean, mean
    t, error = t_quantile(0.975, n - 1), widening * deviation / math.sqrt(n - 1)
    a = float(((values - mean) ** 3).mean()) / deviation**3 / (6 * math.sqrt(n))

    def adjusted(r: float) -> float:
        return r if abs(a) < 1e-3 else (float(np.cbrt(1 + 6 * a * (r - a))) - 1) / (2 * a)

    return mean - adjusted(t) * error, mean - adjusted(-t) * error


def _autocorrelations(series: Series, lags: int) -> list[float]:
    """At lag 1 up to `lags`; 0 for values that are all alike."""
    centred = series - series.mean()
    square = float(centred @ centred)
    return [
        float(centred[lag:] @ centred[:-lag]) / square if square else 0.0
        for lag in range(1, lags + 1)
    ]


def _batch_means(series: Series) -> Series:
    size = len(series) // BATCHES
    means: Series = series[len(series) - size * BATCHES :].reshape(BATCHES, size).mean(axis=1)
    return means
