"""Simulates two rules for the size of a batch: continuous as it is, and without the rule for equals.

    python benchmarks/batch_rules.py [--seeds 20] [--requests 3000] [--first-seed 1000]

Without it, `cheapest_of_mix` of `batch_costs.py` decides for equal requests, too. Both rules get the same
requests. Closed loops have 2 to 32 users who start at once.
Open loops are Poisson, at 0.3 to 0.95 of capacity: what closed loops of 32 reach without the rule.

| requests | they have                                                                 |
|----------|---------------------------------------------------------------------------|
| 4, 20    | so many steps                                                             |
| 10-50    | 10 to 50 steps                                                            |
| sizes    | 10 to 50 steps; half have twice the pixels, and half have no guidance      |

| times  | a batch of b takes                                                            |
|--------|-------------------------------------------------------------------------------|
| h100   | what SDXL took on an H100: 44, 79, 153 and 294 ms; encoding, decoding are ours |
| tiny   | what `tiny` takes on two CPU cores, nearly                                     |
| 1, ... | 1 - 1/g + b/g of one request's time, for the gain g                            |
| knee   | 1.3 for two, and 0.65 b from there: all gain is had at two                     |
| late   | b up to four, and half as much for each further one                            |

A ratio is that of the rule over none, the mean over seeds, with its 95 % interval (Student's t).
A row is worse if its interval lies wholly beyond 1 by more than half a per cent. The last line, in
JSON, has all rows. The exit status is 1 if throughput or the mean latency is worse in any row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from itertools import product
from typing import Any

import numpy as np

from benchlib.serving.engine.compiled import Requests, Simulated, cost_tables, simulate_requests
from benchlib.serving.engine.step_times import StepTimes
from benchlib.study.intervals import runs_interval

MOST = 8
USERS = (2, 4, 8, 16, 32)
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
STEPS = {"4": (4, 4), "20": (20, 20), "10-50": (10, 50), "sizes": (10, 50)}
FIGURES = ("images_per_s", "mean_s", "p50_s", "p95_s", "tail")  # tail: slowest tenth over median
MARGIN = 0.005
CLOSED_REQUESTS = 600
Cell = tuple[str, str, str, float]  # times, requests, "closed" or "open", users or load


def made_up(seconds: dict[float, float]) -> StepTimes:
    """Times of a curve by requests; half a request has one row. Decoding takes a step's time."""
    whole = {int(b): each for b, each in seconds.items() if b >= 1}
    return StepTimes(
        step_s={int(2 * b): each for b, each in seconds.items()},
        encode_s={b: each / 2 for b, each in whole.items()},
        decode_s=whole,
    )


def gain(g: float) -> StepTimes:
    return made_up({b: 1 - 1 / g + b / g for b in (0.5, *range(1, MOST + 1))})


TIMES = {
    "h100": StepTimes(
        {1: 0.031, 2: 0.044, 4: 0.079, 8: 0.153, 16: 0.294},
        {1: 0.010, 2: 0.012, 4: 0.017, 8: 0.027},
        {1: 0.045, 2: 0.086, 4: 0.168, 8: 0.330},
    ),
    "tiny": StepTimes(
        {1: 0.0064, 2: 0.0078, 4: 0.0098, 8: 0.0138, 16: 0.0226},
        {1: 0.0024, 2: 0.0028, 4: 0.0036, 8: 0.0052},
        {1: 0.0035, 2: 0.0053, 4: 0.0088, 8: 0.0160},
    ),
    "1": gain(1.0),
    "1.1": gain(1.1),
    "1.33": gain(1.33),
    "2": gain(2.0),
    "4": gain(4.0),
    "knee": made_up({0.5: 0.5, 1: 1.0} | {b: 0.65 * b for b in range(2, MOST + 1)}),
    "late": made_up({0.5: 0.5} | {b: min(b, 2 + b / 2) for b in range(1, MOST + 1)}),
}


def requests_of(kind: str, number: int, random: np.random.Generator) -> Requests:
    """`number` requests that come at 0."""
    low, high = STEPS[kind]
    steps = random.integers(low, high + 1, number)
    size = np.zeros(number, np.int64)
    rows = np.full(number, 2)
    if kind == "sizes":
        size = random.integers(2, size=number)
        rows = random.integers(1, 3, size=number)
    return Requests(np.zeros(number), steps, rows, size)


def simulated(times: str, requests: Requests, users: int | None = None) -> Simulated:
    one = TIMES[times]
    costs = cost_tables([one, one.scaled(2)], MOST)
    return simulate_requests(
        batching="continuous",
        requests=requests,
        planned=costs,
        actual=costs,
        max_batch_size=MOST,
        max_wait_s=0.0,
        users=users,
        longest_queue=len(requests),
    )


def capacity(times: str, kind: str) -> float:
    """Images per second of a closed loop of 32."""
    requests = requests_of(kind, CLOSED_REQUESTS, np.random.default_rng(5))
    return CLOSED_REQUESTS / float(simulated(times, requests, 32).done_s.max())


def figures(done: Simulated) -> list[float]:
    """FIGURES: images per second from 0 until all are done; the others without the emptying system.

    A window would cut through batches, and favour large ones.
    """
    number = len(done.done_s)
    rate = number / done.done_s.max()
    kept = slice(number // 6, number - 40)
    latency_s = np.sort((done.done_s - done.arrived_s)[kept])
    median = np.median(latency_s)
    slowest = latency_s[-len(latency_s) // 10 :]
    p95 = np.quantile(latency_s, 0.95)
    return [float(x) for x in (rate, latency_s.mean(), median, p95, slowest.mean() / median)]


def cells() -> list[Cell]:
    """All cells of the table."""
    closed = [(*pair, "closed", float(users)) for pair in product(TIMES, STEPS) for users in USERS]
    opened = [(*pair, "open", load) for pair in product(TIMES, STEPS) for load in LOADS]
    return closed + opened


def all_figures(
    with_rule: bool, number: int, seeds: list[int], capacities: dict[tuple[str, str], float]
) -> tuple[dict[Cell, list[list[float]]], dict[tuple[str, str], float]]:
    """FIGURES of each cell and seed, and the capacities: given, or those of this rule."""
    # 1) Machine code calls the other rule only if it is put in place before the first call
    from benchlib.serving.engine import lane

    if not with_rule:
        lane.best_of_equals = lane.best_of_mix

    # 2) Simulate
    if not capacities:
        capacities = {pair: capacity(*pair) for pair in product(TIMES, STEPS)}
    found: dict[Cell, list[list[float]]] = {}
    for cell in cells():
        times, kind, loop, at = cell
        for seed in seeds:
            random = np.random.default_rng(seed)
            if loop == "closed":
                requests = requests_of(kind, CLOSED_REQUESTS, random)
                done = simulated(times, requests, int(at))
            else:
                made = requests_of(kind, number, random)
                gaps_s = random.exponential(1 / (at * capacities[times, kind]), number)
                arrived_s = gaps_s.cumsum()
                done = simulated(times, Requests(arrived_s, made.steps, made.rows, made.size))
            found.setdefault(cell, []).append(figures(done))
    return found, capacities


def in_a_process(*arguments: Any) -> Any:
    """`all_figures` in a fresh process, so that each rule is compiled by itself."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(all_figures, arguments)


def row(cell: Cell, without: list[list[float]], with_it: list[list[float]]) -> dict[str, Any]:
    """A row of the table: both rules' means, the ratios (mean, low, high), and what is worse."""
    before, after = np.array(without), np.array(with_it)
    one: dict[str, Any] = {"cell": cell, "worse": []}
    for place, name in enumerate(FIGURES):
        ratios = (after[:, place] / before[:, place]).tolist()
        low, high = runs_interval(ratios) or (-np.inf, np.inf)
        one[name] = [float(before[:, place].mean()), float(after[:, place].mean())]
        one[f"{name}_ratio"] = [float(np.mean(ratios)), float(low), float(high)]
        is_worse = high < 1 - MARGIN if name == "images_per_s" else low > 1 + MARGIN
        if is_worse:
            one["worse"].append(name)
    return one


def line(one: dict[str, Any]) -> str:
    """A row as text."""
    times, kind, loop, at = one["cell"]
    parts = [f"{times:5} {kind:6} {loop:6} {at:5g}"]
    for name in FIGURES:
        without, with_it = one[name]
        mean, low, high = one[f"{name}_ratio"]
        parts.append(f"{without:8.3f} {with_it:8.3f} {mean:6.3f} [{low:.3f} {high:.3f}]")
    return " | ".join([*parts, " ".join(one["worse"])])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=3000, help="of an open loop")
    options = parser.parse_args(arguments)
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))

    # 1) Simulate; what numba keeps of one rule must not reach the other, or anybody else
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = f"{folder}/without"
        without, capacities = in_a_process(False, options.requests, seeds, {})
        os.environ["NUMBA_CACHE_DIR"] = f"{folder}/with"
        with_it, _ = in_a_process(True, options.requests, seeds, capacities)

    # 2) Print
    print("without, with, their ratio and its interval: " + " | ".join(FIGURES))
    rows = [row(cell, without[cell], with_it[cell]) for cell in without]
    for one in rows:
        print(line(one))

    # 3) Judge
    worse = [one for one in rows if {"images_per_s", "mean_s"} & set(one["worse"])]
    print(json.dumps({"passed": not worse, "rows": rows}))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
