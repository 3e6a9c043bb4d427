"""The server's own share of an image of few steps, and what batching gives there.

    python -m benchmarks.server_share            # some 6 minutes
    python -m benchmarks.server_share --quick    # a minute: shows that every part works
    python -m benchmarks.server_share --asleep   # on a busy machine: see below

Eight users request images of 64x64 pixels from the tiny model on one torch thread, at 1, 2 and 4
steps. Both routes are measured: /benchmark/generate, and OpenAI's with a PNG in base64. Rounds go
through serial, dynamic and continuous batching in turn, back and forth.

The server's share is taken in three ways, because requests that share the model overlap:

- *lost*: one less the images per second over those of the pipeline without a server, which makes
  eight images at a time. What the threads take from each other is in it, and the load generator.
- *idle*: the share of the time in which the model does not compute, by /metrics. With eight users
  there is always a request to compute. Nothing in a request's own wait for others is in it.
- *of a request*: everything but queue, encode, denoise, decode and `wait`, over everything but
  queue and `wait`. It is the time of the file, of HTTP and of the client. `wait` is printed alone:
  the other requests' calls of the model are in it.

With `--asleep` a model that sleeps as long as tiny computes stands for it. So other work on the
machine slows down the server, and not the model. The images without a server are then calculated.

Knows rows and metrics. Ignorant of how images are computed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import urllib.request
from contextlib import ExitStack
from typing import Any

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.workload import Workload
from benchlib.machine import describe_load
from benchmarks.fakes.sleeping_server import batches_per_s
from benchmarks.figures import Figure, print_table
from benchmarks.sides import ASLEEP, OURS, Measured, Side, back_to_back, load, start

USERS = 8
BARE = "batches"
STEPS = (1, 2, 4)
APIS = ("benchmark", "openai")
MOST_SHARE = 0.10
MODEL = ("encode_s", "denoise_s", "decode_s")


def busy_s(side: Side) -> float:
    """Seconds in which the model has computed since the server's start."""
    with side.awake(), urllib.request.urlopen(f"{side.url}/metrics", timeout=30) as answer:
        page = answer.read().decode()
    found = re.search(r"^benchlib_busy_seconds_total (\S+)$", page, re.MULTILINE)
    assert found is not None
    return float(found[1])


def shares(run: Measured, computed_s: float) -> dict[str, float]:
    """The median of each part of a request in ms, and the server's shares of one run."""
    good = [row for row in run.rows if row["error"] is None]
    measured = [row for row in good if row["phase"] == "measure"]
    parts: dict[str, list[float]] = {}
    for row in measured:
        outside_s = row["latency_s"] - row["total_s"]
        model_s = sum(row[name] for name in MODEL)
        own_s = row["image_s"] + outside_s
        values = {name: row[name] for name in ("queue_s", *MODEL, "wait_s", "image_s")}
        values |= {"outside_s": outside_s}
        for name, value in values.items():
            parts.setdefault(name.replace("_s", "_ms"), []).append(1000 * value)
        parts.setdefault("share of a request", []).append(own_s / (own_s + model_s))
    medians = {name: statistics.median(values) for name, values in parts.items()}
    first_s = min(row["sent_s"] for row in good)
    last_s = max(row["done_s"] for row in good)
    medians["idle share"] = 1 - computed_s / (last_s - first_s)
    medians["batch"] = statistics.mean(row["batch_size"] for row in measured)
    return medians


def measure(
    rounds: int, duration_s: float, steps: tuple[int, ...], *, asleep: bool = False
) -> list[Figure]:
    """The figures of all cases; each value is one round's."""
    before = ASLEEP if asleep else ""
    with_model = OURS if asleep else (*OURS, BARE)
    found: dict[tuple[str, str, str], list[float]] = {}
    with ExitStack() as stack:
        sides = {}
        for name in with_model:
            sides[name] = stack.enter_context(start(before + name, threads=1))
        for number in range(rounds):
            for api in APIS:
                for count in steps:
                    case = f"{api}, {count} steps"
                    workload = Workload(
                        "a lighthouse", width=64, height=64, num_inference_steps=count
                    )
                    names = list(sides) if number % 2 == 0 else list(reversed(sides))
                    if asleep:
                        calculated = batches_per_s(USERS, count)
                        found.setdefault((case, BARE, "images_per_s"), []).append(calculated)
                    for name in names:
                        side = sides[name]
                        if name == BARE:
                            bare = back_to_back(side, workload, duration_s=duration_s)
                            key = (case, name, "images_per_s")
                            found.setdefault(key, []).append(bare.images_per_s)
                            continue
                        before_s = busy_s(side)
                        run = load(
                            side,
                            ClosedLoop(USERS),
                            workload,
                            duration_s=duration_s,
                            warmup_s=0.3,
                            api=api,
                        )
                        values = shares(run, busy_s(side) - before_s)
                        values |= {"images_per_s": run.images_per_s}
                        for what, value in values.items():
                            found.setdefault((case, name, what), []).append(value)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return figures_of(found)


def figures_of(found: dict[tuple[str, str, str], list[float]]) -> list[Figure]:
    """The table: continuous' parts and shares, and images per second over serial's."""
    figures = []
    for (case, name, what), values in found.items():
        figures.append(Figure(case, f"{name}: {what}", values))
    for case in dict.fromkeys(case for case, _, _ in found):
        serial = found[case, "serial", "images_per_s"]
        bare = found[case, BARE, "images_per_s"]
        for name in ("dynamic", "continuous"):
            own = found[case, name, "images_per_s"]
            lost = [1 - mine / theirs for mine, theirs in zip(own, bare, strict=True)]
            high = MOST_SHARE if case.endswith(" 4 steps") else None
            figures.append(Figure(case, f"{name}: lost share", lost, high=high))
            ratios = [mine / theirs for mine, theirs in zip(own, serial, strict=True)]
            figures.append(
                Figure(case, f"{name} over serial: images_per_s", ratios, low=1.0, by_interval=True)
            )
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The server's own share of an image of few steps.")
    parser.add_argument("--quick", action="store_true", help="one short round, at four steps")
    parser.add_argument("--rounds", type=int, default=6, help="rounds, 6 if not given")
    parser.add_argument("--asleep", action="store_true", help="a model that sleeps stands for tiny")
    options = parser.parse_args(arguments)
    conditions: list[Any] = [describe_load()]
    quick = (1, 1.0, STEPS[-1:])
    extent = quick if options.quick else (options.rounds, 2.0, STEPS)
    figures = measure(*extent, asleep=options.asleep)
    print_table(figures)
    passed = all(figure.passed is not False for figure in figures)
    told = {
        "conditions": [*conditions, describe_load()],
        "passed": passed,
        "figures": [figure.to_dict() for figure in figures],
    }
    print(json.dumps(told))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
