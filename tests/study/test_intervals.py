"""Intervals and tests against printed tables, exact sums, and series of known truth."""

import math

import numpy as np
import pytest

from benchlib.study import intervals
from benchlib.study.intervals import Estimates, is_stable
from benchmarks.interval_coverage import coverage, draw, truth, wait_cdf


def series(data: str, n: int, seed: int = 0) -> np.ndarray:
    return draw(data, n, np.random.default_rng(seed))


# The table of Student (1908) as printed in any textbook: two-sided 5 % and 1 %.
@pytest.mark.parametrize(
    ("p", "df", "expected"),
    [
        (0.975, 1, 12.706),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 19, 2.093),
        (0.975, 120, 1.980),
        (0.995, 5, 4.032),
    ],
)
def test_t_quantiles(p: float, df: int, expected: float) -> None:
    assert intervals.t_quantile(p, df) == pytest.approx(expected, abs=5e-4)


# Closed forms: tan(pi (p - 1/2)) for one degree of freedom, (2p - 1) sqrt(2 / (4p (1 - p))) for two.
@pytest.mark.parametrize("p", [0.6, 0.975, 0.99998])
def test_t_quantiles_against_closed_forms(p: float) -> None:
    one = math.tan(math.pi * (p - 0.5))
    assert intervals.t_quantile(p, 1) == pytest.approx(one, rel=1e-7)
    two = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    assert intervals.t_quantile(p, 2) == pytest.approx(two, rel=1e-7)


def test_a_fraction_of_a_degree_of_freedom_counts() -> None:
    t = [intervals.t_quantile(0.975, df) for df in (4, 4.5, 5)]
    assert t[0] > t[1] > t[2]
    # Computed by bisection of the incomplete beta function.
    assert t[1] == pytest.approx(2.6589123473, rel=1e-7)


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (10, 0.3), (73, 0.95), (400, 0.99)])
def test_the_binomial_against_its_exact_sum(n: int, p: float) -> None:
    exact = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    assert [intervals.binomial_cdf(k, n, p) for k in range(n + 1)] == pytest.approx(
        exact.tolist(), abs=1e-12
    )


# The median's ranks: Conover, "Practical Nonparametric Statistics". By hand: 0.95^72 is the first under 2.5 %.
@pytest.mark.parametrize(
    ("n", "q", "ranks"),
    [
        (10, 0.5, (2, 9)),
        (20, 0.5, (6, 15)),
        (100, 0.5, (40, 61)),
        (72, 0.95, (64, 72)),
        (71, 0.95, (63, 72)),
    ],
)
def test_order_ranks(n: int, q: float, ranks: tuple[int, int]) -> None:
    assert intervals.order_ranks(n, q) == ranks


def test_an_independent_percentile_lies_between_its_order_statistics() -> None:
    values = np.random.default_rng(3).permutation(np.arange(1.0, 401.0))
    assert Estimates(values).is_independent
    low, high = intervals.order_ranks(400, 0.5)
    assert Estimates(values).percentile_interval(0.5) == (low, high)
    assert Estimates(values).percentile_interval(0.999) is None
    values[values > 396] = math.nan  # NaN ranks after all others, wherever it stands
    low, high = intervals.order_ranks(400, 0.95)
    assert Estimates(values).percentile_interval(0.95) == (low, high)
    values[values > high - 1] = math.nan
    assert Estimates(values).percentile_interval(0.95) is None


def test_the_mean_of_independent_values_by_hand() -> None:
    # no skewness: Student's t alone
    values = np.random.default_rng(2).permutation(np.repeat([-1.0, 1.0], 200))
    assert Estimates(values).is_independent
    half = 1.96593 * math.sqrt(400 / 399) / math.sqrt(400)  # t with 399 degrees of freedom
    assert Estimates(values).mean_interval() == pytest.approx((-half, half), abs=1e-5)
    assert Estimates(np.full(300, 2.5)).mean_interval() == (2.5, 2.5)
    assert Estimates([*values, math.nan]).mean_interval() is None


def test_a_skewed_mean_reaches_further_to_its_long_side() -> None:
    values = series("lognormal", 400)
    low, high = Estimates(values).mean_interval() or (0.0, 0.0)
    assert high - values.mean() > 1.02 * (values.mean() - low) > 0


def test_runs_by_hand() -> None:
    assert intervals.runs_interval([1, 2, 3, 4]) is None
    assert intervals.runs_interval([1, 2, 3, 4, 5]) == pytest.approx(
        (3 - 1.9633, 3 + 1.9633), abs=1e-4
    )


def test_a_line_by_hand() -> None:
    # Less their means, x is -2 to 2 and y is -4, -2, 1, 1, 4. The squares of x add up to 10, the products to 19.
    intercept, beside, slope, along = intervals.line([0, 1, 2, 3, 4], [1, 3, 6, 6, 9]) or [None] * 4
    assert (intercept, slope) == pytest.approx((1.2, 1.9))
    residuals = np.array([1, 3, 6, 6, 9]) - (1.2 + 1.9 * np.arange(5))
    error = 3.1824463 * math.sqrt(float(residuals @ residuals) / 3)  # t with 3 degrees of freedom
    assert along == pytest.approx((1.9 - error / math.sqrt(10), 1.9 + error / math.sqrt(10)))
    half = error * math.sqrt(1 / 5 + 2**2 / 10)
    assert beside == pytest.approx((1.2 - half, 1.2 + half))
    assert intervals.line([0, 1, 2, 3], [1, 3, 6, 6]) == (
        pytest.approx(1.3),
        None,
        pytest.approx(1.8),
        None,
    )
    assert intervals.line([2, 2], [1, 3]) is None
    assert intervals.line([], []) is None


def test_dependence_is_seen() -> None:
    assert Estimates(series("lognormal", 2000)).is_independent
    assert not Estimates(series("M/D/1 0.5", 300)).is_independent
    assert not Estimates(np.arange(50.0)).is_independent
    loop = np.tile([1.0, 3.0, 4.0, 2.0], 60) + np.random.default_rng(0).normal(0, 1, 240)
    assert not Estimates(loop).is_independent
    assert Estimates([]).is_independent
    assert Estimates([1.0] * 500).is_independent


def test_too_short_a_queue_gets_no_interval_but_the_rows_that_it_needs() -> None:
    minute = series("M/D/1 0.8", 960)  # 60 s of a 50 ms server
    assert Estimates(minute).mean_interval() is None
    assert Estimates(minute).percentile_interval(0.95) is None
    assert 4000 < Estimates(minute).rows_needed() == Estimates(minute).rows_needed(0.95) < 40_000
    assert Estimates(minute).rows_needed(0.99) > 1.9 * Estimates(minute).rows_needed()
    # 0.99^368 is the first under 2.5 %
    assert Estimates(series("exponential", 1000)).rows_needed(0.99) == 368
    assert Estimates([]).rows_needed() == intervals.MIN_ROWS
    assert 5 < Estimates(minute).effective_number() < 100
    assert Estimates(series("exponential", 1000)).effective_number() == 1000


def test_overload_drifts_and_a_busy_queue_does_not() -> None:
    overload = np.cumsum(1 - np.random.default_rng(0).exponential(1 / 1.5, 600))
    assert is_stable(overload) is False
    assert is_stable(overload[::-1]) is False
    assert is_stable(overload[:39]) is None
    assert sum(is_stable(series("M/D/1 0.8", 960, seed)) is False for seed in range(50)) <= 1
    assert is_stable(1 + 0.0001 * np.arange(600)) is True  # 6 % in all
    stall = np.full(400, 0.05)
    stall[180:220] = np.linspace(2, 0.05, 40)
    assert is_stable(stall) is True


def test_two_published_formulas_of_the_queue_agree() -> None:
    assert wait_cdf(0, 0.8) == pytest.approx(0.2)
    steps = np.arange(0, 60, 0.01)
    # the mean is the integral of the tail
    beyond = 1 - np.array([wait_cdf(step, 0.5) for step in steps[:2500]])
    assert 1 + np.trapezoid(beyond, steps[:2500]) == pytest.approx(
        truth("M/D/1 0.5", None), abs=1e-3
    )
    long = series("M/D/1 0.8", 400_000)
    assert np.quantile(long, 0.9) == pytest.approx(truth("M/D/1 0.8", 0.9), rel=0.05)


# benchmarks/interval_coverage.py prints the same for 4,000 series of each.
@pytest.mark.parametrize(
    ("data", "n", "simulations"),
    [("exponential", 200, 400), ("lognormal", 1000, 400), ("M/D/1 0.5", 4000, 200)],
)
def test_intervals_hold_the_truth(data: str, n: int, simulations: int) -> None:
    table = coverage(data, n, simulations).set_index("estimate")
    given = table[table["given"] > 0]
    assert {"mean", "p50", "p90", "p95"} <= set(given.index)
    assert (given["covers"] >= 0.93 - 2 * math.sqrt(0.05 * 0.95 / simulations)).all()
    assert (table["wrong"] <= 0.08).all()


def test_no_short_queue_gets_an_interval() -> None:
    assert (coverage("M/D/1 0.8", 960, 100)["given"] == 0).all()


def test_the_interval_of_five_runs_by_hand() -> None:
    interval = intervals.runs_interval([1, 2, 3, 4, 5])
    assert interval == pytest.approx((1.0367, 4.9633), abs=1e-4)  # 2.7764 * 1.5811 / sqrt(5)
    assert intervals.runs_interval([1, 2, 3, 4]) is None


def test_few_values_without_skew_have_students_interval() -> None:
    # Mean 3, deviation sqrt(2.5), 4 degrees of freedom: 3 -+ 2.776 * sqrt(2.5 / 5).
    assert intervals.few_interval([1, 2, 3, 4, 5]) == pytest.approx((1.0368, 4.9632), abs=1e-3)
    assert intervals.few_interval([1, 2, 3, 4]) is None


def test_few_skewed_values_are_held_more_often_than_by_student() -> None:
    random = np.random.default_rng(7)
    held = {intervals.few_interval: 0, intervals.runs_interval: 0}
    for _ in range(1000):
        values = random.exponential(size=8)
        for interval in held:
            low, high = interval(values)
            held[interval] += low <= 1 <= high
    assert held[intervals.few_interval] > 920
    assert held[intervals.few_interval] > held[intervals.runs_interval] + 20
