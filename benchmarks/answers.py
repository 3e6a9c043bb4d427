"""Measures how often foretold answers hold the truth, and how often planted faults are seen.

    python -m benchmarks.answers [--quick] [--studies 4000] [--seed 3000000]

Each study is a simulated run, and what `calibrate` makes of it. The truth is a simulation of the
same lane with other seeds, a thousand times as long. It ends with a line of JSON, and its exit
status says whether a limit is broken.

| part     | what is simulated                                                                 |
|----------|-----------------------------------------------------------------------------------|
| lanes    | serial, dynamic and continuous; equal and mixed steps; services of NOISES         |
| runs     | 20, 60 or 200 images at LOADS of the highest throughput                           |
| foretold | p50, p95, p99 and the share in time at another of LOADS; the capacity             |
| promises | the true p95 at one of PROMISED: the true capacity is then that load              |
| faults   | those of FAULTS, in runs with as many images as make each visible                 |

| limit                                                     | value                            |
|-----------------------------------------------------------|----------------------------------|
| intervals that hold the truth, all together               | at least 93 %                    |
| the same, for each policy and noise                       | 93 %, less what chance does      |
| faults that are noticed, for each fault and policy        | 95 %, less what chance does      |
| runs without a fault that are called widened or refused   | at most 5 %                      |
| images for a capacity within 5 %, calibrated over raw     | at most 1/20                     |

Chance is a binomial's 2.5 %. With --quick it loosens all limits. Intervals of one run hold the
truth together or not at all, so a row's intervals count as so many runs. Two kinds of runs are
shown beside the limits, with their coverage: services that depend on each other (an
autoregression), which the method does not assume; and the bimodal ones of UNSEEN, in which chance
hides what no method could see.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchlib.queueing.estimates import Calibration, calibrate
from benchlib.serving.engine.compiled import lindley
from benchlib.study.intervals import Estimates, binomial_cdf
from benchlib.study.simulated import Control, Simulation
from benchmarks.planted_lanes import (
    LAST_FIRST,
    NOISES,
    Fault,
    long_queue,
    most_images_per_s,
    simulated_run,
)

POLICIES = ("serial", "dynamic", "continuous")
STEPS = {"equal": (20,), "mixed": (10, 20, 30)}
IMAGES = (20, 60, 200)
LOADS = (0.5, 0.7, 0.85, 0.95)
PROMISED = (0.7, 0.85, 0.95)
QUANTILES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
FIGURES = (*QUANTILES, "in_time", "capacity")
TRUTH_LENGTH = {0.5: 3_000_000, 0.7: 3_000_000, 0.85: 4_000_000, 0.95: 6_000_000}
"""Requests by load."""
DEPENDENT = "AR(1) 2 %"
"""Its images are not independent, which a calibration may rightly remark."""
FEW_SHARED = "shared steps were seen under load"
"""Short runs at a low load break this assumption in truth: that is no false alarm."""
UNSEEN = {("serial", 20), ("dynamic", 20), ("dynamic", 60), ("continuous", 20), ("continuous", 60)}
"""Bimodal runs of these policies and lengths may hold no long image at all.

One serial run of twenty images in eight has none. Images that share steps share their noise, so
that sixty of them are worth about twenty.
"""

LEAK = Fault(leak=0.03)
LEAK_OF_BATCHES = Fault(leak=0.05)
HIDDEN_LEAK = Fault(leak=0.03, leak_is_outside=True)

FAULTS: dict[str, tuple[Fault, dict[str, int]]] = {
    "stall of 3 services": (Fault(stall=3), {"serial": 60, "dynamic": 120, "continuous": 120}),
    "slow tenth, 1.3 times": (
        Fault(slow_tenth=0.3),
        {"serial": 80, "dynamic": 480, "continuous": 480},
    ),
    "drift of 15 %": (Fault(drift=0.15), {"serial": 60, "dynamic": 240, "continuous": 240}),
    "leak in stages, 3 % a request": (LEAK, {"serial": 120}),
    "leak in stages, 5 % a request": (LEAK_OF_BATCHES, {"dynamic": 480, "continuous": 480}),
    "leak in no stage, 3 % a request": (
        HIDDEN_LEAK,
        {"serial": 200, "dynamic": 480, "continuous": 480},
    ),
    "slow client": (Fault(client=0.3), {"serial": 60, "dynamic": 60, "continuous": 60}),
    "served last in, first out": (Fault(policy=LAST_FIRST), {"serial": 80}),
    "served by dynamic": (Fault(policy="dynamic"), {"serial": 80, "continuous": 240}),
    "served by continuous": (Fault(policy="continuous"), {"serial": 80, "dynamic": 240}),
    "batches of 2, not 8": (Fault(batch_size=2), {"dynamic": 180, "continuous": 120}),
}
FAULT_LOADS = (0.7, 0.8)


@dataclass(frozen=True)
class Lane:
    """A lane without a fault."""

    batching: str
    steps: str
    noise: str


LANES = [Lane(*parts) for parts in product(POLICIES, STEPS, NOISES)]


@dataclass(frozen=True)
class Truth:
    """What a lane does in the long run: its highest throughput, and figures by load.

    `limits_s` are promises by PROMISED, `in_time` shares by load and promise.
    """

    most: float
    quantiles: dict[float, dict[str, float]]
    limits_s: dict[float, float]
    in_time: dict[tuple[float, float], float]
    errors: dict[float, float]
    """The largest standard error of a percentile, as a share of it, by load."""


@dataclass(frozen=True)
class Study:
    """One simulated run, and what is asked of it."""

    lane: Lane
    images: int
    run_load: float
    load: float
    promised: float
    seed: int
    fault: str = ""


# ---- the truth


def truth_of(lane: Lane, share: float = 1.0) -> Truth:
    """The truth of a lane, from simulations that are `share` times as long as TRUTH_LENGTH."""
    most = most_images_per_s(lane.batching, steps=STEPS[lane.steps], noise=lane.noise)
    simulations = {}
    for place, load in enumerate(LOADS):
        requests = int(share * TRUTH_LENGTH[load])
        # Lanes with one seed would be off alike, and so would a whole row of the tables.
        seed = 900 + len(LOADS) * LANES.index(lane) + place
        simulations[load] = simulated(lane, load, most, requests, seed)
    quantiles = {}
    errors = {}
    for load, simulation in simulations.items():
        found = {name: simulation.percentile(q) for name, q in QUANTILES.items()}
        quantiles[load] = {name: point for name, (point, _) in found.items()}
        errors[load] = max(error / point for point, error in found.values())
    limits_s = {promised: round(quantiles[promised]["p95_s"], 4) for promised in PROMISED}
    in_time = {}
    for load, promised in product(LOADS, PROMISED):
        in_time[load, promised], _ = simulations[load].share_within(limits_s[promised])
    return Truth(most, quantiles, limits_s, in_time, errors)


def simulated(lane: Lane, load: float, most: float, requests: int, seed: int) -> Simulation:
    """A long simulation of the true lane, with a control of the same arrivals and steps."""
    steps = STEPS[lane.steps]
    rate = load * most
    sent_s, latency_s, number = long_queue(
        lane.batching, rate=rate, steps=steps, noise=lane.noise, requests=requests, seed=seed
    )
    scale = load / (rate * np.mean(steps))
    service_s = scale * number
    wait_s = np.maximum(lindley(sent_s, service_s) - sent_s - service_s, 0.0)
    control = Control.poisson(wait_s, rate, scale * np.array(steps, dtype=float))
    return Simulation(latency_s, control)


def truths(workers: int, share: float, kept: Path | None) -> dict[Lane, Truth]:
    """The truth of all lanes, read from the file `kept` where it is there."""
    if kept is not None and kept.exists():
        return pickle.loads(kept.read_bytes())
    found = repeated(partial(truth_of, share=share), LANES, workers, at_once=1)
    by_lane = dict(zip(LANES, found, strict=True))
    if kept is not None:
        kept.write_bytes(pickle.dumps(by_lane))
    return by_lane


def repeated(
    work: Callable[[Any], Any], of: Iterable[Any], workers: int, at_once: int = 10
) -> list[Any]:
    """The results of `work` for all of `of`, in order."""
    if workers < 2:
        return [work(one) for one in of]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(work, of, chunksize=at_once))


# ---- studies without a fault


def studies(number: int, seed: int) -> list[Study]:
    """So many studies, each lane and length as often."""
    random = np.random.default_rng(seed)
    found = []
    cases = list(product(LANES, IMAGES))
    random.shuffle(cases)
    for place in range(number):
        lane, images = cases[place % len(cases)]
        loads = random.choice(LOADS, 2)
        promised = float(random.choice(PROMISED))
        found.append(Study(lane, images, *loads.tolist(), promised, seed + place))
    return found


def run_of(study: Study, truth: Truth) -> Calibration:
    fault, _ = FAULTS.get(study.fault, (Fault(), {}))
    run = simulated_run(
        study.lane.batching,
        rate=study.run_load * truth.most,
        requests=study.images,
        steps=STEPS[study.lane.steps],
        noise=study.lane.noise,
        seed=study.seed,
        fault=fault,
    )
    return calibrate(run)


def answered(study_and_truth: tuple[Study, Truth]) -> dict[str, Any]:
    """For each figure whether its interval holds the truth (None without one), and its width.

    Widths are shares of the truth. `error` is that of the capacity.
    """
    study, truth = study_and_truth
    calibration = run_of(study, truth)
    row: dict[str, Any] = {"status": calibration.status, "study": study}
    row["seen"] = seen_in(calibration)
    if calibration.status == "refused":
        return row
    rate = study.load * truth.most
    promise = f"p95 < {truth.limits_s[study.promised]:.4f} s"
    foretold = calibration.predict(rate, promise)
    capacity = calibration.capacity(promise)
    intervals = {name: getattr(foretold, f"{name}_interval") for name in FIGURES[:-1]}
    intervals["capacity"] = capacity.interval
    true = dict(truth.quantiles[study.load])
    true["in_time"] = truth.in_time[study.load, study.promised]
    true["capacity"] = study.promised * truth.most
    for name, interval in intervals.items():
        if interval is None:
            continue
        low, high = interval
        row[name] = low <= true[name] <= high
        row[f"{name}_width"] = (high - low) / true[name]
        row[f"{name}_low"] = low / true[name]
        row[f"{name}_high"] = high / true[name]
    if capacity.rate is not None:
        row["error"] = abs(capacity.rate / true["capacity"] - 1)
    return row


def as_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    asked = pd.DataFrame([vars(study) for study in table.pop("study")])
    lanes = pd.DataFrame([vars(lane) for lane in asked.pop("lane")])
    asked["images"] = asked["images"].astype(int)
    return pd.concat([lanes, asked, table], axis=1)


def coverage(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A row for each group: its runs, coverage of each figure, false alarms, and `ok`.

    `given` is the share of the runs with an interval of p95. Near saturation it is withheld where
    the run leaves open that the queue has no end.
    """
    rows = []
    for key, group in table.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True))
        row["runs"] = len(group)
        row["given"] = float(group["p95_s"].notna().mean())
        row |= {name: covered(group, [name]) for name in FIGURES}
        row["all"] = covered(group, list(FIGURES))
        row["not standing"] = float((group["status"] != "stands").mean())
        row["width"] = float(group["capacity_width"].median())
        runs = int(group[list(FIGURES)].notna().any(axis=1).sum())
        held = round(row["all"] * runs) if runs else 0
        row["ok"] = not runs or binomial_cdf(held, runs, 0.93) > 0.025
        rows.append(row)
    return pd.DataFrame(rows)


def is_judged(table: pd.DataFrame) -> pd.Series:
    """Whether the limits hold for a run without a fault."""
    kinds = pd.Series(list(zip(table["batching"], table["images"], strict=True)), table.index)
    is_unseen = (table["noise"] == "bimodal") & kinds.isin(UNSEEN)
    return ~is_unseen & (table["noise"] != DEPENDENT)


def covered(table: pd.DataFrame, names: list[str]) -> float:
    """The share of the given intervals of `names` that hold the truth."""
    held = pd.concat([table[name].dropna().astype(float) for name in names])
    return float(held.mean())


# ---- studies with a fault


def faulty_studies(number: int, seed: int) -> list[Study]:
    """So many studies, each fault and policy as often."""
    random = np.random.default_rng(seed)
    cases = []
    for name, (_, images) in FAULTS.items():
        cases += [(name, policy, n) for policy, n in images.items()]
    found = []
    for place in range(number):
        name, policy, images = cases[place % len(cases)]
        steps = str(random.choice(list(STEPS)))
        noise = str(random.choice(["1 %", "1 %, 3 % tail"]))
        load = float(random.choice(FAULT_LOADS))
        lane = Lane(policy, steps, noise)
        found.append(Study(lane, images, load, load, 0.85, seed + place, name))
    return found


def noticed(study_and_truth: tuple[Study, Truth]) -> dict[str, Any]:
    study, truth = study_and_truth
    calibration = run_of(study, truth)
    return {"study": study, "status": calibration.status, "seen": seen_in(calibration)}


def seen_in(calibration: Calibration) -> str:
    """The broken assumptions, in words."""
    return ", ".join(breach.assumption for breach in calibration.breaches)


def catches(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each fault and policy: how often it is noticed, and `ok`."""
    rows = []
    for (fault, batching, images), group in table.groupby(
        ["fault", "batching", "images"], sort=False
    ):
        caught = int((group["status"] != "stands").sum())
        refused = float((group["status"] == "refused").mean())
        row = {"fault": fault, "policy": batching, "images": images, "runs": len(group)}
        row |= {"noticed": caught / len(group), "refused": refused}
        row["ok"] = binomial_cdf(caught, len(group), 0.95) > 0.025
        rows.append(row)
    return pd.DataFrame(rows)


# ---- raw beside calibrated

BESIDE = Lane("serial", "equal", "1 %, 3 % tail")
BESIDE_LOAD = 0.8
BESIDE_IMAGES = (20, 60, 200, 1000)
RAW_IMAGES = (1000, 2000, 4000, 8000, 16_000, 32_000, 64_000)
GOAL_WIDTH = 0.05


def beside(workers: int, repeats: int, requests: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The errors of p95 by the number of images, and how many a capacity within 5 % takes."""
    # 1) The truth, and how fast p95 grows with the rate
    most = most_images_per_s(BESIDE.batching, steps=STEPS[BESIDE.steps], noise=BESIDE.noise)
    rate = BESIDE_LOAD * most
    p95_s = []
    for k in (1.0, 0.98, 1.02):
        simulation = simulated(BESIDE, k * BESIDE_LOAD, most, requests, seed=77)
        p95_s.append(simulation.percentile(0.95)[0])
    growth = float(np.log(p95_s[2] / p95_s[1]) / np.log(1.02 / 0.98))

    # 2) Errors of one run
    rows = []
    for images in BESIDE_IMAGES:
        one = partial(_beside_one, rate, images, p95_s[0])
        found = pd.DataFrame(repeated(one, range(repeats), workers))
        row: dict[str, Any] = {"images": images}
        for way in ("raw", "calibrated"):
            row[f"{way}, median"] = found[way].median()
            row[f"{way}, 90th"] = found[way].quantile(0.9)
        row["capacity width"] = found["width"].median()
        rows.append(row)
    table = pd.DataFrame(rows)

    # 3) Images for a capacity that is known to 5 %
    is_narrow = table["capacity width"] <= GOAL_WIDTH
    calibrated = float(table["images"][is_narrow].min())
    raw = float("inf")
    for images in RAW_IMAGES:
        width = partial(_raw_width, rate, images, growth)
        widths = np.array(repeated(width, range(max(20, repeats // 4)), workers))
        if np.median(widths) <= GOAL_WIDTH:
            raw = images
            break
    return table, {"calibrated": calibrated, "raw": raw, "ratio": calibrated / raw}


def _beside_one(rate: float, images: int, true_s: float, seed: int) -> dict[str, float]:
    run = simulated_run(
        BESIDE.batching, rate=rate, requests=images, noise=BESIDE.noise, seed=50_000 + seed
    )
    calibration = calibrate(run)
    p95_s = calibration.predict(rate).p95_s
    capacity = calibration.capacity(f"p95 < {true_s:.4f} s")
    raw_s = float(run.requests["latency_s"].quantile(0.95))
    low, high = capacity.interval or (0.0, float("inf"))
    width = (high - low) / (capacity.rate or rate)
    calibrated = abs((p95_s or 0.0) / true_s - 1)
    return {"raw": abs(raw_s / true_s - 1), "calibrated": calibrated, "width": width}


def _raw_width(rate: float, images: int, growth: float, seed: int) -> float:
    """The width that the raw p95's interval leaves for the capacity, as a share; inf without one."""
    start = 1000  # requests until the queue is in its steady state
    _, latency_s, _ = long_queue(
        BESIDE.batching,
        rate=rate,
        steps=STEPS[BESIDE.steps],
        noise=BESIDE.noise,
        requests=start + images,
        seed=60_000 + seed,
    )
    estimates = Estimates(latency_s[start:])
    interval = estimates.percentile_interval(0.95)
    if interval is None:
        return float("inf")
    low, high = interval
    return float(np.log(high / low) / growth)


# ---- everything


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a look in about a minute")
    parser.add_argument("--studies", type=int, help="how many; 4000, or 160 with --quick")
    parser.add_argument("--seed", type=int, default=3_000_000, help="the seed of the first study")
    parser.add_argument("--truth", type=Path, help="a file that keeps the truth for the next time")
    parser.add_argument("--rows", type=Path, help="a file for all studies' rows, as CSV")
    options = parser.parse_args()
    begun = time.monotonic()
    number = options.studies or (160 if options.quick else 4000)
    workers = os.cpu_count() or 1
    faulty = int(0.4 * number)

    # 1) The truth
    share = 0.1 if options.quick else 1.0
    by_lane = truths(workers, share, options.truth)
    print(f"the truth of {len(by_lane)} lanes: {time.monotonic() - begun:.0f} s", flush=True)
    for load in LOADS:
        error = max(truth.errors[load] for truth in by_lane.values())
        print(f"its largest standard error at load {load}: {error:.1%}")

    # 2) Runs without a fault: do the intervals hold the truth?
    asked = [(study, by_lane[study.lane]) for study in studies(number - faulty, options.seed)]
    sound = as_frame(repeated(answered, asked, workers))
    judged = sound[is_judged(sound)]
    by_noise = coverage(judged, ["batching", "noise"])
    for table in (
        by_noise,
        coverage(sound[~is_judged(sound)], ["batching", "noise"]),
        coverage(sound, ["images", "noise"]),
        coverage(sound, ["batching", "steps"]),
        coverage(sound, ["batching", "load"]),
        coverage(sound, ["run_load"]),
        coverage(sound, ["promised"]),
    ):
        show(table)
    print(f"{len(sound)} runs: {time.monotonic() - begun:.0f} s", flush=True)

    # 3) Runs with a fault: is it noticed?
    asked = [(study, by_lane[study.lane]) for study in faulty_studies(faulty, options.seed)]
    faults = as_frame(repeated(noticed, asked, workers))
    by_fault = catches(faults)
    show(by_fault)
    print(f"{len(faults)} runs: {time.monotonic() - begun:.0f} s", flush=True)

    # 4) Raw beside calibrated
    repeats, requests = (20, 500_000) if options.quick else (100, 2_000_000)
    errors, images = beside(workers, repeats, requests)
    show(errors)

    # 5) The limits
    if options.rows is not None:
        pd.concat([sound, faults]).to_csv(options.rows, index=False)
    is_alarm = (judged["status"] != "stands") & (judged["seen"] != FEW_SHARED)
    false_alarms = float(is_alarm.mean())
    whole = covered(judged, list(FIGURES))
    passed = {
        "coverage": kept(whole, 0.93, len(judged), options.quick),
        "coverage of rows": bool(by_noise["ok"].all()),
        "faults": bool(by_fault["ok"].all()),
        "false alarms": kept(1 - false_alarms, 0.95, len(judged), options.quick),
        "images": images["ratio"] <= 1 / 20,
    }
    summary = {
        "passed": passed,
        "studies": number,
        "coverage": whole,
        "coverage_of_all": covered(sound, list(FIGURES)),
        "noticed": float((faults["status"] != "stands").mean()),
        "false_alarms": false_alarms,
        "images": images,
        "minutes": (time.monotonic() - begun) / 60,
    }
    print(json.dumps(summary))
    return 0 if all(passed.values()) else 1


def kept(share: float, least: float, runs: int, is_quick: bool) -> bool:
    """Whether a share keeps its limit; chance loosens it for the few runs of a quick look."""
    if share >= least:
        return True
    return is_quick and binomial_cdf(round(share * runs), runs, least) > 0.025


def show(table: pd.DataFrame) -> None:
    text = table.to_string(index=False, na_rep="-", float_format="{:.3f}".format)
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
