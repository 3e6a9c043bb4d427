"""One lane on a virtual clock, compiled to machine code: the three policies and the calls' times.

Knows arrays of requests and tables of costs. Ignorant of bad input: `compiled.py` checks it first.
Only that file imports this one, when it simulates, because importing numba takes a second.

`policies.py` and `simulate.py` say the same in Python. A test holds both equal, so every sum here
has the order of theirs. One thread computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Function = TypeVar("Function", bound=Callable[..., Any])

SERIAL = 0
DYNAMIC = 1
CONTINUOUS = 2
BATCHING_NUMBERS = {"serial": SERIAL, "dynamic": DYNAMIC, "continuous": CONTINUOUS}


def machine_code(function: Function) -> Function:
    """`function`, compiled when it is first called."""
    return cast("Function", njit(function))


def kept_machine_code(function: Function) -> Function:
    """`function`, compiled when it is first called, and kept on disk for the next process.

    numba keeps it in `NUMBA_CACHE_DIR`, beside this file, or in the user's cache. Where it may
    write to none of them, it raises RuntimeError. Then each process compiles anew.
    """
    try:
        return cast("Function", njit(cache=True)(function))
    except RuntimeError:
        return machine_code(function)


class Tasks(NamedTuple):
    """All requests, by number. The lane counts `steps_left` down and writes the last six arrays.

    `begun_s` and `done_s` hold NaN until they are known. `batch_sum` is the sum of the batch's
    requests over a request's steps. `first_call` and `last_call` are how many calls the lane had
    made when the request came and when it was answered.
    """

    arrived_s: Floats
    steps_left: Ints
    rows: Ints
    size: Ints
    lora: Ints
    begun_s: Floats
    done_s: Floats
    denoise_s: Floats
    batch_sum: Floats
    first_call: Floats
    last_call: Floats


class CallSeconds(NamedTuple):
    """Seconds of a call: by size and rows (a step), or by size and number of requests.

    By size alone are a switch to another adapter, and the times as long that a step takes with one.
    """

    step_s: Floats
    encode_s: Floats
    decode_s: Floats
    switch_s: Floats
    lora_ratio: Floats


class Rules(NamedTuple):
    """What is fixed for a simulation.

    `batching` is one of BATCHING_NUMBERS. `users` is 0 for an open loop. `patience` is PATIENCE of
    `policies.py`: numba would keep its value on disk, and not see a change in another file.
    """

    batching: int
    max_batch_size: int
    max_wait_s: float
    gap_s: float
    users: int
    think_s: float
    longest_queue: int
    patience: float


def run_lane(
    tasks: Tasks, planned: CallSeconds, actual: CallSeconds, factors: Floats, rules: Rules
) -> bool:
    """Simulate until all `tasks` are done. Returns False if too many were present.

    In a closed loop, `arrived_s` is known for the first `users` requests, and filled in for others.
    """
    return enter(tuple(tasks), tuple(planned), tuple(actual), factors, tuple(rules))


@kept_machine_code
def enter(
    tasks: tuple[Any, ...],
    planned: tuple[Any, ...],
    actual: tuple[Any, ...],
    factors: Floats,
    rules: tuple[Any, ...],
) -> bool:
    """`main_loop`, with plain tuples for ours.

    The kept code is found by the types of arguments. numba fails, and does not compile anew, if one
    is a class that has another name by now. So only this function is kept, with what it calls.
    """
    return main_loop(
        Tasks(*tasks), CallSeconds(*planned), CallSeconds(*actual), factors, Rules(*rules)
    )


@machine_code
def main_loop(
    tasks: Tasks, planned: CallSeconds, actual: CallSeconds, factors: Floats, rules: Rules
) -> bool:
    """Admit, ask the policy and carry out its turn, until all `tasks` are done: see `run_lane`."""
    present = np.empty(rules.longest_queue, np.int64)  # in their order of arrival
    batch = np.empty(rules.max_batch_size, np.int64)
    keys = np.empty(rules.max_batch_size, np.float64)
    number_present = 0
    arrived = 0  # the number of requests that have arrived
    done = 0
    calls = 0
    lora = 0  # the adapter that is on
    now_s = 0.0
    sent = len(tasks.arrived_s)  # the number of requests whose arrival is known
    if rules.users:
        sent = min(sent, rules.users)
    while done < len(tasks.arrived_s):
        # 1) Let the due requests arrive
        if not number_present:
            now_s = max(now_s, tasks.arrived_s[arrived])
        while arrived < sent and tasks.arrived_s[arrived] <= now_s:
            if number_present == rules.longest_queue:
                return False
            present[number_present] = arrived
            number_present += 1
            tasks.first_call[arrived] = calls
            arrived += 1
        next_arrival_s = math.inf
        if arrived < sent:
            next_arrival_s = tasks.arrived_s[arrived]

        # 2) Ask the policy; without a batch there is nothing to do before `due_s`
        here = present[:number_present]
        due_s = math.inf
        if rules.batching == SERIAL:
            batch[0] = here[0]
            together = 1
        elif rules.batching == DYNAMIC:
            together, due_s = dynamic_turn(here, tasks, rules, now_s, batch)
        else:
            together = continuous_turn(here, tasks, planned, rules, lora, batch, keys)
        if not together:
            now_s = min(due_s, next_arrival_s)
            continue
        turn = batch[:together]
        factor = factors[turn[0] % len(factors)]

        # 3) Step them until the policy may decide again
        if tasks.steps_left[turn[0]]:
            now_s, made = take_steps(
                turn, tasks, actual, factor, rules.gap_s, now_s, next_arrival_s, lora
            )
            lora = tasks.lora[turn[0]]
            calls += made
            continue

        # 4) Or decode them: they are answered, and in a closed loop their users send the next
        decode_s = actual.decode_s[tasks.size[turn[0]], together]
        now_s += decode_s * factor + rules.gap_s
        calls += 1
        done += together
        for task in turn:
            tasks.done_s[task] = now_s
            tasks.last_call[task] = calls
            if sent < len(tasks.arrived_s):
                tasks.arrived_s[sent] = now_s + rules.think_s
                sent += 1
        number_present = remove_done(here, tasks)
    return True


@machine_code
def take_steps(
    batch: Ints,
    tasks: Tasks,
    actual: CallSeconds,
    factor: float,
    gap_s: float,
    now_s: float,
    next_arrival_s: float,
    lora: int,
) -> tuple[float, int]:
    """Step `batch` until a request has no step left or the next one arrives.

    `lora` is the adapter that is on before. Requests that have not begun are encoded first. Returns
    that time and the number of calls.
    """
    # 1) Encode the newcomers
    size = tasks.size[batch[0]]
    steps = tasks.steps_left[batch[0]]
    newcomers = 0
    rows = 0
    for task in batch:
        rows += tasks.rows[task]
        steps = min(steps, tasks.steps_left[task])
        if math.isnan(tasks.begun_s[task]):
            tasks.begun_s[task] = now_s
            newcomers += 1
    calls = 0
    if tasks.lora[batch[0]] != lora:
        now_s += actual.switch_s[size] * factor
    if newcomers:
        now_s += actual.encode_s[size, newcomers] * factor + gap_s
        calls = 1

    # 2) Step until the next arrival
    step_s = actual.step_s[size, rows] * factor
    if tasks.lora[batch[0]]:
        step_s *= actual.lora_ratio[size]
    call_s = step_s + gap_s
    if call_s > 0:
        until_arrival = (next_arrival_s - now_s) / call_s
        if until_arrival < steps:
            steps = max(1, math.ceil(until_arrival))

    # 3) Note the steps
    for task in batch:
        tasks.steps_left[task] -= steps
        tasks.denoise_s[task] += steps * step_s
        tasks.batch_sum[task] += steps * len(batch)
    return now_s + steps * call_s, calls + steps


@machine_code
def remove_done(present: Ints, tasks: Tasks) -> int:
    """Move the requests without an answer to the front of `present`. Returns their number."""
    kept = 0
    for task in present:
        if math.isnan(tasks.done_s[task]):
            present[kept] = task
            kept += 1
    return kept


@machine_code
def dynamic_turn(
    present: Ints, tasks: Tasks, rules: Rules, now_s: float, batch: Ints
) -> tuple[int, float]:
    """`Dynamic.turn`: fills `batch`, returns its number. If it is 0, until when there is no turn."""
    # 1) Finish the batch that has begun: step those with steps left, or else decode all
    begun = 0
    stepping = 0
    for task in present:
        if math.isnan(tasks.begun_s[task]):
            continue
        begun += 1
        if tasks.steps_left[task]:
            batch[stepping] = task
            stepping += 1
    if stepping:
        return stepping, math.inf
    if begun:
        for task in present:
            if not math.isnan(tasks.begun_s[task]):
                batch[stepping] = task
                stepping += 1
        return begun, math.inf

    # 2) Begin the first batch that is full or has waited long enough
    due_s = math.inf
    for oldest in present:
        gathered = 0
        for task in present:
            if is_alike(task, oldest, tasks) and gathered < rules.max_batch_size:
                batch[gathered] = task
                gathered += 1
        batch_due_s = tasks.arrived_s[oldest] + rules.max_wait_s
        if gathered == rules.max_batch_size or now_s >= batch_due_s:
            return gathered, math.inf
        due_s = min(due_s, batch_due_s)
    return 0, due_s


@machine_code
def continuous_turn(
    present: Ints,
    tasks: Tasks,
    planned: CallSeconds,
    rules: Rules,
    lora: int,
    batch: Ints,
    keys: Floats,
) -> int:
    """`Continuous.turn`: fills `batch`, and returns its number. `keys` is room for the order."""
    # 1) Decode requests that have no step left
    leavers = gather_leavers(present, tasks, batch)
    if leavers:
        return leavers

    # 2) Put them in order: the first decides which size and adapter run
    patience = min(len(present) / 3, rules.patience)
    first = present[0]
    least = math.inf
    for task in present:
        key = tasks.arrived_s[task] + patience * left_s(task, tasks, planned, lora)
        if key < least:
            least = key
            first = task
    batch[0] = first

    # 3) Sort others of its kind in, as many as the batch may hold
    candidates = 1
    for task in present:
        if task == first or not is_alike(task, first, tasks):
            continue
        key = tasks.arrived_s[task] + 2 * patience * left_s(task, tasks, planned, lora)
        place = candidates
        while place > 1 and key < keys[place - 1]:
            place -= 1
        if place == len(batch):
            continue
        candidates = min(candidates + 1, len(batch))
        for later in range(candidates - 1, place, -1):
            batch[later] = batch[later - 1]
            keys[later] = keys[later - 1]
        batch[place] = task
        keys[place] = key

    # 4) Let them join, as long as that pays
    return best_batch(batch[:candidates], tasks, planned, len(present))


@machine_code
def gather_leavers(present: Ints, tasks: Tasks, batch: Ints) -> int:
    """Fill `batch` with the requests to decode, all of one size. Returns their number."""
    leavers = 0
    for task in present:
        if tasks.steps_left[task] or leavers == len(batch):
            continue
        if leavers and tasks.size[task] != tasks.size[batch[0]]:
            continue
        batch[leavers] = task
        leavers += 1
    return leavers


@machine_code
def is_alike(task: int, other: int, tasks: Tasks) -> bool:
    """Whether two requests may share a step: they have one size and one adapter."""
    one_size: bool = tasks.size[task] == tasks.size[other]
    one_lora: bool = tasks.lora[task] == tasks.lora[other]
    return one_size and one_lora


@machine_code
def left_s(task: int, tasks: Tasks, planned: CallSeconds, lora: int) -> float:
    """Seconds that `task` takes alone: a switch if `lora` is another, and its remaining steps."""
    size = tasks.size[task]
    alone_s = planned.step_s[size, tasks.rows[task]]
    if tasks.lora[task]:
        alone_s *= planned.lora_ratio[size]
    switch_s = 0.0
    if tasks.lora[task] != lora:
        switch_s = planned.switch_s[size]
    seconds: float = switch_s + tasks.steps_left[task] * alone_s
    return seconds


@machine_code
def best_batch(candidates: Ints, tasks: Tasks, planned: CallSeconds, present: int) -> int:
    """How many of `candidates` run together: `Continuous._best_batch` says why."""
    size = tasks.size[candidates[0]]
    ratio = 1.0
    if tasks.lora[candidates[0]]:
        ratio = planned.lora_ratio[size]
    all_encode_s = planned.encode_s[size]
    all_step_s = planned.step_s[size]
    all_decode_s = planned.decode_s[size]
    rows = 0
    newcomers = 0
    decode_s = 0.0
    step_alone_s = 0.0
    steps_alone_s = 0.0
    slownesses = np.empty(len(candidates))
    for place in range(len(candidates)):
        # 1) One more member
        b = place + 1
        task = candidates[place]
        steps_left = tasks.steps_left[task]
        rows += tasks.rows[task]
        one_step_s = all_step_s[tasks.rows[task]] * ratio
        step_alone_s += one_step_s
        steps_alone_s += steps_left * one_step_s
        if math.isnan(tasks.begun_s[task]):
            newcomers += 1
        leavers = 0
        for other in candidates[:place]:
            if tasks.steps_left[other] == steps_left:
                leavers += 1
        decode_s += all_decode_s[leavers + 1]
        if leavers:
            decode_s -= all_decode_s[leavers]

        # 2) How slow the batch is
        step_slowness = 1.0
        if step_alone_s:
            step_slowness = all_step_s[rows] * ratio / step_alone_s
        encode_s = 0.0
        if newcomers:
            encode_s = all_encode_s[newcomers]
        together_s = encode_s + steps_alone_s * step_slowness + decode_s
        one_by_one_s = newcomers * all_encode_s[1] + steps_alone_s + b * all_decode_s[1]
        slowness = 1.0
        if one_by_one_s:
            slowness = together_s / one_by_one_s
        slownesses[place] = slowness

    # 3) The batch of least cost
    if are_equal(candidates, tasks):
        return best_of_equals(slownesses, present)
    return best_of_mix(slownesses, present)


@machine_code
def are_equal(candidates: Ints, tasks: Tasks) -> bool:
    """Whether all have the same rows and steps left, and all have begun or none."""
    first = candidates[0]
    first_waits = math.isnan(tasks.begun_s[first])
    for task in candidates[1:]:
        if tasks.rows[task] != tasks.rows[first]:
            return False
        if tasks.steps_left[task] != tasks.steps_left[first]:
            return False
        if math.isnan(tasks.begun_s[task]) != first_waits:
            return False
    return True


@machine_code
def best_of_mix(slownesses: Floats, present: int) -> int:
    """`cheapest_of_mix` of `batch_costs.py` says why."""
    least_cost = math.inf
    best = 1
    for place in range(len(slownesses)):
        b = place + 1
        slowness = slownesses[place]
        cost = (1 + b / present) * slowness + present / 2 * (slowness * slowness)
        if cost < least_cost:
            least_cost = cost
            best = b
    return best


@machine_code
def best_of_equals(slownesses: Floats, present: int) -> int:
    """`cheapest_of_equals` of `batch_costs.py` says why."""
    # 1) The fastest even split
    most = len(slownesses)
    least_slowness = math.inf
    for b in range(1, most + 1):
        if is_even_split(b, most):
            least_slowness = min(least_slowness, slownesses[b - 1])

    # 2) The batch of least cost
    least_cost = math.inf
    best = 1
    for b in range(1, most + 1):
        slowness = slownesses[b - 1]
        spare = present * least_slowness - (present - 1) * slowness
        if spare <= 0 or not is_even_split(b, most):
            continue
        cost = (1 + b / present) * slowness / spare
        if cost < least_cost:
            least_cost = cost
            best = b
    return best


@machine_code
def is_even_split(b: int, most: int) -> bool:
    """Whether b is the largest batch of an even split of `most` requests."""
    batches = -(-most // b)
    return -(-most // batches) == b
