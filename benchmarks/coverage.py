"""How often the intervals of benchlib.study.estimates hold the truth, and how often planted regressions are caught.

    python benchmarks/coverage.py [--simulations 4000]

Simulates series whose truth is known, with fixed seeds: exponential and lognormal (sigma 1) values, and the latencies
of M/D/1 queues (one server, service 1, Poisson arrivals) at loads of 0.5 and 0.8, begun in their steady state. "given"
is the share of series that got an interval, "covers" the share of these that holds the truth (where 20 or more got
one), "wrong" the share of all series that got one which misses it.

Then compares pairs of made-up jobs, five runs each of four users in a closed loop on one server (0.1 s, 10 % spread
from request to request, 1 % from run to run in time and memory): 20 pairs alike, and 20 whose second is 10 % slower.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pandas as pd

from benchlib.study.comparison import Comparison, compare
from benchlib.study.estimates import mean_interval, percentile_interval
from benchlib.study.statistics import summarise
from benchlib.study.store import ROW_DTYPES

QUANTILES = (0.5, 0.9, 0.95, 0.99)
# From too short for an interval to long enough for all but the last percentile.
LENGTHS = {
    "exponential": (100, 200, 1000),
    "lognormal": (100, 200, 1000),
    "M/D/1 0.5": (200, 1000, 1500, 2000, 4000, 10_000),
    "M/D/1 0.8": (200, 1000, 8000, 10_000, 12_000, 16_000, 30_000),
}


def draw(data: str, n: int, random: np.random.Generator) -> np.ndarray:
    """`n` successive values."""
    if data == "exponential":
        return random.exponential(size=n)
    if data == "lognormal":
        return random.lognormal(size=n)
    load, start = float(data[-3:]), 3000
    steps = 1 - random.exponential(1 / load, n + start)  # Lindley: w' = max(0, w + service - gap)
    walk = np.cumsum(steps)
    return (walk - np.minimum.accumulate(np.minimum(walk, 0)))[start:] + 1


def truth(data: str, q: float | None) -> float:
    """The mean (q None) or percentile. M/D/1: Pollaczek & Khinchine; Erlang (1909) for the distribution."""
    if data == "exponential":
        return 1.0 if q is None else -math.log(1 - q)
    if data == "lognormal":
        return math.exp(0.5) if q is None else math.exp(NormalDist().inv_cdf(q))
    load = float(data[-3:])
    if q is None:
        return 1 + load / (2 * (1 - load))
    low, high = 0.0, 40.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if wait_cdf(middle, load) < q else (low, middle)
    return 1 + (0.0 if wait_cdf(0, load) >= q else high)


def wait_cdf(wait: float, load: float) -> float:
    """P(an M/D/1 queue's wait, in service times, is at most `wait`): Erlang's formula."""
    terms = ((-load * (wait - k)) ** k / math.factorial(k) * math.exp(load * (wait - k)) for k in range(int(wait) + 1))
    return (1 - load) * math.fsum(terms)


def one(data: str, n: int, estimate: Callable[[np.ndarray], list[object]], seed: int) -> list[object]:
    return estimate(draw(data, n, np.random.default_rng([seed, n])))


def intervals(series: np.ndarray) -> list[object]:
    return [mean_interval(series), *(percentile_interval(series, q) for q in QUANTILES)]


def coverage(data: str, n: int, simulations: int, workers: int = 1) -> pd.DataFrame:
    """A row per estimate: the shares given, covering and wrong."""
    work = partial(one, data, n, intervals)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(work, range(simulations), chunksize=50))
    else:
        found = [work(seed) for seed in range(simulations)]
    rows = []
    for column, q in enumerate((None, *QUANTILES)):
        true = truth(data, q)
        given = [row[column] for row in found if row[column] is not None]
        # A part in 10^9: a sum's last digits must not decide whether an atom of the distribution is inside.
        held = sum(low <= true * (1 + 1e-9) and true <= high * (1 + 1e-9) for low, high in given)
        rows.append(
            {"data": data, "n": n, "estimate": "mean" if q is None else f"p{100 * q:g}"}
            | {"given": len(given) / simulations, "covers": held / len(given) if len(given) >= 20 else None}
            | {"wrong": (len(given) - held) / simulations}
        )
    return pd.DataFrame(rows)


def run(random: np.random.Generator, service_s: float) -> SimpleNamespace:
    """300 requests of four users in a closed loop, as compare() takes a run."""
    service = service_s * random.lognormal(sigma=0.01) * random.gamma(100, 0.01, 300)
    done_s = np.cumsum(service)  # never idle: a user's next request is scheduled when its last is done
    scheduled_s = np.append(np.zeros(4), done_s[:-4])
    rows = pd.DataFrame({name: pd.Series([None] * 300, dtype=dtype) for name, dtype in ROW_DTYPES.items()})
    rows = rows.assign(phase="measure", scheduled_s=scheduled_s, done_s=done_s, latency_s=done_s - scheduled_s)
    telemetry = pd.DataFrame({"rss_gib": [random.lognormal(sigma=0.01)]})
    telemetry[["cuda_allocated_gib", "cuda_reserved_gib", "server_cpu_cores"]] = math.nan
    arrivals = {"kind": "closed_loop", "users": 4}
    record = {"status": "finished", "error": None, "machine": {}, "packages": {}, "git": {}} | {
        "spec": {"target": {"model": "made up"}, "workload": {}, "arrivals": arrivals},
        "outcome": {"window_start_s": 0.0, "window_end_s": float(done_s[-1])},
    }
    summary = summarise(record, rows, telemetry)
    return SimpleNamespace(record=record, summary=lambda: summary)


def pairs(slowdown: float, count: int, seed: int) -> list[Comparison]:
    """`count` comparisons of five runs with five others whose service takes 1 + `slowdown` times as long."""
    random = np.random.default_rng(seed)
    return [
        compare([run(random, 0.1) for _ in range(5)], [run(random, 0.1 * (1 + slowdown)) for _ in range(5)])
        for _ in range(count)
    ]


def called(comparisons: list[Comparison], *verdicts: str) -> int:
    """How many have one of these verdicts on any figure."""
    return sum(bool(each.table["verdict"].isin(verdicts).any()) for each in comparisons)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000, help="series of each kind and length")
    simulations = parser.parse_args().simulations
    for data, lengths in LENGTHS.items():
        for n in lengths:
            table = coverage(data, n, simulations, os.cpu_count() or 1)
            print(table.to_string(index=False, na_rep="-", float_format="{:.4f}".format), flush=True)
    print("of 20 pairs alike, called slower or more:", called(pairs(0, 20, 1), "slower", "more"))
    print("of 20 pairs with a slowdown of 10 %, called slower:", called(pairs(0.1, 20, 2), "slower"))


if __name__ == "__main__":
    main()
