"""Compares benchlib's server with the stock pipeline, a naive server, LitServe and a bare route.

    python -m benchmarks.serving                # all parts, some 17 minutes
    python -m benchmarks.serving one users      # parts by name: one, users, mixed, nothing
    python -m benchmarks.serving --quick        # a minute: shows that every part works

Prints a table of figures with their limits. The last line has all figures as JSON. The exit status
is 1 if a limit is broken, or if a figure could not be measured. LitServe is an extra (`litserve`);
without it, use `--without litserve`.

Each side is a process of its own with the same number of torch threads. All sides are loaded first.
Then each side is stopped (SIGSTOP) unless it is being measured. Repetitions go through the sides in
turn, back and forth, so that drift of the machine hits all alike. A figure is the median, over
repetitions, of a ratio within one repetition. From six repetitions on, it has the 95 % interval of
a median. Requests are 64x64 pixels with 8 steps, except in `mixed`.

Knows the sides and the limits. Ignorant of how images are computed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pandas as pd

from benchlib.load.arrivals import ClosedLoop, OpenLoop
from benchlib.load.workload import Workload
from benchlib.machine import describe_load
from benchlib.questions.batching.forecast import predict_latency
from benchmarks.figures import Figure, print_table
from benchmarks.sides import (
    LITSERVE,
    OURS,
    DidNotStart,
    Measured,
    Side,
    back_to_back,
    load,
    start,
)

SMALL = Workload("a lighthouse at dusk", width=64, height=64, num_inference_steps=8)
STEPS = range(4, 41, 4)
MIXED = Workload("a lighthouse at dusk", width=64, height=64, num_inference_steps=list(STEPS))


@dataclass
class Bench:
    """The loaded sides, the reasons why others are missing, and the finished runs.

    `repeat` is the number of repetitions; `scale` multiplies the duration of each run.
    """

    sides: dict[str, Side]
    missing: dict[str, str]
    repeat: int
    scale: float
    runs: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)

    def interleave(
        self, case: str, runs: dict[str, tuple[str, Callable[[Side, int], Measured]]]
    ) -> None:
        """Makes each run, (side, how), `repeat` times, and leaves out missing sides.

        Every second round goes backwards.
        """
        measured = self.runs.setdefault(case, {})
        for number in range(self.repeat):
            names = list(runs)
            if number % 2:
                names.reverse()
            for name in names:
                side, how = runs[name]
                if side in self.sides:
                    measured.setdefault(name, []).append(how(self.sides[side], number))
            print(f"{case}: round {number + 1} of {self.repeat}", file=sys.stderr, flush=True)

    def own(self, case: str, name: str, what: str) -> Figure:
        """A side's own figure (`what`: "images_per_s", "p95_s", ...), without a limit."""
        values = self._values(case, name, what)
        return Figure(case, f"{name}: {what}", values, not_measured=self._why(case, name))

    def over(self, case: str, one: str, other: str, what: str, **limits: Any) -> Figure:
        """The ratio of `one`'s figure to `other`'s figure in each repetition."""
        pairs = self._pairs(case, one, other, what)
        values = [mine / theirs for mine, theirs in pairs]
        why = self._why(case, one) or self._why(case, other)
        return Figure(case, f"{one} over {other}: {what}", values, **limits, not_measured=why)

    def less(self, case: str, one: str, other: str, what: str, **limits: Any) -> Figure:
        """`one`'s figure less `other`'s figure in each repetition."""
        pairs = self._pairs(case, one, other, what)
        values = [mine - theirs for mine, theirs in pairs]
        why = self._why(case, one) or self._why(case, other)
        return Figure(case, f"{one} less {other}: {what}", values, **limits, not_measured=why)

    def slowdown(self, case: str) -> Figure:
        """The slowdown of torch in each serial run against warm-up, which measured the step times.

        It is an image's time without queueing over the time that the step times predict. Torch is
        slower beside a load generator and beside any other work of the machine.
        """
        values: list[float] = []
        why = self._why(case, "serial") or self._why(case, "continuous")
        for run in [] if why else self.runs[case]["serial"]:
            rows = pd.DataFrame(run.rows)
            work_s = rows["total_s"] - rows["queue_s"]
            far_apart = rows.assign(scheduled_s=1e6 * rows.index)
            alone_s = predict_latency(far_apart, self.sides["continuous"].spec, batching="serial")
            values.append(float(work_s.sum() / alone_s.sum()))
        return Figure(case, "serial's work over its step times", values, not_measured=why)

    def forecast(self, case: str, name: str) -> Figure:
        """The mean latency over the simulator's mean latency on the same requests.

        The simulator uses the step times that the continuous side measured at its start, and the
        round's slowdown.
        """
        slowdown = self.slowdown(case)
        values: list[float] = []
        why = self._why(case, name) or slowdown.not_measured
        for run, slower in zip([] if why else self.runs[case][name], slowdown.values, strict=False):
            rows = pd.DataFrame(run.rows)
            faster = rows.assign(scheduled_s=rows["scheduled_s"] / slower)
            predicted_s = slower * predict_latency(
                faster, self.sides["continuous"].spec, batching=name
            )
            values.append(run.mean_s / float(predicted_s[rows["phase"] == "measure"].mean()))
        limits: dict[str, Any] = {"low": 0.85, "high": 1.15, "by_interval": True}
        return Figure(case, f"{name} over its forecast: mean_s", values, **limits, not_measured=why)

    def failed(self) -> Figure:
        """The number of requests that failed in all runs."""
        failed = 0
        for runs_by_name in self.runs.values():
            for runs in runs_by_name.values():
                failed += sum(run.failed for run in runs)
        return Figure.once("all", "requests that failed", failed, high=0)

    def _values(self, case: str, name: str, what: str) -> list[float]:
        if self._why(case, name):
            return []
        return [getattr(run, what) for run in self.runs[case][name]]

    def _pairs(self, case: str, one: str, other: str, what: str) -> Iterable[tuple[float, float]]:
        return zip(self._values(case, one, what), self._values(case, other, what), strict=False)

    def _why(self, case: str, name: str) -> str | None:
        """The reason why a side has no figures, or None. One run without an answer is enough."""
        if name not in self.runs[case]:
            return next(why for side, why in self.missing.items() if name.startswith(side))
        answered = all(run.latencies_s and run.images_per_s for run in self.runs[case][name])
        return None if answered else "a run had no answer within its window"


def one(bench: Bench) -> list[Figure]:
    """One user at the serial server against the bare call; four users keep its queue filled."""
    time_s = {"duration_s": 4 * bench.scale, "warmup_s": 0.5}
    case = "one"
    bench.interleave(
        case,
        {
            "loop": (
                "loop",
                lambda side, _: back_to_back(side, SMALL, duration_s=time_s["duration_s"]),
            ),
            "serial": ("serial", lambda side, _: load(side, ClosedLoop(1), SMALL, **time_s)),
            "serial, 4 users": (
                "serial",
                lambda side, _: load(side, ClosedLoop(4), SMALL, **time_s),
            ),
        },
    )
    bare_s = bench.own(case, "loop", "median_s")
    allowed_s = max(0.003, 0.02 * (bare_s.value or 0.0))
    return [
        bare_s,
        bench.own(case, "loop", "images_per_s"),
        bench.less(case, "serial", "loop", "median_s", high=allowed_s),
        bench.over(case, "serial, 4 users", "loop", "images_per_s", low=1.0),
    ]


def users(bench: Bench) -> list[Figure]:
    """1, 8 and 32 users at every server."""
    figures = []
    time_s = {"duration_s": 3 * bench.scale, "warmup_s": bench.scale}
    names = PARTS["users"][1]
    for number, least in ((1, 1.03), (8, 3.3), (32, 3.3)):
        case = f"users {number}"

        def run(side: Side, _: int, number: int = number) -> Measured:
            return load(side, ClosedLoop(number), SMALL, **time_s)

        bench.interleave(case, {name: (name, run) for name in names})
        figures += [bench.own(case, name, of) for of in ("images_per_s", "p95_s") for name in names]
        figures += [bench.over(case, "continuous", "naive", "images_per_s", low=least)]
        figures += [
            bench.over(case, "continuous", "dynamic", "images_per_s", low=1.0, by_interval=True)
        ]
        for rival in LITSERVE:
            figures += [bench.over(case, "continuous", rival, "images_per_s", low=1.0)]
            figures += [bench.over(case, "continuous", rival, "p95_s", high=1.0)]
    return figures


def mixed(bench: Bench) -> list[Figure]:
    """Requests of 4 to 40 steps, with the same Poisson arrivals for all servers.

    The rate is 80 % of the serial server's capacity in that round.
    """
    case = "mixed"
    if "serial" not in bench.sides:
        return [Figure(case, "all", [], low=1, not_measured=bench.missing["serial"])]
    capacities: list[float] = []

    def run(side: Side, number: int) -> Measured:
        # A new round begins with the machine's capacity at this time.
        if number == len(capacities):
            full = load(
                bench.sides["serial"],
                ClosedLoop(4),
                MIXED,
                duration_s=8 * bench.scale,
                warmup_s=1.0,
            )
            drawn = statistics.mean(row["num_inference_steps"] for row in full.rows)
            capacities.append(full.images_per_s * drawn / statistics.mean(STEPS))
        arrivals = OpenLoop(0.8 * capacities[number])
        return load(side, arrivals, MIXED, duration_s=18 * bench.scale, warmup_s=0.0, seed=number)

    bench.interleave(case, {name: (name, run) for name in OURS})
    figures = [Figure(case, "serial, queue never empty: images_per_s", capacities)]
    for of in ("mean_s", "p95_s"):
        figures += [bench.own(case, name, of) for name in OURS]
        figures += [bench.over(case, "continuous", "serial", of, high=0.5)]
        figures += [bench.over(case, "continuous", "dynamic", of, high=1.0)]
        figures += [bench.over(case, "dynamic", "serial", of)]
    return [*figures, bench.slowdown(case), *(bench.forecast(case, name) for name in OURS)]


def nothing(bench: Bench) -> list[Figure]:
    """The cost of the app and the engine: a model without work, against a route that does nothing."""
    figures = []
    for number in (8, 32):
        case = f"nothing, users {number}"

        def run(side: Side, _: int, number: int = number) -> Measured:
            return load(side, ClosedLoop(number), SMALL, duration_s=2 * bench.scale, warmup_s=0.5)

        bench.interleave(case, {name: (name, run) for name in ("nothing", "route")})
        for name in ("nothing", "route"):
            figures += [
                bench.own(case, name, "images_per_s"),
                bench.own(case, name, "generator_cpu_cores"),
            ]
        figures += [bench.over(case, "nothing", "route", "images_per_s", low=0.5)]
    return figures


PARTS: dict[str, tuple[Callable[[Bench], list[Figure]], tuple[str, ...]]] = {
    "one": (one, ("loop", "serial")),
    "users": (users, ("naive", "dynamic", "continuous", *LITSERVE)),
    "mixed": (mixed, OURS),
    "nothing": (nothing, ("nothing", "route")),
}


def measure(
    parts: Iterable[str],
    *,
    repeat: int,
    scale: float,
    threads: int | None,
    without: Iterable[str] = (),
) -> list[Figure]:
    """The figures of `parts`, without the sides whose names begin with a word of `without`."""
    parts = list(parts)
    without = tuple(without)
    names = dict.fromkeys(name for part in parts for name in PARTS[part][1])
    with ExitStack() as stack:
        bench = Bench({}, {}, repeat, scale)
        for name in names:
            if name.startswith(without):
                bench.missing[name] = "left out"
                continue
            try:
                bench.sides[name] = stack.enter_context(start(name, threads))
            except DidNotStart as error:
                bench.missing[name] = str(error)
                print(f"{name} is not measured: {error}", file=sys.stderr, flush=True)
        figures = [figure for part in parts for figure in PARTS[part][0](bench)]
        return [figure for figure in figures if figure.not_measured != "left out"] + [
            bench.failed()
        ]


def packages() -> dict[str, str | None]:
    """The versions of the packages that matter; None for a missing package.

    If uvloop is installed, uvicorn uses it on every side.
    """
    versions: dict[str, str | None] = dict.fromkeys(
        ("torch", "diffusers", "fastapi", "uvicorn", "uvloop", "litserve")
    )
    for name in versions:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compare benchlib's server with others, on the tiny model."
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="part",
        help=f"any of {', '.join(PARTS)}; all of them if not given",
    )
    parser.add_argument("--quick", action="store_true", help="one short repetition")
    parser.add_argument("--repeat", type=int, help="repetitions, 6 if not given")
    parser.add_argument(
        "--threads", type=int, help="torch's threads on every side; torch's own choice if not given"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="side",
        help="leave out a side, such as litserve",
    )
    options = parser.parse_args(arguments)
    unknown = {*options.parts} - {*PARTS}
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")

    # 1) Measure
    conditions = [describe_load()]
    figures = measure(
        options.parts or PARTS,
        repeat=options.repeat or (1 if options.quick else 6),
        scale=0.25 if options.quick else 1.0,
        threads=options.threads,
        without=options.without,
    )

    # 2) Show
    print_table(figures)
    passed = all(figure.passed is not False for figure in figures)
    everything = {
        "conditions": [*conditions, describe_load()],
        "cores": os.cpu_count(),
        "threads": options.threads,
        "packages": packages(),
        "passed": passed,
        "figures": [figure.to_dict() for figure in figures],
    }
    print(json.dumps(everything))
    return 0 if passed else 1


if __name__ == "__main__":
    # Without this handler the stopped sides would be left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
