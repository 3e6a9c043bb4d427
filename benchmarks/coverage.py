"""How often the intervals of benchlib.study.estimates hold the truth, and how often planted regressions are caught.

    python benchmarks/coverage.py [--simulations 4000]

Simulates series whose truth is known, with fixed seeds: exponential and lognormal (sigma 1) values, and the latencies
of M/D/1 queues (one server, service 1, Poisson arrivals) at loads of 0.5 and 0.8, begun in their steady state. "given"
is the share of series that got an interval, "covers" the share of these that holds the truth, "wrong" the share of all
series that got one which misses it.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import NormalDist

import numpy as np
import pandas as pd

from benchlib.study.estimates import mean_interval, percentile_interval

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
            | {"given": len(given) / simulations, "covers": held / len(given) if given else None}
            | {"wrong": (len(given) - held) / simulations}
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000, help="series of each kind and length")
    simulations = parser.parse_args().simulations
    for data, lengths in LENGTHS.items():
        for n in lengths:
            table = coverage(data, n, simulations, os.cpu_count() or 1)
            print(table.to_string(index=False, header=n == LENGTHS["exponential"][0], na_rep="-"), flush=True)


if __name__ == "__main__":
    main()
