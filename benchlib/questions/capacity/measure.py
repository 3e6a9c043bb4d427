"""Loads one server: a run to calibrate by, runs that confirm what it foretells, and users.

    load = LoadTest(server, plan, Budget(8), users=[1, 4])
    load.calibrate()
    load.confirm()
    load.send_users()

Knows servers, loads, budgets and calibrations. Ignorant of how a search goes on after a trial
(search.py), and of how the answer is worded (judge.py).
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from benchlib.budget import INTERRUPTED, Budget, Part, PlannedPart, budget_of_cell
from benchlib.cell_view import CellView, ShownInCell
from benchlib.load.arrivals import MOST_IN_FLIGHT, Arrivals, ClosedLoop, OpenLoop
from benchlib.load.bounds import check_number
from benchlib.load.runner import GeneratorError, Progress
from benchlib.load.workload import Workload
from benchlib.printing import print_line
from benchlib.questions.capacity.load_parts import (
    CALIBRATE,
    CALIBRATE_AT,
    CONFIRM,
    LEAST_ESTIMATE,
    MOST_USERS,
    WARMUP_IMAGES,
    least_images,
    part_at_rate,
    part_of_users,
    rates_to_confirm,
    spread_out,
)
from benchlib.questions.capacity.outlook import CALIBRATES, EARLIER, LATEST, NOT_CONFIRMED, Outlook
from benchlib.questions.capacity.search import Capacity, find_highest
from benchlib.run import Point, writing
from benchlib.study.folders import results_dir, run_folders
from benchlib.study.store import Run, Study, load_run
from benchlib.study.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.queueing.confirming import Confirmation
    from benchlib.queueing.estimates import Calibration, PredictedCapacity
    from benchlib.serving.model.pipeline import SDXLPipeline
    from benchlib.serving.server import Server

STUDY = "load"
FEWER_STEPS = {"quick": 4, "full": 1}
"""The model's usual steps are divided by this."""
MINUTES = {"quick": 2.0, "full": 8.0}
"""The minutes of a profile.

At 1.5 images/s a run of 60 images takes a minute. In "full" loading and warming up may take two
more minutes, and the other five confirm the answer by a few hundred images.
"""
ALONE = 6
ALONE_S = 15.0
"""So many images are made alone, or as many as these seconds allow, two at least."""
NO_PLAN = "interrupted before the plan was ready; run this cell again"
PAUSE = 1.3
"""An image alone that takes so many times the median was held up by something else."""
CURVE_SHARES = (0.05, 0.2, 0.35, 0.5, 0.6, 0.68, 0.75, 0.81, 0.86, 0.9, 0.935, 0.96, 0.98)
"""The rates of the foretold curve, as shares of the highest throughput that is sure."""
MOST_ESTIMATES = 2
"""A run that explains nothing, or an estimate that a run contradicts, gets one more chance."""
COMPARED = [
    "rate",
    "offered_images_per_s",
    "images",
    "measured_s",
    "measured_s_interval",
    "foretold_s",
    "in_time",
    "foretold_in_time",
    "verdict",
    "judges",
]
"""The columns of `comparison`."""
COSTS_S = {"run": 4.0, "estimate": 4.0, "curve": 12.0}
"""What a run costs besides its arrivals, and predictions, until this machine has shown it."""
DRAIN = 2.0
"""A run is cut once it has taken this many times as long as planned, and DRAIN_S more."""
DRAIN_S = 10.0
TRIAL_REQUESTS = 150
"""The most requests in a trial of the search."""
LOWEST_RATE = 0.01
LEAST_SHARE = 0.4
"""The capacity counts as this share of the highest throughput at least, when runs are planned."""
USERS_SIMULATED = 4000
IMAGES_OF_A_USER = 10
"""So many images are simulated for the foretold users, or so many for each of them."""
SEEDS_APART = 1000
"""No two runs choose among the same seeds."""


@dataclass(frozen=True)
class CapacityPlan:
    """What is sent to the server, and the promise that is tested.

    Every image has `steps` steps. `alone_s` are the seconds of images made alone, without a server.
    `minutes` are for all measuring.
    """

    steps: int
    alone_s: tuple[float, ...]
    slo: str
    minutes: float

    def __str__(self) -> str:
        image = f"One image of {counted(self.steps, 'step')} takes {self.image_s:.3g} s alone."
        return f"{image} The promise: {self.slo}. Measuring takes about {self.minutes:.2g} minutes."

    @property
    def image_s(self) -> float:
        """The shortest time of an image alone."""
        return min(self.alone_s)

    @property
    def workload(self) -> Workload:
        return Workload(num_inference_steps=self.steps)


def plan_capacity(
    pipe: SDXLPipeline,
    *,
    profile: str,
    budget_min: float | None = None,
    slo: str | None = None,
) -> CapacityPlan:
    """Makes one image a few times, without a server, and returns a plan by the shortest time.

    Without `slo` the promise is that 95 % of the images come within 4 times that time. Without
    `budget_min` the plan takes the profile's minutes (see MINUTES).

    An interrupt ends the measuring where a time is known already; else it is raised, in words.
    Raises ValueError, naming the argument, before an image is made.
    """
    from benchlib.serving.schemas import GenerateRequest
    from benchlib.study.slo import Slo, promise_for

    if profile not in MINUTES:
        raise ValueError(f"profile must be one of {', '.join(MINUTES)}, got {profile!r}")
    if budget_min is not None:
        check_number("budget_min", budget_min, 0, above=True)
    if slo is not None:
        Slo.parse(slo)

    # 1) The times of one image
    showcase = pipe.spec["showcase"]
    steps = max(1, showcase["num_inference_steps"] // FEWER_STEPS[profile])
    fields = showcase | {"num_inference_steps": steps}
    request = GenerateRequest(prompt="a lighthouse at dusk", seed=1, **fields)
    times_s: list[float] = []
    try:
        while len(times_s) < 2 or (len(times_s) < ALONE and sum(times_s[1:]) < ALONE_S):
            timings = pipe.generate(request).timings
            times_s.append(timings.total_s)
    except KeyboardInterrupt:
        if len(times_s) < 2:
            raise KeyboardInterrupt(NO_PLAN) from None
        print_line(f"the time of one image: {INTERRUPTED}")

    # 2) The promise, and the plan
    alone_s = tuple(times_s[1:])  # the first image warms the model up
    return CapacityPlan(
        steps=steps,
        alone_s=alone_s,
        slo=slo or promise_for(min(alone_s)),
        minutes=budget_min or MINUTES[profile],
    )


@dataclass(repr=False)
class LoadTest(ShownInCell):
    """One server under load, part by part, within what is left of `budget`.

    `users` are the closed loops to foretell and to make. `rates` are the rates (images/s) at which
    the estimate is confirmed; by default they follow from the capacity that is found. An interrupt
    ends the part that is measured, and later parts are left out; whatever was measured counts.

    `calibration` is the estimate so far, and `capacity` its capacity for the plan's promise. Before
    a loaded run they come from step times and images made alone. `first` is the calibration by the
    calibrating run alone, None before it. `confirmations` judge the estimate, and `former` those
    that it replaced. `searched` is the result of a search, if there was one.
    """

    server: Server
    plan: CapacityPlan
    budget: Budget
    users: Sequence[int] = (1, 2, 4, 8)
    rates: Sequence[float] | None = None
    results: str | os.PathLike[str] | None = None
    calibration: Calibration = field(init=False, repr=False)
    capacity: PredictedCapacity = field(init=False)
    first: Calibration | None = field(init=False, default=None, repr=False)
    searched: Capacity | None = field(init=False, default=None)
    confirmations: list[Confirmation] = field(init=False, default_factory=list)
    former: list[Confirmation] = field(init=False, default_factory=list)
    _basis: list[Run] = field(init=False, default_factory=list, repr=False)
    _calibrating: list[Run] = field(init=False, default_factory=list, repr=False)
    _confirming: list[Run] = field(init=False, default_factory=list, repr=False)
    _crowds: list[Run] = field(init=False, default_factory=list, repr=False)
    _done: set[str] = field(init=False, default_factory=set, repr=False)

    def __post_init__(self) -> None:
        from benchlib.queueing.estimates import foretell

        _check_list("users", self.users, low=1, high=MOST_USERS, whole=True)
        if self.rates is not None:
            _check_list("rates", self.rates, low=0, above=True)
        usual_s = _without_pauses(self.plan.alone_s)
        try:
            self.calibration = foretell(self.server.spec, usual_s, self.plan.workload)
            with np.errstate(invalid="ignore"):
                self.capacity = self.calibration.capacity(self.plan.slo)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(NO_PLAN) from None

    def __str__(self) -> str:
        """What is foretold before any load, and the plan of all parts."""
        planned = self.budget.plan(self._parts(), reserve_s=self._reserve_s())
        return f"{self.plan}\nBefore any load: {self.capacity}\n{planned}"

    def _view(self) -> CellView:
        runs = len(self._calibrating) + len(self._confirming) + len(self._crowds)
        rows = [
            ("the promise", self.plan.slo),
            ("calibration", str(self.calibration)),
            ("runs made", f"{runs}"),
            ("minutes left", f"{self.budget.left_s / 60:.1f}"),
            ("more", "calibrate(), confirm(), send_users(), comparison(), curve()"),
        ]
        return CellView(str(self.capacity), rows)

    # ---- the parts

    def calibrate(self) -> Calibration:
        """Makes one open-loop run below the capacity, and returns the calibration by it.

        It prints the calibration, and the capacity or once why there is none.
        A run that explains nothing is made once more, if there is time. If that does not help, the
        time left goes to a search by the runs' own latencies (see `searched`).
        """
        rate = CALIBRATE_AT * self._likely_rate
        for attempt in range(MOST_ESTIMATES):
            self._done.discard(CALIBRATE)
            if not self._measure_at(CALIBRATE, rate, self._calibrating):
                break
            if self._calibrate_by(self._calibrating[-1:]):
                self.first = self.calibration
                break
            if not attempt:
                print_line("It is measured once more, if there is time.")
        self._done.add(CALIBRATE)
        if self.calibration.refusal is not None:
            self._search()
        elif self.first is not None:
            print_line(f"{self.calibration}\n{self.capacity}")
        return self.calibration

    def confirm(self) -> pd.DataFrame:
        """Makes runs near the capacity, and returns `comparison()`.

        Each run is judged by the estimate that had no part of it. A run just below the capacity
        that contradicts the estimate makes a new one, which is confirmed in turn. At last all runs
        that agree make the estimate.
        """
        # 1) Below the capacity, or at the first of the given rates
        for _ in range(MOST_ESTIMATES):
            for name, rate in self._rates_to_confirm()[:1]:
                self._confirm_at(name, rate)
            if not self._is_contradicted or not self._renew_estimate():
                break

        # 2) Above the capacity, or at the other rates
        for name, rate in self._rates_to_confirm()[1:]:
            self._confirm_at(name, rate)

        # 3) All runs together
        agreeing = [one.run for one in self.confirmations if one.run is not None]
        agrees = bool(agreeing) and not self._is_contradicted
        if agrees and self._calibrate_by([*self._basis, *agreeing]):
            print_line(f"All runs together: {self.capacity}")
        return self.comparison()

    def send_users(self) -> Study:
        """Makes closed loops, as far as the budget carries them, and returns those made."""
        for people in sorted(self.users, reverse=True):
            part = self._part_of_users(people)
            share = self._share_of(part)
            if share is not None:
                images_per_s = 1 / (part.image_s or 1)
                self._send(
                    ClosedLoop(people),
                    share,
                    self._crowds,
                    duration_s=share.seconds - part.overhead_s,
                    warmup_s=people / images_per_s,
                )
        return self.closed

    # ---- what the runs show, and what is foretold

    @property
    def closed(self) -> Study:
        """The closed loops that were made, the fewest users first."""
        by_users = sorted(self._crowds, key=lambda run: run.spec["arrivals"]["users"])
        return Study(results_dir(self.results) / STUDY, tuple(by_users))

    @property
    def at_rates(self) -> Study:
        """The runs at a rate: those that calibrate and confirm, and the trials of a search."""
        trials = () if self.searched is None else self.searched.runs
        runs = (*self._calibrating, *self._confirming, *trials)
        return Study(results_dir(self.results) / STUDY, runs)

    @property
    def record(self) -> dict[str, Any]:
        """The record of the first run. Raises RuntimeError where none was made."""
        runs = (*self.at_rates.runs, *self._crowds)
        if not runs:
            raise RuntimeError("no run was made: call calibrate() first")
        return runs[0].record

    @property
    def capacity_ends(self) -> tuple[float | None, float | None]:
        """The interval of the capacity that is foretold, else of the one that a search found."""
        if self.capacity.interval is not None and self.calibration.refusal is None:
            return self.capacity.interval
        return (None, None) if self.searched is None else self.searched.interval

    def curve(self) -> pd.DataFrame:
        """What is foretold at rates up to the highest throughput; no row where nothing is.

        The columns are those of `Prediction`.
        """
        import pandas as pd

        from benchlib.queueing.estimates import Prediction

        if self.calibration.refusal is not None:
            return pd.DataFrame(columns=list(Prediction.__dataclass_fields__))
        most = self.calibration.most_images_per_s / (1 + self.calibration.service_share)
        rates = [share * most for share in CURVE_SHARES]
        if self.capacity.rate is not None:
            rates.append(self.capacity.rate)
        # Beyond the highest throughput of a resample the queue has no end, and no variance.
        with self.budget.timed("curve"), np.errstate(invalid="ignore"):
            return self.calibration.curve(sorted(rates), self.plan.slo)

    def foretold_users(self) -> pd.DataFrame:
        """What is foretold of closed loops of 1 to the most of `users`; no row where nothing is.

        The columns are `users`, `images_per_s`, `mean_s`, `p50_s`, `p95_s` and `in_time` (a share).
        """
        import pandas as pd

        from benchlib.queueing.lanes import Draws
        from benchlib.study.slo import Slo

        goal = Slo.parse(self.plan.slo)
        length = max(USERS_SIMULATED, IMAGES_OF_A_USER * max(self.users))
        draws = Draws.of(length, seed=0)
        rows = []
        for people in spread_out(self.users):
            latency_s = self.calibration.lane.user_latencies_s(draws, people)
            settled_s = pd.Series(latency_s[len(latency_s) // 20 :])
            row = {
                "users": people,
                "images_per_s": people / settled_s.mean(),
                "mean_s": settled_s.mean(),
                "p50_s": settled_s.quantile(0.5),
                "p95_s": settled_s.quantile(0.95),
                "in_time": (settled_s <= goal.latency_s).mean(),
            }
            rows.append(row)
        known = pd.DataFrame(rows)
        return known[:0] if self.calibration.refusal is not None else known

    def comparison(self) -> pd.DataFrame:
        """Each run that calibrates or confirms, beside the simulations of its arrivals.

        `measured_s` is the run's own percentile that the promise is about, with its interval of 95 %
        where the run carries one. `foretold_s` holds 99 % of the simulations. `in_time` and
        `foretold_in_time` are shares likewise. `judges` is the estimate that `verdict` is about:
        the "latest", or an "earlier" one that it replaced.
        """
        import pandas as pd

        from benchlib.queueing.confirming import confirmation
        from benchlib.study.slo import Slo

        judged = [*self.former, *self.confirmations]
        earlier = [id(one) for one in self.former]
        if self.first is not None:
            own = confirmation(self.first, self._calibrating[-1], slo=self.plan.slo)
            own = replace(own, verdict=CALIBRATES)
            judged.insert(0, own)
            if self.former:  # they contradicted the first estimate, and led to another
                earlier.append(id(own))
        figure = f"latency_p{100 * Slo.parse(self.plan.slo).q:g}_s"
        rows = []
        for one in judged:
            figures: dict[Any, Any] = {} if one.run is None else one.run.summary().to_dict()
            row = {
                "rate": one.rate,
                "offered_images_per_s": figures.get("offered_images_per_s"),
                "images": one.images,
                "measured_s": figures.get(figure),
                "measured_s_interval": figures.get(f"{figure}_interval"),
                "foretold_s": one.foretold_promised_s,
                "in_time": one.in_time,
                "foretold_in_time": one.foretold_in_time,
                "verdict": one.verdict,
                "judges": EARLIER if id(one) in earlier else LATEST,
            }
            rows.append(row)
        return pd.DataFrame(rows, columns=COMPARED)

    @property
    def outlook(self) -> Outlook:
        """What is foretold of the server, and which runs confirm it, for the answer."""
        target = self.server.spec
        foretold = self.foretold_users()
        is_asked = foretold["users"].isin(self.users)
        most = max([self.calibration.most_images_per_s, *foretold["images_per_s"]])
        return Outlook(
            server=f"{target['model']}; {target['recipe']}, {target['batching']}",
            is_tiny=target["model"] == "tiny",
            slo=self.plan.slo,
            rate=self.capacity.rate,
            interval=self.capacity.interval,
            images=self._images,
            is_loaded=self.first is not None,
            refusal=self.calibration.refusal,
            breaches=self.calibration.reasons,
            image_s=self.calibration.service_s,
            most_images_per_s=most,
            users=foretold[is_asked],
            confirmations=tuple(self.confirmations),
            former=tuple(self.former),
            interrupted=self.budget.interrupted,
            remarks=self.calibration.remarks,
        )

    @property
    def _images(self) -> int:
        """How many images the estimate was made from, before others confirmed it."""
        in_basis = [id(run) for run in self._basis]
        agreeing = [one.images for one in self.confirmations if id(one.run) in in_basis]
        return self.capacity.images - sum(agreeing)

    # ---- planning

    @property
    def _likely_rate(self) -> float:
        """The capacity in images/s, or a guess where it is not known.

        Images made alone beside other work may foretell next to nothing. A run at a rate near 0
        would take hours.
        """
        most = self.calibration.most_images_per_s
        rate = self.capacity.rate or 0.0
        return max(LOWEST_RATE, LEAST_SHARE * most, rate)

    def _rates_to_confirm(self) -> list[tuple[str, float]]:
        if self.calibration.refusal is not None:
            return []
        if self.rates is None and self.capacity.rate is None:
            return []
        capacity = self.capacity.rate or self._likely_rate
        return rates_to_confirm(capacity, self.capacity.interval, self.rates)

    def _part_at_rate(self, name: str, rate: float) -> Part:
        """The part of a run at `rate`, with as many images as leave time for one that confirms."""
        run_s = self._cost_s("run")
        most = self.calibration.most_images_per_s
        parts = [part_at_rate(name, rate, run_s, least, most) for least in least_images(name)]
        free_s = self.budget.left_s - self._reserve_s()
        if name == CALIBRATE:
            free_s -= parts[-1].needed_s
        fitting = [part for part in parts if part.needed_s <= free_s]
        return fitting[0] if fitting else parts[-1]

    def _part_of_users(self, people: int) -> Part:
        images_per_s, _ = self.calibration.user_throughput(people)
        return part_of_users(people, max(self.users), images_per_s, self._cost_s("run"))

    def _parts(self) -> list[Part]:
        """The parts that are still to be measured, in their order."""
        at_rates = [(CALIBRATE, CALIBRATE_AT * self._likely_rate), *self._rates_to_confirm()]
        parts = [self._part_at_rate(name, rate) for name, rate in at_rates]
        parts += [self._part_of_users(people) for people in self.users]
        return [part for part in parts if part.name not in self._done]

    def _cost_s(self, name: str) -> float:
        return self.budget.cost(name, COSTS_S[name])

    def _reserve_s(self) -> float:
        """Seconds for the predictions that follow the runs."""
        return 2 * self._cost_s("estimate") + self._cost_s("curve")

    def _share_of(self, part: Part) -> PlannedPart | None:
        """The share of the time that `part` gets beside the parts after it; None if none.

        What is left out is said.
        """
        parts = [one for one in self._parts() if one.name != part.name]
        is_first = part.name == CALIBRATE and not self._calibrating
        plan = self.budget.plan([part, *parts], reserve_s=self._reserve_s(), keep_one=is_first)
        self._done.add(part.name)
        if part.name in plan:
            return plan[part.name]
        if not self.budget.interrupted:
            for line in plan.left_out_lines():
                if line.startswith(part.name):
                    print_line(line)
        return None

    # ---- runs

    def _confirm_at(self, name: str, rate: float) -> None:
        """Makes a run that the estimate has no part of, and judges the estimate by it."""
        from benchlib.queueing.confirming import confirmation

        if self._measure_at(name, rate, self._confirming):
            judged = confirmation(self.calibration, self._confirming[-1], slo=self.plan.slo)
            self.confirmations.append(judged)
            print_line(judged)

    @property
    def _is_contradicted(self) -> bool:
        """Whether a run contradicts the estimate."""
        return any(one.verdict == NOT_CONFIRMED for one in self.confirmations)

    def _renew_estimate(self) -> bool:
        """Makes the estimate anew, by the run that contradicts it; returns whether it could.

        That run shows the server as it is now, and near its capacity. Only where it explains
        nothing by itself are the runs before it taken as well.
        """
        last = self._confirming[-1]
        for runs in ([last], [*self._basis, last]):
            if self._calibrate_by(runs):
                self.former += self.confirmations
                self.confirmations = []
                self._done.discard(CONFIRM)
                print_line(f"A new estimate: {self.capacity}")
                return True
        return False

    def _measure_at(self, name: str, rate: float, runs: list[Run]) -> bool:
        """Makes an open-loop run and adds it to `runs`; returns whether there was time for it.

        Its arrivals are typical ones, so that a short run is neither kind nor harsh by chance.
        """
        from benchlib.queueing.confirming import typical_seed

        part = self._part_at_rate(name, rate)
        share = self._share_of(part)
        if share is None:
            return False
        images = max(LEAST_ESTIMATE, share.images or 0)
        arrivals = OpenLoop(rate, max_in_flight=MOST_IN_FLIGHT)
        first = SEEDS_APART * len(self._done)
        seed = typical_seed(
            self.calibration, arrivals, WARMUP_IMAGES + images, slo=self.plan.slo, first=first
        )
        warmup_s = WARMUP_IMAGES / rate
        return self._send(arrivals, share, runs, requests=images, warmup_s=warmup_s, seed=seed)

    def _send(
        self, arrivals: Arrivals, share: PlannedPart, runs: list[Run], **lengths: Any
    ) -> bool:
        """Makes a run and adds it to `runs`, also where it is interrupted."""
        longest_s = DRAIN * share.seconds + DRAIN_S
        cut_s = max(DRAIN_S, self.budget.cut_s)
        if share.name == CALIBRATE and not runs:
            # It is made though the budget is spent. Cut short, it would show nothing.
            cut_s = max(cut_s, longest_s)
        point = Point(
            arrivals,
            self.plan.workload,
            self.server,
            max_s=min(longest_s, cut_s),
            **lengths,
        )
        print_line(f"{share.name}:")
        began_s = time.monotonic()
        with writing(self.results, STUDY, None) as writer, self.budget.measuring(share.name):
            try:
                writer.measure(point, self.server)
            except GeneratorError as error:
                print_line(f"passed over: {error}")
        runs += writer.runs

        # What the run took besides its arrivals
        last_s = max((run.requests["scheduled_s"].max() for run in writer.runs), default=math.nan)
        if not (self.budget.interrupted or math.isnan(last_s)):
            self.budget.record("run", max(0.0, time.monotonic() - began_s - last_s))
        return bool(writer.runs)

    def _calibrate_by(self, runs: Sequence[Run]) -> bool:
        """Takes the calibration by `runs` as the estimate, and returns whether it is one.

        Too few images leave the estimate before any load. A refused calibration leaves a loaded one
        that stands.
        """
        from benchlib.queueing.estimates import calibrate

        try:
            latest = calibrate(runs)
        except ValueError as error:
            print_line(f"No estimate: {error}")
            return False
        if latest.refusal and self._basis:
            print_line(f"{latest} So the estimate stays as it was.")
            return False
        if latest.images < LEAST_ESTIMATE:
            print_line(latest)
            return False
        self.calibration = latest
        with self.budget.timed("estimate"), np.errstate(invalid="ignore"):
            self.capacity = latest.capacity(self.plan.slo)
        if latest.refusal is not None:
            print_line(latest)
            return False
        self._basis = list(runs)
        return True

    def _search(self) -> None:
        """Searches for the capacity by the runs' own latencies, in the time that is left."""
        start_rate = max(LOWEST_RATE, 0.4 * self._likely_rate)
        left_s = self.budget.left_s - self._cost_s("run")
        affordable = int(start_rate * left_s / 3.5)  # two trials at the start, two at twice that
        if affordable < 1:
            return
        print_line("The time left goes to a search by the runs' own latencies.")
        folder = results_dir(self.results) / STUDY
        before = set(run_folders(folder))
        self.searched = Capacity(None, (None, None), (), "it was interrupted", self.plan.slo)
        with self.budget.measuring("the search"):
            self.searched = find_capacity(
                self.server,
                self.plan.workload,
                slo=self.plan.slo,
                budget_min=left_s / 60,
                start_rate=start_rate,
                trial_s=8 * self.plan.image_s,
                trial_requests=min(TRIAL_REQUESTS, affordable),
                study=STUDY,
                results=self.results,
            )
        if self.budget.interrupted:
            trials = [load_run(path) for path in run_folders(folder) if path not in before]
            self.searched = replace(self.searched, runs=tuple(trials))


def _check_list(name: str, values: Any, **limits: Any) -> None:
    """Raises ValueError, naming the value, unless it is a list of numbers within `limits`."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or not len(values):
        raise ValueError(f"{name} must be a list with at least one value, got {values!r}")
    for place, value in enumerate(values):
        check_number(f"{name}[{place}]", value, **limits)


def _without_pauses(alone_s: Sequence[float]) -> list[float]:
    """The times of images alone, without those that other work held up.

    Of five images, one that was held up would count as a fifth of all images to come.
    """
    usual_s = PAUSE * statistics.median(alone_s)
    return [seconds for seconds in alone_s if seconds <= usual_s]


def find_capacity(
    target: Server | str | list[str] | tuple[str, ...],
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

    No trial begins that is longer than the time left of `budget_min` minutes. In a notebook, an
    interrupt ends the search, and what it has found is returned. Raises ValueError, naming the
    argument, and what `run_load` does; `api` is as there.
    """
    from benchlib.study.slo import Slo

    goal = Slo.parse(slo)
    if budget_min is not None:
        check_number("budget_min", budget_min, 0)
    check_number("trial_s", trial_s, 0, above=True)
    check_number("trial_requests", trial_requests, 1, whole=True)
    seeds = count(seed)
    end_s = math.inf if budget_min is None else time.monotonic() + 60 * budget_min
    runs: list[Run] = []
    budget = budget_of_cell(results)
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
            run = writer.measure(point, target, budget)
            runs.append(run)
            if budget is not None and budget.interrupted:
                return None
            return _verdict(goal, run)

        found = find_highest(judge, start=start_rate, precision=precision)
    if budget is not None and budget.interrupted:
        found = replace(found, note="it was interrupted")
    if not runs:
        first_s = 1.1 * max(trial_s, trial_requests / start_rate)
        needed_min = math.ceil(10 * first_s / 60) / 10
        note = f"no trial was made, as one takes {first_s:.0f} s; give budget_min={needed_min:g}"
        found = replace(found, note=f"{note} or more, or a lower trial_s and trial_requests")
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
