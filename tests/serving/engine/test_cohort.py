"""Users who were answered together are waited for, a moment long, and nobody else is."""

from collections.abc import Sequence
from math import inf

from benchlib.serving.engine.cohort import KeptTogether
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.engine.step_times import StepTimes

SIZE = (64, 64)
# Two requests share all but the decoding: they gain 1 + 2 s. So the wait is 3 s.
TIMES = StepTimes({1: 2.0, 8: 2.0}, {1: 1.0, 8: 1.0}, {1: 4.0, 2: 8.0})


def ask(arrived_s: float) -> SimulatedTask:
    return SimulatedTask(SIZE, 1, 3, arrived_s)


def leaving() -> SimulatedTask:
    return SimulatedTask(SIZE, 1, 0, 0.0, begun=True)


def after_answering(
    number: int, at_s: float, times: StepTimes = TIMES, *, waiting: Sequence[SimulatedTask] = ()
) -> KeptTogether:
    """The policy once so many have been answered at once, while others wait."""
    policy = make_policy("continuous", lambda _: times, max_batch_size=8, max_wait_s=0)
    kept = KeptTogether(policy, lambda _: times)
    answered = [leaving() for _ in range(number)]
    assert len(kept.turn([*answered, *waiting], at_s - 1).decode) == number
    assert not kept.turn(list(waiting), at_s).step
    return kept


def test_the_first_waits_for_the_others_and_begins_with_them():
    kept = after_answering(3, 10.0)
    first, second, third = ask(10.2), ask(10.4), ask(10.9)
    assert kept.turn([first], 10.2) == Turn(wait_until_s=13.0)
    assert kept.turn([first, second], 10.4) == Turn(wait_until_s=13.0)
    assert kept.turn([first, second, third], 10.9) == Turn(step=(first, second, third))


def test_the_wait_ends_and_a_later_request_does_not_wait():
    kept = after_answering(3, 10.0)
    first, second = ask(10.2), ask(10.4)
    assert kept.turn([first, second], 13.0) == Turn(step=(first, second))
    late = ask(13.5)
    assert after_answering(3, 10.0).turn([late], 13.5) == Turn(step=(late,))


def test_one_alone_waits_for_nobody_and_nobody_waits_beside_work():
    alone = ask(10.1)
    assert after_answering(1, 10.0).turn([alone], 10.1) == Turn(step=(alone,))
    begun = SimulatedTask(SIZE, 1, 2, 9.0, begun=True)
    assert after_answering(3, 10.0).turn([begun], 10.1) == Turn(step=(begun,))


def test_those_who_wait_already_wait_for_the_answered_too():
    kept = after_answering(2, 10.0, waiting=[ask(9.5)])
    back = [ask(9.5), ask(10.1)]
    assert kept.turn(back, 10.1) == Turn(wait_until_s=13.0)
    assert len(kept.turn([*back, ask(10.2)], 10.2).step) == 3


def test_nobody_waits_again_once_fewer_than_half_came_back():
    kept = after_answering(3, 10.0)
    assert kept.turn([ask(10.1)], 13.0).step
    assert len(kept.turn([leaving() for _ in range(3)], 20.0).decode) == 3
    assert kept.turn([], 21.0) == Turn()
    assert kept.turn([ask(21.1)], 21.1).step


def test_they_are_waited_for_again_once_half_came_back():
    kept = after_answering(3, 10.0)
    back = [ask(10.1), ask(10.2)]
    assert len(kept.turn(back, 13.0).step) == 2
    for task in back:
        task.begun, task.steps_left = True, 0
    assert len(kept.turn(back, 20.0).decode) == 2
    assert kept.turn([], 21.0) == Turn()
    assert kept.turn([ask(21.1)], 21.1) == Turn(wait_until_s=24.0)


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
