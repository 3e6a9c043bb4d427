"""Which requests run together, and in what order: serial, dynamic and continuous batching.

Knows the steps that each request has left, and the cost of a step. Ignorant of torch, threads,
clocks and HTTP: the engine asks for the next turn and carries it out. The simulator does the same
on a virtual clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, Protocol, TypeVar

from benchlib.serving.engine.step_times import Size, Times

SizeAndRows = tuple[Size, int]
BATCHINGS = ("serial", "dynamic", "continuous")
PATIENCE = 3.0  # how far a request may be overtaken, in multiples of its own time alone


class Task(Protocol):
    """A request as a policy sees it. `rows`: 2 with guidance, else 1. `begun`: not in the queue."""

    @property
    def size(self) -> Size: ...
    @property
    def rows(self) -> int: ...
    @property
    def steps_left(self) -> int: ...
    @property
    def arrived_s(self) -> float: ...
    @property
    def begun(self) -> bool: ...


AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Turn(Generic[AnyTask]):
    """What to do next: decode the requests in `decode`, then step the requests in `step` once.

    All requests of one part have one size. Requests in `step` that have not begun are encoded
    first, in one call. Until `wait_until_s` there is nothing to do, unless a request comes. Without
    any request, all parts are empty.
    """

    step: tuple[AnyTask, ...] = ()
    decode: tuple[AnyTask, ...] = ()
    wait_until_s: float | None = None


class Policy(Protocol):
    """Decides on a turn, which may be repeated until a request comes, ends or leaves."""

    def turn(self, tasks: Sequence[AnyTask], now_s: float) -> Turn[AnyTask]:
        """The next turn for all `tasks` that wait or have begun, in their order of arrival."""
        ...


@dataclass(frozen=True)
class Serial:
    """One request at a time, first come first served."""

    def turn(self, tasks: Sequence[AnyTask], now_s: float) -> Turn[AnyTask]:  # noqa: ARG002
        if not tasks:
            return Turn()
        first = tasks[0]
        if first.steps_left:
            return Turn(step=(first,))
        return Turn(decode=(first,))


@dataclass(frozen=True)
class Dynamic:
    """Requests of one size, gathered to `max_batch_size` or until the oldest is `max_wait_s` old.

    They run, and are answered, as one batch. A request with fewer steps waits for the others. A
    request that arrives after the batch has started waits until the whole batch is done.
    """

    max_batch_size: int
    max_wait_s: float

    def turn(self, tasks: Sequence[AnyTask], now_s: float) -> Turn[AnyTask]:
        # 1) Finish the batch that has begun
        batch = [task for task in tasks if task.begun]
        step = [task for task in batch if task.steps_left]
        if step:
            return Turn(step=tuple(step))
        if batch:
            return Turn(decode=tuple(batch))

        # 2) Begin the first batch that is full or has waited long enough
        by_size: dict[Size, list[AnyTask]] = {}
        for task in tasks:
            by_size.setdefault(task.size, []).append(task)
        due_s = inf
        for gathered in by_size.values():
            batch_due_s = gathered[0].arrived_s + self.max_wait_s
            is_full = len(gathered) >= self.max_batch_size
            if is_full or now_s >= batch_due_s:
                return Turn(step=tuple(gathered[: self.max_batch_size]))
            due_s = min(due_s, batch_due_s)
        return Turn(wait_until_s=due_s) if tasks else Turn()


@dataclass(frozen=True)
class Continuous:
    """Requests join and leave between steps.

    **The order** goes by arrival, but short requests get a head start. Every request is put back in
    proportion to the seconds that its remaining steps take alone. So a short request overtakes
    longer ones that came a little earlier. The factor grows with the number of requests, up to
    `PATIENCE`. The first request in order takes part in the step and decides which size runs, so
    sizes take turns.

    **The age bound**: a request that needs T alone is never overtaken by one that arrives more than
    `PATIENCE` * T later. So it waits at most for the remaining steps of the requests that arrived
    before that time.

    **The batch**: requests of the same size join the first, short ones before long ones.
    `_best_batch` lets them join as long as that lowers the estimated mean time of all requests.
    """

    times: Times
    max_batch_size: int

    def turn(self, tasks: Sequence[AnyTask], now_s: float) -> Turn[AnyTask]:  # noqa: ARG002
        # 1) Decode requests that have no step left
        leavers = [task for task in tasks if task.begun and not task.steps_left]
        if leavers:
            size = leavers[0].size
            same_size = [task for task in leavers if task.size == size]
            return Turn(decode=tuple(same_size[: self.max_batch_size]))
        if len(tasks) < 2:
            return Turn(step=tuple(tasks))

        # 2) Put them in order: the first decides which size runs
        patience = min(len(tasks) / 3, PATIENCE)
        alone_s = self._alone_s(tasks)

        def left_s(task: Task) -> float:
            return task.steps_left * alone_s[task.size, task.rows]

        first = min(tasks, key=lambda task: task.arrived_s + patience * left_s(task))

        # 3) Let others of its size join, as long as that pays
        others = [task for task in tasks if task is not first and task.size == first.size]
        others.sort(key=lambda task: task.arrived_s + 2 * patience * left_s(task))
        candidates = [first, *others[: self.max_batch_size - 1]]
        best = self._best_batch(candidates, alone_s, present=len(tasks))
        return Turn(step=tuple(best))

    def _alone_s(self, tasks: Sequence[Task]) -> dict[SizeAndRows, float]:
        """Seconds of a step alone, by size and rows."""
        alone_s = {}
        for size, rows in {(task.size, task.rows) for task in tasks}:
            alone_s[size, rows] = self.times(size).step(rows)
        return alone_s

    def _best_batch(
        self, candidates: list[AnyTask], alone_s: dict[SizeAndRows, float], present: int
    ) -> list[AnyTask]:
        """The first b of `candidates`: the b of least cost for the n requests that are `present`.

        A batch of b takes `slowness` times as long as running its b members one by one. The mean
        finishing time of the n requests is then proportional to (1 + b / n) * slowness: sharing
        delays the requests at the front. Requests that come later wait for the rest of the queue,
        so their time is proportional to slowness ** 2. It is weighted by their number, which is
        unknown; n/2 stands for it. So without any gain the best batch is one request. A small gain
        is taken only in a long queue.
        """
        size = candidates[0].size
        times = self.times(size)
        rows = 0
        one_by_one_s = 0.0
        least_cost = inf
        best = 1
        for b, task in enumerate(candidates, 1):
            rows += task.rows
            one_by_one_s += alone_s[size, task.rows]
            slowness = times.step(rows) / one_by_one_s if one_by_one_s else 1.0
            # A product rounds as it does in machine code (see lane.py); a power does not.
            cost = (1 + b / present) * slowness + present / 2 * (slowness * slowness)
            if cost < least_cost:
                least_cost = cost
                best = b
        return candidates[:best]


def make_policy(batching: str, times: Times, *, max_batch_size: int, max_wait_s: float) -> Policy:
    """The policy named `batching`. Raises ValueError, which names the field."""
    check_batching(batching, max_batch_size=max_batch_size, max_wait_s=max_wait_s)
    if batching == "serial":
        return Serial()
    if batching == "dynamic":
        return Dynamic(max_batch_size, max_wait_s)
    return Continuous(times, max_batch_size)


def check_batching(batching: str, *, max_batch_size: int, max_wait_s: float) -> None:
    """Raise ValueError, which names the field, unless there is such a policy."""
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size: {max_batch_size} is too few; use 1 or more")
    if not 0 <= max_wait_s < inf:
        raise ValueError(f"max_wait_s: {max_wait_s} is no waiting time; use 0 or more seconds")
    if batching not in BATCHINGS:
        raise ValueError(
            f"batching: {batching!r} is not known; use 'serial', 'dynamic' or 'continuous'"
        )
