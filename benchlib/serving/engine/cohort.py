"""Keeps users of a closed loop together: waits for the answered, and lets the late catch up.

Eight users in a closed loop get their images at once and send their next requests within
milliseconds, one after the other. Without a wait the first would begin alone, and the others would
follow in a batch of their own. With few steps this costs a tenth of the throughput. One who came
too late is answered alone, a step after the others, who then wait for that one.

When users come for the first time, nobody is waited for, and the first begins alone. The others come
during that step. They catch up by a step without the first, if all can then share the rest.

Knows a policy's turns, and what sharing gains. Ignorant of the engine. Simulations take the bare
policy: in a simulated closed loop, all that were answered at once come at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchlib.serving.engine.policies import AnyTask, Lora, Policy, Task, Turn
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.engine.step_times import StepTimes, Times

MOST_GAINS = 2.0  # the longest wait, in what two requests gain by sharing
TRUST = 0.9  # the least mean share of the answered that come back, for anybody to wait
NEWEST = 0.25  # the weight of the latest decoding in that mean


class KeptTogether:
    """A policy that lets idle requests wait for those whom the latest decoding has answered.

    Nobody waits while others have begun, or where the policy would let none of them join once all
    are back. Nobody waits either unless nearly all of those who were answered before came back in
    time: else they are no closed loop. The wait counts from the answers, so a request that comes
    later does not wait.

    Newcomers catch up with those who are one step ahead and need the same, if the policy would not
    take all of them now, and would take all of them then.
    """

    def __init__(self, policy: Policy, times: Times) -> None:
        self._policy = policy
        self._times = times
        self._leaving = 0  # requests in the decoding under way
        self._wait_s = 0.0  # after it
        self._decoding_s = 0.0  # when it began
        # Of the decoding before
        self._answered = 0
        self._due_s = 0.0
        self._expected = 0  # requests, once all who were answered are back
        self._trust = 1.0  # the mean share of the answered who came back in time

    def turn(self, tasks: Sequence[AnyTask], now_s: float, lora: Lora = None) -> Turn[AnyTask]:
        """The policy's turn, or a wait. Each turn must have been carried out before the next."""
        # 1) The decoding of the latest turn is over
        if self._leaving:
            self._answered = self._leaving
            self._due_s = now_s + self._wait_s
            self._expected = len(tasks) + self._leaving
            self._leaving = 0

        # 2) Wait for those who were answered
        is_early = self._trust >= TRUST and now_s < self._due_s
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
            self._count_returns(tasks)
            self._decoding_s = now_s
            self._wait_s = MOST_GAINS * _gain_s(times, first.rows)
            self._leaving = len(turn.decode)
        if turn.step and len(turn.step) < len(tasks):
            late = self._may_catch_up(tasks, now_s, lora)
            if late:
                return Turn(step=late, once=True)
        return turn

    def _may_join(self, tasks: Sequence[Task], now_s: float, lora: Lora) -> bool:
        """Whether the policy would run more than `tasks`, once all are back who are like the first."""
        copies = [SimulatedTask.copy_of(task) for task in tasks]
        for _ in range(self._expected - len(tasks)):
            newcomer = SimulatedTask.copy_of(tasks[0])
            newcomer.arrived_s = now_s
            copies.append(newcomer)
        turn = self._policy.turn(copies, now_s, lora)
        return len(turn.step) > len(tasks)

    def _may_catch_up(
        self, tasks: Sequence[AnyTask], now_s: float, lora: Lora
    ) -> tuple[AnyTask, ...]:
        """The newcomers among `tasks`, if they are a step late and would then share all steps."""
        newcomers = tuple(task for task in tasks if not task.begun)
        kinds = {(task.size, task.rows, task.lora, task.steps_left) for task in newcomers}
        ahead = {
            (task.size, task.rows, task.lora, task.steps_left + 1) for task in tasks if task.begun
        }
        if len(kinds) != 1 or ahead != kinds:
            return ()
        copies = []
        for task in tasks:
            copy = SimulatedTask.copy_of(task)
            if not task.begun:
                copy.steps_left -= 1
            copy.begun = True
            copies.append(copy)
        turn = self._policy.turn(copies, now_s, lora)
        return newcomers if len(turn.step) == len(copies) else ()

    def _count_returns(self, tasks: Sequence[Task]) -> None:
        """Count how many of those who were answered, or as many others, came in time.

        In a fleet the answered may go to other replicas. Others come here instead, some already
        while the answered were decoded.
        """
        if not self._answered:
            return
        came = 0
        for task in tasks:
            if self._decoding_s <= task.arrived_s <= self._due_s:
                came += 1
        share = min(1.0, came / self._answered)
        self._trust += NEWEST * (share - self._trust)


def _gain_s(times: StepTimes, rows: int) -> float:
    """Seconds that two requests of one step save together, beside one after the other."""
    encode_s = 2 * times.encode(1) - times.encode(2)
    step_s = 2 * times.step(rows) - times.step(2 * rows)
    decode_s = 2 * times.decode(1) - times.decode(2)
    return max(0.0, encode_s + step_s + decode_s)
