"""The compiled simulation equals the one in Python, request by request, and bad input is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlib.serving.engine import lane
from benchlib.serving.engine.compiled import (
    Requests,
    cost_tables,
    lindley,
    simulate_requests,
)
from benchlib.serving.engine.policy_names import BATCHINGS, make_policy
from benchlib.serving.engine.simulate import SimulatedTask, simulate
from benchlib.serving.engine.step_times import StepTimes

SIZES = ((64, 64), (128, 128))
LORAS = (None, "style", "style:0.5")
MOST = 8
# A batch costs as much as its requests one by one.
DEAR = StepTimes({1: 1.0, 2: 2.0}, {1: 0.5}, {1: 2.0})


def curves(seconds: st.SearchStrategy[float]) -> st.SearchStrategy[StepTimes]:
    """Step times with the measured batches 1, 2, 4, ... up to some number, or just one of them."""
    batches = st.sampled_from([(1,), (2,), (1, 2), (1, 2, 4), (1, 2, 4, 8, 16)])
    curve = batches.flatmap(
        lambda ns: st.lists(seconds, min_size=len(ns), max_size=len(ns)).map(
            lambda values: dict(zip(ns, sorted(values), strict=True))
        )
    )
    return st.builds(
        StepTimes,
        curve,
        curve,
        curve,
        switch_s=seconds,
        lora_ratio=st.sampled_from([1.0, 1.5]),
    )


# Multiples of 1/2 make ties: arrivals at the end of a step, and requests of equal rank.
halves = st.integers(0, 8).map(lambda n: n / 2)
any_seconds = st.floats(0, 8).filter(lambda s: s == 0 or s > 1e-3)
pairs = st.one_of(
    st.tuples(curves(halves), curves(halves)), st.tuples(curves(any_seconds), curves(any_seconds))
)
arrivals = st.one_of(st.integers(0, 60).map(float), st.floats(0, 60))
kinds = st.lists(
    st.tuples(
        arrivals, st.integers(1, 12), st.integers(1, 2), st.integers(0, 1), st.integers(0, 2)
    ),
    max_size=20,
).map(sorted)
rules = st.fixed_dictionaries(
    {
        "batching": st.sampled_from(BATCHINGS),
        "max_batch_size": st.integers(1, MOST),
        "max_wait_s": st.one_of(halves, any_seconds),
    }
)


def made(kinds) -> Requests:
    """Requests of (arrived_s, steps, rows, size, lora)."""
    columns = np.array(kinds, float).reshape(-1, 5).T
    whole = columns.astype(int)
    return Requests(columns[0], whole[1], whole[2], whole[3], whole[4])


def one_by_one(requests, planned, actual, *, batching, max_batch_size, max_wait_s):
    """begun_s and done_s of the simulation in Python."""

    def times_of(pair):
        return dict(zip(SIZES, pair, strict=True)).__getitem__

    policy = make_policy(
        batching, times_of(planned), max_batch_size=max_batch_size, max_wait_s=max_wait_s
    )
    tasks = [
        SimulatedTask(SIZES[size], int(rows), int(steps), float(arrived_s), lora=LORAS[lora])
        for arrived_s, steps, rows, size, lora in zip(
            requests.arrived_s,
            requests.steps,
            requests.rows,
            requests.size,
            requests.lora,
            strict=True,
        )
    ]
    finished = simulate(policy, tasks, times_of(actual))
    return [one.begun_s for one in finished], [one.done_s for one in finished]


def run(batching, requests, times=DEAR, *, max_batch_size=4, max_wait_s=2.0, **options):
    costs = cost_tables([times], max_batch_size)
    return simulate_requests(
        batching=batching,
        requests=requests,
        planned=options.pop("planned", costs),
        actual=options.pop("actual", costs),
        max_batch_size=max_batch_size,
        max_wait_s=max_wait_s,
        **options,
    )


def equal_requests(arrived_s, steps=3):
    return made([(each, steps, 1, 0, 0) for each in arrived_s])


@settings(deadline=None, max_examples=300)
@given(kinds, pairs, pairs, rules)
def test_it_equals_the_simulation_in_python(kinds, planned, actual, rules):
    requests = made(kinds)
    simulated = simulate_requests(
        requests=requests,
        planned=cost_tables(planned, MOST),
        actual=cost_tables(actual, MOST),
        **rules,
    )
    begun_s, done_s = one_by_one(requests, planned, actual, **rules)
    np.testing.assert_allclose(simulated.begun_s, begun_s, rtol=1e-9)
    np.testing.assert_allclose(simulated.done_s, done_s, rtol=1e-9)
    assert not simulated.overflowed


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 20), st.integers(1, 12), pairs, st.integers(1, MOST))
def test_a_queue_of_equals_is_the_same_in_python(number, steps, pair, max_batch_size):
    rules = {"batching": "continuous", "max_batch_size": max_batch_size, "max_wait_s": 0.0}
    requests = equal_requests([0.0] * number, steps)
    costs = cost_tables(pair, MOST)
    simulated = simulate_requests(requests=requests, planned=costs, actual=costs, **rules)
    begun_s, done_s = one_by_one(requests, pair, pair, **rules)
    np.testing.assert_allclose(simulated.begun_s, begun_s, rtol=1e-9)
    np.testing.assert_allclose(simulated.done_s, done_s, rtol=1e-9)


def test_a_closed_loop_of_eight_equals_runs_eight_at_once():
    # One H100, SDXL: 27 ms to encode eight, 20 steps of 294 ms, and 330 ms to decode.
    times = StepTimes(
        {2: 0.044, 4: 0.079, 8: 0.153, 16: 0.294},
        {1: 0.010, 2: 0.012, 4: 0.017, 8: 0.027},
        {1: 0.045, 2: 0.086, 4: 0.168, 8: 0.330},
    )
    requests = made([(0, 20, 2, 0, 0)] * 24)
    simulated = run("continuous", requests, times, max_batch_size=8, users=8)
    round_s = 0.027 + 20 * 0.294 + 0.330
    np.testing.assert_allclose(simulated.done_s, np.repeat([1, 2, 3], 8) * round_s)


@settings(deadline=None)
@given(kinds, pairs, rules, st.integers(1, 6), st.one_of(halves, any_seconds))
def test_a_closed_loop_equals_an_open_one_with_its_arrivals(kinds, pair, rules, users, think_s):
    requests = made(kinds)
    costs = cost_tables(pair, MOST)
    closed = simulate_requests(
        requests=requests, planned=costs, actual=costs, users=users, think_s=think_s, **rules
    )
    begun_s, done_s = one_by_one(replace(requests, arrived_s=closed.arrived_s), pair, pair, **rules)
    np.testing.assert_allclose(closed.begun_s, begun_s, rtol=1e-9)
    np.testing.assert_allclose(closed.done_s, done_s, rtol=1e-9)
    answered_s = np.sort(closed.done_s)
    np.testing.assert_array_equal(closed.arrived_s[:users], 0.0)
    np.testing.assert_allclose(
        closed.arrived_s[users:], answered_s[: max(0, len(requests) - users)] + think_s
    )


@settings(deadline=None)
@given(kinds, pairs, rules, halves, st.sampled_from([0.5, 1.0, 4.0]))
def test_gaps_and_factors_lengthen_each_call(kinds, pair, rules, gap_s, factor):
    requests = replace(made(kinds), lora=None)
    costs = cost_tables(pair, MOST)
    longer = simulate_requests(
        requests=requests,
        planned=costs,
        actual=costs,
        gap_s=gap_s,
        factors=np.array([factor]),
        **rules,
    )

    def lengthened(curve, most):
        return {n: curve(n) * factor + gap_s for n in range(1, most + 1)}

    actual = [
        StepTimes(
            lengthened(times.step, 2 * MOST),
            lengthened(times.encode, MOST),
            lengthened(times.decode, MOST),
        )
        for times in pair
    ]
    _, done_s = one_by_one(requests, pair, actual, **rules)
    np.testing.assert_allclose(longer.done_s, done_s, rtol=1e-9)


@settings(deadline=None)
@given(kinds, pairs, st.lists(st.floats(0.1, 3), min_size=1, max_size=9))
def test_serial_with_factors_is_lindleys_recursion(kinds, pair, factors):
    requests = replace(made(kinds), lora=None)
    costs = cost_tables(pair, 1)
    simulated = simulate_requests(
        batching="serial",
        requests=requests,
        planned=costs,
        actual=costs,
        max_batch_size=1,
        max_wait_s=0.0,
        factors=np.array(factors),
    )
    denoise_s = requests.steps * costs.step_s[requests.size, requests.rows]
    alone_s = costs.encode_s[requests.size, 1] + denoise_s + costs.decode_s[requests.size, 1]
    service_s = alone_s * np.resize(factors, len(requests))
    np.testing.assert_allclose(
        lindley(requests.arrived_s, service_s), simulated.done_s, rtol=1e-9, atol=1e-9
    )


def test_lindley_takes_many_series_at_once():
    done_s = lindley(np.array([0.0, 1, 10]), np.array([[3.0, 1, 2], [1, 1, 1]]))
    assert done_s.tolist() == [[3, 4, 12], [1, 2, 11]]


def test_what_became_of_each_request_by_hand():
    # Encoding takes 0.5, three steps 3, decoding 2: the first is answered at 5.5.
    simulated = run("serial", equal_requests([0, 1, 20]))
    assert simulated.begun_s.tolist() == [0, 5.5, 20]
    assert simulated.done_s.tolist() == [5.5, 11, 25.5]
    assert simulated.denoise_s.tolist() == [3, 3, 3]
    assert simulated.batch_size.tolist() == [1, 1, 1]
    assert simulated.present.tolist() == [0, 1, 0]
    # The second comes in a step. After that step, two more and a decoding are the first one's.
    assert simulated.calls.tolist() == [5, 8, 5]


def test_the_batch_is_the_mean_over_a_requests_own_steps():
    free = StepTimes({1: 1.0}, {1: 0.0}, {1: 0.0})
    costs = cost_tables([replace(free, step_s={1: 1.0, 8: 1.0})], 4)
    requests = made([(0, 4, 1, 0, 0), (0, 1, 1, 0, 0)])
    simulated = run("dynamic", requests, planned=costs, actual=costs, max_wait_s=0.0)
    assert simulated.batch_size.tolist() == [5 / 4, 2]
    assert simulated.denoise_s.tolist() == [4, 1]


def test_a_factor_belongs_to_a_request_and_gaps_to_no_stage():
    simulated = run("serial", equal_requests([0, 0, 0]), factors=np.array([1.0, 2.0]), gap_s=0.1)
    np.testing.assert_allclose(simulated.denoise_s, [3, 6, 3])
    np.testing.assert_allclose(simulated.done_s, [6, 17.5, 23.5])


def test_a_scaled_table_multiplies_parts_and_rows():
    costs = cost_tables([DEAR], 2)
    assert costs.step_s.tolist() == [[0, 1, 2, 3, 4]]
    scaled = costs.scaled(encode=2, step=np.array([1, 1, 1, 10, 1]), decode=0.5)
    assert scaled.encode_s.tolist() == [[0, 1, 2]]
    assert scaled.step_s.tolist() == [[0, 1, 2, 30, 4]]
    assert scaled.decode_s.tolist() == [[0, 1, 2]]
    assert scaled.max_batch_size == 2


@pytest.mark.parametrize("batching", BATCHINGS)
def test_an_endless_queue_stops_and_says_so(batching):
    simulated = run(batching, equal_requests(np.arange(500) / 100), longest_queue=20)
    assert simulated.overflowed
    is_done = ~np.isnan(simulated.done_s)
    assert simulated.begun_s[is_done].tolist() == sorted(simulated.begun_s[is_done])
    for name in ("begun_s", "denoise_s", "batch_size", "calls", "present"):
        assert np.isnan(getattr(simulated, name)).tolist() == (~is_done).tolist()


def test_there_may_be_no_requests_or_fewer_than_users():
    assert run("serial", equal_requests([])).done_s.tolist() == []
    assert run("continuous", equal_requests([0]), users=3).done_s.tolist() == [5.5]


def test_one_version_is_compiled_for_all_kinds_of_arrays():
    requests = equal_requests([0, 1, 2])
    whole = requests.steps.astype(np.int32)
    whole.flags.writeable = False
    arrived_s = np.arange(6, dtype=np.float32)[::2]
    run("serial", Requests(arrived_s, whole, whole - 2, whole - 3), factors=np.ones(4)[::2])
    run("dynamic", requests, gap_s=1, think_s=0, users=np.int64(2), max_wait_s=0)
    assert len(lane.enter.signatures) == 1
    # numba could not read the kept code any more once a class of ours has another name.
    assert b"benchlib" not in pickle.dumps(lane.enter.signatures)


def test_no_threads_are_started_beside_torch():
    run("continuous", equal_requests([0, 1, 2]))
    with pytest.raises(ValueError, match="not initialized"):
        numba.threading_layer()


def test_it_works_where_numba_may_not_write():
    # numba finds no folder for code that is in no file, nor for a file in a folder that can't be
    # written.
    scope = {}
    exec("def double(n):\n    return 2 * n", scope)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(scope["double"])
    assert lane.kept_machine_code(scope["double"])(4) == 8


def test_bad_requests_name_the_array():
    good = {
        "arrived_s": np.array([0.0, 1.0]),
        "steps": np.array([1, 2]),
        "rows": np.array([1, 2]),
        "size": np.array([0, 0]),
    }
    for name, bad in (
        ("arrived_s", [1.0, 0.0]),
        ("arrived_s", [0.0, np.nan]),
        ("steps", [0, 1]),
        ("steps", [1.0, 2.0]),
        ("steps", [1, 2, 3]),
        ("rows", [1, 3]),
        ("size", [0, -1]),
    ):
        with pytest.raises(ValueError, match=name):
            Requests(**good | {name: np.array(bad)})


def test_bad_options_name_the_field():
    requests = equal_requests([0, 1])
    costs = cost_tables([DEAR], 4)
    for name, bad in (
        ("batching", "both"),
        ("max_batch_size", 0),
        ("max_wait_s", -1.0),
        ("gap_s", -1.0),
        ("think_s", np.nan),
        ("factors", np.array([])),
        ("factors", np.array([1.0, -1.0])),
        ("users", 0),
        ("longest_queue", 0),
        ("planned", cost_tables([DEAR], 3)),
        ("actual", replace(costs, step_s=costs.step_s[:, :4])),
        ("actual", costs.scaled(step=-1.0)),
    ):
        options = {"batching": "dynamic"} | {name: bad}
        with pytest.raises(ValueError, match=name):
            run(requests=requests, **options)
    with pytest.raises(ValueError, match="planned: a request has the size at 1, of 1 in all"):
        run("serial", made([(0, 1, 1, 1, 0)]))
    with pytest.raises(ValueError, match="step_times"):
        cost_tables([], 4)
    with pytest.raises(ValueError, match="max_batch_size"):
        cost_tables([DEAR], 0)
