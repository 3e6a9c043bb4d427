"""Foretells what a server can serve, from the services that one loaded run measured.

    calibration = calibrate(run)
    calibration.capacity("p95 < 2 s")

A run's own percentiles need thousands of requests, because waits depend on each other. Services do
not, and a simulated queue can be as long as one likes. So services are measured, the queue is
simulated, and a replay of the run's very arrivals shows how far the simulation is off.

Knows lanes, and how large a misfit widens or refuses an estimate. Ignorant of how a lane is fitted
(calibration.py) and of how a misfit is seen (breaches.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchlib.cell_view import CellView, ShownInCell
from benchlib.load.bounds import check_number
from benchlib.queueing.breaches import (
    LEAST_IMAGES,
    MOST_LOST,
    SEED,
    breaches_of_runs,
    inflation_of,
    losses_of,
    mean_misfit,
)
from benchlib.queueing.calibration import Replay, fit_lane, lane_alone, replay
from benchlib.queueing.given import check_spec, check_workload, checked_runs, checked_seconds
from benchlib.queueing.lanes import Draws, Lane, SerialLane, control_queue
from benchlib.queueing.shares import logit, share_of, simulated_share
from benchlib.study.intervals import Interval, t_quantile
from benchlib.study.misfit import Breach
from benchlib.study.services import Floats, as_floats
from benchlib.study.simulated import Simulation
from benchlib.study.slo import Slo
from benchlib.study.wording import agreeing, counted, number, per_second, words

if TYPE_CHECKING:
    from benchlib.load.workload import Workload
    from benchlib.study.store import Run

MOST_MISFIT = 0.25
"""An estimate that had to be widened by more than this share is refused."""
LEAST_RATE = 1e-6
"""At a lower rate the moments of a simulation are too large to hold latencies exactly."""
UNLOADED_SHARE = 0.06
"""How far step times that were measured without load were off on one H100, as a share."""
LONG = {"serial": 1_200_000, "batches": 120_000}
"""How many requests are simulated for the estimate itself."""
BUSY_LOAD = 0.9
LONGEST = {"serial": 1_200_000, "batches": 360_000}
"""Above BUSY_LOAD the simulation of batches is longer, because waits change more slowly."""
SHORT = {"serial": 40_000, "batches": 20_000}
"""How many requests show what other services would change, with common random numbers."""
REPLICATES = 16
"""So few are enough, since the spread of the mean service is known without them."""
STABLE_LOAD = 0.995
"""At a higher share of the highest throughput a queue has no steady state worth a simulation."""
MOST_STEPS = 4
"""So often a highest rate is moved by long simulations."""
LONGEST_STEP = 0.05
SMALL_STEP = 0.002
"""After a step of less than this share the slope leaves no error that matters."""
SMALL_STRETCH = 0.03
"""A promise that differs by less than this share moves the highest rate by the slope."""
LEAST_SLOPE = 0.1
"""A share in time that hardly falls with the rate counts as falling by this."""
SLOPE_STEP = 0.02
LATE_FOR_STEP = 1000
"""So many late requests show a slope between rates that are SLOPE_STEP off; fewer need more."""
RARELY_LATE = 0.005
"""A promise that allows fewer late requests than this share gets the longest simulation."""

Figure = Callable[[Simulation], tuple[float, float]]
"""A figure of a simulation, and its standard error."""
FIGURES: dict[str, Figure] = {
    "mean_s": lambda simulation: simulation.mean(),
    "p50_s": lambda simulation: simulation.percentile(0.5),
    "p95_s": lambda simulation: simulation.percentile(0.95),
    "p99_s": lambda simulation: simulation.percentile(0.99),
}


_PREDICTED = {
    "mean_s": ("mean latency", "s"),
    "p50_s": ("half take at most", "s"),
    "p95_s": ("95 % take at most", "s"),
    "p99_s": ("99 % take at most", "s"),
    "promised_s": ("the promised share takes at most", "s"),
    "in_time": ("share within the promise", ""),
    "goodput_images_per_s": ("images within the promise", "a second"),
}
"""The figures of a prediction: what a reader calls them, and their units."""


@dataclass(frozen=True, repr=False)
class Prediction(ShownInCell):
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

    def _view(self) -> CellView:
        at = f"at {per_second(self.rate, 'request')}"
        if not self.stable:
            return CellView(f"{at}: the server can't keep up")
        if self.mean_s is None:
            return CellView(f"{at}: no estimate, as the calibration is refused")
        rows = []
        for name, (said, unit) in _PREDICTED.items():
            value = getattr(self, name)
            if value is not None:
                interval = getattr(self, f"{name}_interval")
                rows.append((said, words(value, interval, unit)))
        p95 = words(self.p95_s, self.p95_s_interval, "s")
        return CellView(f"{at}: 95 % of the images should come within {p95}", rows)


@dataclass(frozen=True, repr=False)
class PredictedCapacity(ShownInCell):
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
        made = counted(self.images, "image")
        return f"The server keeps {self.slo} up to {rate}, foretold from {made}."


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
class _Resamples:
    """Lanes that other runs might have shown.

    `leans` has a row for each lane: how far its mean service and its gap are off, the service as a
    share. `variances` are those of the two, which are known without any lane.
    """

    lanes: Sequence[Lane]
    leans: Floats
    variances: Floats


@dataclass(frozen=True, repr=False)
class Calibration(ShownInCell):
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
        """ "stands", "widened" (an assumption is broken, by little) or "refused".

        A run that lacks something is "widened" too, even by nothing: its words must be read.
        """
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
        reasons = "; ".join(self.reasons)
        fit = "The simulation of this run's arrivals fits"
        if reasons:
            fit = f"The estimate is widened: {reasons}"
        return ". ".join([found, fit, *self.remarks]) + "."

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why estimates are wider, in words."""
        return tuple(breach.words for breach in self.breaches if breach.share)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the runs lack though it widens nothing, in words."""
        return tuple(breach.words for breach in self.breaches if not breach.share)

    def _view(self) -> CellView:
        rows = [
            ("status", self.status),
            ("images", f"{self.images:,}"),
            ("an image alone", f"{number(self.service_s)} s"),
            ("services are off by", f"{number(100 * self.service_share)} %"),
            ("latencies are off by", f"{number(100 * self.latency_share)} %"),
            ("more", 'capacity("p95 < 2 s"), predict(rate), curve(rates)'),
        ]
        return CellView(str(self), rows)

    # ---- what is foretold

    def predict(self, rate: float, slo: str | None = None) -> Prediction:
        """What the server does at `rate` requests a second (Poisson), in the long run.

        Intervals are None at a rate so high that the services' own error leaves open whether the
        server keeps up. Just below, the low ends of `in_time` and of goodput come near 0, as the
        high ends of the percentiles grow without bound: with services a little longer, nearly all
        requests are late in the long run.

        Raises ValueError for a rate below LEAST_RATE, and for a promise that can't be read.
        """
        check_number("rate", rate, LEAST_RATE)
        goal = None if slo is None else Slo.parse(slo)
        stable = rate < STABLE_LOAD * self.most_images_per_s
        if self.refusal is not None or not stable:
            return Prediction(rate, stable)

        # 1) The queue itself, and what other services or a misfit would change
        ensemble = self._ensemble(rate)
        figures: dict[str, Any] = {}
        for name, figure in FIGURES.items():
            figures |= self._latency(name, figure, ensemble, rate)

        # 2) The promise
        if goal is not None:
            figures |= self._latency(
                "promised_s", lambda simulation: simulation.percentile(goal.q), ensemble, rate
            )
            share, interval = self._share_in_time(goal.latency_s, ensemble, rate)
            goodput = None if interval is None else (rate * interval[0], rate * interval[1])
            figures |= {
                "in_time": share,
                "in_time_interval": interval,
                "goodput_images_per_s": rate * share,
                "goodput_images_per_s_interval": goodput,
            }
        return Prediction(rate, stable, **figures)

    def curve(self, rates: Iterable[float], slo: str | None = None) -> pd.DataFrame:
        """One row for each of `rates` (requests/s): the fields of `Prediction`.

        More load never makes a latency shorter. So no interval reaches below that of a lower rate,
        or above it for the share in time, though the rate's own simulations leave more open.

        Raises ValueError where `predict` does, and for what is no list of rates.
        """
        if not isinstance(rates, Iterable):
            raise ValueError(f"rates: {rates!r} is no list; give [0.5, 1.0], or use predict")
        rows = [dict(vars(self.predict(rate, slo))) for rate in rates]
        for name in (*FIGURES, "promised_s"):
            _raise_low_ends(rows, f"{name}_interval")
        _lower_shares(rows)
        return pd.DataFrame(rows)

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
        found = self._highest_rate(limit_s, goal.q)
        if found is None:
            return PredictedCapacity(None, None, note=self._why_none(goal), **facts)

        # 2) The misfit: a promise and services that are off by its share
        rate, slope, of_simulation = found
        k = 1 + self.service_share
        stretch = k * (1 + self.latency_share)
        low = self._moved_rate(rate, limit_s, limit_s / stretch, slope) / k
        high = self._moved_rate(rate, limit_s, limit_s * stretch, slope) * k

        # 3) The errors of the services and of the simulation
        error = math.hypot(self._rate_error(rate, limit_s, slope), of_simulation)
        least = self._keeps_up_to(-1.96)
        most = self._keeps_up_to(1.96)
        interval = (
            min(low * math.exp(-1.96 * error), least * k),
            min(high * math.exp(1.96 * error), most * k),
        )
        return PredictedCapacity(rate, interval, note=str(self), **facts)

    def _why_none(self, goal: Slo) -> str:
        """Why even requests that have the server to themselves break a promise."""
        if self.service_s > goal.latency_s:
            return f"a request that has the server to itself takes {number(self.service_s)} s"
        late = f"more than {100 * (1 - goal.q):.3g} % of the requests"
        return f"{late} take longer even if they have the server to themselves"

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
        most_users = len(self._short.gaps) // 10  # more would not get ten images each
        check_number("users", users, 1, most_users, whole=True)
        latency_s = self.lane.user_latencies_s(self._short, users)
        mean_s = float(latency_s[len(latency_s) // 20 :].mean())
        return users / mean_s, mean_s

    # ---- simulations

    @property
    def _kind(self) -> str:
        return "serial" if isinstance(self.lane, SerialLane) else "batches"

    @cached_property
    def _longest(self) -> Draws:
        if self.is_plan:
            return Draws.of(SHORT[self._kind], SEED)
        return Draws.of(LONGEST[self._kind], SEED)

    @cached_property
    def _short(self) -> Draws:
        return self._longest.first(SHORT[self._kind])

    @cached_property
    def _resamples(self) -> _Resamples:
        """REPLICATES lanes by the bootstrap, and how their means lie."""
        lane = self.lane
        random = np.random.default_rng(SEED)
        lanes = [lane.resampled(random) for _ in range(REPLICATES)]
        mean = float(lane.ratios.mean())
        leans = [[one.level / lane.level - 1, one.gap_s - lane.gap_s] for one in lanes]
        n = len(lane.ratios)
        of_mean = float(lane.ratios.var(ddof=1)) / mean**2 / n if n > 1 else 0.0
        variances = np.array([self.inflation * of_mean, lane.gap_error_s**2])
        return _Resamples(lanes, np.array(leans), variances)

    def _long_simulation(self, rate: float, late: float = 1.0) -> Simulation:
        """One that carries a figure; `late` is the share of requests that a promise lets be late."""
        load = rate / self.most_images_per_s
        draws = self._longest
        if load < BUSY_LOAD and late >= RARELY_LATE:
            draws = draws.first(LONG[self._kind])
        control = control_queue(self.lane, draws, rate, load)
        return Simulation(self.lane.latencies_s(draws, rate), control)

    def _short_simulation(self, lane: Lane, rate: float) -> Simulation:
        """One that is compared with others of the same random numbers, which need no control."""
        return Simulation(lane.latencies_s(self._short, rate))

    def _short_logit(self, lane: Lane, rate: float, limit_s: float) -> float:
        share, _ = self._short_simulation(lane, rate).share_within(limit_s)
        return logit(share)

    @property
    def _for_t(self) -> float:
        """Student's t beside the normal: few images vary less among themselves than all do."""
        n = max(2.0, self.images / self.inflation)
        return t_quantile(0.975, n - 1) / 1.96

    def _keeps_up_to(self, errors: float) -> float:
        """The highest throughput, if services are by so many standard errors shorter."""
        error = self._for_t * math.sqrt(float(self._resamples.variances[0]))
        return self.most_images_per_s * math.exp(errors * error)

    def _sampling_error(self, moved: Sequence[float]) -> float:
        """The standard error by which other services move a figure.

        `moved` is the figure's change in each resample. What follows from the mean service and the
        gap comes from their known variances, and the rest from the spread of the resamples. This
        takes fewer resamples than a spread alone. Source: Lavenberg & Welch, "A perspective on the
        use of control variables to increase the efficiency of Monte Carlo simulations", Management
        Science 27 (1981).
        """
        moves = np.asarray(moved)
        if not np.isfinite(moves).all():
            return math.inf
        resamples = self._resamples
        scale = np.sqrt(np.mean(resamples.leans**2, axis=0))
        scale[scale == 0] = 1.0
        leans = resamples.leans / scale
        effect = np.linalg.lstsq(leans, moves, rcond=None)[0]
        rest = moves - leans @ effect
        of_means = float(np.sum((effect / scale) ** 2 * resamples.variances))
        of_rest = self.inflation * float(rest @ rest) / (len(moves) - len(effect))
        return self._for_t * math.sqrt(of_means + of_rest)

    def _ensemble(self, rate: float) -> _Ensemble:
        here = self._short_simulation(self.lane, rate)
        slower = faster = here
        if self.service_share:
            k = 1 + self.service_share
            slower = self._short_simulation(self.lane, rate * k)
            faster = self._short_simulation(self.lane, rate / k)
        return _Ensemble(
            long=self._long_simulation(rate),
            here=here,
            others=[self._short_simulation(lane, rate) for lane in self._resamples.lanes],
            slower=slower,
            faster=faster,
        )

    def _may_be_overloaded(self, rate: float) -> bool:
        """Whether the services' error and misfit leave open that a queue at `rate` has an end."""
        least = self._keeps_up_to(-1.96) / (1 + self.service_share)
        return rate > STABLE_LOAD * least

    def _latency(
        self, name: str, figure: Figure, ensemble: _Ensemble, rate: float
    ) -> dict[str, Any]:
        """A latency in seconds and its interval, by its name.

        Services that are longer by a share k act as a rate that is higher by k, on a clock that is
        slower by k. Errors are relative: a latency that may be twice as long may be half as long.
        """
        point, error = figure(ensemble.long)
        if self._may_be_overloaded(rate):
            return {name: point, f"{name}_interval": None}
        here, _ = figure(ensemble.here)
        moved = [math.log(figure(simulation)[0] / here) for simulation in ensemble.others]
        half = 1.96 * math.hypot(self._sampling_error(moved), error / point)
        k = 1 + self.service_share
        stretch = k * (1 + self.latency_share)
        slower, _ = figure(ensemble.slower)
        faster, _ = figure(ensemble.faster)
        low = point * faster / here / stretch
        high = point * slower / here * stretch
        interval = low * math.exp(-half), high * math.exp(half)
        return {name: point, f"{name}_interval": interval}

    def _share_in_time(
        self, limit_s: float, ensemble: _Ensemble, rate: float
    ) -> tuple[float, Interval]:
        """The share of requests that take at most `limit_s`, and its interval.

        Errors are those of the logit, so that an interval stays between 0 and 1. Independent ones
        add up as squares, each end by itself. Source: Zou & Donner, "Construction of confidence
        limits about effect measures: A general approach", Statistics in Medicine 27 (2008).
        """
        # 1) What the simulation's own length leaves open
        share, lowest, highest = simulated_share(ensemble.long, limit_s)
        if self._may_be_overloaded(rate):
            return share, None
        middle = logit(share)

        # 2) What other services would change
        here = logit(ensemble.here.share_within(limit_s)[0])
        others = [logit(simulation.share_within(limit_s)[0]) for simulation in ensemble.others]
        moved = [other - here for other in others]
        half = 1.96 * self._sampling_error(moved)
        below = math.hypot(half, middle - logit(lowest))
        above = math.hypot(half, logit(highest) - middle)

        # 3) What the misfit would change
        stretch = (1 + self.service_share) * (1 + self.latency_share)
        slower, _ = ensemble.slower.share_within(limit_s / stretch)
        faster, _ = ensemble.faster.share_within(limit_s * stretch)
        low = share_of(middle + logit(slower) - here - below)
        high = share_of(middle + logit(faster) - here + above)
        return share, (min(low, lowest), max(high, highest))

    # ---- the highest rate

    def _highest_rate(self, limit_s: float, q: float) -> tuple[float, float, float] | None:
        """The rate at which just the share `q` takes at most `limit_s`; None if there is none.

        Short simulations find it roughly. Long ones move it by the slope, which comes next. The
        last is the rate's error from the simulation's finite length, as a share.
        """
        rate = self._rough_rate(limit_s, q)
        if rate is None:
            return None
        most = STABLE_LOAD * self.most_images_per_s
        slope = self._slope(rate, limit_s)
        error = 0.0
        for _ in range(MOST_STEPS):
            share, error = self._long_simulation(rate, 1 - q).share_within(limit_s)
            step = (logit(q) - logit(share)) / slope
            step = min(max(step, -LONGEST_STEP), LONGEST_STEP)
            rate = min(most, rate * math.exp(step))
            if abs(step) < SMALL_STEP:
                break
        return rate, slope, error / (q * (1 - q)) / -slope

    def _rough_rate(self, limit_s: float, q: float) -> float | None:
        """As `_highest_rate`, by short simulations, within a fifth of a per cent.

        All rates share their random numbers, so the share falls steadily.
        """
        from scipy.optimize import brentq

        def above(log_rate: float) -> float:
            share, _ = self._short_simulation(self.lane, math.exp(log_rate)).share_within(limit_s)
            return logit(share) - logit(q)

        low = math.log(0.001 * self.most_images_per_s)
        high = math.log(STABLE_LOAD * self.most_images_per_s)
        if above(low) < 0:
            return None
        if above(high) >= 0:
            return math.exp(high)
        return math.exp(brentq(above, low, high, xtol=0.002))

    def _slope(self, rate: float, limit_s: float) -> float:
        """How the logit of the share in time changes with the logarithm of the rate; below 0.

        The fewer requests are late, the more chance moves the share at each of two rates. So these
        lie further apart then, yet not near the rate at which the queue has no end.
        """
        # 1) How far apart the rates are
        here = self._short_simulation(self.lane, rate)
        in_time, _ = here.share_within(limit_s)
        late = max(1.0, (1 - in_time) * len(here.latency_s))
        wanted = SLOPE_STEP * math.sqrt(LATE_FOR_STEP / late)
        room = math.log(STABLE_LOAD * self.most_images_per_s / rate) / 2
        step = max(SLOPE_STEP, min(wanted, room))

        # 2) The change between them
        fewer = self._short_logit(self.lane, rate * math.exp(-step), limit_s)
        more = self._short_logit(self.lane, rate * math.exp(step), limit_s)
        slope = (more - fewer) / (2 * step)
        return min(slope, -LEAST_SLOPE)

    def _moved_rate(self, rate: float, limit_s: float, other_s: float, slope: float) -> float:
        """The highest rate for the promise `other_s`, where that for `limit_s` is `rate`."""
        if other_s == limit_s:
            return rate
        here = self._short_simulation(self.lane, rate)
        q = here.share_within(limit_s)[0]
        if abs(math.log(other_s / limit_s)) > SMALL_STRETCH:
            return self._rough_rate(other_s, q) or 0.0
        step = (logit(here.share_within(other_s)[0]) - logit(q)) / -slope
        return rate * math.exp(step)

    def _rate_error(self, rate: float, limit_s: float, slope: float) -> float:
        """The standard error of a highest rate from other services, as a share of it.

        Each resample is simulated at the rate that loads it as much. Its share in time is then
        close to that of the measured services, so that the slope turns the difference into a rate.
        """
        here = self._short_logit(self.lane, rate, limit_s)
        resamples = self._resamples
        moved = []
        for lane, (lean, _) in zip(resamples.lanes, resamples.leans, strict=True):
            there = self._short_logit(lane, rate / (1 + lean), limit_s)
            moved.append((there - here) / -slope - math.log(1 + lean))
        return self._sampling_error(moved)


def _raise_low_ends(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Raises each interval's low end to the highest of lower rates, but not above its own high end."""
    highest = 0.0
    for row in sorted(rows, key=lambda row: row["rate"]):
        if row[name] is None:
            continue
        low, high = row[name]
        highest = max(highest, low)
        row[name] = (min(highest, high), high)


def _lower_shares(rows: Sequence[dict[str, Any]]) -> None:
    """Lowers each high end of the share in time to the least of lower rates, and goodput's with it."""
    least = 1.0
    for row in sorted(rows, key=lambda row: row["rate"]):
        if row["in_time_interval"] is None:
            continue
        low, high = row["in_time_interval"]
        least = min(least, high)
        ends = low, max(least, low)
        row["in_time_interval"] = ends
        row["goodput_images_per_s_interval"] = tuple(row["rate"] * end for end in ends)


def calibrate(runs: Run | Sequence[Run]) -> Calibration:
    """The calibration of a server by its loaded `runs`: one run, or several of equal settings.

    The runs may be on our own server, or on another that sends our `Server-Timing`. Without these
    times the server counts as one lane, whose services are the latencies of the requests that
    found it empty. An estimate is widened or refused where the runs break its assumptions.

    The images of a run that failed or was interrupted count, and `breaches` names such a run. They
    also count the requests that got no image.

    Raises ValueError for what is no run, and where the runs differ in server or workload, or have
    no image.
    """
    all_runs = checked_runs(runs)
    lane, replays = fit_lane(all_runs)
    breaches = breaches_of_runs(all_runs, replays, lane)
    lost = max(losses_of(run).lost_share for run in all_runs)
    return judged(lane, replays, breaches, lost)


def foretell(
    spec: Mapping[str, Any],
    image_s: Sequence[float],
    workload: Workload | None = None,
) -> Calibration:
    """What a server should do by its step times and by images made alone, before any load.

    `spec` is a server's spec; `image_s` are seconds. The estimate is for planning: it is widened by
    UNLOADED_SHARE, since under load steps take longer and answers take time besides. Raises
    ValueError, naming the field, for no image, for seconds that are not above 0, and for a spec that
    lacks what its way to batch needs.
    """
    check_spec(spec)
    check_workload(workload)
    seconds = checked_seconds(image_s)
    asked = None if workload is None else workload.to_dict()
    words_of = "it comes from images made alone, and steps take longer under load"
    breach = Breach("measured under load", UNLOADED_SHARE, "service", words_of)
    return Calibration(
        lane=lane_alone(spec, seconds, asked),
        images=len(seconds),
        breaches=(breach,),
        service_share=UNLOADED_SHARE,
        latency_share=0.0,
        refusal=None,
        is_plan=True,
    )


def judged(
    lane: Lane, replays: tuple[Replay, ...], breaches: Sequence[Breach], lost: float = 0.0
) -> Calibration:
    """A calibration from a fitted lane and the breaches that its replays show."""
    # 1) How large the misfit is: what a breach shows, and what the residuals' mean may be
    ratios = np.concatenate([as_floats(one.images["ratio"]) for one in replays])
    images = int(np.isfinite(ratios).sum())
    shares = {"service": 0.0, "latency": mean_misfit(replays)}
    for breach in breaches:
        shares[breach.scale] += breach.share

    # 2) Whether an estimate can be given at all
    refusal = None
    words_of = "; ".join(breach.words for breach in breaches)
    if images < LEAST_IMAGES:
        show = agreeing(images, "shows", "show")
        refusal = f"{counted(images, 'image')} {show} too little; {LEAST_IMAGES} are needed"
    elif lost > MOST_LOST:
        share = f"{100 * lost:.0f} % of the requests"
        refusal = f"{share} got no image, and what they took of the server is not known"
    elif max(shares.values()) > MOST_MISFIT:
        refusal = words_of or "the simulation does not explain the run's latencies"
    return Calibration(
        lane=lane,
        images=images,
        breaches=tuple(breaches),
        service_share=shares["service"],
        latency_share=shares["latency"],
        refusal=refusal,
        inflation=inflation_of(lane, replays),
        replays=replays,
    )
