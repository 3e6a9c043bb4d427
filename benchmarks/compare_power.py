"""How often does notebook 06 catch a slowdown, and how often does it take chance for one?

    python benchmarks/compare_power.py                      # 2,000 pairs a cell, 2 minutes

It simulates pairs of studies whose slowdown is known, and judges the time in the model as
`bl.compare` does. Each side has 20 images, in 1, 2 or 4 runs; a few cells have more. Runs are not
taken in turns. The services have noise of several shapes.

It prints a table and fails where a limit is broken:

- Of equal studies, at most 1 in 20 may be called slower or faster, in every cell.
- Of slower studies, at most 1 in 20 may be called faster or no different, in every cell.
- At least 19 in 20 must be called slower, from the slowdown on that CAUGHT_FROM names.

Where CAUGHT_FROM names no slowdown, the noise hides it: the verdict is then "inconclusive".
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from benchlib.questions.compare.judge import service_row
from benchlib.study.equal_work import ByWork

Shape = Callable[[np.random.Generator, int], np.ndarray]
"""Draws the services of one run's images; their usual time is 1."""

SLOWDOWNS = (0.0, 0.03, 0.05, 0.1)
LEAST_CAUGHT = 0.95
MOST_WRONG = 0.05
AUTOCORRELATION = 0.5


def normal(random: np.random.Generator, images: int) -> np.ndarray:
    return 1 + 0.01 * random.normal(size=images)


def tail(random: np.random.Generator, images: int) -> np.ndarray:
    return normal(random, images) + random.exponential(0.03, images)


def lognormal(random: np.random.Generator, images: int) -> np.ndarray:
    return random.lognormal(sigma=0.1, size=images)


def drifting(random: np.random.Generator, images: int) -> np.ndarray:
    """AR(1): each image resembles the one before."""
    noise = random.normal(size=images)
    level = [noise[0]]
    rest = math.sqrt(1 - AUTOCORRELATION**2)
    for step in noise[1:]:
        level.append(AUTOCORRELATION * level[-1] + rest * step)
    return 1 + 0.01 * np.array(level)


def shifted(spread: float, random: np.random.Generator, images: int) -> np.ndarray:
    """All images of a run share a shift."""
    return random.lognormal(sigma=spread) * normal(random, images)


SHAPES: dict[str, Shape] = {
    "1 %": normal,
    "1 %, and an exponential tail of 3 %": tail,
    "lognormal, 10 %": lognormal,
    "1 %, AR(1) of 0.5": drifting,
    "1 %, and runs shift by 0.5 %": partial(shifted, 0.005),
    "1 %, and runs shift by 1 %": partial(shifted, 0.01),
}

CAUGHT_FROM: dict[tuple[str, int, int], float | None] = {
    ("1 %", 20, 1): 0.05,
    ("1 %", 20, 2): 0.03,
    ("1 %", 20, 4): 0.03,
    ("1 %, and an exponential tail of 3 %", 20, 1): 0.05,
    ("1 %, and an exponential tail of 3 %", 20, 2): 0.1,
    ("1 %, and an exponential tail of 3 %", 20, 4): 0.05,
    ("1 %, and an exponential tail of 3 %", 40, 4): 0.03,
    ("lognormal, 10 %", 20, 1): None,
    ("lognormal, 10 %", 20, 2): None,
    ("lognormal, 10 %", 20, 4): None,
    ("1 %, AR(1) of 0.5", 20, 1): 0.05,
    ("1 %, AR(1) of 0.5", 20, 2): 0.05,
    ("1 %, AR(1) of 0.5", 20, 4): 0.03,
    ("1 %, and runs shift by 0.5 %", 20, 1): 0.05,
    ("1 %, and runs shift by 0.5 %", 20, 2): 0.05,
    ("1 %, and runs shift by 0.5 %", 20, 4): 0.03,
    ("1 %, and runs shift by 1 %", 20, 1): 0.1,
    ("1 %, and runs shift by 1 %", 20, 2): 0.1,
    ("1 %, and runs shift by 1 %", 20, 4): 0.05,
    ("1 %, and runs shift by 1 %", 40, 8): 0.03,
}
"""By shape, images a side and runs a side: the least slowdown that must be caught, or None."""


def verdicts(shape: str, images: int, runs: int, slowdown: float, seeds: range) -> Counter[str]:
    """How often each verdict falls, over a pair of studies for each of `seeds`."""
    found: Counter[str] = Counter()
    for seed in seeds:
        random = np.random.default_rng([seed, images, runs, round(1000 * slowdown)])
        before, after = (
            [_services(shape, random, images // runs, factor) for _ in range(runs)]
            for factor in (1.0, 1.0 + slowdown)
        )
        verdict = service_row(before, after)["verdict"]
        found["no difference" if verdict.startswith("no difference") else verdict] += 1
    return found


def _services(shape: str, random: np.random.Generator, images: int, factor: float) -> ByWork:
    return {"equal work": factor * SHAPES[shape](random, images)}


def cell(case: tuple[str, int, int], seeds: range) -> dict[str, object]:
    """A line of the table: the shares of false alarms, of slowdowns caught, and of wrong verdicts."""
    shape, images, runs = case
    line: dict[str, object] = {"noise": shape, "images": images, "runs": runs}
    caught_from = CAUGHT_FROM[case]
    broken: list[str] = []
    wrong = 0.0
    for slowdown in SLOWDOWNS:
        found = verdicts(shape, images, runs, slowdown, seeds)
        share = {verdict: count / len(seeds) for verdict, count in found.items()}
        if not slowdown:
            alarms = share.get("slower", 0.0) + share.get("faster", 0.0)
            line["false alarms"] = alarms
            if alarms > MOST_WRONG:
                broken.append("false alarms")
            continue
        name = f"{100 * slowdown:g} %"
        line[name] = share.get("slower", 0.0)
        wrong = max(wrong, share.get("faster", 0.0) + share.get("no difference", 0.0))
        must_be_caught = caught_from is not None and slowdown >= caught_from
        if must_be_caught and share.get("slower", 0.0) < LEAST_CAUGHT:
            broken.append(name)
    line["wrong"] = wrong
    if wrong > MOST_WRONG:
        broken.append("wrong")
    line["caught from"] = "-" if caught_from is None else f"{100 * caught_from:g} %"
    line["broken"] = broken
    return line


def in_text(line: dict[str, object]) -> str:
    """A row of the table, in Markdown."""
    names = ("false alarms", "3 %", "5 %", "10 %", "wrong")
    shares = [f"{100 * float(str(line[name])):.1f} %" for name in names]
    cells = [line["noise"], line["images"], line["runs"], *shares, line["caught from"]]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000, help="pairs of studies of each cell")
    parser.add_argument("--seed", type=int, default=3_000_000, help="the seed of the first pair")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.studies)

    print(
        "| noise of a service | images a side | runs | false alarms | 3 % | 5 % | 10 % | wrong | caught from |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    lines = []
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        for line in workers.map(partial(cell, seeds=seeds), CAUGHT_FROM):
            print(in_text(line), flush=True)
            lines.append(line)

    broken = [line for line in lines if line["broken"]]
    for line in broken:
        print(
            f"broken: {line['noise']}, {line['images']} images, {line['runs']} runs: {line['broken']}"
        )
    print(json.dumps({"passed": not broken, "studies": options.studies, "lines": lines}))
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
