"""The parts of notebook 04 in its budget: a closed run, a rush, and a comparison at each rate.

Knows what each part needs and wants, given what an image takes. Ignorant of how a part is measured
(measure.py), and of what it shows (judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchlib.budget import RUN_COST, Budget, BudgetPlan, Part
from benchlib.study.wording import per_second

CLOSED = "closed loop of four users"
RUSH = "rush"
CLOSED_IMAGES = 8
"""The closed run has at least so many images: two of each user."""
RUSH_REQUESTS = 20
"""So many images calibrate a policy. A rush has them sooner than runs at a lower rate."""
LEAST_REQUESTS = 5
"""A run of the comparison is at least as long as this many requests take to arrive."""
ENOUGH_REQUESTS = 20
"""A run with so many requests can have a 95th percentile."""
LEAST_ROUNDS = 2
"""A ratio of latencies has an interval from two repetitions on."""

CLOSED_WORTH = 10.0
RUSH_WORTH = 9.5
"""The rush calibrates all policies. A comparison too short for that shows only wide intervals."""
HIGHEST_RATE_WORTH = 9.0
OTHER_RATE_WORTH = 4.0

DRAIN_IMAGES = 3
"""When the last request of a run has arrived, about so many images are still to be made."""
RUN_S = 2.0
"""What a run takes beside its load, where that was never measured."""


@dataclass(frozen=True)
class RateRuns:
    """Runs of all policies at each of `rates` (requests/s), `repeat` times.

    `duration_s` has the seconds of a run at each rate, in the same order.
    """

    rates: tuple[float, ...]
    duration_s: tuple[float, ...]
    repeat: int


@dataclass(frozen=True)
class BatchingPlan:
    """What notebook 04 measures within its budget; `str()` is the table of the parts that are left.

    - `image_s`: what an image of the workload takes on an idle serial server.
    - `rush_image_s`: what an image of the rush takes under all policies together.
    - `loads`: shares of serial's throughput to compare at, unless `rates` has requests/s.
    - `closed_images`, `rush_requests`: how many are wanted.
    - `repeat`: how many repetitions of the comparison are wanted.
    - `policies`: how many policies are compared.
    - `done`: the names of the parts that were measured.
    """

    budget: Budget
    image_s: float
    rush_image_s: float
    loads: Sequence[float]
    rates: Sequence[float] | None
    closed_images: int
    rush_requests: int
    repeat: int
    policies: int
    done: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return str(self.planned())

    @property
    def serial_images_per_s(self) -> float:
        """The throughput of serial: by its step times, and by the closed run once that is made."""
        return 1 / self.image_s

    @property
    def run_s(self) -> float:
        """What a run takes beside its load, and until its last images are made."""
        return self.budget.cost(RUN_COST, RUN_S) + DRAIN_IMAGES * self.image_s

    @property
    def closed_warmup_s(self) -> float:
        """The closed run's warm-up: two images, so that a GPU's clocks are up."""
        return 2 * self.image_s

    def after(self, part: str, image_s: float | None = None) -> BatchingPlan:
        """The plan of the rest, when a part is done. It may have shown what an image takes."""
        done = self.done | {part}
        if image_s is None:
            return replace(self, done=done)
        slower = image_s / self.image_s
        rush_image_s = slower * self.rush_image_s
        return replace(self, done=done, image_s=image_s, rush_image_s=rush_image_s)

    def planned(self) -> BudgetPlan:
        """The parts that are left, in what is left of the budget."""
        parts = [part for part in (self._closed(), self._rush()) if part.name not in self.done]
        others_s = sum(part.seconds for part in parts)
        parts += self._rates(self.budget.left_s - others_s)
        return self.budget.plan(parts, keep_one=CLOSED not in self.done)

    def images(self, part: str) -> int:
        """How many images or requests a part may have now; 0 where it is left out."""
        plan = self.planned()
        return (plan[part].images or 0) if part in plan else 0

    def comparison(self) -> RateRuns:
        """The runs that what is left has time for. There are none where no rate fits."""
        # 1) The rates that fit, and in how many repetitions.
        plan = self.planned()
        seconds = dict.fromkeys(self._wanted_rates(), 0.0)
        for rate in seconds:
            if _rate_name(rate) in plan:
                seconds[rate] = plan[_rate_name(rate)].seconds
        kept = {rate: share_s for rate, share_s in seconds.items() if share_s}
        repeat = self.repeat
        for rate, share_s in kept.items():
            rounds = math.floor(share_s / self._round_s(rate, LEAST_REQUESTS) + 1e-6)
            repeat = min(repeat, max(1, rounds))

        # 2) What is left of each share for a run's load.
        duration_s = []
        for rate, share_s in kept.items():
            run_s = share_s / (repeat * self.policies)
            duration_s.append(max(run_s - self.run_s, LEAST_REQUESTS / rate))
        return RateRuns(tuple(kept), tuple(duration_s), repeat)

    def _wanted_rates(self) -> list[float]:
        if self.rates is not None:
            return list(self.rates)
        return [load * self.serial_images_per_s for load in self.loads]

    def _round_s(self, rate: float, requests: int) -> float:
        """One run of each policy in which so many requests arrive."""
        return self.policies * (self.run_s + requests / rate)

    def _closed(self) -> Part:
        least = min(self.closed_images, CLOSED_IMAGES)
        beside_s = self.run_s + self.closed_warmup_s
        return _counted_part(
            CLOSED, self.closed_images, least, beside_s, self.image_s, CLOSED_WORTH
        )

    def _rush(self) -> Part:
        least = min(self.rush_requests, RUSH_REQUESTS)
        runs_s = self.policies * self.budget.cost(RUN_COST, RUN_S)
        return _counted_part(RUSH, self.rush_requests, least, runs_s, self.rush_image_s, RUSH_WORTH)

    def _rates(self, free_s: float) -> list[Part]:
        """A part for each rate. Together they want all of `free_s`."""
        rates = self._wanted_rates()
        parts = []
        for rate in rates:
            # 1) What it needs and wants.
            least_s = min(self.repeat, LEAST_ROUNDS) * self._round_s(rate, LEAST_REQUESTS)
            enough_s = self.repeat * self._round_s(rate, ENOUGH_REQUESTS)
            share_s = free_s / len(rates)
            seconds = max(enough_s, share_s) if math.isfinite(share_s) else enough_s

            # 2) How telling it is: policies differ most where the load is high.
            worth = HIGHEST_RATE_WORTH
            if rate < max(rates):
                worth = OTHER_RATE_WORTH * rate / max(rates)
            overhead_s = self.repeat * self.policies * self.run_s
            parts.append(
                Part(
                    _rate_name(rate),
                    seconds=seconds,
                    least_s=least_s,
                    worth=worth,
                    overhead_s=min(overhead_s, least_s),
                    image_s=1 / rate,
                )
            )
        return parts


def _counted_part(
    name: str, wanted: int, least: int, overhead_s: float, image_s: float, worth: float
) -> Part:
    """A part that wants a number of images, of which it needs the least."""
    return Part(
        name,
        seconds=overhead_s + wanted * image_s,
        least_s=overhead_s + least * image_s,
        worth=worth,
        overhead_s=overhead_s,
        image_s=image_s,
    )


def _rate_name(rate: float) -> str:
    return f"compare at {per_second(rate, 'request')}"
