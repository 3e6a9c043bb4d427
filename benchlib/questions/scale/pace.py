"""How many days are simulated, and how long a day takes to simulate on this machine.

Knows what a profile wants, and a budget's clock. Ignorant of what the days show (fleets.py), and of
servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchlib.budget import Budget, Part
from benchlib.queueing.cards import serve_by_cards
from benchlib.queueing.day import DAY_S, plan_day
from benchlib.queueing.lanes import Draws
from benchlib.study.wording import agreeing, counted, number

if TYPE_CHECKING:
    from benchlib.queueing.estimates import Calibration

SIMULATED = {"quick": 800_000, "full": 5_000_000}
"""So many requests are simulated for each fleet, by profile."""
LEAST_DAYS, MOST_DAYS = 4, 20
USUAL_FLEETS = 6
"""Two numbers of cards, three autoscalers, and a failure at the peak."""
LEAST_FLEETS = 2
"""Numbers of cards are tried on one day in any case: without that there is no answer."""
SIMULATE = "simulate the days"
WORTH = 7.0
"""One day is worth more than the run that confirms it: without a day that run has no load."""
BEFORE_PEAK_S = 1800.0
MOST_IN_PIECE = 50_000
"""That takes some tenths of a second."""
SEED = 20_261_128


def days_for(profile: str, requests: float) -> int:
    """How many days of so many `requests` a profile wants."""
    return min(MOST_DAYS, max(LEAST_DAYS, round(SIMULATED[profile] / requests)))


def simulation_part(profile: str, requests: float, request_s: float) -> Part:
    """The simulation of a profile's days as a part of a plan.

    A day has so many `requests`, and each takes `request_s` seconds for each fleet.
    """
    day_s = USUAL_FLEETS * requests * request_s
    wanted_s = days_for(profile, requests) * day_s
    least_s = LEAST_FLEETS * requests * request_s
    return Part(SIMULATE, wanted_s, least_s=least_s, worth=WORTH)


def sample_requests(calibration: Calibration) -> float:
    """The requests of a sample day, which is scaled to the card."""
    return plan_day(calibration.most_images_per_s).mean_rate * DAY_S


def compile_simulation(calibration: Calibration, budget: Budget) -> None:
    """Has the simulation compiled to machine code, which is no part of a day's time."""
    few = plan_day(calibration.most_images_per_s).arrivals(SEED)[:10]
    with budget.starting("the simulation"):
        serve_by_cards(calibration.lane, few, Draws.of(len(few), SEED), cards=2)


def time_request_s(calibration: Calibration, budget: Budget) -> float:
    """The seconds that a request takes for each fleet, by a piece of a sample day from its peak on.

    It is timed once the simulation is compiled.
    """
    day = plan_day(calibration.most_images_per_s)
    arrived_s = day.arrivals(SEED)
    piece_s = arrived_s[arrived_s >= day.peak_s - BEFORE_PEAK_S][:MOST_IN_PIECE]
    compile_simulation(calibration, budget)
    began_s = budget.used_s
    serve_by_cards(calibration.lane, piece_s, Draws.of(len(piece_s), SEED), cards=2)
    return (budget.used_s - began_s) / max(1, len(piece_s))


@dataclass
class DaysClock:
    """Says whether another day may be simulated: `share_s` seconds are for all of them.

    Times are the budget's. `fleet_days` of them were simulated in `used_s` seconds.
    """

    budget: Budget
    share_s: float
    fleet_days: int = 0

    def __post_init__(self) -> None:
        self._began_s = self.budget.used_s

    @property
    def used_s(self) -> float:
        return self.budget.used_s - self._began_s

    def has_time_for(self, fleet_days: int) -> bool:
        """Whether so many more fleets' days fit, if each takes as long as those so far."""
        if not self.fleet_days:
            return True
        needed_s = fleet_days * self.used_s / self.fleet_days
        return not self.budget.interrupted and self.used_s + needed_s <= self.share_s

    def cut_words(self, made: int, wanted: int, left_out: int) -> str | None:
        """How many days of how many were made, and why; None where all were.

        Of the first day, so many fleets were `left_out`.
        """
        if made == wanted and not left_out:
            return None
        verb = agreeing(made, "was", "were")
        made_words = f"{made} of {counted(wanted, 'day')} {verb} simulated"
        if left_out:
            made_words += f", and {counted(left_out, 'fleet')} not at all"
        if self.budget.interrupted:
            return f"{made_words}: the budget was interrupted"
        fleet_s = number(self.used_s / max(1, self.fleet_days))
        left = number(max(0.0, self.share_s))
        took = f"each takes {fleet_s} s here for one fleet"
        return f"{made_words}: {took}, and the budget left {left} s for all"
