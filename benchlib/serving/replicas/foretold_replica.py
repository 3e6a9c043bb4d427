"""What a replica has inside, foretold: its policy's turns on a virtual clock.

Knows policies and step times. Ignorant of threads, real clocks and Ray: the caller says what time
it is, which request enters and which leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from benchlib.serving.engine.policies import PATIENCE, Continuous, Dynamic, Task, Turn
from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import SimulatedTask, step_until
from benchlib.serving.engine.step_times import Size, StepTimes, StepTimesBySize

HAND_OVER_S = 0.02
"""From the front to a replica, or back. A call through Ray takes 2 to 5 ms, more on a busy host."""
FILES_S = 5.0
"""An image's file takes 0.4 s of a core after the model's work, and a batch's are written in turn."""
MOST_BATCHES = 2
"""So many batches are inside at most, where requests join between steps. A policy that sees just one
batch takes a long queue for short, and runs small batches even in an overload."""


class ForetoldReplica:
    """The requests that one replica has inside, and when each will leave.

    `spec` is that of the replica's engine: its options and "step_times". Requests are known by
    identity. Nothing tells the steps that are done, so they are foretold. A request that is foretold
    to be done but is still inside shows that the replica is late, and how much. Those that
    `will_write` a file may be late by FILES_S: their files take no time of the model.
    """

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name = name
        most_in_batch: int = spec["max_batch_size"]
        by_size = StepTimesBySize.from_spec(spec["step_times"])
        self.times = _EveryBatch(by_size, most_in_batch).__getitem__
        self.policy = make_policy(
            spec["batching"],
            self.times,
            max_batch_size=most_in_batch,
            max_wait_s=spec["max_wait_ms"] / 1000,
        )
        self.places = 1 if spec["batching"] == "serial" else most_in_batch
        # All that have entered and not left, in their order of entering.
        self.inside: dict[Task, SimulatedTask] = {}
        # Those of them that are foretold to be done, and when.
        self._done_s: dict[Task, float] = {}
        self._writers: set[Task] = set()
        # The others, as they are when the next turn can begin.
        self._present: dict[Task, SimulatedTask] = {}
        self._ready_s = -inf
        self._lora: str | None = None  # the adapter that is on

    @property
    def rows(self) -> int:
        """The rows of all requests inside."""
        return sum(task.rows for task in self.inside)

    @property
    def patience(self) -> float:
        """How far a request may be overtaken here, in multiples of its own time alone."""
        is_continuous = isinstance(self.policy, Continuous)
        return PATIENCE if is_continuous else 0.0

    # -- what happens ------------------------------------------------------------------------------

    def enter(self, task: Task, now_s: float) -> None:
        """`task` is on its way to the replica."""
        copy = SimulatedTask.copy_of(task)
        copy.begun = False
        if not self._present:
            self._ready_s = max(self._ready_s, now_s)
        self.inside[task] = copy
        self._present[task] = copy

    def will_write(self, task: Task) -> None:
        """`task`, which is inside, leaves once its image is written as a file."""
        self._writers.add(task)

    def leave(self, task: Task, now_s: float) -> None:
        """`task` has left, with an image or without. Nothing happens if it is not inside."""
        late_s = self._late_s(task, now_s)
        self.inside.pop(task, None)
        self._present.pop(task, None)
        self._done_s.pop(task, None)
        self._writers.discard(task)
        if not self.inside:
            self._ready_s = now_s
        elif late_s > 0:
            self._put_off(late_s)

    def advance(self, until_s: float) -> None:
        """Foretell the calls that begin before `until_s`."""
        while self._present and self._ready_s < until_s:
            turn = self._turn()
            if turn.wait_until_s is not None:
                self._ready_s = min(turn.wait_until_s, until_s)
            if turn.decode:
                self._decode(turn.decode)
            if turn.step:
                begin_s = self._ready_s
                self._ready_s = step_until(turn.step, self.times, begin_s, until_s, self._lora)
                self._lora = turn.step[0].lora

    def _turn(self) -> Turn[SimulatedTask]:
        present = tuple(self._present.values())
        return self.policy.turn(present, self._ready_s, self._lora)

    def _decode(self, leavers: Sequence[SimulatedTask]) -> None:
        cost = self.times(leavers[0].size)
        self._ready_s += cost.decode(len(leavers))
        for task, copy in tuple(self._present.items()):
            if copy in leavers:
                del self._present[task]
                self._done_s[task] = self._ready_s

    def _put_off(self, late_s: float) -> None:
        """All that is foretold comes later by `late_s`."""
        self._ready_s += late_s
        for task in self._done_s:
            self._done_s[task] += late_s

    # -- what is foretold --------------------------------------------------------------------------

    def ready_s(self, now_s: float) -> float:
        """When the next turn can begin. A late replica is foretold to be late by as much again."""
        latest_s = 0.0
        for task in self._done_s:
            latest_s = max(latest_s, self._late_s(task, now_s))
        return max(self._ready_s, now_s) + latest_s

    def has_room(self, now_s: float, share: int = 0) -> bool:
        """Whether one more request could begin at a turn that is near, or is part of a long queue.

        `share` is how many of all requests there are for each replica. A request that should be done,
        and is late, keeps its place until it leaves.
        """
        late = [task for task in self._done_s if self._late_s(task, now_s) > 0]
        places = self.places
        if isinstance(self.policy, Continuous):
            places = max(places, min(share, MOST_BATCHES * places))
        if len(self._present) + len(late) >= places:
            return False
        if isinstance(self.policy, Dynamic):
            return not any(copy.begun for copy in self._present.values())
        return True

    def room_s(self) -> float:
        """When the next request should leave the batch, by the turn that is next; or infinity."""
        if not self._present:
            return inf
        turn = self._turn()
        if not turn.step:
            return turn.wait_until_s or self._ready_s
        first = turn.step[0]
        rows = sum(copy.rows for copy in turn.step)
        steps = min(copy.steps_left for copy in turn.step)
        cost = self.times(first.size)
        room_s = self._ready_s + steps * cost.step(rows, first.lora)
        newcomers = [copy for copy in turn.step if not copy.begun]
        if newcomers:
            room_s += cost.encode(len(newcomers))
        return room_s

    def alone_s(self, task: Task) -> float:
        """Seconds of all calls of `task`, if it runs alone."""
        cost = self.times(task.size)
        denoise_s = task.steps_left * cost.step(task.rows, task.lora)
        return cost.encode(1) + denoise_s + cost.decode(1)

    def foretell_s(self, task: Task, now_s: float) -> float:
        """When `task` would be done behind all others that are inside.

        Requests of one size and adapter share their steps. That `task` might overtake does not
        count: it would only move the wait to others.
        """
        alike: dict[tuple[Size, str | None], list[Task]] = {}
        for one in (*self._present.values(), task):
            alike.setdefault((one.size, one.lora), []).append(one)
        done_s = self.ready_s(now_s)
        if task.lora != self._lora:
            done_s += self.times(task.size).switch_s
        for tasks in alike.values():
            done_s += self._together_s(tasks)
        return done_s

    def _together_s(self, alike: Sequence[Task]) -> float:
        """Seconds of all calls for requests that share their steps."""
        cost = self.times(alike[0].size)
        lora = alike[0].lora
        calls_s = 0.0
        rows = 0
        step_alone_s = 0.0  # one step of each, one after the other
        steps_alone_s = 0.0  # all steps of each
        for task in alike:
            one_step_s = cost.step(task.rows, lora)
            rows += task.rows
            step_alone_s += one_step_s
            steps_alone_s += task.steps_left * one_step_s
            calls_s += cost.decode(1)
            if not task.begun:
                calls_s += cost.encode(1)
        if step_alone_s == 0:
            return calls_s
        slowness = cost.step(rows, lora) / step_alone_s
        return calls_s + steps_alone_s * min(slowness, 1.0)

    def _late_s(self, task: Task, now_s: float) -> float:
        """How late `task` is; 0 or less if it is not."""
        if task not in self._done_s:
            return 0.0
        allowed_s = FILES_S if task in self._writers else HAND_OVER_S
        return now_s - self._done_s[task] - allowed_s


class _EveryBatch(dict[Size, StepTimes]):
    """Step times with an entry for every batch: looking one up is faster than interpolating."""

    def __init__(self, by_size: StepTimesBySize, most_in_batch: int) -> None:
        super().__init__()
        self._by_size = by_size
        self._most = most_in_batch

    def __missing__(self, size: Size) -> StepTimes:
        cost = self._by_size[size]
        requests = range(1, self._most + 1)
        rows = range(1, 2 * self._most + 1)
        self[size] = replace(
            cost,
            step_s={n: cost.step(n) for n in rows},
            encode_s={n: cost.encode(n) for n in requests},
            decode_s={n: cost.decode(n) for n in requests},
        )
        return self[size]
