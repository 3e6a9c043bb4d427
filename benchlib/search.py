"""Finds the highest rate that meets an objective, from trials that are noisy and dear.

Pure: knows rates and verdicts. Ignorant of servers, clocks, and of how a trial is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchlib.load.bounds import check_number

LEAD = 2
"""A rate is settled, "met" or "missed", once so many more of its trials say the one than say the other."""


@dataclass(frozen=True)
class Capacity:
    """The highest `rate` in requests/s that was shown to meet the objective; None where none was.

    `interval` is from there to the lowest rate shown to miss it (None: not found), so the capacity lies in it unless
    the trials at one of its ends were wrong, each time the same way. `trials` are (rate, verdict) in the order made;
    `note` says why the search ended.
    """

    rate: float | None
    interval: tuple[float | None, float | None]
    trials: tuple[tuple[float, str], ...]
    note: str


def find_highest(
    judge: Callable[[float], str | None],
    *,
    start: float = 1.0,
    lowest: float = 0.01,
    highest: float = 1000.0,
    precision: float = 0.05,
    most_trials: int = 3,
) -> Capacity:
    """Search for the highest rate (requests/s) at which `judge` says "met", by doubling or halving, then bisection.

    `judge(rate)` makes one trial and says "met", "missed" or "not shown", or None where there is no budget for one. A
    rate gets trials until they settle it (see LEAD), `most_trials` at the most; one that stays open is near the
    capacity, and both sides of it are searched on. It ends where each gap is under `precision`, a share of the rate,
    beside what stays open. Raises ValueError that names the field and the fix.
    """
    check_number("start", start, lowest, highest)
    check_number("precision", precision, 0, 1, above=True)
    check_number("most_trials", most_trials, LEAD, whole=True)
    trials: list[tuple[float, str]] = []
    met: float | None = None
    missed: float | None = None
    open_rates: list[float] = []

    def capacity(note: str) -> Capacity:
        return Capacity(met, (met, missed), tuple(trials), note)

    rate = start
    while True:
        lead = made = 0
        while abs(lead) < LEAD <= abs(lead) + most_trials - made:  # not settled, and can still be
            verdict = judge(rate)
            if verdict is None:
                return capacity("the budget is spent: the interval is as far as it got")
            trials.append((rate, verdict))
            made += 1
            lead += {"met": 1, "missed": -1}.get(verdict, 0)
        if lead == LEAD:
            met = rate
        elif lead == -LEAD:
            missed = rate
        else:
            open_rates.append(rate)
        # What a settled rate has passed is settled with it.
        open_rates = [r for r in open_rates if (met is None or met < r) and (missed is None or r < missed)]
        below, above = min(open_rates, default=missed), max(open_rates, default=met)
        if met is None:
            if rate <= lowest:
                return capacity(f"no rate down to {lowest:g}/s was shown to meet it")
            rate = max(rate / 2, lowest)
        elif below is not None and below > met * (1 + precision):
            rate = math.sqrt(met * below)
        elif missed is None:
            if above == highest:
                return capacity(f"no rate up to {highest:g}/s was shown to miss it")
            rate = min(2 * (above or met), highest)
        elif above is not None and missed > above * (1 + precision):
            rate = math.sqrt(above * missed)
        else:
            return capacity("as narrow as asked" + " beside the rates that stay open" * bool(open_rates))
