"""Who is sent where, who is held back, in which order; and the routers to compare with."""

import numpy as np
import pytest

from benchlib.serving.engine.policies import PATIENCE
from benchlib.serving.replicas.foretold_replica import HAND_OVER_S, ForetoldReplica
from benchlib.serving.replicas.routing import ROUTINGS, TICK_S, Routes, router_named
from tests.serving.replicas.test_foretold_replica import OTHER_SIZE, SIZE, spec, task


def replicas(*specs):
    return [ForetoldReplica(str(number), one) for number, one in enumerate(specs)]


def names(routes):
    return [replica.name for _, replica in routes.sent]


@pytest.fixture
def router():
    return router_named("foretold")


def test_an_idle_replica_comes_first(router):
    both = replicas(spec(), spec())
    both[0].enter(task(30), 0.0)
    one = task(5, arrived_s=1.0)
    routes = router.route((one,), both, 1.0)
    assert routes == Routes(((one, both[1]),), None)
    assert both[1].inside[one].steps_left == 5


def test_equal_requests_spread_evenly(router):
    four = replicas(*[spec(most=8)] * 4)
    routes = router.route([task() for _ in range(32)], four, 0.0)
    assert [len(replica.inside) for replica in four] == [8] * 4
    assert routes.again_s is None


@pytest.mark.parametrize(("number", "inside"), [(19, 4), (21, 5), (30, 7), (50, 8)])
def test_a_long_queue_is_shared_out_up_to_two_batches(router, number, inside):
    """Of 21 requests each of four replicas has five, and one waits in the front."""
    four = replicas(*[spec(most=4)] * 4)
    routes = router.route([task() for _ in range(number)], four, 0.0)
    assert [len(replica.inside) for replica in four] == [inside] * 4
    assert len(routes.sent) == 4 * inside


def test_a_faster_replica_gets_the_next_one_though_it_has_more_inside(router):
    curves = {"step_s": {"2": 0.1}, "encode_s": {"1": 0.1}, "decode_s": {"1": 0.1}}
    slow, fast = replicas(spec(), spec(**curves))
    fast.enter(task(10), 0.0)
    assert names(router.route((task(10),), [slow, fast], 0.0)) == ["1"]


def test_counts_do_not_decide_but_the_foretold_finish(router):
    both = replicas(spec(), spec())
    both[0].enter(task(50), 0.0)
    both[1].enter(task(1), 0.0)
    both[1].enter(task(1), 0.0)
    assert names(router.route((task(20),), both, 0.0)) == ["1"]


def test_a_request_joins_a_batch_of_its_own_size(router):
    both = replicas(spec(), spec())
    both[0].enter(task(4, size=OTHER_SIZE), 0.0)
    both[1].enter(task(15), 0.0)
    assert names(router.route((task(10),), both, 0.0)) == ["1"]


def test_a_request_goes_where_its_adapter_is_on(router):
    both = replicas(spec(switch_s=5.0), spec(switch_s=5.0))
    for replica, lora in zip(both, ("a:1", "b:1"), strict=True):
        replica.enter(task(10, lora=lora), 0.0)
        replica.advance(3.0)
    routes = router.route((task(10, lora="b:1"), task(10, lora="a:1")), both, 3.0)
    assert names(routes) == ["1", "0"]


def test_what_no_replica_can_begin_is_held_back_until_one_can(router):
    both = replicas(spec("serial"), spec("serial"))
    waiting = [task(10), task(20), task(5, arrived_s=0.5)]
    routes = router.route(waiting, both, 1.0)
    assert names(routes) == ["0", "1"]
    last_step_ends_s = 1.0 + 0.5 + 10
    assert routes.again_s == pytest.approx(last_step_ends_s - HAND_OVER_S + TICK_S)
    assert names(router.route(waiting[2:], both, routes.again_s - 0.1)) == []
    assert names(router.route(waiting[2:], both, routes.again_s)) == ["0"]


def test_a_request_that_leaves_makes_room_at_once(router):
    (only,) = replicas(spec("serial"))
    first, second = task(10), task(10)
    router.route((first, second), (only,), 0.0)
    only.leave(first, 4.0)
    assert router.route((second,), (only,), 4.0).sent == ((second, only),)


def test_a_replica_that_is_late_gets_nothing_new(router):
    both = replicas(spec("serial"), spec("serial"))
    first, second = task(1), task(100)
    router.route((first, second), both, 0.0)
    routes = router.route((task(5),), both, 50.0)
    assert routes == Routes((), routes.again_s)
    assert routes.again_s == pytest.approx(100.5 - HAND_OVER_S + TICK_S)


def test_without_a_replica_all_are_held_back(router):
    assert router.route((task(),), (), 0.0) == Routes()


def test_a_late_short_one_overtakes_within_the_bound_and_never_beyond(router):
    (only,) = replicas(spec(most=2))
    random = np.random.default_rng(1)
    clock_s = 0.0
    waiting = []
    sent = []
    for _ in range(120):
        clock_s += float(random.exponential(12.0))
        waiting.append(task(int(random.integers(1, 30)), arrived_s=clock_s))
        for one in router.route(tuple(waiting), (only,), clock_s).sent:
            waiting.remove(one[0])
            sent.append(one[0])
        for one, done_s in tuple(only._done_s.items()):
            if done_s <= clock_s:
                only.leave(one, clock_s)
    overtaken = 0
    for number, late in enumerate(sent):
        for other in sent[:number]:
            ahead_s = other.arrived_s - late.arrived_s
            overtaken += ahead_s > 0
            assert ahead_s <= PATIENCE * only.alone_s(late)
    assert overtaken


def test_other_policies_keep_the_order_of_arrival(router):
    (only,) = replicas(spec("serial"))
    long, short = task(50), task(1, arrived_s=0.1)
    assert router.route((long, short), (only,), 1.0).sent == ((long, only),)


def test_a_model_that_takes_no_time_is_shared_by_rows(router):
    nothing = {name: {"1": 0.0} for name in ("step_s", "encode_s", "decode_s")}
    four = replicas(*[spec(most=8, **nothing)] * 4)
    for number in range(32):
        router.route((task(10, arrived_s=number / 5000),), four, number / 5000)
    assert [len(replica.inside) for replica in four] == [8] * 4


def test_round_robin_takes_turns():
    three = replicas(spec(), spec(), spec())
    router = router_named("round-robin")
    assert names(router.route([task(), task()], three, 0.0)) == ["0", "1"]
    assert names(router.route([task(), task()], three, 0.0)) == ["2", "0"]


def test_two_choices_by_count():
    both = replicas(spec(), spec())
    both[0].enter(task(1), 0.0)
    router = router_named("two-choices", seed=3)
    assert names(router.route((task(),), both, 0.0)) == ["1"]
    many = replicas(*[spec()] * 8)
    chosen = names(router.route([task() for _ in range(64)], many, 0.0))
    assert len(set(chosen)) == 8


@pytest.mark.parametrize("name", ROUTINGS[1:])
def test_those_to_compare_with_hold_nothing_back(name):
    both = replicas(spec("serial"), spec("serial"))
    assert len(router_named(name).route([task(size=SIZE)] * 3, both, 0.0).sent) == 3
    assert router_named(name).route((task(),), (), 0.0) == Routes()


def test_an_unknown_routing_is_named():
    with pytest.raises(ValueError, match="routing: 'random' is not known; use 'foretold'"):
        router_named("random")
