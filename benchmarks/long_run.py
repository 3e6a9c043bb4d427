"""Does a long run beside a capacity go as sixty images foretold it?

    python -m benchmarks.long_run RESULTS --model sdxl-random --recipe fastest-exact --share 0.95
    python -m benchmarks.long_run RESULTS --again

One server makes some images alone, which set the promise: p95 within four of their times. A run of
sixty images calibrates, and foretells the capacity within the promise. A run of ten minutes at
`--share` of that capacity follows. `--again` reads the runs of an earlier call, and serves nothing.

A table sets three things beside each other: what the long run measured, the simulation of its very
arrivals, and what other runs of this length would show. The last are cut from a long simulation,
so that they tell what chance alone does to a percentile of one run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import benchlib as bl
from benchlib.queueing.confirming import confirmation
from benchlib.queueing.lanes import Draws
from benchlib.study.latency import latencies
from benchlib.study.slo import Slo

IMAGES_ALONE = 8
IMAGES = 60
PROMISED = 4.0
SHARE_OF_FORETOLD = 0.8
SIMULATED_RUNS = 1000
ENDS = (0.025, 0.5, 0.975)


@dataclass(frozen=True)
class Row:
    """One figure of the long run: measured, simulated, and the ends of what chance does."""

    name: str
    measured: float
    simulated: float
    by_chance: tuple[float, float, float]
    rarity: float
    """The share of runs of this length that would show as bad a figure, or a worse one."""

    def __str__(self) -> str:
        low, middle, high = self.by_chance
        chance = f"{middle:.3g} ({low:.3g} to {high:.3g})"
        cells = (self.name, f"{self.measured:.3g}", f"{self.simulated:.3g}", chance)
        return f"| {' | '.join(cells)} | {self.rarity:.1%} |"


HEADER = (
    "| figure | measured | its arrivals, simulated | what runs of this length show | as bad |\n"
    "|---|---|---|---|---|"
)


def measure(results: Path, model: str, recipe: str, share: float, seconds: float) -> None:
    """Makes the three runs in `results`."""
    quiet = {"on_progress": lambda _: None, "study": results.name, "results": results.parent}
    with bl.serve(model, recipe=recipe) as server:
        single = bl.run_load(
            server, bl.ClosedLoop(1), requests=IMAGES_ALONE, warmup_s=3, label="alone", **quiet
        )
        image_s = latencies(single.requests).tolist()
        foretold = bl.foretell(server.spec, image_s).capacity(promise(single))
        if foretold.rate is None:
            raise SystemExit(f"no capacity is foretold: {foretold}")
        rate = SHARE_OF_FORETOLD * foretold.rate
        short = bl.run_load(
            server, bl.OpenLoop(rate), requests=IMAGES, warmup_s=3, label="calibrate", **quiet
        )
        found = bl.calibrate(short).capacity(promise(single))
        if found.rate is None:
            raise SystemExit(f"the calibrating run shows no capacity: {found}")
        bl.run_load(
            server,
            bl.OpenLoop(share * found.rate),
            duration_s=seconds,
            warmup_s=min(15.0, seconds / 4),
            max_s=2 * seconds,
            seed=7,
            label=f"long-{share}",
            **quiet,
        )


def promise(alone: bl.Run) -> str:
    """p95 within PROMISED times the median image alone."""
    return f"p95 < {PROMISED * statistics.median_high(latencies(alone.requests)):.3f} s"


def rows_of(calibration: bl.Calibration, long: bl.Run, slo: str) -> list[Row]:
    """What the long run shows, beside what chance does to runs of its rate and length."""
    limit_s = Slo.parse(slo).latency_s
    figures: dict[str, tuple[Callable[[np.ndarray], float], bool]] = {
        "mean, s": (lambda latency_s: float(latency_s.mean()), True),
        "p95, s": (lambda latency_s: float(np.quantile(latency_s, 0.95)), True),
        "in time": (lambda latency_s: float((latency_s <= limit_s).mean()), False),
    }

    # 1) Other runs of this length, one after the other in one long simulation
    replayed = calibration.replay(long)
    images = len(replayed)
    draws = Draws.of((SIMULATED_RUNS + 1) * images, 5)
    rate = long.spec["arrivals"]["rate"]
    latency_s = calibration.lane.latencies_s(draws, rate)
    others = latency_s[images:].reshape(SIMULATED_RUNS, images)

    # 2) Each figure of the run among theirs
    rows = []
    for name, (figure, is_worse_above) in figures.items():
        measured = figure(replayed["measured_s"].to_numpy())
        of_others = np.array([figure(other) for other in others])
        is_as_bad = of_others >= measured if is_worse_above else of_others <= measured
        low, middle, high = np.quantile(of_others, ENDS).tolist()
        simulated = figure(replayed["simulated_s"].to_numpy())
        by_chance = (low, middle, high)
        rows.append(Row(name, measured, simulated, by_chance, float(is_as_bad.mean())))
    return rows


def tell(results: Path) -> list[Row]:
    """Prints what the runs in `results` show, and returns the table's rows."""
    study = bl.load_study(results)
    alone, short, long = sorted(study.runs, key=lambda run: run.record["started_at"])
    slo = promise(alone)
    calibration = bl.calibrate(short)
    rows = rows_of(calibration, long, slo)
    print(f"{calibration}\n{calibration.capacity(slo)}")
    print(f"\nThe long run, at {long.spec['arrivals']['rate']:.3g} requests/s:\n\n{HEADER}")
    for row in rows:
        print(row)
    print(f"\n{confirmation(calibration, long, slo=slo)}")
    again = bl.calibrate(long)
    print(f"\nCalibrated by the long run: {again}\n{again.capacity(slo)}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="the folder of the three runs")
    parser.add_argument("--again", action="store_true", help="read the runs that are there")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--recipe", default="baseline")
    parser.add_argument("--share", type=float, default=0.95, help="of the capacity found")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the long run")
    chosen = parser.parse_args()
    results = chosen.results.resolve()
    if not chosen.again:
        measure(results, chosen.model, chosen.recipe, chosen.share, chosen.seconds)
    tell(results)


if __name__ == "__main__":
    main()
