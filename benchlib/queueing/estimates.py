"""Foretells what a server can serve, from the services that one loaded run measured.

    calibration = calibrate(run)
    calibration.capacity("p95 < 2 s")

A run's own percentiles need thousands of requests, because waits depend on each other. Services do
not, and a simulated queue can be as long as one likes. So services are measured, the queue is
simulated, and a replay of the run's very arrivals shows how far the simulation is off.

Knows lanes, their replays, and which misfits widen or refuse an estimate. Ignorant of how a lane is
fitted (calibration.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchlib.queueing.calibration import Replay, fit_lane, lane_alone, replay
from benchlib.queueing.lanes import Draws, Lane, SerialLane, control_queue
from benchlib.study import misfit
from benchlib.study.intervals import Estimates, Interval, t_quantile
from benchlib.study.misfit import Breach
from benchlib.study.services import as_floats, failed_share
from benchlib.study.simulated import Simulation
from benchlib.study.slo import Slo
from benchlib.study.wording import counted, number, words

if TYPE_CHECKING:
    from benchlib.load.workload import Workload
    from benchlib.study.store import Run

LEAST_IMAGES = 20
"""Fewer services carry no estimate."""
MOST_MISFIT = 0.25
"""An estimate that had to be widened by more than this share is refused."""
MOST_FAILED = 0.05
UNLOADED_SHARE = 0.06
"""How far step times that were measured without load were off on one H100, as a share."""
LONG = {"serial": 400_000, "batches": 120_000}
"""How many requests are simulated for the estimate itself."""
SHORT = {"serial": 60_000, "batches": 20_000}
"""How many requests show what other services would change, with common random numbers."""
REPLICATES = {"serial": 60, "batches": 24}
STABLE_LOAD = 0.995
"""At a higher share of the highest throughput a queue has no steady state worth a simulation."""
SEED = 20_261_127

Figure = Callable[[Simulation], tuple[float, float]]
"""A figure of a simulation, and its standard error."""
FIGURES: dict[str, Figure] = {
    "mean_s": lambda simulation: simulation.mean(),
    "p50_s": lambda simulation: simulation.percentile(0.5),
    "p95_s": lambda simulation: simulation.percentile(0.95),
    "p99_s": lambda simulation: simulation.percentile(0.99),
}


@dataclass(frozen=True)
class Prediction:
    """What a server does at `rate` requests a second (Poisson), in the long run; times in seconds.

    Each figure has an `_interval` of 95 %. `promised_s` is the latency that the promised share of
    requests stays within, `in_time` the share that keeps the promise, and `goodput_images_per_s`
    their number in a second; they are None without a promise. All figures are None where the server
    can't keep up (`stable` is False), or the estimate is refused.
    """

    rate: float
    stable: bool
    mean_s: float | None = None
    mean_s_interval: Interval = None
    p50_s: float | None = None
    p50_s_interval: Interval = None
    p95_s: float | None = None
    p95_s_interval: Interval = None
    p99_s: float | None = None
    p99_s_interval: Interval = None
    promised_s: float | None = None
    promised_s_interval: Interval = None
    in_time: float | None = None
    in_time_interval: Interval = None
    goodput_images_per_s: float | None = None
    goodput_images_per_s_interval: Interval = None


@dataclass(frozen=True)
class PredictedCapacity:
    """The highest rate in requests/s that keeps `slo` in the long run, with its interval.

    `rate` is None where even single requests break the promise, or the estimate is refused; `note`
    says which. `images` is how many services carry the estimate.
    """

    rate: float | None
    interval: Interval
    slo: str
    images: int
    status: str
    note: str

    def __str__(self) -> str:
        if self.rate is None:
            return f"The capacity within {self.slo} is not shown: {self.note}."
        rate = words(self.rate, self.interval, "images/s")
        return f"The server keeps {self.slo} up to {rate}, foretold from {self.images} images."


@dataclass(frozen=True)
class _Ensemble:
    """Simulations at one rate: a long one, and short ones with common random numbers.

    `here` has the services as they were measured, each of `others` a resample of them. `slower` and
    `faster` are at a rate that is higher and lower by the misfit of the services.
    """

    long: Simulation
    here: Simulation
    others: Sequence[Simulation]
    slower: Simulation
    faster: Simulation


@dataclass(frozen=True)
class Calibration:
    """A lane that was fitted to runs, and how well it explains them.

    `images` is the number of services in the measuring windows. `service_share` and `latency_share`
    are the misfits as shares of a service and of a latency: estimates are widened by both.
    `refusal` says why no estimate is given, or is None.
    """

    lane: Lane
    images: int
    breaches: tuple[Breach, ...]
    service_share: float
    latency_share: float
    refusal: str | None
    inflation: float = 1.0
    """The services' correlation time: so many images are worth one independent image."""
    replays: tuple[Replay, ...] = ()
    is_plan: bool = False
    """Whether simulations are shorter: what is known before any load is worth no longer ones."""

    @property
    def status(self) -> str:
        """ "stands", "widened" (an assumption is broken, by little) or "refused"."""
        if self.refusal is not None:
            return "refused"
        return "widened" if self.breaches else "stands"

    @property
    def service_s(self) -> float:
        """Mean seconds that an image takes if it has the server to itself."""
        return self.lane.alone_s

    @cached_property
    def most_images_per_s(self) -> float:
        """The highest throughput, whatever the latency."""
        return self.lane.most_images_per_s

    def __str__(self) -> str:
        found = f"{counted(self.images, 'image')} measured, {number(self.service_s)} s each alone"
        if self.refusal is not None:
            return f"{found}. No estimate: {self.refusal}."
        reasons = "; ".join(breach.words for breach in self.breaches)
        if reasons:
            return f"{found}. The estimate is widened: {reasons}."
        return f"{found}. The simulation of this run's arrivals fits."

    # ---- what is foretold

    def predict(self, rate: float, slo: str | None = None) -> Prediction:
        """What the server does at `rate` requests a second (Poisson), in the long run.

        Raises ValueError for a rate that is not above 0, and for a promise that can't be read.
        """
        if not rate > 0 or not math.isfinite(rate):
            raise ValueError(f"rate must be a finite number above 0, got {rate!r}")
        goal = None if slo is None else Slo.parse(slo)
        stable = rate < STABLE_LOAD * self.most_images_per_s
        if self.refusal is not None or not stable:
            return Prediction(rate, stable)

        # 1) The queue itself, and what other services or a misfit would change
        ensemble = self._ensemble(rate)
        figures: dict[str, Any] = {}
        for name, figure in FIGURES.items():
            figures |= self._latency(name, figure, ensemble)

        # 2) The promise
        if goal is not None:
            figures |= self._latency(
                "promised_s", lambda simulation: simulation.percentile(goal.q), ensemble
            )
            share, (low, high) = self._share_in_time(goal.latency_s, ensemble)
            figures |= {
                "in_time": share,
                "in_time_interval": (low, high),
                "goodput_images_per_s": rate * share,
                "goodput_images_per_s_interval": (rate * low, rate * high),
            }
        return Prediction(rate, stable, **figures)

    def curve(self, rates: Iterable[float], slo: str | None = None) -> pd.DataFrame:
        """One row for each of `rates` (requests/s): the fields of `Prediction`."""
        return pd.DataFrame([vars(self.predict(rate, slo)) for rate in rates])

    def capacity(self, slo: str) -> PredictedCapacity:
        """The highest rate that keeps `slo` in the long run, with its interval.

        The interval holds three errors: other services of the same kind (bootstrap), the finite
        length of the simulation, and the misfit of the replayed run. Sources: Barton & Schruben,
        "Uniform and bootstrap resampling of empirical distributions" (1993); Song, Nelson &
        Pegden, "Advanced tutorial: input uncertainty quantification" (2014).
        """
        goal = Slo.parse(slo)
        facts: dict[str, Any] = {"slo": slo, "images": self.images, "status": self.status}
        if self.refusal is not None:
            return PredictedCapacity(None, None, note=self.refusal, **facts)

        # 1) The rate at which the promised share comes in time
        limit_s = goal.latency_s
        rate = self._highest_rate(limit_s, goal.q, self._long)
        if rate is None:
            note = f"a request that has the server to itself takes {number(self.service_s)} s"
            return PredictedCapacity(None, None, note=note, **facts)

        # 2) The errors of services and of the simulation, turned into rates by the slope
        _, error = self._simulation(self.lane, rate, self._long).share_within(limit_s)
        near = [self._short_share(self.lane, k * rate, limit_s) for k in (0.97, 1.03)]
        slope = (near[1] - near[0]) / (0.06 * rate)
        here = self._short_share(self.lane, rate, limit_s)
        moved = [self._short_share(lane, rate, limit_s) - here for lane in self._replicates]
        spread = self._sampling_error(moved)
        half = 0.0
        if slope < 0:
            half = 1.96 * math.hypot(spread, error) / -slope

        # 3) The misfit: a promise and services that are off by its share
        low = high = rate
        stretch = (1 + self.latency_share) * (1 + self.service_share)
        if stretch > 1:
            worst = self._highest_rate(limit_s / stretch, goal.q, self._short)
            best = self._highest_rate(limit_s * stretch, goal.q, self._short)
            middle = self._highest_rate(limit_s, goal.q, self._short) or rate
            low = rate * (worst or 0.0) / middle / (1 + self.service_share)
            high = rate * (best or rate) / middle * (1 + self.service_share)
        most = self.most_images_per_s * (1 + self.service_share)
        interval = max(0.0, low - half), min(most, high + half)
        return PredictedCapacity(rate, interval, note=str(self), **facts)

    def replay(self, run: Run) -> pd.DataFrame:
        """A run's images beside the simulation of its very arrivals; times in seconds.

        The columns `measured_s`, `simulated_s` and `residual_s` have the index of `run.requests`.
        Every image takes its mean time, so the run may be another than the calibrated one.
        """
        images = replay(self.lane, run).images
        columns = {"latency_s": "measured_s"}
        named = images.rename(columns=columns)
        return named[["measured_s", "simulated_s", "residual_s"]]

    def user_throughput(self, users: int) -> tuple[float, float]:
        """Images/s and mean latency in seconds, if `users` ask again as soon as they have theirs."""
        latency_s = self.lane.user_latencies_s(self._short, users)
        mean_s = float(latency_s[len(latency_s) // 20 :].mean())
        return users / mean_s, mean_s

    # ---- simulations

    @property
    def _kind(self) -> str:
        return "serial" if isinstance(self.lane, SerialLane) else "batches"

    @cached_property
    def _long(self) -> Draws:
        lengths = SHORT if self.is_plan else LONG
        return Draws.of(lengths[self._kind], SEED)

    @cached_property
    def _short(self) -> Draws:
        return self._long.first(SHORT[self._kind])

    @cached_property
    def _replicates(self) -> list[Lane]:
        random = np.random.default_rng(SEED)
        return [self.lane.resampled(random) for _ in range(REPLICATES[self._kind])]

    def _simulation(self, lane: Lane, rate: float, draws: Draws) -> Simulation:
        load = rate / self.most_images_per_s
        control_s, control_mean_s = control_queue(draws, rate, load)
        return Simulation(lane.latencies_s(draws, rate), control_s, control_mean_s)

    def _short_share(self, lane: Lane, rate: float, limit_s: float) -> float:
        share, _ = self._simulation(lane, rate, self._short).share_within(limit_s)
        return share

    def _sampling_error(self, moved: Sequence[float]) -> float:
        """The standard error by which other services move a figure.

        `moved` is the figure's change in each replicate. Few images vary less among themselves than
        all images do, so the error is enlarged as Student's t does it.
        """
        n = max(2.0, self.images / self.inflation)
        for_t = t_quantile(0.975, n - 1) / 1.96 * math.sqrt(n / (n - 1))
        square = float(np.mean(np.square(moved)))
        return for_t * math.sqrt(self.inflation * square)

    def _ensemble(self, rate: float) -> _Ensemble:
        k = 1 + self.service_share
        return _Ensemble(
            long=self._simulation(self.lane, rate, self._long),
            here=self._simulation(self.lane, rate, self._short),
            others=[self._simulation(lane, rate, self._short) for lane in self._replicates],
            slower=self._simulation(self.lane, rate * k, self._short),
            faster=self._simulation(self.lane, rate / k, self._short),
        )

    def _latency(self, name: str, figure: Figure, ensemble: _Ensemble) -> dict[str, Any]:
        """A latency in seconds and its interval, by its name.

        Services that are longer by a share k act as a rate that is higher by k, on a clock that is
        slower by k.
        """
        point, error = figure(ensemble.long)
        here, _ = figure(ensemble.here)
        moved = []
        for simulation in ensemble.others:
            there, _ = figure(simulation)
            moved.append((there / here - 1) * point)
        half = 1.96 * math.hypot(self._sampling_error(moved), error)
        k = 1 + self.service_share
        slower, _ = figure(ensemble.slower)
        faster, _ = figure(ensemble.faster)
        low = point * faster / here / k / (1 + self.latency_share)
        high = point * slower / here * k * (1 + self.latency_share)
        return {name: point, f"{name}_interval": (max(0.0, low - half), high + half)}

    def _share_in_time(
        self, limit_s: float, ensemble: _Ensemble
    ) -> tuple[float, tuple[float, float]]:
        """The share of requests that take at most `limit_s`, and its interval."""
        share, error = ensemble.long.share_within(limit_s)
        here, _ = ensemble.here.share_within(limit_s)
        moved = [simulation.share_within(limit_s)[0] - here for simulation in ensemble.others]
        half = 1.96 * math.hypot(self._sampling_error(moved), error)
        stretch = (1 + self.service_share) * (1 + self.latency_share)
        slower, _ = ensemble.slower.share_within(limit_s / stretch)
        faster, _ = ensemble.faster.share_within(limit_s * stretch)
        low = share + slower - here
        high = share + faster - here
        return share, (max(0.0, low - half), min(1.0, high + half))

    def _highest_rate(self, limit_s: float, q: float, draws: Draws) -> float | None:
        """The rate at which just the share `q` takes at most `limit_s`; None if there is none.

        All rates share their random numbers, so the share falls steadily, and bisection finds it.
        """

        def keeps(rate: float) -> bool:
            share, _ = self._simulation(self.lane, rate, draws).share_within(limit_s)
            return share >= q

        low = 0.001 * self.most_images_per_s
        high = STABLE_LOAD * self.most_images_per_s
        if not keeps(low):
            return None
        if keeps(high):
            return high
        while high / low > 1.0005:
            middle = math.sqrt(low * high) if high > 2 * low else (low + high) / 2
            if keeps(middle):
                low = middle
            else:
                high = middle
        return (low + high) / 2


def calibrate(runs: Run | Sequence[Run]) -> Calibration:
    """The calibration of a server by its loaded `runs`: one run, or several of equal settings.

    The runs may be on our own server, or on another that sends our `Server-Timing`. Without these
    times the server counts as one lane, whose services are the latencies of the requests that
    found it empty. An estimate is widened or refused where the runs break its assumptions.

    Raises ValueError where the runs differ in server or workload, or have no image.
    """
    all_runs = list(runs) if isinstance(runs, Sequence) else [runs]
    lane, replays = fit_lane(all_runs)
    breaches = _breaches(replays, lane)
    failed = max(failed_share(run.requests) for run in all_runs)
    return judged(lane, replays, breaches, failed)


def foretell(
    spec: Mapping[str, Any],
    image_s: Sequence[float],
    workload: Workload | None = None,
) -> Calibration:
    """What a server should do by its step times and by images made alone, before any load.

    `spec` is a server's spec; `image_s` are seconds. The estimate is for planning: it is widened by
    UNLOADED_SHARE, since under load steps take longer and answers take time besides. Raises
    ValueError for no image, and for a spec without step times.
    """
    asked = None if workload is None else workload.to_dict()
    words_of = "it comes from images made alone, and steps take longer under load"
    breach = Breach("measured under load", UNLOADED_SHARE, "service", words_of)
    return Calibration(
        lane=lane_alone(spec, image_s, asked),
        images=len(image_s),
        breaches=(breach,),
        service_share=UNLOADED_SHARE,
        latency_share=0.0,
        refusal=None,
        is_plan=True,
    )


def judged(
    lane: Lane, replays: tuple[Replay, ...], breaches: Sequence[Breach], failed: float = 0.0
) -> Calibration:
    """A calibration from a fitted lane and the breaches that its replays show."""
    # 1) How large the misfit is: what a breach shows, and what the residuals' mean may be
    ratios = np.concatenate([as_floats(one.images["ratio"]) for one in replays])
    images = int(np.isfinite(ratios).sum())
    shares = {"service": 0.0, "latency": _mean_misfit(replays)}
    for breach in breaches:
        shares[breach.scale] += breach.share

    # 2) Whether an estimate can be given at all
    refusal = None
    words_of = "; ".join(breach.words for breach in breaches)
    if images < LEAST_IMAGES:
        refusal = f"{counted(images, 'image')} show too little; {LEAST_IMAGES} are needed"
    elif failed > MOST_FAILED:
        refusal = (
            f"{failed:.0%} of the requests failed, and what they took of the server is unknown"
        )
    elif max(shares.values()) > MOST_MISFIT:
        refusal = words_of or "the simulation does not explain the run's latencies"
    inflation = images / Estimates(ratios[np.isfinite(ratios)]).effective_number() if images else 1
    return Calibration(
        lane=lane,
        images=images,
        breaches=tuple(breaches),
        service_share=shares["service"],
        latency_share=shares["latency"],
        refusal=refusal,
        inflation=max(1.0, inflation),
        replays=replays,
    )


def _mean_misfit(replays: Sequence[Replay]) -> float:
    """How far the mean latency of a replay may be off, as a share of it: the largest of the runs.

    It is the residuals' mean and two standard errors. The errors of one busy spell are alike, so a
    standard error counts them as their correlation does.
    """
    shares = [0.0]
    for one in replays:
        residual_s = as_floats(one.images["residual_s"])
        if len(residual_s) < 2:
            continue
        effective = Estimates(residual_s).effective_number()
        error_s = float(residual_s.std(ddof=1)) / math.sqrt(max(1, effective))
        mean_s = float(one.images["latency_s"].mean())
        off_s = min(abs(float(residual_s.mean())) + 2 * error_s, float(np.abs(residual_s).max()))
        shares.append(off_s / mean_s)
    return max(shares)


def _breaches(replays: Sequence[Replay], lane: Lane) -> list[Breach]:
    """What the runs break of the model's assumptions: the largest breach of each assumption."""
    found: dict[str, Breach] = {}
    for one in replays:
        for breach in _breaches_of(one, lane):
            before = found.get(breach.assumption)
            if before is None or before.share < breach.share:
                found[breach.assumption] = breach

    # What one run did not show, another may.
    if not isinstance(lane, SerialLane):
        batch_size = np.concatenate([as_floats(one.images["batch_size"]) for one in replays])
        unseen = misfit.few_shared_steps(batch_size)
        if unseen is not None:
            found[unseen.assumption] = unseen
    return list(found.values())


def _breaches_of(one: Replay, lane: Lane) -> list[Breach]:
    random = np.random.default_rng(SEED)

    # 1) The services, in the order in which they began
    has_ratio = np.isfinite(as_floats(one.images["ratio"]))
    queued_s = one.images["queue_s"].fillna(0.0)
    begun_s = as_floats(one.images["sent_s"] + queued_s)
    order = np.argsort(begun_s, kind="stable")
    order = order[has_ratio[order]]
    images = one.images.iloc[order]
    ratio = as_floats(images["ratio"])
    breaches: list[Breach | None] = []
    if len(ratio) >= LEAST_IMAGES:
        by_chance = one.by_chance
        if by_chance is None:
            by_chance = misfit.permuted(ratio, random, block=_block(lane, images))
        else:
            by_chance = by_chance[:, order]
        found = as_floats(images["found"])
        breaches += [
            misfit.drift(ratio, by_chance),
            misfit.slow_window(ratio, begun_s[order], by_chance),
            misfit.pause(ratio),
            misfit.grows_with_queue(ratio, found, by_chance),
        ]
        if not isinstance(lane, SerialLane):
            batch = as_floats(images["batch_size"])
            breaches.append(misfit.depends_on_batch(ratio, batch, by_chance))

    # 2) The latencies beside the simulated ones
    residual_s = as_floats(one.images["residual_s"])
    latency_s = as_floats(one.images["latency_s"])
    if len(residual_s) >= LEAST_IMAGES:
        mean_s = float(latency_s.mean())
        waiting = as_floats(one.images["found"])
        by_chance = misfit.permuted(residual_s, random, block=_block(lane, one.images))
        breaches += [
            misfit.unexplained(residual_s, latency_s, one.expected_rms_s),
            misfit.residual_structure(residual_s, mean_s, waiting, by_chance),
        ]
        outside_s = as_floats(one.images["outside_s"])
        if np.isfinite(outside_s).all():
            breaches.append(misfit.slow_client(outside_s, lane.alone_s))
    return [breach for breach in breaches if breach is not None]


def _block(lane: Lane, images: pd.DataFrame) -> int:
    """How many successive images may share their noise: about as many as two batches hold."""
    if isinstance(lane, SerialLane):
        return 1
    return max(1, round(2 * float(images["batch_size"].mean())))
