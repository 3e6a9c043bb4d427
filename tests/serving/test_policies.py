"""Hand-checked schedules, and what must hold for every policy whatever comes."""

from __future__ import annotations

import pytest

from benchlib.serving.policies import SimulatedTask, StepTimes, make_policy, simulate, until_place_s

SIZE = (64, 64)
FREE = StepTimes({1: 1.0, 2: 1.0, 4: 1.0}, {1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0})  # a batch costs what one costs


def task(arrived_s: float, steps: int, size: tuple[int, int] = SIZE, rows: int = 1) -> SimulatedTask:
    return SimulatedTask(size, rows, steps, arrived_s)


def done_s(batching: str, tasks: list[SimulatedTask], times: StepTimes = FREE, **limits: float) -> list[float]:
    policy = make_policy(batching, lambda _: times, **{"max_batch_size": 4, "max_wait_s": 2.0, **limits})  # type: ignore[arg-type]
    return [finished.done_s for finished in simulate(policy, tasks, lambda _: times)]


def test_serial_is_first_come_first_served() -> None:
    assert done_s("serial", [task(0, 3), task(1, 1), task(10, 2)]) == [3, 4, 12]


def test_dynamic_gathers_and_answers_together() -> None:
    assert done_s("dynamic", [task(0, 3), task(1, 1), task(2.5, 2)]) == [5, 5, 7]


def test_continuous_joins_and_leaves() -> None:
    assert done_s("continuous", [task(0, 3), task(1, 1), task(2.5, 2)]) == [3, 2, 5]


def test_a_place_is_free_when_enough_have_begun() -> None:
    tasks = [task(0, 3), task(0, 2), task(0, 1)]
    policy = make_policy("serial", lambda _: FREE, max_batch_size=1, max_wait_s=0)
    assert [until_place_s(policy, tasks, 10.0, lambda _: FREE, n) for n in (4, 3, 2, 1)] == [0, 0, 3, 5]


def test_times_are_interpolated() -> None:
    times = StepTimes({1: 1.0, 2: 1.5, 4: 3.5}, {1: 1.0}, {2: 1.0})
    assert [times.step(n) for n in (1, 2, 3, 4, 6)] == [1.0, 1.5, 2.5, 3.5, 5.5]
    assert [times.encode(3), times.decode(1), times.decode(4)] == [3.0, 1.0, 2.0]
    assert times.scaled(2).step(3) == 5.0


def test_bad_input_names_its_field() -> None:
    for name, value in (("max_batch_size", 0), ("max_wait_s", -1), ("max_wait_s", float("nan"))):
        with pytest.raises(ValueError, match=name):
            done_s("serial", [], **{name: value})
    with pytest.raises(ValueError, match="batching"):
        done_s("both", [])
    with pytest.raises(ValueError, match="step_s"):
        StepTimes({}, {1: 1.0}, {1: 1.0})
