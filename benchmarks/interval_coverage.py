"""Measures how often intervals hold the truth, and how often planted regressions are found.

    python benchmarks/interval_coverage.py [--simulations 4000] [--seed 2000000]

The intervals are benchlib.study.intervals'. The series are simulated from fixed seeds, and their
truth is known:

| series      | values                                                                           |
|-------------|----------------------------------------------------------------------------------|
| exponential | independent, mean 1                                                              |
| lognormal   | independent, sigma 1                                                             |
| M/D/1       | latencies of a steady queue: one server, service 1, Poisson arrivals             |
| M/M/1       | the same with exponential service; shown without a limit                         |

The number after a queue's name is its load. The rules were tuned with seeds below 2,000,000. The
M/M/1 queues were studied less.

| column   | what it is                                                                        |
|----------|-----------------------------------------------------------------------------------|
| given    | the share of series that got an interval                                          |
| covers   | the share of these intervals that holds the truth, where 20 or more were given    |
| wrong    | the share of all series that got an interval which misses the truth               |

If one series in ten or more got an interval, at least 93 % must cover. For means, at most 97 % may
cover. If fewer series did, binomial chance (2.5 %) loosens the limits. Close to the shortest
length, the series that get an interval are calmer than most. No rule that sees a single series can
undo that.

Throughput: the interval of summarise() for an open loop on one lane; the truth is the rate.
Verdicts: the limit is the true percentile. Slo may call it met or missed in at most 5 % of the
series each.

Comparisons: pairs of simulated jobs. Each job has five runs of four users in a closed loop on one
server. A request takes 0.1 s with 10 % spread. Time and memory differ by 1 % from run to run. In
one half of the pairs both jobs are alike. In the other half the second job is 10 % slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from benchlib.questions.compare.judge import Comparison, compare
from benchlib.rows import ROW_DTYPES
from benchlib.study.intervals import Estimates, binomial_cdf
from benchlib.study.slo import Slo
from benchlib.study.summary import summarise

QUANTILES = (0.5, 0.9, 0.95, 0.99)
VERDICTS = ("met", "missed")
# From too short for an interval to long enough for every percentile except the last.
LENGTHS = {
    "exponential": (100, 200, 1000),
    "lognormal": (100, 200, 1000),
    "M/D/1 0.5": (200, 1000, 1500, 2000, 2250, 2500, 3000, 4000, 10_000),
    "M/D/1 0.8": (200, 1000, 6000, 7000, 8000, 9000, 10_000, 12_000, 16_000, 30_000),
    "M/M/1 0.7": (2000, 5000, 6000, 8000, 12_000),
}
JUDGED = ("exponential", "lognormal", "M/D/1 0.5", "M/D/1 0.8")


def draw(data: str, n: int, random: np.random.Generator) -> np.ndarray:
    """`n` successive values of the series `data`, a key of LENGTHS."""
    if data == "exponential":
        return random.exponential(size=n)
    if data == "lognormal":
        return random.lognormal(size=n)
    load = float(data[-3:])
    start = 3000  # values until the queue is in its steady state
    service = np.ones(n + start + 1)
    if data.startswith("M/M"):
        service = random.exponential(1, n + start + 1)
    gaps = random.exponential(1 / load, n + start)
    # Lindley: the next wait is max(0, wait + service - gap). So the waits are a random walk less
    # its lowest earlier value.
    walk = np.cumsum(service[:-1] - gaps)
    lowest = np.minimum.accumulate(np.minimum(walk, 0))
    latency = walk - lowest + service[1:]
    return latency[start:]


def truth(data: str, q: float | None) -> float:
    """The true mean (q None) or percentile of a series.

    M/D/1: Pollaczek & Khinchine's mean, and Erlang's distribution (1909). M/M/1: latency is
    exponential, with the mean 1/(1 - load).
    """
    if data == "exponential":
        return 1.0 if q is None else -math.log(1 - q)
    if data == "lognormal":
        return math.exp(0.5) if q is None else math.exp(NormalDist().inv_cdf(q))
    load = float(data[-3:])
    if data.startswith("M/M"):
        return truth("exponential", q) / (1 - load)
    if q is None:
        return 1 + load / (2 * (1 - load))
    if wait_cdf(0, load) >= q:
        return 1.0
    low, high = 0.0, 40.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if wait_cdf(middle, load) < q:
            low = middle
        else:
            high = middle
    return 1 + high


def wait_cdf(wait: float, load: float) -> float:
    """The probability that an M/D/1 queue's wait is at most `wait` service times: Erlang's formula."""
    terms = (
        (-load * (wait - k)) ** k / math.factorial(k) * math.exp(load * (wait - k))
        for k in range(int(wait) + 1)
    )
    return (1 - load) * math.fsum(terms)


def one(
    data: str, n: int, estimate: Callable[[np.ndarray], list[object]], seed: int
) -> list[object]:
    """The estimates of one series."""
    return estimate(draw(data, n, np.random.default_rng([seed, n])))


def intervals(series: np.ndarray) -> list[object]:
    """The intervals of the mean and of QUANTILES; None where one is not given."""
    estimates = Estimates(series)
    return [estimates.mean_interval(), *(estimates.percentile_interval(q) for q in QUANTILES)]


def repeated(work: Callable[[int], Any], seeds: Iterable[int], workers: int) -> list[Any]:
    """The results of `work` for all seeds, in order."""
    if workers < 2:
        return [work(seed) for seed in seeds]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(work, seeds, chunksize=50))


def coverage(data: str, n: int, simulations: int, workers: int = 1, seed: int = 0) -> pd.DataFrame:
    """A row per estimate: the shares given, covering and wrong, and `ok`.

    `ok` says whether the limits are kept; None for a series that is not judged.
    """
    found = repeated(partial(one, data, n, intervals), range(seed, seed + simulations), workers)
    rows = []
    for column, q in enumerate((None, *QUANTILES)):
        true = truth(data, q)
        given = [row[column] for row in found if row[column] is not None]
        # The tolerance of one part in 10^9 lets no rounding decide whether an atom of the
        # distribution is inside.
        held = sum(low <= true * (1 + 1e-9) and true <= high * (1 + 1e-9) for low, high in given)
        ok = None
        if data in JUDGED:
            ok = kept(len(given), held, simulations, most=0.97 if q is None else 1.0)
        rows.append(
            {
                "data": data,
                "n": n,
                "estimate": "mean" if q is None else f"p{100 * q:g}",
                "given": len(given) / simulations,
                "covers": held / len(given) if len(given) >= 20 else None,
                "wrong": (len(given) - held) / simulations,
                "ok": ok,
            }
        )
    return pd.DataFrame(rows)


def kept(
    given: int, held: int, simulations: int, *, least: float = 0.93, most: float = 1.0
) -> bool:
    """Whether `held` of `given` intervals keep the limits, which chance loosens for few `given`."""
    if given >= 0.1 * simulations:
        return least * given <= held <= most * given
    chance_of_as_few = binomial_cdf(held, given, least)
    chance_of_as_many = 1 - binomial_cdf(held - 1, given, most)
    return min(chance_of_as_few, chance_of_as_many) > 0.025


def throughput_interval(load: float, n: int, seed: int) -> tuple[float, float] | None:
    """The interval that summarise() gives for `n` requests at `load` to a lane that takes 1 s.

    The truth is `load` images per second.
    """
    random = np.random.default_rng([seed, n])
    warmup = 1000
    number = np.arange(n + warmup)
    begin_s = np.cumsum(random.exponential(1 / load, n + warmup))
    done_s = np.maximum.accumulate(begin_s - number) + number + 1  # Lindley, unrolled
    rows = frame(begin_s, done_s, np.where(number < warmup, "warmup", "measure"))
    window = {"window_start_s": float(begin_s[warmup]), "window_end_s": float(begin_s[-1])}
    record = record_of({"kind": "open_loop", "rate": load}, window)
    return summarise(record, rows, TELEMETRY)["throughput_images_per_s_interval"]  # type: ignore[no-any-return]


def verdict(data: str, q: float, n: int, seed: int) -> str:
    """Slo's verdict on a series, with the true percentile `q` as its limit."""
    return Slo(q, truth(data, q)).judge(draw(data, n, np.random.default_rng([seed, n])))


def run(random: np.random.Generator, service_s: float) -> SimpleNamespace:
    """A run for compare(): 300 requests of four users in a closed loop."""
    service = service_s * random.lognormal(sigma=0.01) * random.gamma(100, 0.01, 300)
    # The server is never idle: a user's next request is scheduled when the last one is done.
    done_s = np.cumsum(service)
    scheduled_s = np.append(np.zeros(4), done_s[:-4])
    window = {"window_start_s": 0.0, "window_end_s": float(done_s[-1])}
    record = record_of({"kind": "closed_loop", "users": 4}, window)
    telemetry = TELEMETRY.assign(rss_gib=random.lognormal(sigma=0.01))
    rows = frame(scheduled_s, done_s, "measure")
    summary = summarise(record, rows, telemetry)
    return SimpleNamespace(record=record, requests=rows, summary=lambda: summary)


TELEMETRY = pd.DataFrame({"rss_gib": [1.0]}).assign(
    **dict.fromkeys(["cuda_allocated_gib", "cuda_reserved_gib", "server_cpu_cores"], math.nan)
)


def frame(scheduled_s: np.ndarray, done_s: np.ndarray, phase: object) -> pd.DataFrame:
    rows = pd.DataFrame(
        {name: pd.Series([None] * len(done_s), dtype=dtype) for name, dtype in ROW_DTYPES.items()}
    )
    return rows.assign(
        phase=phase, scheduled_s=scheduled_s, done_s=done_s, latency_s=done_s - scheduled_s
    )


def record_of(arrivals: dict[str, Any], window: dict[str, float]) -> dict[str, Any]:
    return {
        "status": "finished",
        "error": None,
        "machine": {},
        "packages": {},
        "git": {},
        "spec": {"target": {"model": "simulated"}, "workload": {}, "arrivals": arrivals},
        "outcome": window,
    }


def pairs(slowdown: float, count: int, seed: int) -> list[Comparison]:
    """`count` comparisons of five runs with five others.

    The others' service takes 1 + `slowdown` times as long.
    """
    random = np.random.default_rng(seed)
    return [
        compare(
            [run(random, 0.1) for _ in range(5)],
            [run(random, 0.1 * (1 + slowdown)) for _ in range(5)],
        )
        for _ in range(count)
    ]


def called(comparisons: list[Comparison], *verdicts: str) -> int:
    """The number of comparisons that have one of `verdicts` on any figure."""
    return sum(bool(each.table["verdict"].isin(verdicts).any()) for each in comparisons)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--simulations", type=int, default=4000, help="series of each kind and length"
    )
    parser.add_argument(
        "--seed", type=int, default=2_000_000, help="the seed of the first simulation"
    )
    options = parser.parse_args()
    simulations = options.simulations
    workers = os.cpu_count() or 1
    seeds = range(options.seed, options.seed + simulations // 4)

    # 1) Intervals
    tables = []
    for data, lengths in LENGTHS.items():
        for n in lengths:
            table = coverage(data, n, simulations, workers, options.seed)
            text = table.to_string(index=False, na_rep="-", float_format="{:.4f}".format)
            print(text, flush=True)
            tables.append(table)
    table = pd.concat(tables)
    broken = table[table["ok"] == False]  # noqa: E712 - a column of objects

    # 2) Throughput and verdicts
    throughput = throughputs(seeds, workers)
    show("throughput", throughput)
    verdicts = verdict_shares(seeds, workers)
    show("verdicts", verdicts)

    # 3) Comparisons
    alike = called(pairs(0, 20, 1), "slower", "more")
    slower = called(pairs(0.1, 20, 2), "slower")
    print("of 20 pairs alike, called slower or more:", alike)
    print("of 20 pairs with a slowdown of 10 %, called slower:", slower)

    print(broken.to_string(index=False))
    passed = {
        "intervals": not len(broken),
        "throughput": all(kept(f["given"], f["held"], f["of"]) for f in throughput.values()),
        "verdicts": all(max(shares.values()) <= 0.05 for shares in verdicts.values()),
        "comparisons": alike <= 1 and slower >= 19,
    }
    everything = {"passed": passed, "simulations": simulations, "seed": options.seed}
    print(json.dumps(everything | {"throughput": throughput, "verdicts": verdicts}))
    return 0 if all(passed.values()) else 1


def throughputs(seeds: range, workers: int) -> dict[str, dict[str, int]]:
    """By load and length: the number of series (`of`), of intervals (`given`) and of hits (`held`)."""
    counts = {}
    for load, n in ((0.5, 200), (0.5, 2000), (0.8, 200), (0.8, 2000), (0.8, 10_000)):
        found = repeated(partial(throughput_interval, load, n), seeds, workers)
        given = [pair for pair in found if pair]
        held = sum(low <= load <= high for low, high in given)
        counts[f"load {load}, n {n}"] = {"given": len(given), "of": len(seeds), "held": held}
    return counts


def verdict_shares(seeds: range, workers: int) -> dict[str, dict[str, float]]:
    """By series, percentile and length: the shares of verdicts "met" and "missed" at the limit."""
    shares = {}
    for data, q, n in product(JUDGED, (0.5, 0.9, 0.95), (200, 1000, 5000)):
        counts = Counter(repeated(partial(verdict, data, q, n), seeds, workers))
        by_verdict = {each: counts[each] / len(seeds) for each in VERDICTS}
        shares[f"{data}, p{100 * q:g}, n {n}"] = by_verdict
    return shares


def show(name: str, rows: dict[str, Any]) -> None:
    """Prints a table of `rows`, with `name` before each."""
    text = pd.DataFrame(rows).T.to_string()
    print(text.replace("\n", f"\n{name}: "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
