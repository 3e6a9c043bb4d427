"""Users who were answered together are waited for, a moment long, and nobody else is."""

from math import inf

from benchlib.serving.engine.cohort import KeptTogether
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.engine.step_times import StepTimes

SIZE = (64, 64)
# Two requests share all but the decoding: they gain 1 + 2 s. So the wait is 1.5 s.
TIMES = StepTimes({1: 2.0, 8: 2.0}, {1: 1.0, 8: 1.0}, {1: 4.0, 2: 8.0})


def ask(arrived_s: float) -> SimulatedTask:
    return SimulatedTask(SIZE, 1, 3, arrived_s)


def leaving() -> SimulatedTask:
    return SimulatedTask(SIZE, 1, 0, 0.0, begun=True)


def after_answering(number: int, at_s: float, times: StepTimes = TIMES) -> KeptTogether:
    """The policy once so many have been answered at once."""
    policy = make_policy("continuous", lambda _: times, max_batch_size=8, max_wait_s=0)
    kept = KeptTogether(policy, lambda _: times)
    assert len(kept.turn([leaving() for _ in range(number)], at_s - 1).decode) == number
    assert kept.turn([], at_s) == Turn()
    return kept


def test_the_first_waits_for_the_others_and_begins_with_them():
    kept = after_answering(3, 10.0)
    first, second, third = ask(10.2), ask(10.4), ask(10.9)
    assert kept.turn([first], 10.2) == Turn(wait_until_s=11.5)
    assert kept.turn([first, second], 10.4) == Turn(wait_until_s=11.5)
    assert kept.turn([first, second, third], 10.9) == Turn(step=(first, second, third))


def test_the_wait_ends_and_a_later_request_does_not_wait():
    kept = after_answering(3, 10.0)
    first, second = ask(10.2), ask(10.4)
    assert kept.turn([first, second], 11.5) == Turn(step=(first, second))
    late = ask(12.0)
    assert after_answering(3, 10.0).turn([late], 12.0) == Turn(step=(late,))


def test_one_alone_waits_for_nobody_and_nobody_waits_beside_work():
    alone = ask(10.1)
    assert after_answering(1, 10.0).turn([alone], 10.1) == Turn(step=(alone,))
    begun = SimulatedTask(SIZE, 1, 2, 9.0, begun=True)
    assert after_answering(3, 10.0).turn([begun], 10.1) == Turn(step=(begun,))


def test_nothing_waits_where_sharing_gains_nothing_or_no_request_will_come():
    dear = StepTimes({1: 1.0, 8: 9.0}, {1: 1.0, 8: 8.0}, {1: 4.0, 2: 8.0})
    request = ask(10.1)
    assert after_answering(3, 10.0, dear).turn([request], 10.1).step == (request,)
    stopping = after_answering(3, 10.0)
    assert stopping.turn([request], inf).step == (request,)


def test_before_the_first_answer_nobody_waits():
    policy = make_policy("continuous", lambda _: TIMES, max_batch_size=8, max_wait_s=0)
    request = ask(0.0)
    assert KeptTogether(policy, lambda _: TIMES).turn([request], 0.0).step == (request,)
