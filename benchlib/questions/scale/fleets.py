"""Simulates a day with several numbers of cards, and with cards that come and go.

    outlook = simulate_fleets(card, day)

Each simulated day has arrivals, services and failures of its own, and a card that another
calibrating run might have shown. All fleets get the same days, so that they differ by nothing else
(common random numbers). Knows calibrations and cards. Ignorant of servers and of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import ndtri

from benchlib.printing import print_line
from benchlib.questions.scale.outcomes import DayOutlook, FleetDays, Floats
from benchlib.questions.scale.pace import SEED, DaysClock, compile_simulation, days_for
from benchlib.queueing.cards import MOST_CARDS, TICK_S, Autoscaler, Failure, serve_by_cards
from benchlib.queueing.day import DAY_S, WARM_UP_S, Day, window_for
from benchlib.queueing.lanes import Draws, Lane
from benchlib.study.intervals import t_quantile
from benchlib.study.slo import Slo
from benchlib.study.wording import number

if TYPE_CHECKING:
    from benchlib.questions.scale.measure import MeasuredCard
    from benchlib.queueing.estimates import Calibration

MORE_CARDS = 8
"""So many numbers of cards are tried above the fewest that could keep up at the peak."""


@dataclass(frozen=True)
class _Conditions:
    """What all fleets have in common."""

    calibration: Calibration
    day: Day
    goal: Slo
    days: int
    window_s: float
    startup_s: float
    restart_s: float
    mtbf_h: float | None

    @cached_property
    def rates(self) -> Floats:
        """Requests/s by window, in the mean of the days."""
        of_days = []
        for number_of_day in range(self.days):
            arrived_s = self.day.arrivals(SEED + number_of_day)
            of_days.append(_by_window(arrived_s, self.window_s))
        mean: Floats = np.mean(of_days, axis=0) / self.window_s
        return mean


@dataclass(frozen=True)
class _DrawnDay:
    """One day as chance has it: its arrivals, the work and noise of requests, and the card."""

    arrived_s: Floats
    draws: Draws
    lane: Lane
    stretch: float
    random_failures: np.random.SeedSequence


def simulate_fleets(
    card: MeasuredCard,
    day: Day,
    *,
    profile: str = "quick",
    min_cards: int | None = None,
    max_cards: int | None = None,
    target_ongoing: Sequence[float] = (1, 2, 4),
    upscale_delay_s: float = 30.0,
    downscale_delay_s: float = 600.0,
    startup_s: float | None = None,
    restart_s: float | None = None,
    mtbf_h: float | None = None,
    price_per_hour: float | None = None,
    days: int | None = None,
) -> DayOutlook:
    """What `day` costs and keeps with several fleets of the measured `card`.

    Numbers of cards are tried from the fewest that could keep up at the peak until one keeps the
    promise in every window of every day. Then autoscaling from `min_cards` to `max_cards` is tried
    with each `target_ongoing`. By default `max_cards` is the number that was found, and `min_cards`
    what the quietest hours need in proportion. `days` are those that the `profile` wants (pace.py).

    No day begins that would take longer than the budget leaves for the days. On the first day the
    fixed fleets are always simulated, and the others if there is time. Days are in random order,
    so that the first few stand for all. Raises ValueError that names the argument.
    """
    # 1) What is common to all
    if min_cards is not None and max_cards is not None and min_cards > max_cards:
        raise ValueError(f"min_cards must be at most max_cards ({max_cards}), got {min_cards}")
    goal = Slo.parse(card.slo)
    startup = card.startup_s if startup_s is None else startup_s
    restart = startup if restart_s is None else restart_s
    requests = day.mean_rate * DAY_S
    conditions = _Conditions(
        calibration=card.calibration,
        day=day,
        goal=goal,
        days=days or days_for(profile, requests),
        window_s=window_for(day.mean_rate),
        startup_s=startup,
        restart_s=restart,
        mtbf_h=mtbf_h,
    )
    outlook = DayOutlook(
        slo=card.slo,
        q=goal.q,
        limit_s=goal.latency_s,
        day=str(day),
        requests=requests,
        window_s=conditions.window_s,
        rates=conditions.rates,
        fixed=(),
        scaled=(),
        failing=None,
        refusal=_why_none(card.calibration, goal, day),
        server=card.server_words,
        is_tiny=card.is_tiny,
        card=card.gpu,
        images=card.calibration.images,
        image_s=card.calibration.service_s,
        source=card.source,
        remarks=(*card.calibration.reasons, *card.calibration.remarks),
        startup_s=startup,
        restart_s=restart,
        startup_is_measured=startup_s is None,
        mtbf_h=mtbf_h,
        price_per_hour=price_per_hour,
    )
    if outlook.refusal is not None:
        return outlook

    # 2) The fixed fleets, while time is left for the others as well
    rule = (upscale_delay_s, downscale_delay_s)
    for target in target_ongoing:
        Autoscaler(
            1, MOST_CARDS, target, *rule
        )  # raises for a bad one before anything is simulated
    compile_simulation(card.calibration, card.budget)
    clock = DaysClock(card.budget, card.simulating_s(day, profile))
    fixed = _until_kept(conditions, clock, others=len(target_ongoing) + 1)

    # 3) One of a card less, the autoscaled ones, and one whose card fails
    kept = next((fleet.most for fleet in fixed if fleet.keeps), None)
    most = max_cards or kept or fixed[-1].most
    least = min(most, min_cards or _in_proportion(most, outlook.rates))
    scalings = [Autoscaler(least, most, target, *rule) for target in target_ongoing]
    scaled = [_Fleet(conditions, one) for one in scalings if least < most]
    failing = [] if kept is None else [_Fleet(conditions, kept, fails_s=day.peak_s)]
    fewer = []
    if len(fixed) == 1 and fixed[0].most > 1:
        fewer.append(_Fleet(conditions, fixed[0].most - 1))
    others = [*fewer, *scaled, *failing]
    _serve_others(others, clock, days=fixed[0].days)

    # 4) The whole days: those that every fleet served
    served = [fleet for fleet in (*fixed, *others) if fleet.days]
    made = min(fleet.days for fleet in served)
    left_out = len(fixed) + len(others) - len(served)
    cut = clock.cut_words(made, conditions.days, left_out)
    if cut is not None:
        print_line(f"{cut}.")
    outlook = replace(
        outlook,
        rates=replace(conditions, days=made).rates,
        fixed=tuple(fleet.outcome(made) for fleet in (*fewer, *fixed) if fleet.days),
        scaled=tuple(fleet.outcome(made) for fleet in scaled if fleet.days),
        cut=cut,
    )
    # A day that was not served by all may have been the one that needed more cards.
    is_same = outlook.enough is not None and outlook.enough.most == kept
    if failing and failing[0].days and is_same:
        outlook = replace(outlook, failing=failing[0].outcome(made))
    return outlook


def _why_none(calibration: Calibration, goal: Slo, day: Day) -> str | None:
    """Why nothing can be foretold, or None."""
    if calibration.refusal is not None:
        return calibration.refusal
    if calibration.service_s > goal.latency_s:
        return f"an image that has a card to itself takes {number(calibration.service_s)} s"
    fewest = day.peak_rate / calibration.most_images_per_s
    if fewest > MOST_CARDS - MORE_CARDS:
        return (
            f"the peak needs {fewest:,.0f} cards, and more than {MOST_CARDS} are not simulated; "
            "give a tenth of the requests, and multiply the cards"
        )
    return None


def _until_kept(conditions: _Conditions, clock: DaysClock, *, others: int) -> list[_Fleet]:
    """Fleets of ever more cards, until one keeps the promise or MORE_CARDS more were tried.

    All serve the same days, of which so many are made that `others` have time to serve them, too.
    """
    could = conditions.day.peak_rate / conditions.calibration.most_images_per_s
    first = max(1, math.ceil(could))
    fleets = [_Fleet(conditions, first)]
    for number_of_day in range(conditions.days):
        # One of a card less is simulated, too, where the first fleet keeps the promise.
        fewer = 1 if len(fleets) == 1 and first > 1 else 0
        if not clock.has_time_for(len(fleets) + (number_of_day + 1) * (others + fewer)):
            break
        drawn = _drawn_day(conditions, number_of_day)
        for fleet in fleets:
            fleet.serve(drawn, clock)
        while not fleets[-1].keeps and len(fleets) <= MORE_CARDS:
            fleets.append(_Fleet(conditions, fleets[-1].most + 1))
            for earlier in range(number_of_day + 1):
                fleets[-1].serve(_drawn_day(conditions, earlier), clock)
    return fleets


def _serve_others(fleets: Sequence[_Fleet], clock: DaysClock, *, days: int) -> None:
    """Has each fleet serve the first `days` days, or as many as there is time for.

    A fleet for which the first day leaves no time serves none.
    """
    for number_of_day in range(days):
        served = [fleet for fleet in fleets if fleet.days == number_of_day]
        if number_of_day and not clock.has_time_for(len(served)):
            return
        for fleet in served:
            if number_of_day or clock.has_time_for(1):
                fleet.serve(_drawn_day(fleet.conditions, number_of_day), clock)


def _in_proportion(most: int, rates: Floats) -> int:
    """As many cards at the least rate as `most` are at the highest, rounded up."""
    return max(1, math.ceil(most * float(rates.min() / rates.max())))


def _by_window(moments_s: Floats, window_s: float) -> Floats:
    """How many moments lie in each window of the day."""
    edges_s = WARM_UP_S + np.arange(0.0, DAY_S + window_s, window_s)
    counts, _ = np.histogram(moments_s, edges_s)
    return counts.astype(np.float64)


# ---- one fleet


class _FleetDay(NamedTuple):
    """What a fleet did on one day; the fields are rows of those of FleetDays."""

    in_time: Floats
    card_hours: float
    images: float
    late: float
    cards: Floats


@dataclass
class _Fleet:
    """One fleet, and the days that it served; with `fails_s`, its first card fails at that moment."""

    conditions: _Conditions
    cards: int | Autoscaler
    fails_s: float | None = None
    served: list[_FleetDay] = field(default_factory=list)

    @property
    def least(self) -> int:
        return self.cards if isinstance(self.cards, int) else self.cards.least

    @property
    def most(self) -> int:
        return self.cards if isinstance(self.cards, int) else self.cards.most

    @property
    def days(self) -> int:
        return len(self.served)

    @property
    def keeps(self) -> bool:
        """Whether the promise was kept in every window of every day so far."""
        q = self.conditions.goal.q
        return not any((one.in_time < q).any() for one in self.served)

    def serve(self, drawn: _DrawnDay, clock: DaysClock) -> None:
        """Serves the next day, which the clock counts."""
        # 1) Which cards fail
        conditions = self.conditions
        failures = [Failure(self.fails_s, 0)] if self.fails_s is not None else []
        failures += _random_failures(drawn.random_failures, conditions.mtbf_h, self.most)
        first = None
        if not isinstance(self.cards, int):
            share = _share_at_start(conditions)
            first = min(self.most, max(self.least, math.ceil(self.most * share)))

        # 2) Serve the requests
        served = serve_by_cards(
            drawn.lane,
            drawn.arrived_s,
            drawn.draws,
            cards=self.cards,
            first=first,
            startup_s=conditions.startup_s,
            restart_s=conditions.restart_s,
            failures=failures,
            until_s=WARM_UP_S + DAY_S,
        )
        is_in_time = drawn.stretch * served.latency_s <= conditions.goal.latency_s
        is_of_day = drawn.arrived_s >= WARM_UP_S

        # 3) By window
        asked = _by_window(drawn.arrived_s, conditions.window_s)
        good = _by_window(drawn.arrived_s[is_in_time], conditions.window_s)
        with np.errstate(invalid="ignore"):
            in_time = good / asked
        paid = served.paid[int(WARM_UP_S / TICK_S) :]
        of_day = _FleetDay(
            in_time=in_time,
            card_hours=float(paid.sum()) * TICK_S / 3600,
            images=float(is_of_day.sum()),
            late=1 - float(is_in_time[is_of_day].mean()),
            cards=paid.reshape(-1, int(conditions.window_s / TICK_S)).mean(axis=1),
        )
        self.served.append(of_day)
        clock.fleet_days += 1

    def outcome(self, days: int) -> FleetDays:
        """What its first `days` days showed."""
        q = self.conditions.goal.q
        columns = zip(*self.served[:days], strict=True)
        in_time, card_hours, images, late, cards = (np.array(column) for column in columns)
        broken = in_time < q
        return FleetDays(
            least=self.least,
            most=self.most,
            target_ongoing=None if isinstance(self.cards, int) else self.cards.target_ongoing,
            q=q,
            in_time=in_time,
            broken_h=broken.sum(axis=1) * self.conditions.window_s / 3600,
            card_hours=card_hours,
            images=images,
            late=late,
            cards=cards.mean(axis=0),
        )


def _share_at_start(conditions: _Conditions) -> float:
    """The rate an hour before midnight as a share of the peak's."""
    rates = conditions.rates
    windows = int(WARM_UP_S / conditions.window_s)
    return float(rates[-windows:].mean() / rates.max())


def _random_failures(
    seed: np.random.SeedSequence, mtbf_h: float | None, cards: int
) -> list[Failure]:
    """Failures of each card at random moments, `mtbf_h` hours apart in the mean.

    Card 0 fails at the same moments however many cards there are.
    """
    if mtbf_h is None:
        return []
    failures = []
    for card, of_card in enumerate(seed.spawn(cards)):
        random = np.random.default_rng(of_card)
        at_s = random.exponential(3600 * mtbf_h)
        while at_s < WARM_UP_S + DAY_S:
            failures.append(Failure(at_s, card))
            at_s += random.exponential(3600 * mtbf_h)
    return failures


# ---- one day


def _drawn_day(conditions: _Conditions, number_of_day: int) -> _DrawnDay:
    """The day of a number: equal for all fleets."""
    calibration = conditions.calibration
    of_day = np.random.SeedSequence([SEED, number_of_day])
    of_draws, of_lane, of_failures = of_day.spawn(3)
    arrived_s = conditions.day.arrivals(SEED + number_of_day)
    random = np.random.default_rng(of_lane)
    faster = _spread_out(conditions.days, number_of_day)
    misfit, more_misfit = _evenly(conditions.days, number_of_day)
    other = calibration.lane.resampled(random)
    k = 1 + misfit * calibration.service_share
    k *= math.exp(faster * _error_of_mean(calibration))
    level = float(calibration.lane.ratios.mean() / other.ratios.mean())
    return _DrawnDay(
        arrived_s=arrived_s,
        draws=Draws.of(len(arrived_s), int(of_draws.generate_state(1)[0])),
        lane=replace(other, ratios=k * level * other.ratios),
        stretch=1 + more_misfit * calibration.latency_share,
        random_failures=of_failures,
    )


def _error_of_mean(calibration: Calibration) -> float:
    """The relative standard error of the mean service, from the number of images that showed it."""
    ratios = calibration.lane.ratios
    n = max(2.0, calibration.images / calibration.inflation)
    for_t = t_quantile(0.975, n - 1) / 1.96
    return for_t * float(ratios.std() / ratios.mean()) / math.sqrt(n)


def _spread_out(days: int, number_of_day: int) -> float:
    """A normal number for each day, so that few days have the spread of many (stratified)."""
    order = np.random.default_rng(SEED).permutation(days)
    return float(ndtri((order[number_of_day] + 0.5) / days))


def _evenly(days: int, number_of_day: int) -> tuple[float, float]:
    """Two numbers from -1 to 1 for each day, spread evenly over all days, each in its own order."""
    random = np.random.default_rng(SEED + 1)
    places = [random.permutation(days)[number_of_day] for _ in range(2)]
    first, second = (2 * (place + 0.5) / days - 1 for place in places)
    return first, second
