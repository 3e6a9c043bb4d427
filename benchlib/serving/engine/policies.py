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

from benchlib.serving.engine.batch_costs import cheapest_of_equals, cheapest_of_mix
from benchlib.serving.engine.step_times import Size, Times

Lora = str | None  # an adapter with its scale; None is the model without any
Kind = tuple[Size, int, Lora]  # a request's size, rows and adapter
PATIENCE = 3.0  # how far a request may be overtaken, in multiples of its own time alone


class Task(Protocol):
    """A request as a policy sees it. `rows`: 2 with guidance, else 1. `begun`: not in the queue."""

    @property
    def size(self) -> Size: ...
    @property
    def rows(self) -> int: ...
    @property
    def lora(self) -> Lora: ...
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

    All requests of one part have one size, and those in `step` one adapter. Those in `step` that
    have not begun are encoded first, in one call. Until `wait_until_s` there is nothing to do,
    unless a request comes. Without any request, all parts are empty. A turn that is for `once` is
    not repeated.
    """

    step: tuple[AnyTask, ...] = ()
    decode: tuple[AnyTask, ...] = ()
    wait_until_s: float | None = None
    once: bool = False


class Policy(Protocol):
    """Decides on a turn, which may be repeated until a request comes, ends or leaves."""

    def turn(self, tasks: Sequence[AnyTask], now_s: float, lora: Lora = None) -> Turn[AnyTask]:
        """The next turn for all `tasks` that wait or have begun, in their order of arrival.

        `lora` is the adapter that is on.
        """
        ...


@dataclass(frozen=True)
class Serial:
    """One request at a time, first come first served."""

    def turn(self, tasks: Sequence[AnyTask], now_s: float, lora: Lora = None) -> Turn[AnyTask]:  # noqa: ARG002
        if not tasks:
            return Turn()
        first = tasks[0]
        if first.steps_left:
            return Turn(step=(first,))
        return Turn(decode=(first,))


@dataclass(frozen=True)
class Dynamic:
    """Requests of one size and adapter, gathered to `max_batch_size` or until the oldest is `max_wait_s` old.

    They run, and are answered, as one batch. A request with fewer steps waits for the others. A
    request that arrives after the batch has started waits until the whole batch is done.
    """

    max_batch_size: int
    max_wait_s: float

    def turn(self, tasks: Sequence[AnyTask], now_s: float, lora: Lora = None) -> Turn[AnyTask]:  # noqa: ARG002
        # 1) Finish the batch that has begun
        batch = [task for task in tasks if task.begun]
        step = [task for task in batch if task.steps_left]
        if step:
            return Turn(step=tuple(step))
        if batch:
            return Turn(decode=tuple(batch))

        # 2) Begin the first batch that is full or has waited long enough
        alike: dict[tuple[Size, Lora], list[AnyTask]] = {}
        for task in tasks:
            alike.setdefault((task.size, task.lora), []).append(task)
        due_s = inf
        for gathered in alike.values():
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
    `PATIENCE`. The first request in order takes part in the step and decides which size and adapter
    run, so these take turns. To the seconds of a request whose adapter is off, a switch is added.

    **The age bound**: a request that needs T alone is never overtaken by one that arrives more than
    `PATIENCE` * T later. So it waits at most for the remaining steps of the requests that arrived
    before that time.

    **The batch**: requests of the same size and adapter join the first, short ones before long ones.
    `_best_batch` lets them join as long as that lowers the estimated mean time of all requests.
    It weighs encoding and decoding, too, which dominate where steps are few. If all that could join
    are alike, a long queue takes the batch of most images per second.
    """

    times: Times
    max_batch_size: int

    def turn(self, tasks: Sequence[AnyTask], now_s: float, lora: Lora = None) -> Turn[AnyTask]:  # noqa: ARG002
        # 1) Decode requests that have no step left
        leavers = [task for task in tasks if task.begun and not task.steps_left]
        if leavers:
            size = leavers[0].size
            same_size = [task for task in leavers if task.size == size]
            return Turn(decode=tuple(same_size[: self.max_batch_size]))
        if len(tasks) < 2:
            return Turn(step=tuple(tasks))

        # 2) Put them in order: the first decides which size and adapter run
        patience = min(len(tasks) / 3, PATIENCE)
        alone_s = self._alone_s(tasks)

        def left_s(task: Task) -> float:
            switch_s = self.times(task.size).switch_s if task.lora != lora else 0.0
            return switch_s + task.steps_left * alone_s[task.size, task.rows, task.lora]

        first = min(tasks, key=lambda task: task.arrived_s + patience * left_s(task))

        # 3) Let others of its kind join, as long as that pays
        kind = (first.size, first.lora)
        others = [task for task in tasks if task is not first and (task.size, task.lora) == kind]
        others.sort(key=lambda task: task.arrived_s + 2 * patience * left_s(task))
        candidates = [first, *others[: self.max_batch_size - 1]]
        best = self._best_batch(candidates, alone_s, present=len(tasks))
        return Turn(step=tuple(best))

    def _alone_s(self, tasks: Sequence[Task]) -> dict[Kind, float]:
        """Seconds of a step alone, by size, rows and adapter."""
        alone_s = {}
        for size, rows, lora in {(task.size, task.rows, task.lora) for task in tasks}:
            alone_s[size, rows, lora] = self.times(size).step(rows, lora)
        return alone_s

    def _best_batch(
        self, candidates: list[AnyTask], alone_s: dict[Kind, float], present: int
    ) -> list[AnyTask]:
        """The first b of `candidates`: the b of least cost for all requests that are `present`.

        A batch of b takes `slowness` times as long as running its b members one by one. Both times
        are those of all that the members still need. Newcomers are encoded together, and members
        that have equally many steps left are decoded together. With few steps these calls may
        decide. `batch_costs.py` says what a slowness costs.
        """
        size, lora = candidates[0].size, candidates[0].lora
        times = self.times(size)
        encode_alone_s = times.encode(1)
        decode_alone_s = times.decode(1)
        rows = newcomers = 0
        encode_s = decode_s = 0.0  # of the batch
        step_alone_s = steps_alone_s = 0.0  # of its members: one step each, and all steps
        leave_together: dict[int, int] = {}  # how many members have so many steps left
        slownesses: list[float] = []
        for b, task in enumerate(candidates, 1):
            # 1) One more member
            rows += task.rows
            one_step_s = alone_s[size, task.rows, lora]
            step_alone_s += one_step_s
            steps_alone_s += task.steps_left * one_step_s
            if not task.begun:
                newcomers += 1
                encode_s = times.encode(newcomers)
            leavers = leave_together.get(task.steps_left, 0)
            leave_together[task.steps_left] = leavers + 1
            decode_s += times.decode(leavers + 1)
            if leavers:
                decode_s -= times.decode(leavers)

            # 2) How slow the batch is
            step_slowness = times.step(rows, lora) / step_alone_s if step_alone_s else 1.0
            together_s = encode_s + steps_alone_s * step_slowness + decode_s
            one_by_one_s = newcomers * encode_alone_s + steps_alone_s + b * decode_alone_s
            slowness = together_s / one_by_one_s if one_by_one_s else 1.0
            slownesses.append(slowness)

        # 3) The batch of least cost
        phases = {(task.rows, task.steps_left, task.begun) for task in candidates}
        cheapest = cheapest_of_equals if len(phases) == 1 else cheapest_of_mix
        best = cheapest(slownesses, present)
        return candidates[:best]
