"""How many requests a second do several workers send on time, beside a server that records each one?

    python -m benchmarks.workers                            # 2 workers, 1,500 a second: for 2 cores
    python -m benchmarks.workers --workers 4 --rate 4000    # for 16 cores

takes half a minute. It prints a table of figures with their limits. The last line has all figures,
the machine and the load average as JSON. The exit status is 1 if a limit is broken.

Knows the fake server, which answers at once and keeps its own record. Ignorant of models and images.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchlib.load.arrivals import OpenLoop
from benchlib.machine import describe_machine

# A file that is run by its path does not find `benchmarks`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.figures import Figure, percentile, print_table
from benchmarks.truth import Measured, measure, unmatched

WARMUP_S = 1.0


def judge(run: Measured, rate: float, duration_s: float, workers: int) -> list[Figure]:
    """The figures of a run, by the limits of `reach` in truth.py."""
    # 1) Both records, by the requests' ids
    case = f"{workers} at {rate:g}/s"
    seen = [run.seen.get(row["request_id"]) for row in run.rows]
    start_s = run.outcome.started_monotonic_s
    before_s = [
        start_s + row["sent_s"] - request["received_s"]
        for row, request in zip(run.rows, seen, strict=True)
        if request is not None
    ]
    failed = sum(row["error"] is not None for row in run.rows)
    schedule = OpenLoop(rate).schedule(WARMUP_S + duration_s, 0)
    moved_s = [
        abs(row["scheduled_s"] - due_s) for row, due_s in zip(run.rows, schedule, strict=False)
    ]

    # 2) What the workers say of themselves
    found = run.outcome.workers
    each = [] if found is None else found["each"]
    lag_s = run.outcome.send_lag_p99_s
    cores = run.outcome.generator_cpu_cores
    assert lag_s is not None
    assert cores is not None
    figures = [
        Figure.once(case, "rows without a request, and the reverse", unmatched(run), 0, 0),
        Figure.once(
            case, "requests more or fewer than planned", len(run.rows) - len(schedule), 0, 0
        ),
        Figure.once(case, "moment off the schedule, at most, s", max(moved_s), high=1e-6),
        Figure.once(case, "requests that failed", failed, 0, 0),
        Figure.once(
            case,
            "requests sent a second",
            len(run.latencies_s) / duration_s,
            0.95 * rate,
            1.05 * rate,
        ),
        Figure.once(
            case, "send lag, p99, s", lag_s, high=0.005 + 0.01 * percentile(run.latencies_s, 0.5)
        ),
        Figure.once(case, "sent after the server had it, at most, s", max(before_s), high=1e-6),
        Figure.once(case, "busiest process of the generator, cores", cores, high=0.8),
    ]
    for one in each:
        name = f"worker {one['worker']}"
        figures.append(Figure.once(case, f"{name}, requests", one["requests"]))
        figures.append(Figure.once(case, f"{name}, cores", one["cpu_cores"]))
    if found is not None:
        figures.append(Figure.once(case, "master, cores", found["master_cpu_cores"]))
        figures.append(Figure.once(case, "workers lost", len(found["lost"]), 0, 0))
        figures.append(Figure.once(case, "clocks, s", found["clock_error_s"], high=0.005))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1500.0, help="requests a second, Poisson")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    run = measure(
        OpenLoop(options.rate), options.seconds, warmup_s=WARMUP_S, workers=options.workers
    )
    figures = judge(run, options.rate, options.seconds, options.workers)
    print_table(figures)
    report = {
        "load_average_before": before,
        "machine": describe_machine(),
        "passed": all(one.passed is not False for one in figures),
    }
    print(json.dumps(report | {"figures": [one.to_dict() for one in figures]}))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
