"""Judges an estimate by a run that had no part in it: does the run go as it was foretold?

    confirmation(calibration, run, slo="p95 < 2 s")

The run's very arrivals are simulated many times, with other services of the same kind each time.
So chance alone is in the comparison, and neither the arrivals nor the queue's long waves. Knows
lanes and runs. Ignorant of how a run is made, and of how its rate was chosen (measure.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchlib.cell_view import ShownInCell
from benchlib.load.arrivals import OpenLoop
from benchlib.queueing.breaches import LEAST_IMAGES, MOST_LOST, losses_of
from benchlib.queueing.lanes import Draws, Lane, SerialLane
from benchlib.queueing.unet_work import images_of
from benchlib.queueing.work import AskedWork, sizes_of, work_of
from benchlib.serving.engine.compiled import lindley
from benchlib.study.intervals import Interval
from benchlib.study.latency import percentile
from benchlib.study.services import Floats, as_floats
from benchlib.study.slo import Slo
from benchlib.study.store import Run
from benchlib.study.validity import how_it_ended
from benchlib.study.wording import counted, number, numbers_apart

if TYPE_CHECKING:
    from benchlib.queueing.estimates import Calibration

SIMULATED = 400
SEEDS = 20
LONG_RUN = 20_000
"""A typical run is the nearest of SEEDS to a simulation of so many requests."""
CHANCE = 0.005
"""A run that goes as foretold lies outside of either end of an interval with this probability."""
MODEL_ERROR = 0.03
"""A latency that is off by up to this share tells nothing against a simulation."""
TOLD_APART = 0.1
"""A run is too short if a server that is slower by this share could look like it."""
SEED = 20_261_127


@dataclass(frozen=True, repr=False)
class Confirmation(ShownInCell):
    """What a run shows of an estimate that was made without it; times in seconds.

    `verdict` is "confirmed", "not confirmed", "too short" or "not judged"; `reason` says why it is
    not "confirmed". `promised_s` is the run's own percentile that the promise is about, `in_time`
    the share of its images within the promise. The `foretold_` intervals hold 99 % of the
    simulations of the run's arrivals. `typical_off` is the median difference of an image's latency
    from the simulated one, as a share of the mean latency.
    """

    rate: float
    images: int
    verdict: str
    reason: str = ""
    mean_s: float | None = None
    foretold_mean_s: Interval = None
    promised_s: float | None = None
    foretold_promised_s: Interval = None
    in_time: float | None = None
    foretold_in_time: Interval = None
    typical_off: float | None = None
    run: Run | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        made = f"{counted(self.images, 'image')} at {number(self.rate)}/s"
        if self.reason:
            return f"{made}: {self.verdict}, {self.reason}"
        return f"{made}: {self.verdict}"


def confirmation(calibration: Calibration, run: Run, *, slo: str) -> Confirmation:
    """Whether `run`, which had no part in `calibration`, goes as it was foretold.

    It does if its mean latency, and its share of images within `slo`, lie in the intervals of its
    simulations. Raises ValueError for a promise that can't be read, and for a run without a rate.
    """
    # 1) What can't be judged
    goal = Slo.parse(slo)
    rate = run.spec["arrivals"].get("rate")
    if rate is None:
        raise ValueError("run: its arrivals have no rate; use a run of an open loop")
    images = images_of(run)
    is_counted = images["phase"].to_numpy() == "measure"
    count = int(is_counted.sum())
    reason = _why_not_judged(calibration, run)
    if reason is not None:
        return Confirmation(rate, count, "not judged", reason, run=run)
    if count < LEAST_IMAGES:
        few = f"{LEAST_IMAGES} images are needed"
        return Confirmation(rate, count, "too short", few, run=run)

    # 2) The run beside its simulations
    measured_s = as_floats(images["latency_s"])[is_counted]
    simulated_s = _simulations(calibration, images)[:, is_counted]
    foretold_mean_s = _latency_ends(simulated_s.mean(axis=1))
    simulated_q_s = np.quantile(simulated_s, goal.q, axis=1, method="inverted_cdf")
    foretold_in_time = _share_ends(simulated_s, goal.latency_s)
    mean_s = float(measured_s.mean())
    in_time = float((measured_s <= goal.latency_s).mean())
    off_s = np.abs(measured_s - np.median(simulated_s, axis=0))

    # 3) The verdict
    slower = _slower(calibration)
    slower_means_s = _simulations(slower, images)[:, is_counted].mean(axis=1)
    verdict, reason = _verdict(
        (mean_s, foretold_mean_s), (in_time, foretold_in_time), float(np.median(slower_means_s))
    )
    return Confirmation(
        rate=rate,
        images=count,
        verdict=verdict,
        reason=reason,
        mean_s=mean_s,
        foretold_mean_s=foretold_mean_s,
        promised_s=percentile(measured_s, goal.q),
        foretold_promised_s=_latency_ends(simulated_q_s),
        in_time=in_time,
        foretold_in_time=foretold_in_time,
        typical_off=float(np.median(off_s)) / mean_s,
        run=run,
    )


def _why_not_judged(calibration: Calibration, run: Run) -> str | None:
    """Why a run says nothing of an estimate, or None.

    A generator that fell behind is no reason: the moments at which it sent are simulated.
    """
    if calibration.refusal is not None:
        return f"there is no estimate: {calibration.refusal}"
    if run.record["status"] not in ("finished", "interrupted"):
        return how_it_ended(run.record)
    lost = losses_of(run).lost_share
    if lost > MOST_LOST:
        return f"{100 * lost:.0f} % of its requests got no image"
    graphs = (run.record["outcome"] or {}).get("graphs_made")
    if graphs:
        return f"the server compiled or recorded {counted(graphs, 'graph')} during the run"
    return None


def typical_seed(
    calibration: Calibration, arrivals: OpenLoop, requests: int, *, slo: str, first: int = 0
) -> int:
    """The seed for a run whose arrivals are about as harsh as the long run, of SEEDS from `first`.

    The arrivals of a short run are by chance kinder or harsher than most at their rate. Those of
    this seed come nearest to the long run in their share of requests within `slo`. They are
    simulated for it with mean services: the run's own services have no part in the choice.

    All requests must ask for the same work, that of the calibrating run.
    """
    # 1) Runs that are as short, and how many of their requests are in time
    goal = Slo.parse(slo)
    lane = calibration.lane
    ones = np.ones(requests, dtype=np.int64)
    work = AskedWork(steps=ones, rows=ones, size=0 * ones)
    if not isinstance(lane, SerialLane):
        work = lane.work.take(0 * ones)
    ratios = np.full(requests, float(lane.ratios.mean()))
    after_s = float(lane.after_s.mean())
    shares = {}
    for seed in range(first, first + SEEDS):
        sent_s = np.array(list(islice(arrivals.times(seed), requests)))
        latency_s = _in_lane_s(lane, sent_s, work, ratios) + after_s
        shares[seed] = float((latency_s <= goal.latency_s).mean())

    # 2) The long run; an overload has none, and then the median of the short ones is typical
    usual = float(np.median(list(shares.values())))
    if arrivals.rate < lane.most_images_per_s:
        latency_s = lane.latencies_s(Draws.of(LONG_RUN, SEED), arrivals.rate)
        settled_s = latency_s[LONG_RUN // 20 :]
        usual = float((settled_s <= goal.latency_s).mean())
    return min(shares, key=lambda seed: abs(shares[seed] - usual))


def _verdict(
    mean: tuple[float, tuple[float, float]],
    share: tuple[float, tuple[float, float]],
    slower_mean_s: float,
) -> tuple[str, str]:
    """The verdict and its reason, by a figure and its foretold interval, for mean and share."""
    mean_s, (shortest_s, longest_s) = mean
    in_time, (least, most) = share
    if not shortest_s <= mean_s <= longest_s:
        took, low, high = numbers_apart(mean_s, (shortest_s, longest_s))
        foretold = f"{low} to {high} s were foretold"
        return "not confirmed", f"images took {took} s in the mean, and {foretold}"
    if not least <= in_time <= most:
        foretold = f"{100 * least:.0f} % to {100 * most:.0f} % were foretold"
        return "not confirmed", f"{100 * in_time:.0f} % of the images came in time, and {foretold}"
    if slower_mean_s <= longest_s:
        return "too short", f"a server that is {100 * TOLD_APART:.0f} % slower could look like this"
    return "confirmed", ""


def _latency_ends(seconds: Floats) -> tuple[float, float]:
    """The interval of a latency by its simulated values, and the error of the model."""
    low, high = np.quantile(seconds, [CHANCE, 1 - CHANCE])
    return float(low) / (1 + MODEL_ERROR), float(high) * (1 + MODEL_ERROR)


def _share_ends(simulated_s: Floats, limit_s: float) -> tuple[float, float]:
    """The interval of the share within `limit_s`, by simulations in rows."""
    if_longer = (simulated_s <= limit_s / (1 + MODEL_ERROR)).mean(axis=1)
    if_shorter = (simulated_s <= limit_s * (1 + MODEL_ERROR)).mean(axis=1)
    least = np.quantile(if_longer, CHANCE)
    most = np.quantile(if_shorter, 1 - CHANCE)
    return float(least), float(most)


def _slower(calibration: Calibration) -> Calibration:
    """The calibration of a server that is slower than the estimate's own error, by TOLD_APART."""
    k = 1 + TOLD_APART + calibration.service_share
    lane = calibration.lane
    return replace(calibration, lane=replace(lane, ratios=k * lane.ratios))


def _simulations(calibration: Calibration, images: pd.DataFrame) -> Floats:
    """The latencies in seconds of a run's images, in as many simulations as there are rows.

    Each simulation has other services: those of another calibrating run, off by up to the misfit,
    and dealt out anew.
    """
    # 1) The run
    lane = calibration.lane
    unknown = sorted(set(sizes_of([images])) - set(lane.sizes)) if lane.sizes else []
    if unknown:
        raise ValueError(f"run: its size {unknown[0]} was not calibrated")
    work = work_of(images, lane.sizes)
    sent_s = as_floats(images["sent_s"])
    held_s = sent_s - as_floats(images["scheduled_s"])
    drift = _correlated_error(calibration, len(images))

    # 2) Its simulations
    random = np.random.default_rng(SEED)
    rows = []
    for _ in range(SIMULATED):
        other = lane.resampled(random)
        misfit = random.uniform(-calibration.service_share, calibration.service_share)
        factor = (1 + misfit) * math.exp(drift * random.standard_normal())
        ratios = factor * random.choice(other.ratios, len(images))
        in_server_s = _in_lane_s(other, sent_s, work, ratios)
        in_server_s = in_server_s + random.choice(other.after_s, len(images))
        stretch = 1 + random.uniform(-calibration.latency_share, calibration.latency_share)
        rows.append(held_s + stretch * in_server_s)
    return np.array(rows)


def _correlated_error(calibration: Calibration, images: int) -> float:
    """The relative error of a mean service that comes from services being alike for a while.

    It is of both runs: the calibrating one and this one, of so many `images`.
    """
    ratios = calibration.lane.ratios
    spread = float(ratios.std() / ratios.mean())
    more = calibration.inflation - 1
    return spread * math.sqrt(more / calibration.images + more / images)


def _in_lane_s(lane: Lane, sent_s: Floats, work: AskedWork, ratios: Floats) -> Floats:
    """Seconds of each request from its sending to its end in the lane."""
    if isinstance(lane, SerialLane):
        services_s = lane.cost(work) * ratios + lane.gap_s * lane.calls_of(work)
        return lindley(sent_s, services_s) - sent_s
    simulated = lane.simulate(sent_s, work, ratios)
    in_lane_s: Floats = simulated.done_s - sent_s
    return in_lane_s
