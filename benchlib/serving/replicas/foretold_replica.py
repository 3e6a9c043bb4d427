"""What a replica has inside, foretold: its policy's turns on a virtual clock.

Knows policies and step times. Ignorant of threads, real clocks and Ray: the caller says what time
it is, which request enters and which leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

from benchlib.serving.engine.policies import PATIENCE, Continuous, Dynamic, Task, Turn
from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import SimulatedTask, simulate, take_steps
from benchlib.serving.engine.step_times import Size, StepTimes, StepTimesBySize

# From the front to a replica, or back. A call through Ray takes 2 to 5 ms, and more on a busy host.
HAND_OVER_S = 0.02
# An image's file takes 0.4 s of a core after the model's work. A replica writes a batch's by and by.
FILES_S = 5.0


class ForetoldReplica:
    """The requests that one replica has inside, and when each will leave.

    `spec` is that of the replica's engine: its options and "step_times". Requests are known by
    identity. Nothing tells the steps that are done, so they are foretold. A request that is foretold
    to be done but is still inside shows that the replica is late, and how much. Those that
    `will_write` a file may be late by FILES_S: their files take no time of the model.
    """

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name = name
        self.most_in_batch: int = spec["max_batch_size"]
        by_size = StepTimesBySize.from_spec(spec["step_times"])
        self._times = _EveryBatch(by_size, self.most_in_batch).__getitem__
        self.policy = make_policy(
            spec["batching"],
            self._times,
            max_batch_size=self.most_in_batch,
            max_wait_s=spec["max_wait_ms"] / 1000,
        )
        self.places = 1 if spec["batching"] == "serial" else self.most_in_batch
        # All that have entered and not left, and those of them that are foretold to be done.
        self.inside: dict[Task, SimulatedTask] = {}
        self._done_s: dict[Task, float] = {}
        self._writers: set[Task] = set()
        # The others, in their order of entering, at the time when the next turn can begin.
        self._present: dict[Task, SimulatedTask] = {}
        self._ready_s = -inf
        self._lora: str | None = None  # the adapter that is on

    @property
    def rows(self) -> int:
        """The rows of all requests inside."""
        return sum(task.rows for task in self.inside)

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
            self._delay(late_s)

    def advance(self, until_s: float) -> None:
        """Foretell the calls that begin before `until_s`."""
        while self._present and self._ready_s < until_s:
            turn: Turn[SimulatedTask]
            turn = self.policy.turn(tuple(self._present.values()), self._ready_s, self._lora)
            if turn.wait_until_s is not None:
                self._ready_s = min(turn.wait_until_s, until_s)
            if turn.decode:
                self._decode(turn.decode)
            if turn.step:
                self._ready_s = take_steps(
                    turn.step, self._times, self._ready_s, until_s, self._lora
                )
                self._lora = turn.step[0].lora

    def _decode(self, leavers: tuple[SimulatedTask, ...]) -> None:
        self._ready_s += self._times(leavers[0].size).decode(len(leavers))
        for task, copy in tuple(self._present.items()):
            if copy in leavers:
                del self._present[task]
                self._done_s[task] = self._ready_s

    def _late_s(self, task: Task, now_s: float) -> float:
        """How late `task` is; 0 or less if it is not."""
        if task not in self._done_s:
            return 0.0
        allowed_s = FILES_S if task in self._writers else HAND_OVER_S
        return now_s - self._done_s[task] - allowed_s

    def _delay(self, late_s: float) -> None:
        """Put off all that is foretold by `late_s`."""
        self._ready_s += late_s
        for task in self._done_s:
            self._done_s[task] += late_s

    # -- what is foretold --------------------------------------------------------------------------

    def ready_s(self, now_s: float) -> float:
        """When the next turn can begin. A late replica is foretold to be late by as much again."""
        late_s = max((self._late_s(task, now_s) for task in self._done_s), default=0.0)
        return max(self._ready_s, now_s) + max(late_s, 0.0)

    def has_room(self, now_s: float) -> bool:
        """Whether one more request could begin at a turn that is near.

        A request that should be done, and is late, keeps its place until it leaves.
        """
        late = sum(self._late_s(task, now_s) > 0 for task in self._done_s)
        if len(self._present) + late >= self.places:
            return False
        if not isinstance(self.policy, Dynamic):
            return True
        return not any(copy.begun for copy in self._present.values())

    def room_s(self) -> float:
        """When the next request should leave the batch, by the turn that is next; or infinity."""
        if not self._present:
            return inf
        turn: Turn[SimulatedTask]
        turn = self.policy.turn(tuple(self._present.values()), self._ready_s, self._lora)
        if not turn.step:
            return turn.wait_until_s or self._ready_s
        cost = self._times(turn.step[0].size)
        rows = sum(copy.rows for copy in turn.step)
        steps = min(copy.steps_left for copy in turn.step)
        return self._ready_s + steps * cost.step(rows, turn.step[0].lora)

    def alone_s(self, task: Task) -> float:
        """Seconds of all calls of `task`, if it runs alone."""
        cost = self._times(task.size)
        denoise_s = task.steps_left * cost.step(task.rows, task.lora)
        return cost.encode(1) + denoise_s + cost.decode(1)

    def earliest_s(self, task: Task, now_s: float) -> float:
        """A bound: `task` is not done before. It is exact if nobody else is inside."""
        switch_s = self._times(task.size).switch_s if task.lora != self._lora else 0.0
        return self.ready_s(now_s) + switch_s + self.alone_s(task)

    def estimate_s(self, task: Task, now_s: float) -> float:
        """When `task` would be done after all others. Those of one kind share their steps.

        This takes microseconds, and `foretell_s` about a millisecond.
        """
        kinds: dict[tuple[Size, str | None], list[Task]] = {(task.size, task.lora): [task]}
        for copy in self._present.values():
            kinds.setdefault((copy.size, copy.lora), []).append(copy)
        work_s = sum(map(self._work_s, kinds.values()))
        switch_s = self._times(task.size).switch_s if task.lora != self._lora else 0.0
        return self.ready_s(now_s) + switch_s + work_s

    def _work_s(self, alike: list[Task]) -> float:
        """Seconds of all calls for requests that share their steps."""
        cost = self._times(alike[0].size)
        lora = alike[0].lora
        rows = steps_alone_s = step_alone_s = call_s = 0.0
        for task in alike:
            one_step_s = cost.step(task.rows, lora)
            step_alone_s += one_step_s
            steps_alone_s += task.steps_left * one_step_s
            rows += task.rows
            call_s += cost.decode(1)
            if not task.begun:
                call_s += cost.encode(1)
        together_s = cost.step(int(rows), lora)
        slowness = together_s / step_alone_s if step_alone_s else 1.0
        return call_s + steps_alone_s * min(slowness, 1.0)

    def foretell_s(self, task: Task, now_s: float) -> float:
        """When `task` would be done, if it came now and no other came later."""
        tasks: list[Task] = [*self._present.values(), task]
        ready_s = self.ready_s(now_s)
        finished = simulate(self.policy, tasks, self._times, now_s=ready_s, lora=self._lora)
        return finished[-1].done_s

    @property
    def patience(self) -> float:
        """How far a request may be overtaken here, in multiples of its own time alone."""
        return PATIENCE if isinstance(self.policy, Continuous) else 0.0


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
