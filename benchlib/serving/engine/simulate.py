"""A policy on a virtual clock: when each request would begin and end, by the measured step times.

Knows policies and what a step costs. Ignorant of the engine, of real clocks, and of requests that
fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

from benchlib.serving.engine.policies import Policy, Task
from benchlib.serving.engine.step_times import Size, Times


@dataclass(eq=False)
class SimulatedTask:
    """A request in the simulator.

    `begun_s` is None until the request begins, or if it began before the simulation.
    """

    size: Size
    rows: int
    steps_left: int
    arrived_s: float
    begun: bool = False
    lora: str | None = None
    begun_s: float | None = None

    @classmethod
    def copy_of(cls, task: Task) -> SimulatedTask:
        """A copy of `task` that a simulation may change."""
        return cls(task.size, task.rows, task.steps_left, task.arrived_s, task.begun, task.lora)


@dataclass(frozen=True)
class Finished:
    """When a simulated request arrived, began (its encoding) and was answered, in seconds."""

    arrived_s: float
    begun_s: float | None
    done_s: float


def simulate(
    policy: Policy,
    tasks: Sequence[Task],
    times: Times,
    *,
    now_s: float = 0.0,
    lora: str | None = None,
) -> list[Finished]:
    """When each of `tasks` begins and ends, in their order. Changes no task.

    The virtual clock starts at `now_s`, with the adapter `lora` on.
    """
    copies = [SimulatedTask.copy_of(task) for task in tasks]
    coming = sorted(copies, key=lambda task: task.arrived_s)
    present: list[SimulatedTask] = []
    done_s: dict[int, float] = {}
    arrived = 0  # the number of `coming` that have arrived
    while len(done_s) < len(coming):
        # 1) Let the due requests arrive
        if not present:
            now_s = max(now_s, coming[arrived].arrived_s)
        while arrived < len(coming) and coming[arrived].arrived_s <= now_s:
            present.append(coming[arrived])
            arrived += 1
        next_arrival_s = coming[arrived].arrived_s if arrived < len(coming) else inf

        # 2) Ask the policy
        turn = policy.turn(present, now_s, lora)
        if turn.wait_until_s is not None:
            now_s = min(turn.wait_until_s, next_arrival_s)

        # 3) Decode requests that have no step left
        if turn.decode:
            now_s += times(turn.decode[0].size).decode(len(turn.decode))
            for task in turn.decode:
                done_s[id(task)] = now_s
            present = [task for task in present if id(task) not in done_s]

        # 4) Step the others until the policy may decide again
        if turn.step:
            now_s = step_until(turn.step, times, now_s, next_arrival_s, lora)
            lora = turn.step[0].lora
    return [Finished(task.arrived_s, task.begun_s, done_s[id(task)]) for task in copies]


def step_until(
    batch: Sequence[SimulatedTask],
    times: Times,
    now_s: float,
    next_arrival_s: float,
    lora: str | None,
) -> float:
    """Step `batch` until a task has no step left or the next request arrives; returns that time.

    `lora` is the adapter that is on before.
    """
    cost = times(batch[0].size)
    newcomers = [task for task in batch if not task.begun]
    for task in newcomers:
        task.begun = True
        task.begun_s = now_s
    if batch[0].lora != lora:
        now_s += cost.switch_s
    if newcomers:
        now_s += cost.encode(len(newcomers))
    step_s = cost.step(sum(task.rows for task in batch), batch[0].lora)
    steps = min(task.steps_left for task in batch)
    if step_s > 0 and next_arrival_s < inf:
        until_arrival = ceil((next_arrival_s - now_s) / step_s)
        steps = min(steps, max(1, until_arrival))
    for task in batch:
        task.steps_left -= steps
    return now_s + steps * step_s


def until_place_s(
    policy: Policy,
    tasks: Sequence[Task],
    stepping: Sequence[Task],
    now_s: float,
    times: Times,
    max_queue: int,
) -> float:
    """Seconds from `now_s` until fewer than `max_queue` of `tasks` wait, if no other comes.

    `foretell_queue` describes the arguments.
    """
    finished = foretell_queue(policy, tasks, stepping, now_s, times)
    begins_s = sorted(one.begun_s for one in finished if one.begun_s is not None)
    too_many = len(begins_s) - max_queue
    return begins_s[too_many] - now_s if too_many >= 0 else 0.0


def one_by_one_s(tasks: Sequence[Task], times: Times) -> float:
    """The seconds that `tasks` would still take one after the other, each alone."""
    step_s: dict[tuple[Size, int, str | None], float] = {}
    alone_s: dict[Size, float] = {}
    total_s = 0.0
    for task in tasks:
        kind = (task.size, task.rows, task.lora)
        if kind not in step_s:
            cost = times(task.size)
            step_s[kind] = cost.step(task.rows, task.lora)
            alone_s[task.size] = cost.switch_s + cost.encode(1) + cost.decode(1)
        total_s += alone_s[task.size] + task.steps_left * step_s[kind]
    return total_s


def foretell_queue(
    policy: Policy, tasks: Sequence[Task], stepping: Sequence[Task], now_s: float, times: Times
) -> list[Finished]:
    """When each of `tasks` begins and ends from `now_s` on, if no other comes.

    `stepping` are the tasks in the step under way, which is assumed to begin at `now_s`. No task
    may change during the simulation, so an engine passes copies.
    """
    step_s = 0.0
    lora = None
    if stepping:
        rows = sum(task.rows for task in stepping)
        lora = stepping[0].lora
        step_s = times(stepping[0].size).step(rows, lora)
    after_step = []
    for task in tasks:
        copy = SimulatedTask.copy_of(task)
        if task in stepping:
            copy.steps_left -= 1
        after_step.append(copy)
    return simulate(policy, after_step, times, now_s=now_s + step_s, lora=lora)
