"""Simulates serial, dynamic and continuous batching: does continuous ever lose to serial?

    python benchmarks/policies.py [--quick] [--replications 24] [--requests 2500] [--seed 0]
    python benchmarks/policies.py --speed [--requests 1000000]

The unit of time is a step of one request alone. Requests have 4 to 40 steps and come as a Poisson
process. The load is a share of serial's capacity.

The curve of gain g: a batch of b takes 1 - 1/g + b/g of the time of one request. So images per
second grow by g at the limit. The curve holds for steps, encoding and decoding. The other settings:

| setting                   | value                                                        |
|---------------------------|--------------------------------------------------------------|
| encoding one request      | 0.5                                                          |
| decoding one request      | 2                                                            |
| most requests in a batch  | 8                                                            |
| longest wait of dynamic   | 2                                                            |
| "mixed"                   | on average half have twice the pixels, and half no guidance  |

Each replication starts empty and gives all three policies the same requests. The table shows the
mean and the 99th percentile of latency, as means over the replications. Beside them are the ratios
to serial's figures, with a 95 % interval of the paired ratios (Student's t).

Continuous has lost if an interval lies above 1.00 (mean) or above 1.02 (p99). Then the last line,
in JSON, has the lost rows, and the exit status is 1. The table takes seconds on one core. With
--quick it is coarser.

With --speed it prints how many requests a second the compiled simulator takes, beside the one in
Python, which gets 1 % of the requests. The first call is timed apart: it compiles, or loads what an
earlier process has compiled.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from itertools import product
from typing import Any

import numpy as np

from benchlib.serving.engine.compiled import (
    CostTables,
    Requests,
    Simulated,
    cost_tables,
    simulate_requests,
)
from benchlib.serving.engine.policy_names import BATCHINGS, make_policy
from benchlib.serving.engine.simulate import SimulatedTask, simulate
from benchlib.serving.engine.step_times import Size, StepTimes, Times
from benchlib.study.intervals import runs_interval

GAINS = (1.0, 1.1, 1.33, 2.0, 4.0)
LOADS = (0.3, 0.5, 0.65, 0.8, 0.95, 1.2)
BATCHES = (1, 2, 4, 8, 16)
LIMITS = {"mean": 1.00, "p99": 1.02}
STEPS = (4, 40)
ENCODE, DECODE = 0.5, 2.0
MAX_BATCH_SIZE = 8
MAX_WAIT_S = 2.0
SIZES: tuple[Size, Size] = ((64, 64), (64, 128))


def curve(gain: float) -> Times:
    """The cost of each size if images per second grow by `gain` at the limit."""

    def batch(n: float) -> float:
        return 1 - 1 / gain + n / gain

    one = StepTimes(
        step_s={1: batch(0.5)} | {2 * n: batch(n) for n in BATCHES},
        encode_s={n: ENCODE * batch(n) for n in BATCHES},
        decode_s={n: DECODE * batch(n) for n in BATCHES},
    )
    return {SIZES[0]: one, SIZES[1]: one.scaled(2)}.__getitem__


def arrivals(
    mixed: bool, load: float, times: Times, n: int, random: np.random.Generator
) -> Requests:
    """`n` requests that arrive at `load` times serial's capacity."""
    # 1) The mean time that serial takes for a request
    kinds = list(product(SIZES, (1, 2))) if mixed else [(SIZES[0], 2)]
    alone_s = []
    for size, rows in kinds:
        cost = times(size)
        denoise_s = np.mean(STEPS) * cost.step(rows)
        alone_s.append(cost.encode(1) + denoise_s + cost.decode(1))
    mean_s = np.mean(alone_s)

    # 2) The arrival and the kind of each request
    arrived_s = random.exponential(mean_s / load, n).cumsum()
    steps = random.integers(STEPS[0], STEPS[1] + 1, n)
    kind_numbers = random.integers(len(kinds), size=n)
    sizes = np.array([SIZES.index(size) for size, _ in kinds])
    rows = np.array([rows for _, rows in kinds])
    return Requests(arrived_s, steps, rows[kind_numbers], sizes[kind_numbers])


def tables(times: Times) -> CostTables:
    """The cost of each of SIZES, as the compiled simulator takes it."""
    return cost_tables([times(size) for size in SIZES], MAX_BATCH_SIZE)


def compiled(batching: str, requests: Requests, costs: CostTables) -> Simulated:
    return simulate_requests(
        batching=batching,
        requests=requests,
        planned=costs,
        actual=costs,
        max_batch_size=MAX_BATCH_SIZE,
        max_wait_s=MAX_WAIT_S,
        longest_queue=len(requests),
    )


def cell(
    gain: float, mixed: bool, load: float, replications: int, requests: int, seed: int
) -> dict[str, Any]:
    """One row of the table. Ratios are (mean, low, high).

    `lost` names the limits that continuous is shown to break.
    """
    # 1) Simulate
    times = curve(gain)
    costs = tables(times)
    latencies: dict[str, dict[str, list[float]]] = {}  # by policy and limit, one per replication
    for replication in range(replications):
        random = np.random.default_rng((seed, replication))
        arriving = arrivals(mixed, load, times, requests, random)
        for batching in BATCHINGS:
            simulated = compiled(batching, arriving, costs)
            latency_s = simulated.done_s - simulated.arrived_s
            by_limit = latencies.setdefault(batching, {"mean": [], "p99": []})
            by_limit["mean"].append(float(np.mean(latency_s)))
            by_limit["p99"].append(float(np.quantile(latency_s, 0.99)))

    # 2) Compare with serial
    row: dict[str, Any] = {"gain": gain, "mixed": mixed, "load": load}
    for batching, by_limit in latencies.items():
        for name, values in by_limit.items():
            row[f"{batching}_{name}"] = float(np.mean(values))
            if batching == "serial":
                continue
            ratios = np.divide(values, latencies["serial"][name]).tolist()
            low, high = runs_interval(ratios) or (0.0, math.inf)
            row[f"{batching}_{name}_ratio"] = (float(np.mean(ratios)), low, high)

    # 3) Judge
    row["lost"] = []
    for name, limit in LIMITS.items():
        _, low, _ = row[f"continuous_{name}_ratio"]
        if low > limit + 1e-9:
            row["lost"].append(name)
    return row


def table_line(row: dict[str, Any]) -> str:
    """A row of the table as text."""
    mixed = "mixed" if row["mixed"] else ""
    parts = [
        f"{row['gain']:4.2f} {mixed:5} {row['load']:4.2f}",
        f"{row['serial_mean']:7.1f} {row['serial_p99']:8.1f}",
    ]
    for batching in ("dynamic", "continuous"):
        for name in LIMITS:
            mean, low, high = row[f"{batching}_{name}_ratio"]
            parts.append(f"{mean:6.3f} [{low:.3f} {high:.3f}]")
    parts.append(" ".join(row["lost"]))
    return "  ".join(parts)


def speeds(requests: int, seed: int) -> int:
    """Print the requests a second of both simulators, for mixed requests and a gain of 2."""
    times = curve(2.0)
    costs = tables(times)
    random = np.random.default_rng(seed)

    # 1) The first call
    began_s = time.perf_counter()
    compiled("serial", arrivals(True, 0.5, times, 1, random), costs)
    print(f"the first call: {time.perf_counter() - began_s:.2f} s")

    # 2) Both simulators; they must agree
    print("policy      load  compiled/s  Python/s  ratio")
    for batching, load in product(BATCHINGS, (0.8, 0.95)):
        many = arrivals(True, load, times, requests, random)
        began_s = time.perf_counter()
        compiled(batching, many, costs)
        compiled_rate = requests / (time.perf_counter() - began_s)

        few = first(many, max(1, requests // 100))
        tasks = one_by_one(few)
        policy = make_policy(batching, times, max_batch_size=MAX_BATCH_SIZE, max_wait_s=MAX_WAIT_S)
        began_s = time.perf_counter()
        finished = simulate(policy, tasks, times)
        python_rate = len(few) / (time.perf_counter() - began_s)

        ratio = compiled_rate / python_rate
        print(f"{batching:10}  {load:4}  {compiled_rate:10,.0f}  {python_rate:8,.0f}  {ratio:5.0f}")
        done_s = [one.done_s for one in finished]
        np.testing.assert_allclose(compiled(batching, few, costs).done_s, done_s, rtol=1e-9)
    return 0


def first(requests: Requests, n: int) -> Requests:
    """The first `n` of `requests`."""
    return Requests(
        arrived_s=requests.arrived_s[:n],
        steps=requests.steps[:n],
        rows=requests.rows[:n],
        size=requests.size[:n],
    )


def one_by_one(requests: Requests) -> list[SimulatedTask]:
    """`requests` as the simulator in Python takes them."""
    tasks = []
    for number in range(len(requests)):
        size = SIZES[requests.size[number]]
        rows = int(requests.rows[number])
        steps = int(requests.steps[number])
        tasks.append(SimulatedTask(size, rows, steps, float(requests.arrived_s[number])))
    return tasks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer loads and requests, no mixed table"
    )
    parser.add_argument("--speed", action="store_true", help="time the simulators instead")
    parser.add_argument("--replications", type=int, default=24)
    parser.add_argument("--requests", type=int, help="in each replication; 2500 by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.speed:
        return speeds(options.requests or 1_000_000, options.seed)
    began_s = time.perf_counter()

    # 1) Which cells
    loads = LOADS
    replications = options.replications
    requests = options.requests or 2500
    if options.quick:
        loads = (0.3, 0.8)
        replications = 6
        requests = 400
    cells = list(product(GAINS, (False,), loads))
    if not options.quick:
        cells += product(GAINS, (True,), loads[::2])

    # 2) Simulate and print them
    print(
        "gain       load   serial: mean, p99  to serial's, dynamic: mean, p99; continuous: mean, p99"
    )
    rows = []
    for gain, mixed, load in cells:
        row = cell(gain, mixed, load, replications, requests, options.seed)
        rows.append(row)
        print(table_line(row), flush=True)

    # 3) Judge
    passed = not any(row["lost"] for row in rows)
    seconds = time.perf_counter() - began_s
    print(json.dumps({"passed": passed, "seconds": seconds, "rows": rows}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
