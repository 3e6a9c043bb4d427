"""The arrivals of a day: by a curve with one peak, or by the moments in a trace's file.

    day = DayCurve(mean_rate=5.0, peak_hour=14.0, peak_factor=2.0)
    day.arrivals(seed=0)

Moments are seconds. The day begins after WARM_UP_S seconds, so that its first requests meet cards
that are at work. Knows random numbers and files of arrivals. Ignorant of cards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from benchlib.load.arrivals import Trace
from benchlib.load.bounds import check_number
from benchlib.study.services import Floats
from benchlib.study.wording import counted, number, per_second

DAY_S = 86_400.0
WARM_UP_S = 3600.0
"""The hour before the day's first request that counts."""
GRID_S = 60.0
"""Between moments that lie so far apart the curve counts as straight."""
MOST_REQUESTS = 5_000_000
"""More requests in a day would take minutes to simulate."""
LEAST_TRACE_H = 18.0
"""A shorter trace is no day: how many cards its other hours need is not known."""
HIGHEST_FACTOR = 10.0
SAMPLE_PEAK = 1.7
"""The peak of a sample day, beside what one card can make: so that one card is too few."""
QUARTER_S = 900.0
WINDOWS_S: Sequence[float] = (300.0, 600.0, 900.0, 1800.0, 3600.0)
LEAST_IN_WINDOW = 1000
"""With so many requests a share of 95 % is known within about 1.4 %, if they were independent."""


@dataclass(frozen=True)
class DayCurve:
    """Requests at random moments, whose rate follows a curve with one peak a day.

    `mean_rate` is requests/s over the day. At `peak_hour` (0 to 24) the rate is `peak_factor` times
    that. The curve is that of von Mises, the normal distribution on a circle: rate(t) is mean_rate
    times exp(k cos(t)) / I0(k). `is_sample` says that nobody gave this rate. Raises ValueError that
    names the field.
    """

    mean_rate: float
    peak_hour: float = 14.0
    peak_factor: float = 2.0
    is_sample: bool = False

    def __post_init__(self) -> None:
        check_number("mean_rate", self.mean_rate, 0, above=True)
        check_number("peak_hour", self.peak_hour, 0, 24)
        check_number("peak_factor", self.peak_factor, 1, HIGHEST_FACTOR)
        _check_requests("mean_rate", self.mean_rate * DAY_S)

    def __str__(self) -> str:
        mean = per_second(self.mean_rate, "request")
        peak = number(self.peak_rate)
        sample = "A sample day" if self.is_sample else "A day"
        return f"{sample} of {mean} in the mean, and {peak} at {_clock(self.peak_hour)}"

    @property
    def peak_rate(self) -> float:
        """The highest requests/s."""
        return self.mean_rate * self.peak_factor

    @property
    def peak_s(self) -> float:
        """When the rate is highest, in seconds of the simulation."""
        return WARM_UP_S + self.peak_hour % 24 * 3600

    @cached_property
    def _concentration(self) -> float:
        """The k at which the curve's peak is `peak_factor` times its mean."""
        from scipy.optimize import brentq
        from scipy.special import i0e

        if self.peak_factor == 1:
            return 0.0
        return float(brentq(lambda k: 1 / i0e(k) - self.peak_factor, 0.0, 1000.0))

    def rate_at(self, moments_s: Floats) -> Floats:
        """Requests/s at moments of the simulation, in seconds."""
        from scipy.special import i0e

        k = self._concentration
        angle = 2 * math.pi * (moments_s - self.peak_s) / DAY_S
        rate: Floats = self.mean_rate * np.exp(k * (np.cos(angle) - 1)) / i0e(k)
        return rate

    def arrivals(self, seed: int) -> Floats:
        """When the requests of a day come, in order: a Poisson process whose rate is the curve.

        As many as chance gives, at the moments where the expected number reaches uniform random
        shares of its whole. Source: Cinlar, "Introduction to Stochastic Processes" (1975).
        """
        random = np.random.default_rng(seed)
        grid_s = np.arange(0.0, WARM_UP_S + DAY_S + GRID_S, GRID_S)
        rate = self.rate_at(grid_s)
        of_each = GRID_S * (rate[1:] + rate[:-1]) / 2
        expected = np.concatenate([[0.0], np.cumsum(of_each)])
        shares = np.sort(random.random(random.poisson(expected[-1])))
        moments_s: Floats = np.interp(shares * expected[-1], expected, grid_s)
        return moments_s


@dataclass(frozen=True)
class DayTrace:
    """Requests at the moments that a file holds; the file's second 0 is midnight.

    A file of several days gives one after the other. The hour before a day is the one of the day
    before, or the last hour of all. Raises ValueError that names the file.
    """

    path: Path
    times_s: Floats = field(repr=False)

    @classmethod
    def from_file(cls, path: Path | str) -> DayTrace:
        """The day or days of a .csv or .jsonl file with a column `time_s`, in seconds."""
        times_s = np.array(Trace.from_file(path).times_s, dtype=np.float64)
        hours = float(times_s[-1]) / 3600
        if hours < LEAST_TRACE_H:
            raise ValueError(
                f"{path}: its last arrival is at {number(hours)} h, and the question is about a "
                f"day; give {LEAST_TRACE_H:g} hours or more, time_s in seconds from midnight"
            )
        trace = cls(Path(path), times_s)
        _check_requests(str(path), len(times_s) / trace.days)
        return trace

    def __str__(self) -> str:
        mean = per_second(self.mean_rate, "request")
        days = counted(self.days, "day")
        peak = f"{number(self.peak_rate)} in the busiest quarter of an hour"
        return f"{days} of {self.path.name}: {mean} in the mean, and {peak}"

    @property
    def days(self) -> int:
        return max(1, round(float(self.times_s[-1]) / DAY_S))

    @property
    def mean_rate(self) -> float:
        """Requests/s, over all days."""
        return len(self.times_s) / (self.days * DAY_S)

    @property
    def is_sample(self) -> bool:
        return False

    @property
    def peak_rate(self) -> float:
        """Requests/s in the busiest quarter of an hour."""
        return float(self._quarters.max()) / QUARTER_S

    @property
    def peak_s(self) -> float:
        """The middle of the busiest quarter of an hour, in seconds of the simulation of its day."""
        busiest = int(self._quarters.argmax())
        return WARM_UP_S + (busiest + 0.5) * QUARTER_S % DAY_S

    @cached_property
    def _quarters(self) -> Floats:
        edges_s = np.arange(0.0, self.days * DAY_S + QUARTER_S, QUARTER_S)
        counts, _ = np.histogram(self.times_s, edges_s)
        return counts.astype(np.float64)

    def arrivals(self, seed: int) -> Floats:
        """When the requests of day `seed` come, in order; days of the file take turns."""
        begin_s = seed % self.days * DAY_S
        before_s = begin_s - WARM_UP_S
        circle_s = self.days * DAY_S
        times_s = np.concatenate([self.times_s - circle_s, self.times_s])
        is_of_day = (times_s >= before_s) & (times_s < begin_s + DAY_S)
        moments_s: Floats = times_s[is_of_day] - before_s
        return moments_s


Day = DayCurve | DayTrace


def plan_day(
    most_images_per_s: float,
    *,
    trace: Path | str | None = None,
    mean_rate: float | None = None,
    peak_hour: float = 14.0,
    peak_factor: float = 2.0,
) -> Day:
    """The day of a file `trace`, or of a curve of `mean_rate` requests/s.

    Without either it is a sample day, scaled to one card that makes `most_images_per_s`: its peak
    asks for SAMPLE_PEAK times as much. Raises ValueError that names the argument or the file.
    """
    if trace is not None:
        return DayTrace.from_file(trace)
    if mean_rate is not None:
        return DayCurve(mean_rate, peak_hour, peak_factor)
    check_number("peak_factor", peak_factor, 1, HIGHEST_FACTOR)
    sample_rate = SAMPLE_PEAK * most_images_per_s / peak_factor
    return DayCurve(sample_rate, peak_hour, peak_factor, is_sample=True)


def window_for(mean_rate: float) -> float:
    """The seconds of a window in which a promise is judged: so many that a share of them says something.

    A window should have LEAST_IN_WINDOW requests in the mean. None is longer than an hour.
    """
    for window_s in WINDOWS_S:
        if mean_rate * window_s >= LEAST_IN_WINDOW:
            return window_s
    return WINDOWS_S[-1]


def _check_requests(name: str, requests: float) -> None:
    if requests > MOST_REQUESTS:
        raise ValueError(
            f"{name}: a day of {requests:,.0f} requests takes minutes to simulate; give at most "
            f"{MOST_REQUESTS:,}, such as a tenth of it, and multiply the cards"
        )


def _clock(hour: float) -> str:
    """An hour of the day as a clock shows it: 14.5 is "14:30"."""
    minutes = round(60 * hour) % 1440
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
