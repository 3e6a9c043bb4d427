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

if TYPE_CHECKING:
    from benchlib.serving.engine.compiled import CostTables, Simulated

CONTROL_LOAD = 0.8
"""The control queue is loaded at most this much; its mean converges too slowly beyond."""


@dataclass(frozen=True)
class Draws:
    """Random numbers from 0 to 1, one for each simulated request.

    Equal draws give equal arrivals and work, so that two lanes or rates differ by nothing else
    (common random numbers).
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
        """Poisson arrivals at `rate` a second."""
        moments: Floats = np.cumsum(self.gaps) / rate
        return moments


@dataclass(frozen=True)
class SerialLane:
    """One request at a time, in the order of arrival.

    `expected_s` are the services that requests may need, each as likely. `ratios` are measured
    services beside the expected ones (mean about 1). `gap_s` is what each request takes of the lane
    besides, known with the standard error `gap_error_s`. `after_s` are times that follow the lane's
    work and hold nobody else up. All arrays are sorted, so equal draws give like values in two lanes.
    """

    expected_s: Floats
    ratios: Floats
    gap_s: float
    gap_error_s: float
    after_s: Floats
    cost: Callable[[AskedWork], Floats]
    """The expected service of each request in seconds, by its work."""
    sizes: tuple[Size, ...]
    """The sizes that a work's `size` counts from 0."""

    @property
    def service_s(self) -> float:
        """Mean seconds that a request takes of the lane."""
        return float(self.expected_s.mean() * self.ratios.mean()) + self.gap_s

    @property
    def alone_s(self) -> float:
        """Mean seconds of a request that has the server to itself."""
        return self.service_s + float(self.after_s.mean())

    @property
    def most_images_per_s(self) -> float:
        """The rate that the lane can't exceed."""
        return 1 / self.service_s

    def latencies_s(self, draws: Draws, rate: float) -> Floats:
        """The latency of each request in seconds, at `rate` requests a second."""
        arrived_s = draws.arrived_s(rate)
        done_s = lindley(arrived_s, self._services_s(draws))
        latency_s: Floats = done_s - arrived_s + drawn(self.after_s, draws.after)
        return latency_s

    def user_latencies_s(self, draws: Draws, users: int) -> Floats:
        """The latency of each request in seconds, if `users` send one as soon as they have one."""
        done_s = np.cumsum(self._services_s(draws))
        sent_s = np.concatenate([np.zeros(users), done_s])[: len(done_s)]
        latency_s: Floats = done_s - sent_s + drawn(self.after_s, draws.after)
        return latency_s

    def resampled(self, random: np.random.Generator) -> SerialLane:
        """The lane of another run: as many ratios, drawn with replacement, and another gap."""
        return replace(
            self,
            ratios=_drawn_anew(self.ratios, random),
            gap_s=max(0.0, random.normal(self.gap_s, self.gap_error_s)),
            after_s=_drawn_anew(self.after_s, random),
        )

    def _services_s(self, draws: Draws) -> Floats:
        expected_s = drawn(self.expected_s, draws.work)
        services_s: Floats = expected_s * drawn(self.ratios, draws.noise) + self.gap_s
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
    def service_s(self) -> float:
        """Mean seconds that a request takes of the lane, if it has the lane to itself."""
        hours_apart = 1e4 * np.arange(1.0, len(self.work) + 1)
        simulated = self.simulate(hours_apart, self.work, self.ratios)
        service_s: Floats = simulated.done_s - simulated.begun_s
        return float(service_s.mean())

    @property
    def alone_s(self) -> float:
        """Mean seconds of a request that has the server to itself."""
        return self.service_s + float(self.after_s.mean())

    @property
    def most_images_per_s(self) -> float:
        """The rate that the lane can't exceed: all requests are there from the start."""
        draws = Draws.of(2000, seed=0)
        work = self._drawn_work(draws)
        simulated = self.simulate(np.zeros(len(work)), work, self.ratios)
        return len(work) / float(simulated.done_s.max())

    def latencies_s(self, draws: Draws, rate: float) -> Floats:
        """The latency of each request in seconds; infinite beyond an overlong queue."""
        arrived_s = draws.arrived_s(rate)
        simulated = self.simulate(arrived_s, self._drawn_work(draws), self._noise(draws))
        return self._latency_s(simulated.done_s - arrived_s, draws)

    def user_latencies_s(self, draws: Draws, users: int) -> Floats:
        """The latency of each request in seconds, if `users` send one as soon as they have one."""
        zeros = np.zeros(len(draws.gaps))
        work = self._drawn_work(draws)
        simulated = self.simulate(zeros, work, self._noise(draws), users=users)
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
            longest_queue=max(2000, len(arrived_s)) if not arrived_s.any() else 2000,
        )

    def resampled(self, random: np.random.Generator) -> BatchLane:
        """The lane of another run: as many ratios, drawn with replacement, and another gap."""
        return replace(
            self,
            ratios=_drawn_anew(self.ratios, random),
            gap_s=max(0.0, random.normal(self.gap_s, self.gap_error_s)),
            after_s=_drawn_anew(self.after_s, random),
        )

    def _drawn_work(self, draws: Draws) -> AskedWork:
        which = (draws.work * len(self.work)).astype(np.int64)
        return self.work.take(which)

    def _noise(self, draws: Draws) -> Floats:
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


def control_queue(draws: Draws, rate: float, load: float) -> tuple[Floats, float]:
    """The waits in seconds of a queue with equal services, and their true mean.

    `load` is the share of time that the queue works; above CONTROL_LOAD it counts as that. The mean
    is that of Pollaczek and Khinchine.
    """
    utilisation = min(load, CONTROL_LOAD)
    service_s = utilisation / rate
    arrived_s = draws.arrived_s(rate)
    done_s = lindley(arrived_s, np.full(len(arrived_s), service_s))
    mean_s = utilisation * service_s / (2 * (1 - utilisation))
    return done_s - arrived_s - service_s, mean_s
