"""How near their capacity can cards run, if 99 % of the images must come in time? On a virtual clock.

    python -m benchmarks.near_capacity [--gpu h100] [--seconds 600] [--seeds 20]

Equal requests of 20 steps come at random (Poisson) at a share of the images/s that as many cards
make in a closed loop of eight users each. A run has 600 s, as MLPerf's server scenario has. The
table has the p99 of latency: the middle run of all seeds, and in brackets the best and the worst.
So it shows what one measured run may show by chance alone.

Knows the simulated cards of routing.py. Ignorant of how requests are routed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

import numpy as np

from benchlib.serving.replicas.routing import router_named
from benchmarks.routing import SPECS, STEP_TIMES, closed_figures, draw_equal
from benchmarks.simulated_fleet import open_loop

CARDS = (1, 2, 4, 8)
SHARES = (0.85, 0.9, 0.95)
CLOSED_IMAGES = 160  # that tell one card's capacity


def p99_s(gpu: str, cards: int, rate: float, seconds: float, seed: int) -> float:
    """The p99 of latency of one run: `rate` requests a second at all cards together."""
    random = np.random.default_rng((seed, 2))
    arrivals_s = random.exponential(1 / rate, int(seconds * rate)).cumsum()
    requests = [draw_equal(random, float(arrived_s)) for arrived_s in arrivals_s]
    open_loop(cards, SPECS[gpu], router_named("foretold"), requests, seed=seed)
    return float(np.quantile([asked.latency_s for asked in requests], 0.99))


def row(gpu: str, cards: int, capacity: float, seconds: float, seeds: int) -> str:
    """A row of the table; `capacity` is one card's, in images/s."""
    cells = []
    for share in SHARES:
        rate = share * capacity * cards
        found = [p99_s(gpu, cards, rate, seconds, seed) for seed in range(seeds)]
        middle = statistics.median(found)
        cells.append(f"{middle:.1f} s ({min(found):.1f} to {max(found):.1f})")
    return f"| {cards} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", choices=STEP_TIMES, default="h200", help="whose step times")
    parser.add_argument("--cards", type=int, nargs="+", default=CARDS)
    parser.add_argument("--seconds", type=float, default=600.0, help="of each run")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args(arguments)
    capacity, _ = closed_figures(options.gpu, 1, "foretold", CLOSED_IMAGES, 0)
    print(f"one card makes {capacity:.2f} images/s")
    shares = " | ".join(f"p99 at {share:.0%}" for share in SHARES)
    print(f"| cards | {shares} |\n|{'---|' * (len(SHARES) + 1)}")
    for cards in options.cards:
        print(row(options.gpu, cards, capacity, options.seconds, options.seeds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
