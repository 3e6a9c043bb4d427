"""Finds the highest rate that meets an objective, from trials that are noisy and dear.

`find_highest` is pure: it knows rates and verdicts. `find_capacity` makes a run of each trial. Ignorant of how a run is
made (bench.py) and of how its latencies are judged (statistics.py).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from benchlib.load.arrivals import MOST_IN_FLIGHT, OpenLoop
from benchlib.load.bounds import check_number
from benchlib.load.runner import Progress
from benchlib.load.workload import Workload
from benchlib.run import Point, writing

if TYPE_CHECKING:
    from benchlib.serving.server import Server

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
    """The highest rate (requests/s, Poisson) at which `target` meets `slo`, with its interval: see `find_highest`.

    Each trial is a run of the study, `trial_s` seconds long or as long as `trial_requests` take to come, after a tenth
    of that to warm up, and is judged by `Slo`. It is cut where the last answers take longer than the trial did. A trial
    that was missed shows nothing where its run got images and is invalid all the same: then the generator itself fell
    behind. No trial begins that `budget_min` minutes are too short for. `api`, and what is raised, is as `run_load` has
    it.
    """
    from benchlib.study.latency import latencies
    from benchlib.study.slo import Slo

    goal, seeds, workload = (
        Slo.parse(slo),
        count(seed),
        Workload() if workload is None else workload,
    )
    end_s = math.inf if budget_min is None else time.monotonic() + 60 * budget_min
    with writing(results, study, on_progress) as writer:

        def judge(rate: float) -> str | None:
            length_s = max(trial_s, trial_requests / rate)
            times_s: dict[str, Any] = {
                "duration_s": length_s,
                "warmup_s": 0.1 * length_s,
                "max_s": 2.1 * length_s,
            }
            if time.monotonic() + 1.1 * length_s > end_s:
                return None
            # Requests held back at a lower limit would pass for a generator that fell behind, and hide an overload.
            arrivals = OpenLoop(rate, max_in_flight=MOST_IN_FLIGHT)
            run = writer.measure(
                Point(arrivals, workload, target, seed=next(seeds), api=api, **times_s), target
            )
            verdict, summary = goal.judge(latencies(run.requests)), run.summary()
            behind = summary["ok"] and not summary["valid"]
            return "not shown" if verdict == "missed" and behind else verdict

        return find_highest(judge, start=start_rate, precision=precision)


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
        open_rates = [
            r for r in open_rates if (met is None or met < r) and (missed is None or r < missed)
        ]
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
            return capacity(
                "as narrow as asked" + " beside the rates that stay open" * bool(open_rates)
            )
