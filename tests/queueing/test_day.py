"""A day's arrivals: the curve's mean and peak, and days from a file."""

import numpy as np
import pytest

from benchlib.queueing.day import (
    DAY_S,
    SAMPLE_PEAK,
    WARM_UP_S,
    DayCurve,
    DayTrace,
    plan_day,
    window_for,
)


@pytest.mark.parametrize("factor", [1, 1.5, 2.0, 6.0])
def test_the_curve_has_the_mean_and_the_peak_that_were_asked_for(factor):
    day = DayCurve(3.0, peak_hour=14, peak_factor=factor)
    moments_s = WARM_UP_S + np.arange(0, DAY_S, 60)
    rates = day.rate_at(moments_s)
    assert rates.mean() == pytest.approx(3.0, rel=1e-6)
    assert rates.max() == pytest.approx(3.0 * factor, rel=1e-3)
    if factor > 1:
        assert moments_s[rates.argmax()] - WARM_UP_S == 14 * 3600
    assert day.rate_at(moments_s + DAY_S) == pytest.approx(rates)


def test_arrivals_follow_the_curve_as_chance_has_it():
    day = DayCurve(5.0, peak_hour=20, peak_factor=3)
    arrived_s = day.arrivals(seed=1)
    assert (np.diff(arrived_s) >= 0).all()
    assert arrived_s[0] >= 0
    edges_s = np.linspace(0, WARM_UP_S + DAY_S, 51)
    counts, _ = np.histogram(arrived_s, edges_s)
    middle_s = (edges_s[1:] + edges_s[:-1]) / 2
    expected = day.rate_at(middle_s) * np.diff(edges_s)
    # Poisson: the squares of the standardised counts have the mean 1.
    assert np.mean((counts - expected) ** 2 / expected) == pytest.approx(1, abs=0.6)
    np.testing.assert_array_equal(arrived_s, day.arrivals(seed=1))
    assert len(day.arrivals(seed=2)) != len(arrived_s)


def write(path, moments_s):
    lines = [f"{moment_s:.3f}" for moment_s in moments_s]
    path.write_text("\n".join(["time_s", *lines]) + "\n")
    return path


def test_a_file_of_two_days_gives_them_in_turns_with_the_hour_before(tmp_path):
    first_s = [60.0, 3600.0, 50_000.0, 86_000.0]
    second_s = [86_400.0 + moment_s for moment_s in (10.0, 43_200.0, 86_399.0)]
    day = DayTrace.from_file(write(tmp_path / "days.csv", first_s + second_s))
    assert day.days == 2
    assert day.mean_rate == pytest.approx(7 / (2 * DAY_S))
    before, *rest = day.arrivals(seed=0)
    assert before == pytest.approx(WARM_UP_S - 1), "the last hour of all"
    assert rest == pytest.approx([WARM_UP_S + moment_s for moment_s in first_s])
    begun = day.arrivals(seed=1)
    assert begun[:2] == pytest.approx([WARM_UP_S - 400, WARM_UP_S + 10])
    assert len(day.arrivals(seed=2)) == 5, "the first day again"
    assert "2 days of days.csv" in str(day)


def test_a_trace_of_an_hour_is_no_day(tmp_path):
    path = write(tmp_path / "hour.csv", [1.0, 3600.0])
    with pytest.raises(ValueError, match=r"hour\.csv: its last arrival is at 1 h"):
        DayTrace.from_file(path)


def test_the_peak_of_a_trace_is_its_busiest_quarter_of_an_hour(tmp_path):
    busy_s = 10 * 3600 + np.linspace(0, 890, 90)
    day = DayTrace.from_file(write(tmp_path / "day.csv", [5.0, *busy_s, 80_000.0]))
    assert day.peak_rate == pytest.approx(90 / 900)
    assert day.peak_s == pytest.approx(WARM_UP_S + 10 * 3600 + 450)


def test_a_sample_day_is_scaled_to_the_card_and_a_given_rate_is_not():
    sample = plan_day(4.0, peak_factor=2.5)
    assert sample.is_sample
    assert sample.peak_rate == pytest.approx(SAMPLE_PEAK * 4.0)
    given = plan_day(4.0, mean_rate=0.2, peak_hour=9.5)
    assert (given.is_sample, given.mean_rate) == (False, 0.2)
    assert str(given) == "A day of 0.2 requests/s in the mean, and 0.4 at 09:30"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("mean_rate", {"mean_rate": 0}),
        ("mean_rate", {"mean_rate": 100.0}),
        ("peak_hour", {"mean_rate": 1, "peak_hour": 25}),
        ("peak_factor", {"peak_factor": 0.5}),
    ],
)
def test_a_bad_day_is_named(name, given):
    with pytest.raises(ValueError, match=f"^{name}"):
        plan_day(4.0, **given)


def test_windows_hold_a_thousand_requests_or_last_an_hour():
    assert window_for(10.0) == 300
    assert window_for(1.2) == 900
    assert window_for(0.01) == 3600
