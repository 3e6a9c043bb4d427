"""A replica as its fleet sees it: whether it serves, what is inside, and what it has done so far.

Knows lives, losses and counts. Ignorant of the queue, and of locks: the fleet holds its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from benchlib.serving.backend import ReplicaView
from benchlib.serving.engine.step_times import StepTimesBySize
from benchlib.serving.replicas.fleet_job import FleetJob
from benchlib.serving.replicas.foretold_replica import ForetoldReplica
from benchlib.serving.replicas.replica import Replica, ReplicaStatus


class Slot:
    """One replica of a fleet.

    `spec` and `foretold` are None while the replica can't be used. `inside` are the jobs that were sent there, by
    the number of their try. `life` is the latest life that was used: what has been lost is not used
    again. `startup_s` is how long its latest start took, None before that.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.name = replica.name
        self.spec: Mapping[str, Any] | None = None
        self.inside: dict[int, FleetJob] = {}
        self.trouble: str | None = None
        self.life = 0
        self.images = 0
        self.losses = 0
        self.restarts = 0
        self.retries = 0
        self.startup_s: float | None = None
        self.why_missing = "it is loading"
        self._missing_since_s = time.monotonic()
        self._seen = replica.status
        self._past = ReplicaStatus()  # of its former lives
        self.foretold: ForetoldReplica | None = None
        self.times = StepTimesBySize()

    @property
    def ready(self) -> bool:
        """Whether the replica can be used."""
        return self.spec is not None

    def begin(self) -> None:
        """The replica begins to load."""
        self._missing_since_s = time.monotonic()

    def look(self) -> None:
        """Read anew how the replica is."""
        status = self._read_status()
        self.trouble = status.trouble
        spec = self.replica.spec
        if self.ready and (spec is None or status.life != self.life):
            self.lose("it has ended")
        if spec is not None and status.life > self.life:
            self._come_up(spec, status.life)
        if self.replica.failure is not None:
            self.why_missing = str(self.replica.failure)

    def lose(self, why: str) -> None:
        """The replica can't be used any more, until it lives anew."""
        if not self.ready:
            return
        self.spec = None
        self.foretold = None
        self.losses += 1
        self.why_missing = why
        self._missing_since_s = time.monotonic()

    def expected_s(self, startup_s: float) -> float:
        """Seconds until the replica should serve, if a start takes `startup_s`. None is below 0."""
        return max(0.0, self._missing_since_s + startup_s - time.monotonic())

    def numbers_of(self, life: int, *, others: bool = False) -> list[int]:
        """The orders inside that were sent to this life, or to any other one."""
        return [number for number, job in self.inside.items() if (job.life != life) is others]

    def holds_suspect(self, losses: int) -> bool:
        """Whether a job is inside that was lost so often in a row."""
        return any(job.losses >= losses for job in self.inside.values())

    def view(self) -> ReplicaView:
        """How the replica is, for those who only look."""
        return ReplicaView(
            name=self.name,
            ready=self.ready,
            inside=len(self.inside),
            images=self.images,
            losses=self.losses,
            restarts=self.restarts,
            retries=self.retries,
            status=self._read_status(),
        )

    def totals(self) -> ReplicaStatus:
        """What the replica has done in all of its lives."""
        present = self._read_status()
        return add_up([self._past, present])

    def _come_up(self, spec: Mapping[str, Any], life: int) -> None:
        self.restarts += self.life > 0
        self.spec = spec
        self.life = life
        self.startup_s = time.monotonic() - self._missing_since_s
        self.times = StepTimesBySize.from_spec(spec["step_times"])
        self.foretold = ForetoldReplica(self.name, spec)

    def _read_status(self) -> ReplicaStatus:
        status = self.replica.status
        if status.life != self._seen.life:
            ended = replace(self._seen, running=0, waiting=0, failed_calls=0)
            self._past = add_up([self._past, ended])
        self._seen = status
        return status


def add_up(statuses: Iterable[ReplicaStatus]) -> ReplicaStatus:
    """The sums of what `statuses` say."""
    busy_s = 0.0
    running = waiting = adapter_switches = failed_calls = 0
    steps: Counter[Any] = Counter()
    out_of_memory: Counter[Any] = Counter()
    not_finite: Counter[Any] = Counter()
    for status in statuses:
        busy_s += status.busy_s
        running += status.running
        waiting += status.waiting
        failed_calls += status.failed_calls
        adapter_switches += status.adapter_switches
        steps.update(status.steps_by_batch)
        out_of_memory.update(status.out_of_memory)
        not_finite.update(status.not_finite)
    return ReplicaStatus(
        running=running,
        waiting=waiting,
        busy_s=busy_s,
        adapter_switches=adapter_switches,
        steps_by_batch=steps,
        out_of_memory=out_of_memory,
        not_finite=not_finite,
        failed_calls=failed_calls,
    )
