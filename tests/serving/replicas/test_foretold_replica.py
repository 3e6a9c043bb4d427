"""A replica on a virtual clock: who is inside, when they leave, and a replica that is late."""

import numpy as np
import pytest

from benchlib.serving.engine.simulate import SimulatedTask, simulate
from benchlib.serving.replicas.foretold_replica import FILES_S, HAND_OVER_S, ForetoldReplica

SIZE = (64, 64)
OTHER_SIZE = (128, 64)
STEP_S = 1.0
CURVES = {
    "step_s": {"1": STEP_S, "2": STEP_S, "16": 4.0},
    "encode_s": {"1": 0.5, "8": 1.0},
    "decode_s": {"1": 0.25, "8": 2.0},
}


def spec(batching="continuous", most=4, **more):
    return {
        "batching": batching,
        "max_batch_size": most,
        "max_wait_ms": 2000.0,
        "step_times": {"64x64": CURVES | more},
    }


def task(steps=10, arrived_s=0.0, size=SIZE, lora=None):
    return SimulatedTask(size, 2, steps, arrived_s, lora=lora)


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
def test_all_leave_when_the_simulator_says(batching):
    random = np.random.default_rng(3)
    replica = ForetoldReplica("0", spec(batching))
    tasks = []
    for number in range(12):
        steps = int(random.integers(1, 20))
        size = SIZE if number % 3 else OTHER_SIZE
        tasks.append(task(steps, arrived_s=0.1 * number, size=size))
        replica.enter(tasks[-1], 2.0)
    expected = simulate(replica.policy, tasks, replica.times, now_s=2.0)
    for until_s in (2.0, 3.0, 3.1, 40.0, 1e6):
        replica.advance(until_s)
    assert [replica._done_s[one] for one in tasks] == pytest.approx(
        [one.done_s for one in expected]
    )


def test_a_request_alone_takes_its_own_time():
    replica = ForetoldReplica("0", spec())
    one = task(10)
    seconds = 0.5 + 10 * STEP_S + 0.25
    assert replica.alone_s(one) == seconds
    assert replica.foretell_s(one, 7.0) == 7.0 + seconds


def test_equal_requests_are_done_when_the_simulator_says():
    replica = ForetoldReplica("0", spec(encode_s={"1": 0.0}, decode_s={"1": 0.0}))
    tasks = [task(10) for _ in range(4)]
    for one in tasks[:3]:
        replica.enter(one, 0.0)
    expected = simulate(replica.policy, tasks, replica.times)
    assert replica.foretell_s(tasks[3], 0.0) == pytest.approx(expected[3].done_s)


def test_two_sizes_share_no_steps():
    replica = ForetoldReplica("0", spec())
    other = task(10, size=OTHER_SIZE)
    replica.enter(task(10), 0.0)
    expected_s = replica.alone_s(task(10)) + replica.alone_s(other)
    assert replica.foretell_s(other, 0.0) == expected_s
    assert replica.foretell_s(task(10), 0.0) < expected_s


def test_a_request_counts_as_not_begun_when_it_enters():
    replica = ForetoldReplica("0", spec())
    one = task(10)
    one.begun = True
    replica.enter(one, 0.0)
    replica.advance(0.1)
    assert replica.ready_s(0.1) == 0.5 + STEP_S


@pytest.mark.parametrize(
    ("batching", "share", "places"),
    [
        ("serial", 9, 1),
        ("dynamic", 9, 4),
        ("continuous", 0, 4),
        ("continuous", 5, 5),
        ("continuous", 9, 8),
    ],
)
def test_it_has_the_places_of_its_batch_and_of_two_in_a_long_queue(batching, share, places):
    replica = ForetoldReplica("0", spec(batching))
    for _ in range(places):
        assert replica.has_room(0.0, share)
        replica.enter(task(), 0.0)
    assert not replica.has_room(0.0, share)


def test_nobody_joins_a_dynamic_batch_that_has_begun():
    replica = ForetoldReplica("0", spec("dynamic"))
    replica.enter(task(10), 0.0)
    replica.advance(1.0)
    assert replica.has_room(1.0)
    replica.advance(2.5)  # the wait of 2 s is over
    assert not replica.has_room(2.5)


def test_there_is_room_as_soon_as_the_decoding_begins():
    replica = ForetoldReplica("0", spec("serial"))
    replica.enter(task(10), 0.0)
    replica.advance(0.1)
    last_step_ends_s = 0.5 + 10 * STEP_S
    assert replica.room_s() == pytest.approx(last_step_ends_s)
    replica.advance(last_step_ends_s)
    assert not replica.has_room(last_step_ends_s)
    replica.advance(last_step_ends_s + 0.001)
    assert replica.has_room(last_step_ends_s)
    assert replica.ready_s(last_step_ends_s) == pytest.approx(last_step_ends_s + 0.25)


def test_a_late_request_keeps_its_place_and_puts_off_the_others():
    replica = ForetoldReplica("0", spec("serial"))
    one = task(10)
    replica.enter(one, 0.0)
    done_s = 0.5 + 10 * STEP_S + 0.25
    replica.advance(20.0)
    assert not replica.has_room(20.0)
    late_s = 20.0 - done_s - HAND_OVER_S
    assert replica.ready_s(20.0) == pytest.approx(20.0 + late_s)
    replica.leave(one, 20.0)
    assert replica.has_room(20.0)
    assert replica.ready_s(20.0) == 20.0


def test_one_that_leaves_late_shows_how_late_the_others_are():
    replica = ForetoldReplica("0", spec())
    short = task(2)
    long = task(10)
    for one in (short, long):
        replica.enter(one, 0.0)
    replica.advance(6.0)
    ready_s = replica.ready_s(6.0)
    late_s = 6.0 - replica._done_s[short] - HAND_OVER_S
    assert late_s > 0
    replica.leave(short, 6.0)
    assert replica.ready_s(6.0) == pytest.approx(ready_s)
    assert replica.inside == {long: replica.inside[long]}


def test_one_that_writes_a_file_makes_room_meanwhile():
    replica = ForetoldReplica("0", spec("serial"))
    writer = task(10)
    replica.enter(writer, 0.0)
    replica.will_write(writer)
    replica.advance(12.0)
    assert replica.has_room(12.0)
    assert replica.ready_s(12.0) == 12.0
    after_s = 10.75 + FILES_S + 1.0
    assert not replica.has_room(after_s)
    assert replica.ready_s(after_s) == pytest.approx(after_s + 1.0)


def test_one_that_leaves_early_makes_room():
    replica = ForetoldReplica("0", spec("serial"))
    one = task(10)
    replica.enter(one, 0.0)
    replica.advance(3.0)
    replica.leave(one, 3.2)
    assert replica.has_room(3.2)
    assert replica.ready_s(3.2) == 3.2
    replica.leave(one, 3.3)  # nothing happens
    assert replica.ready_s(3.3) == 3.3


def test_an_adapter_that_is_off_costs_a_switch():
    replica = ForetoldReplica("0", spec(switch_s=3.0))
    replica.enter(task(10, lora="a:1"), 0.0)
    replica.advance(1.0)
    with_it = replica.foretell_s(task(4, lora="a:1"), 1.0)
    assert replica.foretell_s(task(4, lora="b:1"), 1.0) >= with_it + 3.0
