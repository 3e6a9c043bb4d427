"""How often do the intervals of benchmarks/scale.py hold the truth? Runs on a virtual clock.

    python -m benchmarks.scale_coverage [--runs 200]

Four cards have an H100's step times. Each run is as long as one of benchmarks/scale.py. The truth is
that of all runs together. A fair interval of 95 % holds it in 95 of 100 runs. It takes two minutes.

Knows the simulated fleet. Ignorant of servers.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pandas as pd

from benchlib.serving.replicas.routing import router_named
from benchmarks.routing import SPECS, USERS, draw_arrivals, draw_equal
from benchmarks.run_intervals import Floats, made_by_window, ratio_of_means
from benchmarks.scale import WINDOW_S, Lengths, mean_of_columns, over_the_other, p95_of_columns
from benchmarks.simulated_fleet import closed_loop, open_loop

CARDS = 4
RATE = 2.65  # of mixed requests, a second: 80 % of what four such cards can do
WARM_UP = 16  # mixed requests
SPEC = SPECS["h100"]


def mixed_rows(routing: str, images: int, seed: int) -> pd.DataFrame:
    """The rows of one run of mixed requests, as those of a real run."""
    requests = draw_arrivals(WARM_UP + images, RATE, seed)
    open_loop(CARDS, SPEC, router_named(routing, seed=seed), requests, seed=seed)
    rows = pd.DataFrame({"latency_s": [asked.latency_s for asked in requests]})
    rows["index"] = range(len(rows))
    rows["phase"] = np.where(rows["index"] < WARM_UP, "warmup", "measure")
    return rows


def equal_windows(cards: int, lengths: Lengths, seed: int) -> Floats:
    """The images/s of each window of one run of equal requests."""
    end_s = lengths.warmup_s + lengths.equal_s
    images = int(1.5 * end_s * cards)  # until all that began in a window have ended
    router = router_named("foretold")
    users = USERS * cards
    done = closed_loop(cards, SPEC, router, draw_equal, users=users, images=images, seed=seed)
    edges_s = np.arange(lengths.warmup_s, end_s + WINDOW_S / 2, WINDOW_S)
    begun_s = np.array([asked.begun_s for asked in done], dtype=float)
    done_s = np.array([asked.done_s for asked in done], dtype=float)
    return made_by_window(begun_s, done_s, edges_s.tolist())


def print_coverage(
    name: str, truth: float, intervals: list[tuple[float, float] | None], runs: int
) -> None:
    held = [low <= truth <= high for low, high in filter(None, intervals)]
    width = np.mean([high - low for low, high in filter(None, intervals)])
    print(
        f"{name}: truth {truth:.3f}, held by {sum(held) / runs:.0%}, width {width:.3f}", flush=True
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args(arguments)
    lengths = Lengths()

    # 1) The share of linear
    numbers = range(options.runs)
    alone = [equal_windows(1, lengths, seed) for seed in numbers]
    several = [equal_windows(CARDS, lengths, seed + options.runs) for seed in numbers]
    truth = float(np.mean(several) / np.mean(alone) / CARDS)
    shares = [ratio_of_means(top, CARDS * one) for top, one in zip(several, alone, strict=True)]
    print_coverage("share of linear", truth, [interval for _, interval in shares], options.runs)

    # 2) Mixed requests over round robin's
    tops = [mixed_rows("foretold", lengths.mixed_images, seed) for seed in numbers]
    bottoms = [mixed_rows("round-robin", lengths.mixed_images, seed) for seed in numbers]
    for name, statistic in (("p95", p95_of_columns), ("mean", mean_of_columns)):
        measured = [
            pd.concat(rows)["latency_s"][lambda column: column.index >= WARM_UP]
            for rows in (tops, bottoms)
        ]
        of_top, of_bottom = statistic(np.array(measured).T)
        found = [over_the_other(statistic, *pair) for pair in zip(tops, bottoms, strict=True)]
        intervals = [interval for _, interval in found]
        print_coverage(f"mixed {name} ratio", float(of_top / of_bottom), intervals, options.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
