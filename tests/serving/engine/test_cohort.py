"""Users who were answered together are waited for, a moment long, and the late catch up."""

from collections.abc import Sequence
from math import inf

from benchlib.serving.engine.cohort import KeptTogether
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.engine.step_times import StepTimes

SIZE = (64, 64)
# Two requests share all but the decoding: they gain 1 + 2 s. So the wait is 6 s.
TIMES = StepTimes({1: 2.0, 8: 2.0}, {1: 1.0, 8: 1.0}, {1: 4.0, 2: 8.0})
# An H100's: eight are the quickest, and a pair or five together gain little.
SLOW = StepTimes(
    {2: 0.044, 4: 0.079, 8: 0.153, 16: 0.294}, {1: 0.023, 8: 0.041}, {1: 0.145, 8: 0.833}
)


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
    assert kept.turn([first], 10.2) == Turn(wait_until_s=16.0)
    assert kept.turn([first, second], 10.4) == Turn(wait_until_s=16.0)
    assert kept.turn([first, second, third], 10.9) == Turn(step=(first, second, third))


def test_the_wait_ends_and_a_later_request_does_not_wait():
    kept = after_answering(3, 10.0)
    first, second = ask(10.2), ask(10.4)
    assert kept.turn([first, second], 16.0) == Turn(step=(first, second))
    late = ask(16.5)
    assert after_answering(3, 10.0).turn([late], 16.5) == Turn(step=(late,))


def test_one_alone_waits_for_nobody_and_nobody_waits_beside_work():
    alone = ask(10.1)
    assert after_answering(1, 10.0).turn([alone], 10.1) == Turn(step=(alone,))
    begun = SimulatedTask(SIZE, 1, 2, 9.0, begun=True)
    assert after_answering(3, 10.0).turn([begun], 10.1) == Turn(step=(begun,))


def test_those_who_wait_already_wait_for_the_answered_too():
    kept = after_answering(2, 10.0, waiting=[ask(9.5)])
    back = [ask(9.5), ask(10.1)]
    assert kept.turn(back, 10.1) == Turn(wait_until_s=16.0)
    assert len(kept.turn([*back, ask(10.2)], 10.2).step) == 3


def test_nobody_waits_again_once_many_stayed_away():
    kept = after_answering(3, 10.0)
    assert kept.turn([ask(10.1)], 16.0).step
    assert len(kept.turn([leaving() for _ in range(3)], 20.0).decode) == 3
    assert kept.turn([], 21.0) == Turn()
    assert kept.turn([ask(21.1)], 21.1).step


def test_they_are_waited_for_again_once_most_came_back():
    kept = after_answering(3, 10.0)
    back = [ask(10.1), ask(10.2)]
    assert len(kept.turn(back, 16.0).step) == 2
    for task in back:
        task.begun, task.steps_left = True, 0
    assert len(kept.turn(back, 20.0).decode) == 2
    assert kept.turn([], 21.0) == Turn()
    assert kept.turn([ask(21.1)], 21.1) == Turn(wait_until_s=27.0)


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


def test_all_who_are_expected_decide_whether_to_wait():
    """A pair would not pay, but all eight together do."""
    kept = after_answering(8, 10.0, SLOW)
    back = [ask_guided(10.001)]
    assert kept.turn(back, 10.001).wait_until_s is not None
    back += [ask_guided(10.002) for _ in range(7)]
    assert kept.turn(back, 10.002) == Turn(step=tuple(back))


def test_those_who_came_while_the_others_were_decoded_count_as_back():
    """In a fleet another replica's users come here instead, some of them early."""
    kept = after_answering(2, 10.0)
    early = [ask(9.5), ask(9.6)]
    for task in early:
        task.begun, task.steps_left = True, 0
    assert len(kept.turn(early, 20.0).decode) == 2
    assert kept.turn([ask(21.1)], 21.1).wait_until_s is not None


def ask_guided(arrived_s: float, steps_left: int = 20, *, begun: bool = False) -> SimulatedTask:
    return SimulatedTask(SIZE, 2, steps_left, arrived_s, begun=begun)


def at_first(tasks: Sequence[SimulatedTask]) -> Turn[SimulatedTask]:
    policy = make_policy("continuous", lambda _: SLOW, max_batch_size=8, max_wait_s=0)
    return KeptTogether(policy, lambda _: SLOW).turn(tasks, 1.0)


def test_the_others_catch_up_with_the_first_and_all_go_on_together():
    first = ask_guided(0.0, 19, begun=True)
    others = [ask_guided(0.001) for _ in range(7)]
    assert at_first([first, *others]) == Turn(step=tuple(others), once=True)
    for task in others:
        task.begun, task.steps_left = True, 19
    assert at_first([first, *others]) == Turn(step=(first, *others))


def test_nobody_catches_up_who_is_further_behind_or_of_another_kind_or_one_too_many():
    others = [ask_guided(0.001) for _ in range(7)]
    for tasks in (
        [ask_guided(0.0, 18, begun=True), *others],
        [ask_guided(0.0, 20, begun=True), *others],
        [ask_guided(0.0, 19, begun=True), *others[:-1], ask_guided(0.001, 30)],
        [ask_guided(0.0, 19, begun=True), *others, ask_guided(0.001)],
    ):
        turn = at_first(tasks)
        assert tasks[0] in turn.step
        assert not turn.once
