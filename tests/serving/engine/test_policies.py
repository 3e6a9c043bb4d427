"""Hand-checked schedules, and rules that every policy must keep for any requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlib.serving.engine.policies import PATIENCE, Policy, Task, Turn
from benchlib.serving.engine.policy_names import BATCHINGS, make_policy
from benchlib.serving.engine.simulate import Finished, SimulatedTask, simulate, until_place_s
from benchlib.serving.engine.step_times import StepTimes
from benchmarks import policies as table

SMALL, LARGE = (64, 64), (128, 128)
# A batch costs as much as one request.
FREE = StepTimes({1: 1.0, 2: 1.0, 8: 1.0}, {1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0})
# A batch costs as much as its requests one by one.
DEAR = StepTimes({1: 1.0, 2: 2.0}, {1: 0.5}, {1: 2.0})


def task(
    arrived_s: float,
    steps: int,
    size: tuple[int, int] = SMALL,
    rows: int = 1,
    lora: str | None = None,
) -> SimulatedTask:
    return SimulatedTask(size, rows, steps, arrived_s, lora=lora)


def run(
    batching: str,
    tasks: Sequence[SimulatedTask],
    times: StepTimes = FREE,
    most: int = 4,
    max_wait_s: float = 2.0,
) -> list[Finished]:
    policy = make_policy(batching, lambda _: times, max_batch_size=most, max_wait_s=max_wait_s)
    return simulate(policy, tasks, lambda _: times)


def done_s(*arguments: object, **options: object) -> list[float]:
    return [finished.done_s for finished in run(*arguments, **options)]  # type: ignore[arg-type]


def test_serial_is_first_come_first_served():
    assert done_s("serial", [task(0, 3), task(1, 1), task(10, 2)]) == [3, 4, 12]
    assert done_s("serial", [task(0, 3), task(1, 1)], DEAR) == [5.5, 9.0]


def test_dynamic_gathers_and_answers_together():
    assert done_s("dynamic", [task(0, 3), task(1, 1), task(2.5, 2)]) == [5, 5, 7]


def test_dynamic_starts_at_once_when_the_batch_is_full_and_keeps_sizes_apart():
    assert done_s("dynamic", [task(0, 3), task(0, 1, LARGE), task(1, 1)], most=2) == [4, 5, 4]


def test_dynamic_steps_only_those_with_steps_left():
    times = StepTimes({1: 1.0, 2: 10.0}, {1: 0.0}, {1: 0.0})
    assert done_s("dynamic", [task(0, 3), task(0, 1)], times, most=2) == [12, 12]


def test_continuous_joins_and_leaves():
    assert done_s("continuous", [task(0, 3), task(1, 1), task(2.5, 2)]) == [3, 2, 5]


def test_continuous_is_serial_where_nothing_is_gained_and_requests_are_alike():
    tasks = [task(0, 5), task(1, 5), task(2, 5), task(30, 5), task(30, 5)]
    assert done_s("continuous", tasks, DEAR) == done_s("serial", tasks, DEAR)


def test_a_short_request_overtakes_a_long_one_that_came_a_little_earlier():
    # There are two requests, so patience is 2/3. The short one's head start is 2/3 * (20 - 2) = 12
    # s.
    assert done_s(
        "continuous", [task(0, 20), task(11, 2)], StepTimes(DEAR.step_s, {1: 0.0}, {1: 0.0})
    ) == [20, 22]
    assert done_s(
        "continuous", [task(0, 20), task(1, 2)], StepTimes(DEAR.step_s, {1: 0.0}, {1: 0.0})
    ) == [22, 3]


def test_a_small_gain_is_taken_in_a_long_queue_only():
    times = StepTimes({n: 0.1 + 0.9 * n for n in range(1, 9)}, {1: 0.0}, {1: 0.0})
    policy = make_policy("continuous", lambda _: times, max_batch_size=8, max_wait_s=0)
    assert [
        len(policy.turn([task(0, 9) for _ in range(n)], 0.0).step) for n in (1, 2, 3, 8, 64)
    ] == [1, 1, 1, 3, 8]


# A large batch gains little per image: one H100, SDXL of 1024x1024 pixels, two rows a request.
LITTLE_GAIN = StepTimes({2: 0.044, 4: 0.079, 8: 0.153, 16: 0.294}, {1: 0.0}, {1: 0.0})


def shared(tasks: Sequence[SimulatedTask], times: StepTimes) -> int:
    """How many of `tasks` step together, of at most eight."""
    policy = make_policy("continuous", lambda _: times, max_batch_size=8, max_wait_s=0)
    return len(policy.turn(tasks, 0.0).step)


def test_a_long_queue_of_equals_takes_the_fastest_batch_and_a_short_one_the_soonest_answers():
    # Slownesses: 294/352 = 0.835 (8), 153/176 = 0.869 (4), 0.879 (3), 79/88 = 0.898 (2), 1 (1).
    # Eight of eight cost 2 * 0.835 / 0.835 = 2, and four 1.5 * 0.869 / (6.68 - 6.09) = 2.19.
    # Four of four cost 2, and two 1.5 * 0.898 / (3.48 - 2.69) = 1.72.
    # Two of two cost 2, and one 1.5 / (1.80 - 1) = 1.89.
    chosen = [shared([task(0, 20, rows=2) for _ in range(n)], LITTLE_GAIN) for n in (1, 2, 4, 8)]
    assert chosen == [1, 1, 2, 8]


def test_a_pair_must_gain_a_seventh():
    # The pair costs 2, and one alone 1.5 * r / (2 - r), where r is the gain. They are equal at 8/7.
    for gain, together_ in ((1.14, 1), (1.145, 2)):
        times = StepTimes({1: 1.0, 2: 2 / gain}, {1: 0.0}, {1: 0.0})
        assert shared([task(0, 9), task(0, 9)], times) == together_


def test_equals_are_split_evenly():
    # Six of eight would cost 1.75 * 6.6 / 6 / (8 * 1.09 - 7 * 1.1) = 1.887: less than eight, which
    # cost 2, and less than four, which cost 1.5 * 1.25 / (8 * 1.09 - 7 * 1.25) = infinitely much.
    step_s = {1: 1.5, 2: 2.8, 3: 4.0, 4: 5.0, 5: 5.9, 6: 6.6, 7: 7.68, 8: 8.72}
    times = StepTimes(step_s, {1: 0.0}, {1: 0.0})
    assert shared([task(0, 9) for _ in range(8)], times) == 8


def test_requests_of_other_phases_or_lengths_are_weighed_as_a_mix():
    # Three cost (1 + 3/8) * 0.879 + 4 * 0.879 ** 2 = 4.30, four 4.32, and eight 4.46.
    def some(n: int, steps: int, begun: bool = False) -> list[SimulatedTask]:
        return [SimulatedTask(SMALL, 2, steps, 0.0, begun) for _ in range(n)]

    assert shared([*some(4, 20), *some(4, 20, begun=True)], LITTLE_GAIN) == 3
    assert shared([*some(4, 20), *some(4, 21)], LITTLE_GAIN) == 3
    assert shared(some(8, 20, begun=True), LITTLE_GAIN) == 8


def test_few_steps_are_shared_for_the_sake_of_one_encoding_or_decoding():
    no_gain = {1: 1.0, 2: 2.0}
    for times in (
        StepTimes(no_gain, {1: 4.0, 2: 4.0}, {1: 0.0}),
        StepTimes(no_gain, {1: 0.0}, {1: 4.0, 2: 4.0}),
    ):
        assert [together(times, steps, steps) for steps in (1, 4, 100)] == [2, 2, 1]
    # One is decoded a step earlier than the other.
    decoded_apart = StepTimes(no_gain, {1: 0.0}, {1: 4.0, 2: 4.0})
    assert together(decoded_apart, 1, 2) == 1


def together(times: StepTimes, *steps: int) -> int:
    """How many of the requests with so many steps share the first one."""
    policy = make_policy("continuous", lambda _: times, max_batch_size=8, max_wait_s=0)
    return len(policy.turn([task(0, number) for number in steps], 0.0).step)


def test_leavers_are_decoded_and_arrivals_encoded_together():
    times = StepTimes({1: 1.0, 4: 1.0}, {1: 5.0, 2: 6.0}, {1: 7.0, 2: 8.0})
    assert run("continuous", [task(0, 3), task(0, 3)], times) == [Finished(0, 0, 17)] * 2


def test_leavers_of_another_size_or_too_many_wait_for_the_next_turn():
    tasks = [SimulatedTask(size, 1, 0, 0.0, begun=True) for size in (SMALL, LARGE, SMALL, SMALL)]
    policy = make_policy("continuous", lambda _: FREE, max_batch_size=2, max_wait_s=0)
    assert policy.turn([*tasks, task(0, 1)], 0.0) == Turn(decode=(tasks[0], tasks[2]))
    assert policy.turn(tasks[1:2], 0.0) == Turn(decode=(tasks[1],))


def test_a_place_is_free_when_enough_have_begun():
    tasks = [task(0, 3), task(0, 2), task(0, 1)]
    policy = make_policy("serial", lambda _: FREE, max_batch_size=1, max_wait_s=0)
    assert [until_place_s(policy, tasks, [], 10.0, lambda _: FREE, n) for n in (4, 3, 2, 1)] == [
        0,
        0,
        3,
        5,
    ]
    stepping = SimulatedTask(SMALL, 1, 2, 0.0, begun=True)
    assert until_place_s(policy, [*tasks, stepping], [stepping], 10.0, lambda _: FREE, 3) == 1


def test_times_are_interpolated():
    times = StepTimes({1: 1.0, 2: 1.5, 4: 3.5}, {1: 1.0}, {2: 1.0, 4: 0.8})
    assert [times.step(n) for n in (1, 2, 3, 4, 6)] == [1.0, 1.5, 2.5, 3.5, 5.25]
    assert [times.encode(3), times.decode(1), times.decode(8)] == [3.0, 1.0, 1.6]
    assert times.scaled(2).step(3) == 5.0
    assert times.scaled(2).encode(1) == 1.0


def test_bad_input_names_its_field():
    for name, value in (
        ("max_batch_size", 0),
        ("max_wait_s", -1),
        ("max_wait_s", float("nan")),
        ("batching", "both"),
    ):
        options = {"batching": "serial", "max_batch_size": 1, "max_wait_s": 0.0} | {name: value}
        with pytest.raises(ValueError, match=name):
            make_policy(options.pop("batching"), lambda _: FREE, **options)
    for name in ("step_s", "encode_s", "decode_s"):
        for curve in ({}, {0: 1.0}, {1: -1.0}, {1: float("nan")}):
            with pytest.raises(ValueError, match=name):
                StepTimes(
                    **{"step_s": {1: 1.0}, "encode_s": {1: 1.0}, "decode_s": {1: 1.0}, name: curve}
                )


# All times are multiples of 1/2 and batches double, so interpolated times are exact. Times that are
# equal by hand are equal here. No batch takes less time than a smaller one, as after warm-up.
batches = (
    st.sampled_from([1, 2, 4])
    .flatmap(lambda n: st.lists(st.integers(1, 8).map(lambda n: n / 2), min_size=n, max_size=n))
    .map(lambda s: dict(enumerate(sorted(s), 1)))
)
curves = st.builds(
    StepTimes,
    batches,
    batches,
    batches,
    switch_s=st.sampled_from([0.0, 0.5, 3.0]),
    lora_ratio=st.sampled_from([1.0, 1.5]),
)
arriving = st.lists(
    st.builds(
        task,
        st.integers(0, 60).map(float),
        st.integers(1, 12),
        st.sampled_from([SMALL, LARGE]),
        st.integers(1, 2),
        st.sampled_from([None, None, "style", "style:0.5", "face"]),
    ),
    max_size=14,
).map(lambda tasks: sorted(tasks, key=lambda each: each.arrived_s))


@dataclass
class Watched:
    """A policy that checks each of its turns."""

    policy: Policy
    most: int
    may_wait: bool

    def turn(self, tasks: Sequence[Task], now_s: float, lora: str | None) -> Turn:
        turn = self.policy.turn(tasks, now_s, lora)
        assert turn == self.policy.turn(tasks, now_s, lora)
        assert len({each.lora for each in turn.step}) <= 1
        for batch in (turn.step, turn.decode):
            assert len(set(map(id, batch))) == len(batch) <= self.most
            assert len({each.size for each in batch}) <= 1
            assert all(any(each is one for one in tasks) for each in batch)
        assert all(each.steps_left for each in turn.step)
        assert all(each.begun and not each.steps_left for each in turn.decode)
        assert not (turn.step and turn.decode)
        assert turn.step or turn.decode or (self.may_wait and turn.wait_until_s > now_s)
        return turn


@settings(deadline=None)
@given(
    arriving,
    curves,
    curves,
    st.sampled_from(["serial", "dynamic", "continuous"]),
    st.integers(1, 8),
)
def test_every_request_ends_and_nobody_idles(tasks, small, large, batching, most):
    def times(size: tuple[int, int]) -> StepTimes:
        return small if size == SMALL else large

    policy = make_policy(batching, times, max_batch_size=most, max_wait_s=3.0)
    watched = Watched(policy, most, may_wait=batching == "dynamic")
    finished = simulate(watched, tasks, times)
    assert finished == simulate(policy, tasks, times)
    assert not any(each.begun for each in tasks)
    for each, end in zip(tasks, finished, strict=True):
        assert end.arrived_s == each.arrived_s <= end.begun_s < end.done_s
    assert policy.turn([], 0.0) == Turn()


@settings(deadline=None)
@given(
    arriving,
    curves,
    curves,
    st.sampled_from(["serial", "dynamic", "continuous"]),
    st.integers(1, 8),
)
def test_a_turn_may_be_repeated_until_somebody_comes_or_ends(tasks, small, large, batching, most):
    """`simulate` takes many steps at once. Single steps, as an engine takes them, must agree."""

    def times(size: tuple[int, int]) -> StepTimes:
        return small if size == SMALL else large

    policy = make_policy(batching, times, max_batch_size=most, max_wait_s=3.0)
    assert simulate(policy, tasks, times) == [
        Finished(*each) for each in step_by_step(policy, tasks, times)
    ]


def step_by_step(policy, tasks, times):
    present: list[SimulatedTask] = []
    coming = [
        SimulatedTask(each.size, each.rows, each.steps_left, each.arrived_s, lora=each.lora)
        for each in tasks
    ]
    ends, everybody, now_s, turn, lora = {}, list(coming), 0.0, None, None
    while coming or present:
        while coming and coming[0].arrived_s <= now_s:
            present.append(coming.pop(0))
            turn = None
        turn = turn or policy.turn(present, now_s, lora)
        if turn.decode:
            now_s += times(turn.decode[0].size).decode(len(turn.decode))
            for each in turn.decode:
                ends[id(each)] = now_s
                present.remove(each)
            turn = None
        elif turn.step:
            new = [each for each in turn.step if not each.begun]
            for each in new:
                each.begun, each.begun_s = True, now_s
            cost = times(turn.step[0].size)
            now_s += 0.0 if turn.step[0].lora == lora else cost.switch_s
            lora = turn.step[0].lora
            now_s += (cost.encode(len(new)) if new else 0.0) + cost.step(
                sum(each.rows for each in turn.step), lora
            )
            for each in turn.step:
                each.steps_left -= 1
            turn = turn if all(each.steps_left for each in turn.step) else None
        else:
            now_s, turn = (
                min([turn.wait_until_s or 1e9, *(each.arrived_s for each in coming[:1])]),
                None,
            )
    return [(each.arrived_s, each.begun_s, ends[id(each)]) for each in everybody]


@settings(deadline=None)
@given(arriving, curves, curves, st.integers(1, 8))
def test_nobody_starves_under_continuous(tasks, small, large, most):
    def times(size: tuple[int, int]) -> StepTimes:
        return small if size == SMALL else large

    turns = []

    @dataclass
    class Recorded:
        policy: Policy

        def turn(self, present: Sequence[Task], now_s: float, lora: str | None) -> Turn:
            turn = self.policy.turn(present, now_s, lora)
            turns.append((list(present), {id(t): t.steps_left for t in present}, turn.step))
            return turn

    simulate(
        Recorded(make_policy("continuous", times, max_batch_size=most, max_wait_s=0)), tasks, times
    )
    everybody = {id(each): each for present, _, _ in turns for each in present}
    all_steps: dict[int, int] = {}
    for _, left, _ in turns:
        all_steps = left | all_steps  # the first value
    for key, each in everybody.items():
        cost = times(each.size)
        alone_s = cost.switch_s + all_steps[key] * cost.step(each.rows, each.lora)
        latest_s = each.arrived_s + PATIENCE * alone_s
        ahead = sum(
            steps for other, steps in all_steps.items() if everybody[other].arrived_s <= latest_s
        )
        steps_seen = 0
        for (_, left, step), (_, after, _) in zip(turns, [*turns[1:], ([], {}, ())], strict=True):
            if left.get(key) and step:
                assert step[0].arrived_s <= latest_s
                steps_seen += max(left[id(one)] - after.get(id(one), 0) for one in step)
        assert steps_seen <= ahead


def test_a_stream_of_short_requests_delays_a_long_one_by_the_bound_and_no_more():
    times = StepTimes(DEAR.step_s, {1: 0.0}, {1: 0.0})
    stream = [task(0, 12), *(task(0, 1) for _ in range(12)), *(task(n, 1) for n in range(1, 200))]
    ended_s = done_s("continuous", stream, times)[0]
    # The sum of 60 steps:
    #   12 short requests that are there
    #   36 more that may overtake
    #   12 steps of the long request itself
    assert 40 < ended_s <= 60


def test_the_quick_table_shows_no_loss(capsys):
    assert table.main(["--quick"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"]
    assert {row["gain"] for row in report["rows"]} == set(table.GAINS)
    at_the_limit = [row for row in report["rows"] if row["gain"] == 4 and row["load"] == 0.8]
    assert all(row["continuous_mean_ratio"][0] < 0.6 for row in at_the_limit)


def test_both_simulators_are_timed_and_agree(capsys):
    assert table.main(["--speed", "--requests", "2000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [name for name in BATCHINGS for _ in "12"]


def test_a_loss_fails_the_table(monkeypatch):
    monkeypatch.setattr(table, "GAINS", (1.0,))
    monkeypatch.setattr(table, "LIMITS", {"mean": 0.1, "p99": 0.1})
    assert table.main(["--quick"]) == 1
