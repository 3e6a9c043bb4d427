"""Holds benchlib's server against the stock pipeline, a careful naive server, LitServe and a bare route.

    python -m benchmarks.serving                # all parts, some 17 minutes
    python -m benchmarks.serving one users      # parts by name: one, users, mixed, nothing
    python -m benchmarks.serving --quick        # a minute: shows that all works, judges nothing well

prints a table of figures with their limits and, as its last line, all of it as JSON. The exit status is 1 where a limit
is broken, and where a figure could not be measured: without LitServe (the extra `litserve`) say `--without litserve`.

Each side is a process of its own with the same torch threads. All are loaded first, and then stand still (SIGSTOP) but
for the one that is measured; repetitions go through the sides in turn, back and forth, so that drift hits all alike. A
figure is the median over repetitions of a ratio within one, with the 95 % interval of a median (from six repetitions
on). Requests are 64x64 pixels with 8 steps but in `mixed`. Knows the sides and the limits; ignorant of how anything is
computed.
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
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import pandas as pd

from benchlib.load.arrivals import ClosedLoop, OpenLoop
from benchlib.load.workload import Workload
from benchlib.machine import describe_load
from benchlib.questions.batching.forecast import predict_latency
from benchlib.study.intervals import order_ranks
from benchmarks.sides import LITSERVE, OURS, DidNotStart, Measured, Side, back_to_back, load, start

SMALL = Workload("a lighthouse at dusk", width=64, height=64, num_inference_steps=8)
STEPS = range(4, 41, 4)
MIXED = Workload("a lighthouse at dusk", width=64, height=64, num_inference_steps=list(STEPS))


@dataclass(frozen=True)
class Figure:
    """A figure of each repetition, and the limits, both included, of their median.

    With `by_interval` a limit is broken where the whole interval is beyond it. Without values it was `not_measured`.
    """

    case: str
    name: str
    values: list[float]
    low: float | None = None
    high: float | None = None
    by_interval: bool = False
    not_measured: str | None = None

    @property
    def value(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the median, with at least 95 %, whatever the distribution; None for fewer than six values."""
        low, high = order_ranks(len(self.values), 0.5)
        return (sorted(self.values)[low - 1], sorted(self.values)[high - 1]) if low else None

    @property
    def passed(self) -> bool | None:
        """None where there is no limit; False where there is one and nothing was measured."""
        if self.low is None and self.high is None:
            return None
        if self.value is None:
            return False
        least, most = (self.interval if self.by_interval else None) or (self.value, self.value)
        return (self.low is None or most >= self.low) and (self.high is None or least <= self.high)

    def told(self) -> dict[str, Any]:
        return asdict(self) | {
            "value": self.value,
            "interval": self.interval,
            "passed": self.passed,
        }


@dataclass
class Bench:
    """The sides that are up, why others are not, how long and how often is measured, and what came of it."""

    sides: dict[str, Side]
    missing: dict[str, str]
    repeat: int
    scale: float
    runs: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)

    def interleave(
        self, case: str, runs: dict[str, tuple[str, Callable[[Side, int], Measured]]]
    ) -> None:
        """Each run, (side, how), `repeat` times, the rounds back and forth; those of missing sides are left out."""
        measured = self.runs.setdefault(case, {})
        for number in range(self.repeat):
            for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
                side, how = runs[name]
                if side in self.sides:
                    measured.setdefault(name, []).append(how(self.sides[side], number))
            print(f"{case}: round {number + 1} of {self.repeat}", file=sys.stderr, flush=True)

    def told(self, case: str, name: str, of: str) -> Figure:
        """A side's own figure (`of`: "images_per_s", "p95_s", ...), without a limit."""
        return Figure(
            case, f"{name}: {of}", self._values(case, name, of), not_measured=self._why(case, name)
        )

    def against(
        self, case: str, one: str, other: str, of: str, *, apart: bool = False, **limits: Any
    ) -> Figure:
        """`one`'s figure over `other`'s of the same repetition, or less it where they are held `apart`."""
        pairs = zip(self._values(case, one, of), self._values(case, other, of), strict=False)
        values = [mine - theirs if apart else mine / theirs for mine, theirs in pairs]
        words = f"{one} {'less' if apart else 'over'} {other}: {of}"
        return Figure(
            case,
            words,
            values,
            **limits,
            not_measured=self._why(case, one) or self._why(case, other),
        )

    def slowdown(self, case: str) -> Figure:
        """What an image alone took in each serial run, its queueing left out, over what the step times of warm-up say:
        beside a load generator, and whatever the machine does meanwhile, torch is slower than it was then."""
        values, why = [], self._why(case, "serial") or self._why(case, "continuous")
        for run in [] if why else self.runs[case]["serial"]:
            rows = pd.DataFrame(run.rows)
            apart = rows.assign(scheduled_s=1e6 * rows.index)
            alone_s = predict_latency(apart, self.sides["continuous"].spec, batching="serial")
            values.append(float((rows["total_s"] - rows["queue_s"]).sum() / alone_s.sum()))
        return Figure(case, "serial's work over its step times", values, not_measured=why)

    def forecast(self, case: str, name: str) -> Figure:
        """The mean latency over that of the simulator on the same requests, which is told the step times that the
        continuous side measured at its start, and the round's slowdown."""
        slowdown, values = self.slowdown(case), []
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
        runs = [run for case in self.runs.values() for several in case.values() for run in several]
        return Figure("all", "requests that failed", [sum(run.failed for run in runs)], high=0)

    def _values(self, case: str, name: str, of: str) -> list[float]:
        return [] if self._why(case, name) else [getattr(run, of) for run in self.runs[case][name]]

    def _why(self, case: str, name: str) -> str | None:
        """Why a side has no figures; a run without an answer in its window spoils them all."""
        if name not in self.runs[case]:
            return next(why for side, why in self.missing.items() if name.startswith(side))
        answered = all(run.latencies_s and run.images_per_s for run in self.runs[case][name])
        return None if answered else "a run had no answer within its window"


def one(bench: Bench) -> list[Figure]:
    """One user at the serial server against the bare call; and four, so that its queue is never empty."""
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
    bare_s = bench.told(case, "loop", "median_s")
    allowed_s = max(0.003, 0.02 * (bare_s.value or 0.0))
    return [
        bare_s,
        bench.told(case, "loop", "images_per_s"),
        bench.against(case, "serial", "loop", "median_s", apart=True, high=allowed_s),
        bench.against(case, "serial, 4 users", "loop", "images_per_s", low=1.0),
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
        figures += [
            bench.told(case, name, of) for of in ("images_per_s", "p95_s") for name in names
        ]
        figures += [bench.against(case, "continuous", "naive", "images_per_s", low=least)]
        figures += [
            bench.against(case, "continuous", "dynamic", "images_per_s", low=1.0, by_interval=True)
        ]
        for rival in LITSERVE:
            figures += [bench.against(case, "continuous", rival, "images_per_s", low=1.0)]
            figures += [bench.against(case, "continuous", rival, "p95_s", high=1.0)]
    return figures


def mixed(bench: Bench) -> list[Figure]:
    """4 to 40 steps, Poisson arrivals at 80 % of what the serial server can do in that round, the same for all."""
    case = "mixed"
    if "serial" not in bench.sides:
        return [Figure(case, "all", [], low=1, not_measured=bench.missing["serial"])]
    capacities: list[float] = []

    def run(side: Side, number: int) -> Measured:
        if number == len(capacities):  # a new round: how fast is the machine now?
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
        figures += [bench.told(case, name, of) for name in OURS]
        figures += [bench.against(case, "continuous", "serial", of, high=0.5)]
        figures += [bench.against(case, "continuous", "dynamic", of, high=1.0)]
        figures += [bench.against(case, "dynamic", "serial", of)]
    return [*figures, bench.slowdown(case), *(bench.forecast(case, name) for name in OURS)]


def nothing(bench: Bench) -> list[Figure]:
    """A model that takes no time: what the app and the engine take, against a route that does nothing."""
    figures = []
    for number in (8, 32):
        case = f"nothing, users {number}"

        def run(side: Side, _: int, number: int = number) -> Measured:
            return load(side, ClosedLoop(number), SMALL, duration_s=2 * bench.scale, warmup_s=0.5)

        bench.interleave(case, {name: (name, run) for name in ("nothing", "route")})
        for name in ("nothing", "route"):
            figures += [
                bench.told(case, name, "images_per_s"),
                bench.told(case, name, "generator_cpu_cores"),
            ]
        figures += [bench.against(case, "nothing", "route", "images_per_s", low=0.5)]
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
    """The figures of these parts; sides whose name begins as one of `without` are left out, with all their figures."""
    parts, without = list(parts), tuple(without)
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
    """The versions that matter; None: not there. Where uvloop is, uvicorn takes it, on every side."""
    versions: dict[str, str | None] = dict.fromkeys(
        ("torch", "diffusers", "fastapi", "uvicorn", "uvloop", "litserve")
    )
    for name in versions:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Hold benchlib's server against others, on the tiny model."
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
        help="leave out a side, as litserve",
    )
    options = parser.parse_args(arguments)
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    conditions = [describe_load()]
    figures = measure(
        options.parts or PARTS,
        repeat=options.repeat or (1 if options.quick else 6),
        scale=0.25 if options.quick else 1.0,
        threads=options.threads,
        without=options.without,
    )
    print(f"{'':5}{'case':18}{'figure':50}{'value':>10}  {'interval':22}limits")
    for figure in figures:
        passed = {None: "", True: "ok", False: "FAIL"}[figure.passed]
        limits = "" if figure.passed is None else f"{_words(figure.low)} to {_words(figure.high)}"
        value = "not measured" if figure.value is None else f"{figure.value:10.4g}"
        interval = " to ".join(map(_words, figure.interval)) if figure.interval else ""
        print(f"{passed:5}{figure.case:18}{figure.name:50}{value:>10}  {interval:22}{limits}")
    told = {
        "conditions": [*conditions, describe_load()],
        "cores": os.cpu_count(),
        "threads": options.threads,
        "packages": packages(),
    }
    told |= {"passed": all(figure.passed is not False for figure in figures)}
    print(json.dumps(told | {"figures": [figure.told() for figure in figures]}))
    return 0 if told["passed"] else 1


def _words(limit: float | None) -> str:
    return "-" if limit is None else f"{limit:.4g}"


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # or the sides would be left, standing still
    sys.exit(main())
