"""The policies on a virtual clock, for millions of requests: arrays in, arrays out.

Knows how requests and costs become arrays, and what a simulation needs of them. Ignorant of where
they come from: measured runs, random numbers or plans. `lane.py` does the work, and is imported at
the first simulation.

`simulate` in `simulate.py` gives the same times for any policy, one request at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from benchlib.serving.engine.policies import PATIENCE
from benchlib.serving.engine.policy_names import check_batching
from benchlib.serving.engine.step_times import StepTimes

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

MOST_ROWS = 2  # of one request


@dataclass(frozen=True)
class Requests:
    """Requests in their order of arrival, as arrays of one length.

    | array       | holds                                         |
    |-------------|-----------------------------------------------|
    | `arrived_s` | seconds, never falling                        |
    | `steps`     | denoising steps, 1 or more                    |
    | `rows`      | rows in the UNet: 2 with guidance, or 1       |
    | `size`      | place of the size in the cost tables, from 0  |
    | `lora`      | number of its adapter and scale, 0 for none   |

    Without `lora`, no request has an adapter. Raises ValueError, which names the array.
    """

    arrived_s: Floats
    steps: Ints
    rows: Ints
    size: Ints
    lora: Ints | None = None

    def __post_init__(self) -> None:
        number = len(self.arrived_s)
        if self.lora is None:
            object.__setattr__(self, "lora", np.zeros(number, np.int64))
        for field in fields(self):
            array = getattr(self, field.name)
            if array.shape != (number,):
                raise ValueError(
                    f"{field.name}: has shape {array.shape}; give one number for each "
                    f"request of arrived_s, which has {number}"
                )
            if field.name != "arrived_s" and not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{field.name}: has the type {array.dtype}; give whole numbers")
        if not np.isfinite(self.arrived_s).all() or (np.diff(self.arrived_s) < 0).any():
            raise ValueError("arrived_s: a time is missing or falls; sort the requests by arrival")
        if (self.steps < 1).any():
            raise ValueError("steps: a request has none; use 1 or more")
        if ((self.rows < 1) | (self.rows > MOST_ROWS)).any():
            raise ValueError(f"rows: a number is out of range; use 1 to {MOST_ROWS}")
        if (self.size < 0).any():
            raise ValueError("size: a place is negative; use 0 or more")

    def __len__(self) -> int:
        return len(self.arrived_s)


@dataclass(frozen=True)
class CostTables:
    """Seconds of each call, made by `cost_tables`. The first axis is the place of the size.

    The second axis is the number of rows (a step) or of requests (the others). Its place 0 is
    unused and holds 0. `switch_s` and `lora_ratio` of `StepTimes` have the first axis only.
    """

    step_s: Floats
    encode_s: Floats
    decode_s: Floats
    switch_s: Floats
    lora_ratio: Floats

    @property
    def max_batch_size(self) -> int:
        """The most requests of a call."""
        _, places = self.encode_s.shape
        return int(places) - 1

    def scaled(
        self,
        *,
        encode: float | Floats = 1.0,
        step: float | Floats = 1.0,
        decode: float | Floats = 1.0,
    ) -> CostTables:
        """The tables with each part multiplied.

        A factor is a number, or an array that fits the second axis: one for each number of rows or
        requests, from 0 on.
        """
        return replace(
            self,
            step_s=self.step_s * step,
            encode_s=self.encode_s * encode,
            decode_s=self.decode_s * decode,
        )


@dataclass(frozen=True)
class Simulated:
    """What became of each request: float64 arrays in the order of `Requests`.

    | array        | holds                                                              |
    |--------------|--------------------------------------------------------------------|
    | `arrived_s`  | when it came, in seconds                                           |
    | `begun_s`    | when its encoding began                                            |
    | `done_s`     | when it was answered                                               |
    | `denoise_s`  | seconds of the steps in which it took part                         |
    | `batch_size` | mean requests in its steps, as Server-Timing says it               |
    | `calls`      | calls of the lane from its first turn to its end, others' included |
    | `present`    | requests in the system when it came, without itself                |

    The call that was under way at an arrival is not counted in `calls`. `overflowed` says that more
    than the longest queue were present. Then requests without an answer hold NaN.
    """

    arrived_s: Floats
    begun_s: Floats
    done_s: Floats
    denoise_s: Floats
    batch_size: Floats
    calls: Floats
    present: Floats
    overflowed: bool


def cost_tables(step_times: Sequence[StepTimes], max_batch_size: int) -> CostTables:
    """Tables for batches of up to `max_batch_size` requests, one size for each of `step_times`.

    Raises ValueError, which names the field.
    """
    if not step_times:
        raise ValueError("step_times: is empty; give the times of one size or more")
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size: {max_batch_size} is too few; use 1 or more")
    most_rows = MOST_ROWS * max_batch_size
    return CostTables(
        step_s=np.array([_row(times.step, most_rows) for times in step_times]),
        encode_s=np.array([_row(times.encode, max_batch_size) for times in step_times]),
        decode_s=np.array([_row(times.decode, max_batch_size) for times in step_times]),
        switch_s=np.array([times.switch_s for times in step_times]),
        lora_ratio=np.array([times.lora_ratio for times in step_times]),
    )


def simulate_requests(
    *,
    batching: str,
    requests: Requests,
    planned: CostTables,
    actual: CostTables,
    max_batch_size: int,
    max_wait_s: float,
    gap_s: float = 0.0,
    factors: Floats | None = None,
    users: int | None = None,
    think_s: float = 0.0,
    longest_queue: int = 2000,
) -> Simulated:
    """What becomes of `requests` under the policy `batching`.

    The policy decides by the `planned` costs; calls take the `actual` ones. Each call takes `gap_s`
    more, which are in no stage.

    `factors` are relative durations with a mean of about 1. Request i has the factor at i, in a
    cycle. A batch's calls take the factor of its first request: the oldest, or the one that
    `Continuous` puts first. So equal factors give common random numbers to different policies,
    costs and loads. Serial gives each request the service that `lindley` would give it.

    With `users` the loop is closed and `arrived_s` is not used. So many requests come at 0. Each
    answer brings the next request `think_s` later, until all have come. They come in the order of
    the arrays, whoever sends them.

    The simulation stops when more than `longest_queue` requests are present, because the queue of
    an overloaded server has no end. Raises ValueError, which names the field.
    """
    from benchlib.serving.engine import lane

    # 1) Check what machine code would not
    check_batching(batching, max_batch_size=max_batch_size, max_wait_s=max_wait_s)
    if batching == "serial":
        max_batch_size = 1
    if factors is None:
        factors = np.ones(1)
    _check_costs("planned", planned, requests, max_batch_size)
    _check_costs("actual", actual, requests, max_batch_size)
    _check_seconds("factors", factors)
    _check_seconds("gap_s", np.array([gap_s]))
    _check_seconds("think_s", np.array([think_s]))
    for name, count in (("users", users), ("longest_queue", longest_queue)):
        if count is not None and count < 1:
            raise ValueError(f"{name}: {count} is too few; use 1 or more")

    # 2) Simulate
    number = len(requests)
    arrived_s = requests.arrived_s
    if users is not None:
        arrived_s = np.full(number, np.nan)
        arrived_s[:users] = 0.0
    tasks = lane.Tasks(
        arrived_s=np.array(arrived_s, np.float64),
        steps_left=np.array(requests.steps, np.int64),
        rows=np.array(requests.rows, np.int64),
        size=np.array(requests.size, np.int64),
        lora=np.array(requests.lora, np.int64),
        begun_s=np.full(number, np.nan),
        done_s=np.full(number, np.nan),
        denoise_s=np.zeros(number),
        batch_sum=np.zeros(number),
        first_call=np.full(number, np.nan),
        last_call=np.full(number, np.nan),
    )
    rules = lane.Rules(
        batching=lane.BATCHING_NUMBERS[batching],
        max_batch_size=int(max_batch_size),
        max_wait_s=float(max_wait_s),
        gap_s=float(gap_s),
        users=int(users or 0),
        think_s=float(think_s),
        longest_queue=int(longest_queue),
        patience=PATIENCE,
    )
    went_through = lane.run_lane(
        tasks,
        _for_lane(planned, lane.CallSeconds),
        _for_lane(actual, lane.CallSeconds),
        np.array(factors, np.float64),
        rules,
    )

    # 3) Say what became of them
    unknown = np.where(np.isnan(tasks.done_s), np.nan, 0.0)
    return Simulated(
        arrived_s=tasks.arrived_s,
        begun_s=tasks.begun_s + unknown,
        done_s=tasks.done_s,
        denoise_s=tasks.denoise_s + unknown,
        batch_size=tasks.batch_sum / requests.steps + unknown,
        calls=tasks.last_call - tasks.first_call,
        present=_present(tasks.arrived_s, tasks.done_s) + unknown,
        overflowed=not went_through,
    )


def lindley(arrived_s: Floats, service_s: Floats) -> Floats:
    """When each request is answered by one server that takes them in their order of arrival.

    The last axis is the order of requests, so several series are done at once. A request begins
    when the one before it is done, or at its arrival. Source: Lindley, "The theory of queues with a
    single server", Proceedings of the Cambridge Philosophical Society 48 (1952). Unrolled, request
    j is done at max over k <= j of (arrival of k + services k to j), a running maximum.
    """
    work_s = np.cumsum(service_s, axis=-1)
    start_s = np.maximum.accumulate(arrived_s - (work_s - service_s), axis=-1)
    done_s: Floats = start_s + work_s
    return done_s


def _row(seconds: Callable[[int], float], most: int) -> list[float]:
    """`seconds` of 1 to `most`, after an unused place."""
    return [0.0, *(seconds(n) for n in range(1, most + 1))]


def _for_lane(costs: CostTables, make: Callable[..., Any]) -> Any:
    """The tables as the lane's own tuple, of arrays that numba knows as one type."""
    return make(
        step_s=np.array(costs.step_s, np.float64, order="C"),
        encode_s=np.array(costs.encode_s, np.float64, order="C"),
        decode_s=np.array(costs.decode_s, np.float64, order="C"),
        switch_s=np.array(costs.switch_s, np.float64),
        lora_ratio=np.array(costs.lora_ratio, np.float64),
    )


def _present(arrived_s: Floats, done_s: Floats) -> Floats:
    """How many came before each request and were not done when it came."""
    came_before = np.arange(len(arrived_s))
    were_done = np.searchsorted(np.sort(done_s), arrived_s, side="right")
    present: Floats = (came_before - were_done).astype(np.float64)
    return present


def _check_seconds(name: str, numbers: Floats) -> None:
    """Raise ValueError unless there are numbers, all of 0 or more."""
    if not numbers.size or not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError(f"{name}: a number is missing or negative; use 0 or more")


def _check_costs(name: str, costs: CostTables, requests: Requests, max_batch_size: int) -> None:
    """Raise ValueError unless `costs` has all entries that a simulation may read."""
    # 1) Enough requests in a call
    if costs.max_batch_size < max_batch_size:
        raise ValueError(
            f"{name}: has batches of up to {costs.max_batch_size}; make its tables for "
            f"max_batch_size={max_batch_size}"
        )

    # 2) Enough sizes
    sizes = len(costs.encode_s)
    if len(requests) and requests.size.max() >= sizes:
        raise ValueError(
            f"{name}: a request has the size at {requests.size.max()}, of {sizes} in all; "
            "give step times for each size"
        )

    # 3) Tables that agree, and hold seconds
    shapes = {
        "step_s": (sizes, MOST_ROWS * costs.max_batch_size + 1),
        "encode_s": (sizes, costs.max_batch_size + 1),
        "decode_s": (sizes, costs.max_batch_size + 1),
    }
    for part, shape in shapes.items():
        table = getattr(costs, part)
        if table.shape != shape:
            raise ValueError(f"{name}: {part} has shape {table.shape}, not {shape}")
        _check_seconds(f"{name}.{part}", table)
