"""Loads one server more and more: shares of the minutes, and a run for each trial of the search.

Knows servers, loads and runs. Ignorant of how the search goes on after a trial (judge.py).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from benchlib.load.arrivals import MOST_IN_FLIGHT, ClosedLoop, OpenLoop
from benchlib.load.runner import Progress
from benchlib.load.workload import Workload
from benchlib.questions.capacity.judge import Capacity, find_highest, most_images_per_s
from benchlib.run import Point, writing
from benchlib.study.store import Run, Study

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline
    from benchlib.serving.server import Server

FEWER_STEPS = {"quick": 4, "full": 1}
"""The model's usual steps are divided by this."""
RATE_SHARES = {
    "quick": (0.3, 0.7, 1.1),
    "full": (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1),
}
"""The rates to try, as shares of the most images/s that users in a closed loop got."""
TRIAL_REQUESTS = {"quick": 300, "full": 150}
"""The most requests in a trial of the search. In full an image takes longer."""
SWEEP_SHARE = 0.15
SEARCH_SHARE = 0.6
"""Shares of the minutes. The users get SWEEP_SHARE, and the rates as much.

The minutes that no share takes are for starts and last answers.
"""
LOWEST_RATE = 0.01
_ALONE = 6


@dataclass(frozen=True)
class CapacityPlan:
    """What is sent to the server, for how long, and the promise that is tested.

    Every image has `steps` steps, and takes `image_s` seconds when it is alone. The users, the
    rates and the search share `minutes`. The rates are `rate_shares` of the highest throughput. A
    trial of the search has at most `trial_requests`.
    """

    steps: int
    image_s: float
    slo: str
    minutes: float
    rate_shares: tuple[float, ...]
    trial_requests: int

    def __str__(self) -> str:
        image = f"One image of {self.steps} steps takes {self.image_s:.3g} s alone."
        return f"{image} The promise: {self.slo}. Measuring takes about {self.minutes:.2g} minutes."

    @property
    def workload(self) -> Workload:
        return Workload(num_inference_steps=self.steps)

    def user_points(self, server: Server, users: Sequence[int]) -> list[Point]:
        """Returns a point for each number of users in a closed loop."""
        return [
            Point(
                ClosedLoop(people),
                self.workload,
                server,
                label=f"users-{people}",
                warmup_s=self._warmup_s,
                duration_s=self._duration_s(len(users)),
            )
            for people in users
        ]

    def rates(self, closed: Study) -> list[float]:
        """Returns the rates to try: shares of the highest throughput of the closed loops."""
        most = self._most_images_per_s(closed)
        return [share * most for share in self.rate_shares]

    def rate_points(self, server: Server, rates: Sequence[float]) -> list[Point]:
        """Returns a point for each rate of an open loop.

        A run does not wait for the last answers of an overloaded server.
        """
        duration_s = self._duration_s(len(rates))
        return [
            Point(
                OpenLoop(rate),
                self.workload,
                server,
                label=f"rate-{rate:.3g}",
                warmup_s=self._warmup_s,
                duration_s=duration_s,
                max_s=self._warmup_s + 2 * duration_s,
            )
            for rate in rates
        ]

    def search_options(self, closed: Study) -> dict[str, Any]:
        """Returns the options of find_capacity that follow from the closed loops.

        The time must allow two trials at the start rate and two at twice that rate. Together they
        take 3 times as long as one trial at the start rate. Half a trial more is left for starts.
        """
        start_rate = max(LOWEST_RATE, 0.4 * self._most_images_per_s(closed))
        budget_min = SEARCH_SHARE * self.minutes
        affordable = int(start_rate * 60 * budget_min / 3.5)
        return {
            "slo": self.slo,
            "start_rate": start_rate,
            "budget_min": budget_min,
            "trial_s": 8 * self.image_s,
            "trial_requests": max(1, min(self.trial_requests, affordable)),
        }

    def _most_images_per_s(self, closed: Study) -> float:
        """Returns the highest throughput of the closed loops.

        If no run has one, it is the throughput of one image after another.
        """
        return most_images_per_s(closed) or 1 / self.image_s

    @property
    def _warmup_s(self) -> float:
        return 2 * self.image_s

    def _duration_s(self, points: int) -> float:
        return 60 * SWEEP_SHARE * self.minutes / points


def plan_capacity(
    pipe: SDXLPipeline,
    *,
    profile: str,
    budget_min: float | None = None,
    slo: str | None = None,
) -> CapacityPlan:
    """Makes one image a few times, without a server, and returns a plan by the shortest time.

    Without `slo` the promise is that 95 % of the images come within 4 times that time. Without
    `budget_min` the plan takes 30 minutes in "full". In "quick" it takes as long as 200 images, but
    1.5 to 3 minutes.
    """
    from benchlib.serving.schemas import GenerateRequest

    # 1) The shortest time of one image.
    showcase = pipe.spec["showcase"]
    steps = max(1, showcase["num_inference_steps"] // FEWER_STEPS[profile])
    fields = showcase | {"num_inference_steps": steps}
    request = GenerateRequest(prompt="a lighthouse at dusk", seed=1, **fields)
    times_s = [pipe.generate(request).timings.total_s for _ in range(_ALONE)]
    image_s = min(times_s)

    # 2) The minutes, and the plan.
    minutes = budget_min
    if minutes is None and profile == "quick":
        minutes = min(max(1.5, 200 * image_s / 60), 3)
    return CapacityPlan(
        steps=steps,
        image_s=image_s,
        slo=slo or f"p95 < {4 * image_s:.3f} s",
        minutes=minutes or 30,
        rate_shares=RATE_SHARES[profile],
        trial_requests=TRIAL_REQUESTS[profile],
    )


def find_capacity(
    target: Server | str,
    workload: Workload | None = None,
    *,
    slo: str = "p95 < 2 s",
    budget_min: float | None = None,
    start_rate: float = 1.0,
    precision: float = 0.05,
    trial_s: float = 30.0,
    trial_requests: int = 200,
    study: str = "capacity",
    results: str | os.PathLike[str] | None = None,
    seed: int = 0,
    api: str = "benchmark",
    on_progress: Callable[[Progress], None] | None = None,
) -> Capacity:
    """Returns the highest rate (requests/s, Poisson) at which `target` keeps the promise `slo`.

    The search is that of `find_highest`. Each trial is a run of the study, and `Slo` judges it. A
    trial lasts `trial_s` seconds, or as long as `trial_requests` take to arrive, after a warm-up of
    a tenth of that time. It is cut if the last answers take longer than the trial did.

    No trial begins that is longer than the time left of `budget_min` minutes. `api`, and the errors
    raised, are as in `run_load`.
    """
    from benchlib.study.slo import Slo

    goal = Slo.parse(slo)
    seeds = count(seed)
    end_s = math.inf if budget_min is None else time.monotonic() + 60 * budget_min
    runs: list[Run] = []
    with writing(results, study, on_progress) as writer:

        def judge(rate: float) -> str | None:
            # 1) Is there time for one more trial?
            length_s = max(trial_s, trial_requests / rate)
            if time.monotonic() + 1.1 * length_s > end_s:
                return None

            # 2) Make it.
            point = Point(
                # A lower limit would hold requests back like a slow generator, and hide an
                # overload.
                OpenLoop(rate, max_in_flight=MOST_IN_FLIGHT),
                workload or Workload(),
                target,
                duration_s=length_s,
                warmup_s=0.1 * length_s,
                max_s=2.1 * length_s,
                seed=next(seeds),
                api=api,
            )
            run = writer.measure(point, target)
            runs.append(run)
            return _verdict(goal, run)

        found = find_highest(judge, start=start_rate, precision=precision)
    return replace(found, slo=slo, runs=tuple(runs))


def _verdict(goal: Any, run: Run) -> str:
    """Returns what a run shows of the promise.

    An invalid run that got images shows no miss, because its generator fell behind.
    """
    from benchlib.study.latency import latencies

    verdict: str = goal.judge(latencies(run.requests))
    summary = run.summary()
    fell_behind = summary["ok"] and not summary["valid"]
    if verdict == "missed" and fell_behind:
        return "not shown"
    return verdict
