"""Waits a moment for users who were answered together, so that they stay together.

Eight users in a closed loop get their images at once and send their next requests within
milliseconds, one after the other. Without a wait the first would begin alone, and the others would
follow in a batch of their own. With few steps this costs a tenth of the throughput.

Knows a policy's turns, and what sharing gains. Ignorant of the engine. Simulations take the bare
policy: in a simulated closed loop, all that were answered at once come at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchlib.serving.engine.policies import AnyTask, Lora, Policy, Turn
from benchlib.serving.engine.step_times import StepTimes, Times

SHARE = 0.5  # of what two requests gain by sharing: a wait in vain costs less than it might gain


class KeptTogether:
    """A policy that lets idle requests wait for as many as the latest decoding has answered.

    One that was answered alone waits for nobody, and nobody waits while others have begun. The wait
    counts from the answers, so a request that comes later does not wait.
    """

    def __init__(self, policy: Policy, times: Times) -> None:
        self._policy = policy
        self._times = times
        self._leaving = 0  # requests in the decoding under way
        self._answered = 0
        self._answered_s = 0.0

    def turn(self, tasks: Sequence[AnyTask], now_s: float, lora: Lora = None) -> Turn[AnyTask]:
        """The policy's turn, or a wait. Each turn must have been carried out before the next."""
        # 1) The decoding of the latest turn is over
        if self._leaving:
            self._answered = self._leaving
            self._answered_s = now_s
            self._leaving = 0

        # 2) Wait for those who were answered
        is_idle = not any(task.begun for task in tasks)
        if tasks and is_idle and len(tasks) < self._answered:
            first = tasks[0]
            wait_s = SHARE * _gain_s(self._times(first.size), first.rows)
            due_s = self._answered_s + wait_s
            if now_s < due_s:
                return Turn(wait_until_s=due_s)

        # 3) Or go on
        turn = self._policy.turn(tasks, now_s, lora)
        self._leaving = len(turn.decode)
        return turn


def _gain_s(times: StepTimes, rows: int) -> float:
    """Seconds that two requests of one step save together, beside one after the other."""
    encode_s = 2 * times.encode(1) - times.encode(2)
    step_s = 2 * times.step(rows) - times.step(2 * rows)
    decode_s = 2 * times.decode(1) - times.decode(2)
    return max(0.0, encode_s + step_s + decode_s)
