"""Waits a moment for users who were answered, so that they stay together with the others.

Eight users in a closed loop get their images at once and send their next requests within
milliseconds, one after the other. Without a wait the first would begin alone, and the others would
follow in a batch of their own. With few steps this costs a tenth of the throughput. One who came
too late is answered alone, a step after the others, who then wait for that one.

Knows a policy's turns, and what sharing gains. Ignorant of the engine. Simulations take the bare
policy: in a simulated closed loop, all that were answered at once come at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchlib.serving.engine.policies import AnyTask, Lora, Policy, Task, Turn
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.engine.step_times import StepTimes, Times

SHARE = 1.0  # of what two requests gain by sharing: a wait in vain costs no more than it might gain


class KeptTogether:
    """A policy that lets idle requests wait for those whom the latest decoding has answered.

    Nobody waits while others have begun, or where the policy would not let one more join. Nobody
    waits either if less than half of those who were answered before came back in time: then they
    are no closed loop. The wait counts from the answers, so a request that comes later does not
    wait.
    """

    def __init__(self, policy: Policy, times: Times) -> None:
        self._policy = policy
        self._times = times
        self._leaving = 0  # requests in the decoding under way
        self._wait_s = 0.0  # after it
        # Of the decoding before
        self._answered = 0
        self._answered_s = 0.0
        self._due_s = 0.0
        self._expected = 0  # requests, once all who were answered are back
        self._came_back = True  # half of those who were answered, in time

    def turn(self, tasks: Sequence[AnyTask], now_s: float, lora: Lora = None) -> Turn[AnyTask]:
        """The policy's turn, or a wait. Each turn must have been carried out before the next."""
        # 1) The decoding of the latest turn is over
        if self._leaving:
            self._answered = self._leaving
            self._answered_s = now_s
            self._due_s = now_s + self._wait_s
            self._expected = len(tasks) + self._leaving
            self._leaving = 0

        # 2) Wait for those who were answered
        is_early = self._came_back and now_s < self._due_s
        is_idle = not any(task.begun for task in tasks)
        some_lack = 0 < len(tasks) < self._expected
        if is_early and is_idle and some_lack:
            joins = self._may_join(tasks, now_s, lora)
            if joins:
                return Turn(wait_until_s=self._due_s)

        # 3) Or go on
        turn = self._policy.turn(tasks, now_s, lora)
        if turn.decode:
            first = turn.decode[0]
            times = self._times(first.size)
            self._came_back = self._have_come_back(tasks)
            self._wait_s = SHARE * _gain_s(times, first.rows)
            self._leaving = len(turn.decode)
        return turn

    def _may_join(self, tasks: Sequence[Task], now_s: float, lora: Lora) -> bool:
        """Whether the policy would run all of `tasks` together with one more like the first."""
        newcomer = SimulatedTask.copy_of(tasks[0])
        newcomer.arrived_s = now_s
        copies = [SimulatedTask.copy_of(task) for task in tasks]
        copies.append(newcomer)
        turn = self._policy.turn(copies, now_s, lora)
        return len(turn.step) == len(copies)

    def _have_come_back(self, tasks: Sequence[Task]) -> bool:
        """Whether half of those who were answered, or as many others, came in time."""
        came = 0
        for task in tasks:
            if self._answered_s <= task.arrived_s <= self._due_s:
                came += 1
        return 2 * came >= self._answered


def _gain_s(times: StepTimes, rows: int) -> float:
    """Seconds that two requests of one step save together, beside one after the other."""
    encode_s = 2 * times.encode(1) - times.encode(2)
    step_s = 2 * times.step(rows) - times.step(2 * rows)
    decode_s = 2 * times.decode(1) - times.decode(2)
    return max(0.0, encode_s + step_s + decode_s)
