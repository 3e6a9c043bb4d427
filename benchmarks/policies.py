"""Serial, dynamic and continuous batching side by side, simulated: does continuous ever lose to serial?

    python benchmarks/policies.py [--quick] [--replications 24] [--requests 2500] [--seed 0]

Time is in steps of one request alone. Requests of 4 to 40 steps come as a Poisson process, at a load given as a share
of what serial can do. A curve of gain g: a batch of b takes 1 - 1/g + b/g of the time of one, in its steps, encoding
(0.5 for one) and decoding (2 for one), so images per second grow by g at the limit. The batches are of 8 at most;
dynamic waits for 2 at most. "mixed": a request in two is of twice the pixels, and a request in two has no guidance.

Each replication starts empty and gives all three policies the same requests. Shown are the means over replications of
the mean and the 99th percentile of latency, and their ratios to serial's with a 95 % interval of the paired ratios
(Student's t). Continuous has lost where an interval lies above 1.00 (mean) or 1.02 (p99): the last line, in JSON, says
so, and the exit status is then 1. One core, some minutes; --quick: seconds, and a coarser table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from benchlib.serving.engine.policies import make_policy
from benchlib.serving.engine.simulate import SimulatedTask, simulate
from benchlib.serving.engine.step_times import Size, StepTimes, Times
from benchlib.study.intervals import runs_interval

GAINS = (1.0, 1.1, 1.33, 2.0, 4.0)
LOADS = (0.3, 0.5, 0.65, 0.8, 0.95, 1.2)
BATCHES = (1, 2, 4, 8, 16)
LIMITS = {"mean": 1.00, "p99": 1.02}
STEPS = (4, 40)
ENCODE, DECODE = 0.5, 2.0
SIZES: tuple[Size, Size] = ((64, 64), (64, 128))


def curve(gain: float) -> Times:
    """What each size costs where images per second grow by `gain` at the limit."""

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
) -> list[SimulatedTask]:
    """`n` requests that come at `load` times the rate that serial can serve."""
    kinds = list(product(SIZES, (1, 2))) if mixed else [(SIZES[0], 2)]
    mean_s = np.mean(
        [
            times(size).encode(1) + np.mean(STEPS) * times(size).step(rows) + times(size).decode(1)
            for size, rows in kinds
        ]
    )
    arrived_s = random.exponential(mean_s / load, n).cumsum().tolist()
    steps, kind = (
        random.integers(STEPS[0], STEPS[1] + 1, n).tolist(),
        random.integers(len(kinds), size=n),
    )
    return [
        SimulatedTask(*kinds[k], s, at) for at, s, k in zip(arrived_s, steps, kind, strict=True)
    ]


def cell(
    gain: float, mixed: bool, load: float, replications: int, requests: int, seed: int
) -> dict[str, Any]:
    """One row of the table. `lost`: what the intervals of continuous show; ratios are (mean, low, high)."""
    times = curve(gain)
    figures: dict[str, list[tuple[float, float]]] = {}
    for replication in range(replications):
        random = np.random.default_rng((seed, replication))
        tasks = arrivals(mixed, load, times, requests, random)
        for batching in ("serial", "dynamic", "continuous"):
            policy = make_policy(batching, times, max_batch_size=8, max_wait_s=2.0)
            latency_s = [each.done_s - each.arrived_s for each in simulate(policy, tasks, times)]
            figures.setdefault(batching, []).append(
                (float(np.mean(latency_s)), float(np.quantile(latency_s, 0.99)))
            )
    row: dict[str, Any] = {"gain": gain, "mixed": mixed, "load": load}
    for batching, measured in figures.items():
        by_limit = zip(*measured, strict=True)
        serial_by_limit = zip(*figures["serial"], strict=True)
        for name, values, serial in zip(LIMITS, by_limit, serial_by_limit, strict=True):
            row[f"{batching}_{name}"] = float(np.mean(values))
            if batching != "serial":
                ratios = np.divide(values, serial).tolist()
                row[f"{batching}_{name}_ratio"] = (
                    float(np.mean(ratios)),
                    *(runs_interval(ratios) or (0.0, math.inf)),
                )
    lows = {name: row[f"continuous_{name}_ratio"][1] for name in LIMITS}
    return row | {"lost": [name for name, limit in LIMITS.items() if lows[name] > limit + 1e-9]}


def shown(row: dict[str, Any]) -> str:
    def ratio(name: str) -> str:
        middle, low, high = row[name]
        return f"{middle:6.3f} [{low:.3f} {high:.3f}]"

    ratios = [
        ratio(f"{batching}_{name}_ratio")
        for batching in ("dynamic", "continuous")
        for name in LIMITS
    ]
    kind = f"{row['gain']:4.2f} {'mixed' if row['mixed'] else '':5} {row['load']:4.2f}"
    return "  ".join(
        [
            kind,
            f"{row['serial_mean']:7.1f} {row['serial_p99']:8.1f}",
            *ratios,
            " ".join(row["lost"]),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer loads and requests, no mixed table"
    )
    parser.add_argument("--replications", type=int, default=24)
    parser.add_argument("--requests", type=int, default=2500, help="in each replication")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began_s = time.perf_counter()
    loads, size = (
        ((0.3, 0.8), (6, 400))
        if options.quick
        else (LOADS, (options.replications, options.requests))
    )
    cells = list(product(GAINS, (False,), loads)) + (
        [] if options.quick else list(product(GAINS, (True,), loads[::2]))
    )
    run = partial(cell, replications=size[0], requests=size[1], seed=options.seed)
    print(
        "gain       load   serial: mean, p99  to serial's, dynamic: mean, p99; continuous: mean, p99"
    )
    rows = []
    for each in cells:
        rows.append(run(*each))
        print(shown(rows[-1]), flush=True)
    passed = not any(row["lost"] for row in rows)
    print(json.dumps({"passed": passed, "seconds": time.perf_counter() - began_s, "rows": rows}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
