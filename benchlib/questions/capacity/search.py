"""The search for a capacity by the runs' own latencies, where nothing can be foretold.

Knows rates and verdicts alone. Ignorant of how a trial is made (measure.py) and of how its
latencies are judged (study/slo.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchlib.cell_view import CellView, ShownInCell
from benchlib.study.store import Run
from benchlib.study.wording import number, per_second

LEAD = 2
"""A rate is "met" or "missed" once one verdict has this many more of its trials than the other."""
BUDGET_SPENT = "the budget is spent: the interval is as far as it got"


@dataclass(frozen=True, repr=False)
class Capacity(ShownInCell):
    """The highest `rate` in requests/s that was shown to keep a promise, or None.

    - `interval`: from that rate to the lowest rate that was shown to break the promise (None: not
      found). The capacity lies in it, unless the trials at one of its ends were wrong, each time in
      the same way.
    - `trials`: (rate, verdict) of each trial, in order.
    - `runs`: the runs of the trials.
    - `note`: why the search ended.
    - `slo`: the promise, or None if it is not known.
    """

    rate: float | None
    interval: tuple[float | None, float | None]
    trials: tuple[tuple[float, str], ...]
    note: str
    slo: str | None = None
    runs: tuple[Run, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        low, high = self.interval
        promise = self.slo or "the promise"
        if low is not None and high is not None:
            return f"The capacity within {promise} is {number(low)} to {per_second(high)}."
        if low is not None:
            found = f"at least {per_second(low)}"
            return f"The capacity within {promise} is {found}. No rate was shown to break it."
        if high is not None:
            found = f"less than {per_second(high)}"
            return f"The capacity within {promise} is {found}. No rate was shown to keep it."
        longer = "a longer search is needed (a larger budget_min)"
        return f"The capacity within {promise} is not shown: {longer}."

    def _view(self) -> CellView:
        rows = [(number(rate), verdict) for rate, verdict in self.trials]
        answer = f"{self}\nThe search ended: {self.note}."
        return CellView(answer, rows, head=("trial at images/s", "the promise is"))


def find_highest(
    judge: Callable[[float], str | None],
    *,
    start: float = 1.0,
    lowest: float = 0.01,
    highest: float = 1000.0,
    precision: float = 0.05,
    most_trials: int = 3,
) -> Capacity:
    """Searches for the highest rate (requests/s) that `judge` calls "met".

    It doubles or halves the rate, and then goes on by bisection. `judge(rate)` makes one trial and
    returns "met", "missed" or "not shown", or None if no budget is left for the trial.

    A rate gets trials until they settle it (see LEAD), at most `most_trials`. A rate that stays
    open is near the capacity, so the search goes on at both sides of it. The search ends when each
    gap beside the open rates is below `precision`, a share of the rate. Raises ValueError that
    names the argument and its limits.
    """
    # 1) Refuse what can't be searched.
    if not lowest <= start <= highest:
        raise ValueError(f"start must be a rate from {lowest:g} to {highest:g}, got {start!r}")
    if not 0 < precision <= 1:
        raise ValueError(f"precision must be a share above 0 and up to 1, got {precision!r}")
    if most_trials < LEAD:
        raise ValueError(f"most_trials must be {LEAD} or more, got {most_trials!r}")

    # 2) Try one rate after another, each until its trials settle it.
    search = _Search(lowest, highest, precision)
    trials: list[tuple[float, str]] = []
    rate: float | None = start
    while rate is not None:
        verdicts: list[str] = []
        while _can_be_settled(verdicts, most_trials):
            verdict = judge(rate)
            if verdict is None:
                return search.capacity(trials, BUDGET_SPENT)
            verdicts.append(verdict)
            trials.append((rate, verdict))
        search.keep(rate, _lead(verdicts))
        rate = search.next_rate(rate)
    return search.capacity(trials, search.why_ended)


def _lead(verdicts: Sequence[str]) -> int:
    return verdicts.count("met") - verdicts.count("missed")


def _can_be_settled(verdicts: Sequence[str], most_trials: int) -> bool:
    """Returns whether a rate is still open, and the trials left could settle it."""
    lead = abs(_lead(verdicts))
    trials_left = most_trials - len(verdicts)
    return lead < LEAD <= lead + trials_left


@dataclass
class _Search:
    """What the trials have settled: the highest rate that was met, and the lowest that was missed.

    The open rates lie between these two.
    """

    lowest: float
    highest: float
    precision: float
    met: float | None = None
    missed: float | None = None
    open_rates: list[float] = field(default_factory=list)
    why_ended: str = ""

    def capacity(self, trials: list[tuple[float, str]], note: str) -> Capacity:
        return Capacity(self.met, (self.met, self.missed), tuple(trials), note)

    def keep(self, rate: float, lead: int) -> None:
        """Takes in how the trials of a rate ended.

        Open rates outside of the new interval are settled by it.
        """
        if lead == LEAD:
            self.met = rate
        elif lead == -LEAD:
            self.missed = rate
        else:
            self.open_rates.append(rate)
        above = 0.0 if self.met is None else self.met
        below = math.inf if self.missed is None else self.missed
        self.open_rates = [rate for rate in self.open_rates if above < rate < below]

    def next_rate(self, rate: float) -> float | None:
        """Returns the rate to try after `rate`, or None if the search ends.

        When the search ends, `why_ended` has the reason.
        """
        # 1) Downwards, until a rate is met.
        if self.met is None:
            if rate > self.lowest:
                return max(rate / 2, self.lowest)
            self.why_ended = f"no rate down to {self.lowest:g}/s was shown to meet it"
            return None

        # 2) Between the highest rate that was met and the lowest that was not.
        not_met = min(self.open_rates, default=self.missed)
        if not_met is not None and self._is_wide(self.met, not_met):
            return math.sqrt(self.met * not_met)

        # 3) Upwards, until a rate is missed.
        not_missed = max(self.open_rates, default=self.met)
        if self.missed is None:
            if not_missed < self.highest:
                return min(2 * not_missed, self.highest)
            self.why_ended = f"no rate up to {self.highest:g}/s was shown to miss it"
            return None

        # 4) Between the highest rate that was not missed and the lowest that was.
        if self._is_wide(not_missed, self.missed):
            return math.sqrt(not_missed * self.missed)
        self.why_ended = "as narrow as requested"
        if self.open_rates:
            self.why_ended += " beside the rates that stay open"
        return None

    def _is_wide(self, low: float, high: float) -> bool:
        return high > low * (1 + self.precision)
