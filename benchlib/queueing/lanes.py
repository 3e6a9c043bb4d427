"""A server as a model: which requests its one lane works on, and how long each piece of work takes.

A lane turns moments of arrival into latencies. Knows policies, step times, and the services that a
run measured. Ignorant of how services were found and of what the latencies are for (estimates.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from benchlib.queueing.work import AskedWork, Size
from benchlib.serving.engine.compiled import Requests, lindley, simulate_requests
from benchlib.study.services import Floats
from benchlib.study.simulated import Control

if TYPE_CHECKING:
    from benchlib.serving.engine.compiled import CostTables, Simulated

OVERLOADED = 10_000
"""So many requests show the highest throughput of a lane."""
LONGEST_QUEUE = 10_000
CONTROL_LOAD = 0.97
"""The control queue is loaded at most this much; its mean converges too slowly beyond."""
MOST_POSSIBLE = 100_000
"""So many services stand for all that a lane may have, each with its chance.

Fewer are not enough: ten of a mix of three sizes have 10 % less variance than the mix.
"""


@dataclass(frozen=True)
class Draws:
    """Random numbers from 0 to 1, one for each simulated request.

    Equal draws give equal arrivals and work, so that two lanes or rates differ by nothing else
    (common random numbers). Source: Nelson, "Foundations and Methods of Stochastic Simulation"
    (2013).
    """

    gaps: Floats  # exponential, of mean 1
    work: Floats
    noise: Floats
    after: Floats

    @classmethod
    def of(cls, number: int, seed: int) -> Draws:
        """The draws of `number` requests."""
        random = np.random.default_rng(seed)
        gaps = random.exponential(size=number)
        work, noise, after = random.random((3, number))
        return cls(gaps, work, noise, after)

    def first(self, number: int) -> Draws:
        """The draws of the first `number` requests."""
        return Draws(
            self.gaps[:number], self.work[:number], self.noise[:number], self.after[:number]
        )

    def arrived_s(self, rate: float) -> Floats:
        """Poisson arrivals whose number per second is `rate`, exactly.

        By chance, 400,000 gaps are 0.16 % too long or too short in all. Near saturation this moves
        a p99 by several per cent, and not in proportion. So the gaps are scaled.
        """
        moments: Floats = np.cumsum(self.gaps / self.gaps.mean()) / rate
        return moments


@dataclass(frozen=True)
class SerialLane:
    """One request at a time, in the order of arrival.

    `expected_s` are the services that requests may need, each as likely, and `calls` how many calls
    each makes beside `mean_calls`. `ratios` are measured services beside the expected ones (mean about
    1). `gap_s` is what a request of mean calls takes of the lane besides, known with the standard
    error `gap_error_s`. `after_s` are times that follow the lane's work and hold nobody else up.
    Arrays are sorted, `calls` as `expected_s`, so equal draws give like values in two lanes.
    """

    expected_s: Floats
    calls: Floats
    mean_calls: float
    ratios: Floats
    gap_s: float
    gap_error_s: float
    after_s: Floats
    cost: Callable[[AskedWork], Floats]
    """The expected service of each request in seconds, by its work."""
    sizes: tuple[Size, ...]
    """The sizes that a work's `size` counts from 0."""
    refit: Callable[[SerialLane, np.random.Generator], SerialLane] | None = None
    """The lane with the cost and the ratios of another run; None where work costs but one mean."""

    @property
    def level(self) -> float:
        """What all services are in proportion to, but for the gap: their mean in seconds."""
        return float(self.expected_s.mean() * self.ratios.mean())

    @property
    def service_s(self) -> float:
        """Mean seconds that a request takes of the lane."""
        return self.level + self.gap_s

    @property
    def alone_s(self) -> float:
        """Mean seconds of a request that has the server to itself."""
        return self.service_s + float(self.after_s.mean())

    @property
    def most_images_per_s(self) -> float:
        """The rate that the lane can't exceed."""
        return 1 / self.service_s

    def calls_of(self, work: AskedWork) -> Floats:
        """How many calls each request makes beside the mean, and so how many gaps."""
        return work.calls / self.mean_calls

    def latencies_s(self, draws: Draws, rate: float) -> Floats:
        """The latency of each request in seconds, at `rate` requests a second."""
        arrived_s = draws.arrived_s(rate)
        done_s = lindley(arrived_s, self.services_s(draws))
        latency_s: Floats = done_s - arrived_s + drawn(self.after_s, draws.after)
        return latency_s

    def user_latencies_s(self, draws: Draws, users: int) -> Floats:
        """The latency of each request in seconds, if `users` send one as soon as they have one."""
        done_s = np.cumsum(self.services_s(draws))
        sent_s = np.concatenate([np.zeros(users), done_s])[: len(done_s)]
        latency_s: Floats = done_s - sent_s + drawn(self.after_s, draws.after)
        return latency_s

    def resampled(self, random: np.random.Generator) -> SerialLane:
        """The lane of another run: as many ratios, drawn with replacement, and another gap.

        Where requests differ in work, the cost of the work is fitted anew, too.
        """
        if self.refit is None:
            other = replace(self, ratios=_drawn_anew(self.ratios, random))
        else:
            other = self.refit(self, random)
        return replace(
            other,
            gap_s=max(0.0, random.normal(self.gap_s, self.gap_error_s)),
            after_s=_drawn_anew(self.after_s, random),
        )

    def one_by_one(self, draws: Draws) -> tuple[Floats, Floats, Floats]:
        """The service of each request in seconds, all services that there may be, and their chances."""
        pairs = np.stack([self.expected_s, self.calls])
        (expected_s, calls), often = np.unique(pairs, axis=1, return_counts=True)
        ratios, of_ratios = _thinned(self.ratios, MOST_POSSIBLE // len(expected_s))
        possible_s = np.outer(expected_s, ratios) + self.gap_s * calls[:, None]
        chances = np.outer(often / often.sum(), of_ratios)
        return self.services_s(draws), possible_s.ravel(), chances.ravel()

    def services_s(self, draws: Draws) -> Floats:
        """The seconds that each request takes of the lane."""
        expected_s = drawn(self.expected_s, draws.work)
        gaps_s = self.gap_s * drawn(self.calls, draws.work)
        services_s: Floats = expected_s * drawn(self.ratios, draws.noise) + gaps_s
        return services_s


@dataclass(frozen=True)
class BatchLane:
    """Requests share steps, by a policy of ours.

    `planned` are the step times by which the policy decides, `actual` what calls take under load.
    `work` is what requests may ask for, each as likely. `ratios` are measured durations beside
    `actual` (mean about 1). `gap_s` is what each call takes besides, known with the standard error
    `gap_error_s`. `after_s` are times that follow the lane's work and hold nobody else up.
    """

    batching: str
    max_batch_size: int
    max_wait_s: float
    planned: CostTables
    actual: CostTables
    work: AskedWork
    ratios: Floats
    gap_s: float
    gap_error_s: float
    after_s: Floats
    sizes: tuple[Size, ...]
    """The sizes that a work's `size` counts from 0."""

    @property
    def level(self) -> float:
        """What all calls are in proportion to, but for the gap: the mean ratio."""
        return float(self.ratios.mean())

    @property
    def service_s(self) -> float:
        """Mean seconds that a request takes of the lane, if it has the lane to itself."""
        hours_apart = 1e4 * np.arange(1.0, len(self.work) + 1)
        mean = np.array([self.ratios.mean()])
        simulated = self.simulate(hours_apart, self.work, mean)
        service_s: Floats = simulated.done_s - simulated.begun_s
        return float(service_s.mean())

    @property
    def alone_s(self) -> float:
        """Mean seconds of a request that has the server to itself."""
        return self.service_s + float(self.after_s.mean())

    @property
    def most_images_per_s(self) -> float:
        """The throughput of an overload.

        Requests come faster than they are served, one by one: a continuous batch that newcomers
        join does less than one whose requests all begin together.
        """
        # 1) More than even equal batches could serve
        draws = Draws.of(OVERLOADED, seed=0)
        work = self.drawn_work(draws)
        noise = self.noise(draws)
        together = self.simulate(np.zeros(OVERLOADED), work, noise)
        at_most = OVERLOADED / float(together.done_s.max())
        arrived_s = draws.arrived_s(1.1 * at_most)

        # 2) What is done while requests come, once a queue stands
        done_s = np.sort(self.simulate(arrived_s, work, noise).done_s)
        begin, end = np.searchsorted(done_s, [0.3 * arrived_s[-1], arrived_s[-1]])
        return float((end - 1 - begin) / (done_s[end - 1] - done_s[begin]))

    def latencies_s(self, draws: Draws, rate: float) -> Floats:
        """The latency of each request in seconds; infinite beyond an overlong queue."""
        arrived_s = draws.arrived_s(rate)
        simulated = self.simulate(arrived_s, self.drawn_work(draws), self.noise(draws))
        return self._latency_s(simulated.done_s - arrived_s, draws)

    def user_latencies_s(self, draws: Draws, users: int) -> Floats:
        """The latency of each request in seconds, if `users` send one as soon as they have one."""
        zeros = np.zeros(len(draws.gaps))
        work = self.drawn_work(draws)
        simulated = self.simulate(zeros, work, self.noise(draws), users=users)
        return self._latency_s(simulated.done_s - simulated.arrived_s, draws)

    def simulate(
        self,
        arrived_s: Floats,
        work: AskedWork,
        factors: Floats,
        *,
        users: int | None = None,
    ) -> Simulated:
        """The schedule of requests that come at `arrived_s`, request i with the factor at i.

        With `users` the loop is closed, and `arrived_s` is not used.
        """
        return simulate_requests(
            batching=self.batching,
            requests=Requests(arrived_s, work.steps, work.rows, work.size),
            planned=self.planned,
            actual=self.actual,
            max_batch_size=self.max_batch_size,
            max_wait_s=self.max_wait_s,
            gap_s=self.gap_s,
            factors=factors,
            users=users,
            longest_queue=LONGEST_QUEUE,
        )

    def one_by_one(self, draws: Draws) -> tuple[Floats, Floats, Floats]:
        """The steps of each request in seconds if it is alone, all that there may be, and chances."""
        work = self.work
        all_s = work.steps * self.actual.step_s[work.size, work.rows]
        which = (draws.work * len(work)).astype(np.int64)
        possible_s, often = np.unique(all_s, return_counts=True)
        return all_s[which], possible_s, often / often.sum()

    def resampled(self, random: np.random.Generator) -> BatchLane:
        """The lane of another run: as many ratios, drawn with replacement, and another gap."""
        return replace(
            self,
            ratios=_drawn_anew(self.ratios, random),
            gap_s=max(0.0, random.normal(self.gap_s, self.gap_error_s)),
            after_s=_drawn_anew(self.after_s, random),
        )

    def drawn_work(self, draws: Draws) -> AskedWork:
        """What each request asks for."""
        which = (draws.work * len(self.work)).astype(np.int64)
        return self.work.take(which)

    def noise(self, draws: Draws) -> Floats:
        """The relative durations of the calls, one after the other."""
        return drawn(self.ratios, draws.noise)

    def _latency_s(self, in_lane_s: Floats, draws: Draws) -> Floats:
        latency_s = in_lane_s + drawn(self.after_s, draws.after)
        unending: Floats = np.where(np.isfinite(latency_s), latency_s, np.inf)
        return unending


Lane = SerialLane | BatchLane


def drawn(values: Floats, draws: Floats) -> Floats:
    """The value at each draw's place: a draw of 0 gives the first of `values`, 1 the last."""
    which = (draws * len(values)).astype(np.int64)
    chosen: Floats = values[which]
    return chosen


def _drawn_anew(values: Floats, random: np.random.Generator) -> Floats:
    """As many of `values`, drawn with replacement, sorted."""
    which = random.integers(len(values), size=len(values))
    return np.sort(values[which])


def _thinned(values: Floats, most: int) -> tuple[Floats, Floats]:
    """At most so many values that stand for all of the sorted `values`, and the chance of each."""
    if len(values) <= most:
        return values, np.full(len(values), 1 / len(values))
    groups = np.array_split(values, most)
    means = np.array([group.mean() for group in groups])
    chances = np.array([len(group) / len(values) for group in groups])
    return means, chances


def control_queue(lane: Lane, draws: Draws, rate: float, load: float) -> Control:
    """A queue that is worked off one by one, with the lane's arrivals, and work like its own.

    `load` is the share of the highest throughput; the control is loaded as much, but at most by
    CONTROL_LOAD. The closer it is to the lane, the more of a simulation's error it explains.
    """
    drawn_s, possible_s, chances = lane.one_by_one(draws)
    utilisation = min(load, CONTROL_LOAD)
    scale = utilisation / (rate * float(chances @ possible_s))
    arrived_s = draws.arrived_s(rate)
    service_s = scale * drawn_s
    done_s = lindley(arrived_s, service_s)
    wait_s = np.maximum(done_s - arrived_s - service_s, 0.0)
    return Control.poisson(wait_s, rate, scale * possible_s, chances)
