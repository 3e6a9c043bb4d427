"""Is a p95 that sixty images foretell the p95 of a run ten times as long? On `tiny`, idle and busy.

    python -m benchmarks.foretold --repeat 3 --results results/foretold

Each repetition calibrates by one run at 0.7 of the capacity that images alone foretell. Then a run
of ten times as many images follows at the same rate. The long run has the same server, so what
differs is the machine meanwhile. `--busy 1` keeps one process busy beside it all the time.

It prints a row for each repetition, and a line of JSON at the end. "raw" is the short run's own
p95. A run of 600 has harsh or kind arrivals by chance, so its own arrivals are simulated, too.
Nothing fails: on a machine that changes between the two runs, no estimate can be right.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import benchlib as bl
from benchlib.questions.capacity.measure import CapacityPlan
from benchlib.queueing.confirming import confirmation
from benchlib.study.latency import latencies, percentile
from benchlib.study.wording import words

LONGER = 10
SHARE_OF_CAPACITY = 0.7
WARMUP_IMAGES = 3


@dataclass(frozen=True)
class Case:
    """What one short run foretold, and what the long run showed; times in seconds."""

    batching: str
    busy: int
    rate: float
    images: int
    status: str
    raw_s: float | None
    foretold_s: float | None
    interval_s: Sequence[float] | None
    own_s: float | None
    """The p95 of the long run's own arrivals, simulated with the short run's services."""
    measured_s: float | None
    verdict: str

    @property
    def error(self) -> float | None:
        """How far the foretold p95 is off, as a share of the measured one."""
        if self.foretold_s is None or self.measured_s is None:
            return None
        return self.foretold_s / self.measured_s - 1

    @property
    def raw_error(self) -> float | None:
        """How far the short run's own p95 is off."""
        if self.raw_s is None or self.measured_s is None:
            return None
        return self.raw_s / self.measured_s - 1

    @property
    def is_covered(self) -> bool | None:
        """Whether the interval holds the measured p95; None without an interval."""
        if self.interval_s is None or self.measured_s is None:
            return None
        low, high = self.interval_s
        return low <= self.measured_s <= high

    @property
    def own_error(self) -> float | None:
        """How far the p95 of the long run's own arrivals, simulated, is off."""
        if self.own_s is None or self.measured_s is None:
            return None
        return self.own_s / self.measured_s - 1

    def __str__(self) -> str:
        foretold = words(self.foretold_s, self.interval_s, "s")
        cells = (
            self.batching,
            str(self.busy),
            f"{self.rate:.3g}/s",
            self.status,
            words(self.raw_s, unit="s"),
            foretold,
            words(self.own_s, unit="s"),
            words(self.measured_s, unit="s"),
            self.verdict,
        )
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| policy | busy processes | rate | estimate | raw p95 of 60 | foretold p95 | its own arrivals, "
    "simulated | p95 of 600 | the long run |\n|---|---|---|---|---|---|---|---|---|"
)


def compare(
    server: bl.Server, plan: CapacityPlan, images: int, busy: int, results: str, seed: int
) -> Case:
    """Makes a short run and a long one, and returns what the first foretold of the second."""
    # 1) Both runs
    alone = bl.foretell(server.spec, plan.alone_s, plan.workload)
    rate = SHARE_OF_CAPACITY * (alone.capacity(plan.slo).rate or 0.5 * alone.most_images_per_s)
    runs = []
    for number, count in enumerate((images, LONGER * images)):
        run = bl.run_load(
            server,
            bl.OpenLoop(rate),
            plan.workload,
            requests=count,
            warmup_s=WARMUP_IMAGES / rate,
            seed=seed + number,
            results=results,
            on_progress=lambda _: None,
        )
        runs.append(run)

    short, long = runs
    return judged(short, long, slo=plan.slo, busy=busy)


def judged(short: bl.Run, long: bl.Run, *, slo: str, busy: int) -> Case:
    """What a short run foretells of a long one at the same rate, on the same server."""
    rate = long.spec["arrivals"]["rate"]
    calibration = bl.calibrate(short)
    foretold = calibration.predict(rate, slo)
    raw_s, measured_s = (percentile(latencies(run.requests), 0.95) for run in (short, long))
    own_s = None
    if calibration.status != "refused":
        own_s = float(calibration.replay(long)["simulated_s"].quantile(0.95))
    return Case(
        batching=long.spec["target"]["batching"],
        busy=busy,
        rate=rate,
        images=calibration.images,
        status=calibration.status,
        raw_s=raw_s,
        foretold_s=foretold.p95_s,
        interval_s=foretold.p95_s_interval,
        own_s=own_s,
        measured_s=measured_s,
        verdict=confirmation(calibration, long, slo=slo).verdict,
    )


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keeps `number` processes busy during the block."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    while os.getppid() > 1:
        sum(range(100_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batching", nargs="+", default=["serial", "continuous"])
    parser.add_argument("--results")
    chosen = parser.parse_args()
    pipe = bl.load_pipeline("tiny")
    cases = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = chosen.results or folder
        for busy in chosen.busy:
            for batching in chosen.batching:
                with busy_processes(busy), bl.serve(pipe, batching=batching) as server:
                    for number in range(chosen.repeat):
                        plan = bl.plan_capacity(pipe, profile="quick")
                        case = compare(server, plan, chosen.images, busy, results, 2 * number)
                        cases.append(case)
                        print(case, flush=True)
    errors = [abs(case.error) for case in cases if case.error is not None]
    raw_errors = [abs(case.raw_error) for case in cases if case.raw_error is not None]
    own_errors = [abs(case.own_error) for case in cases if case.own_error is not None]
    covered = [case.is_covered for case in cases if case.is_covered is not None]
    figures = {
        "cases": [asdict(case) for case in cases],
        "median_error": statistics.median(errors) if errors else None,
        "median_own_error": statistics.median(own_errors) if own_errors else None,
        "median_raw_error": statistics.median(raw_errors) if raw_errors else None,
        "covered": f"{sum(covered)} of {len(covered)}",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
