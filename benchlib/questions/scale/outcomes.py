"""What several simulated days showed of fleets of cards, as plain figures with their intervals.

Knows arrays with a row for each day. Ignorant of how a day is simulated (fleets.py), and of how an
answer is worded (judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchlib.study.intervals import Interval, t_quantile
from benchlib.study.wording import counted, words

Floats = np.ndarray[Any, np.dtype[np.float64]]

TOLERATED_H = 0.5
"""Of several autoscalers the cheapest is named that breaks the promise for at most so many hours."""

HOURS = 24.0
UNSURE = 2.0
"""Where the hardest day needs so many times the cards of the easiest, and two more at least, the
answer is not known."""


@dataclass(frozen=True)
class FleetDays:
    """What one fleet did on each simulated day. It has `least` to `most` cards.

    | field            | holds                                                              |
    |------------------|--------------------------------------------------------------------|
    | `target_ongoing` | the autoscaler's requests a card; None: the number is fixed        |
    | `in_time`        | by day and window: the share within the promise, NaN for no request |
    | `broken_h`       | by day: hours of the windows in which the promise was broken       |
    | `card_hours`     | by day: hours of cards that are paid for                           |
    | `images`         | by day                                                             |
    | `late`           | by day: the share of images beyond the promise's limit             |
    | `cards`          | by window: the mean number of cards that are paid for              |
    """

    least: int
    most: int
    target_ongoing: float | None
    q: float
    in_time: Floats
    broken_h: Floats
    card_hours: Floats
    images: Floats
    late: Floats
    cards: Floats

    @property
    def is_fixed(self) -> bool:
        return self.target_ongoing is None

    @property
    def days(self) -> int:
        return len(self.broken_h)

    @property
    def broken_days(self) -> int:
        """On how many days the promise was broken in any window."""
        return int((self.broken_h > 0).sum())

    @property
    def keeps(self) -> bool:
        """Whether the promise was kept in every window of every day."""
        return self.broken_days == 0

    @property
    def broken_share(self) -> Floats:
        """By window: on which share of the days the promise was broken in it."""
        is_broken = self.in_time < self.q
        share: Floats = is_broken.mean(axis=0)
        return share

    @property
    def images_per_card_hour(self) -> Floats:
        """By day: the images for one hour of one card."""
        return self.images / self.card_hours


@dataclass(frozen=True)
class DayOutlook:
    """What a day would cost and keep with several fleets, and what that was found from.

    - `slo`, `day`: the promise, and the day in words; `rates`: requests/s by window, in the mean.
    - `fixed`: fleets of a fixed number of cards, the fewest first. `scaled`: autoscaled ones.
    - `failing`: the fewest cards that keep the promise, if one of them fails at the peak.
    - `refusal`: why nothing is foretold; None: something is.
    - `server`: model and settings in words; `card`: what a card is called ("H100"), None: no GPU.
    - `images`: of how many images the estimate is made; `source`: where they were measured.
    - `remarks`: why the estimate is wider, in words.
    - `startup_s`, `restart_s`: seconds until a card is ready; `startup_is_measured`: by this study.
    - `mtbf_h`: mean hours between the failures of a card; None: none fails.
    - `price_per_hour`: of one card; None: not known.
    - `cut`: how many days of how many were simulated, and why; None: all were.
    """

    slo: str
    q: float
    limit_s: float
    day: str
    requests: float
    window_s: float
    rates: Floats
    fixed: tuple[FleetDays, ...]
    scaled: tuple[FleetDays, ...]
    failing: FleetDays | None
    refusal: str | None
    server: str
    is_tiny: bool
    card: str | None
    images: int
    image_s: float
    source: str
    remarks: tuple[str, ...]
    startup_s: float
    restart_s: float
    startup_is_measured: bool
    mtbf_h: float | None
    price_per_hour: float | None
    cut: str | None = None

    @property
    def enough(self) -> FleetDays | None:
        """The fewest cards that keep the promise all day, on every simulated day; None: none did."""
        return next((fleet for fleet in self.fixed if fleet.keeps), None)

    @property
    def too_few(self) -> FleetDays | None:
        """The most cards that do not keep it; None: one card does."""
        broken = [fleet for fleet in self.fixed if not fleet.keeps]
        return broken[-1] if broken else None

    @property
    def needed(self) -> tuple[int, int] | None:
        """The fewest cards that keep the promise on the easiest day, and on the hardest one.

        Days differ by chance, and by what the measurement leaves open of the card. None where no
        number of cards kept it on the hardest day.
        """
        if self.enough is None:
            return None
        of_days = []
        for day in range(self.enough.days):
            kept = [fleet.most for fleet in self.fixed if not fleet.broken_h[day]]
            of_days.append(min(kept))
        return min(of_days), max(of_days)

    @property
    def open_question(self) -> str | None:
        """Which numbers of cards the measurement leaves possible, in words; None: one is known."""
        fewest, most = self.needed or (0, 0)
        if most < UNSURE * fewest or most - fewest < 2:
            return None
        return f"whether {fewest} or {most} cards keep {self.slo} all day"

    @property
    def autoscaled(self) -> FleetDays | None:
        """The cheapest autoscaling that breaks the promise for TOLERATED_H at most, or the one that
        breaks it least; None: none was simulated."""
        tolerated = [fleet for fleet in self.scaled if fleet.broken_h.mean() <= TOLERATED_H]
        if tolerated:
            return min(tolerated, key=lambda fleet: float(fleet.card_hours.mean()))
        return min(self.scaled, key=lambda fleet: float(fleet.broken_h.mean()), default=None)

    @property
    def fleets(self) -> tuple[FleetDays, ...]:
        """All fleets that serve a usual day."""
        return (*self.fixed, *self.scaled)

    def cards_words(self, fleet: FleetDays) -> str:
        """What a fleet is called: "4 H100", "1 card", "2 to 4 cards"."""
        noun = self.card or "card"
        if not fleet.is_fixed:
            return f"{fleet.least} to {fleet.most} {self.card or 'cards'}"
        return f"{fleet.most} {noun}" if self.card else counted(fleet.most, noun)

    def money(self, fleet: FleetDays) -> Floats:
        """What each day costs: money, or the hours of cards where the price is not known."""
        return fleet.card_hours * (self.price_per_hour or 1.0)

    def images_for_one(self, fleet: FleetDays) -> Floats:
        """By day: the images for one unit of money, or for one hour of a card."""
        return fleet.images / self.money(fleet)


def next_day(values: Sequence[float] | Floats, most: float = math.inf) -> Interval:
    """The interval that holds the value of one more day with 95 %; None where no two days differ.

    Its ends lie within 0 and `most`. It is Student's interval for one more value. Source: Hahn &
    Meeker, "Statistical Intervals" (1991), section 4.7.
    """
    days = np.asarray(values, dtype=np.float64)
    if len(days) < 2:
        return None
    spread = float(days.std(ddof=1)) * math.sqrt(1 + 1 / len(days))
    half = t_quantile(0.975, len(days) - 1) * spread
    if not half:
        return None  # all days were alike: another one that is not would be a surprise
    mean = float(days.mean())
    return max(0.0, mean - half), min(most, mean + half)


def lasting(hours: Floats) -> str:
    """A mean of days with its interval: "2.1 h (1.8 to 2.4)"; below an hour in minutes."""
    mean = float(hours.mean())
    ends = next_day(hours, most=HOURS)
    if mean >= 1 or not mean:
        return words(mean, ends, "h")
    return words(60 * mean, ends and (60 * ends[0], 60 * ends[1]), "min")


def saved_percent(dear: FleetDays, cheap: FleetDays) -> float | None:
    """Which share of the card hours the cheaper fleet saves, in percent; None: less than half of 1."""
    percent = 100 * float(saved(dear, cheap).mean())
    return percent if percent >= 0.5 else None


def saved(dear: FleetDays, cheap: FleetDays) -> Floats:
    """By day: the share of the card hours that the cheaper fleet saves. Days are paired."""
    share: Floats = 1 - cheap.card_hours / dear.card_hours
    return share
