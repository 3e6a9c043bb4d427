"""One run of benchlib's load generator, without a study: the generator's outcome and its rows.

Ignorant of the server, and of the figures that the rows are compared with.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchlib.load.arrivals import Arrivals
from benchlib.load.plan import LoadPlan
from benchlib.load.runner import LoadOutcome, generate_load
from benchlib.load.workload import Workload


def one_run(
    url: str,
    arrivals: Arrivals,
    workload: Workload,
    *,
    duration_s: float,
    warmup_s: float = 0.0,
    seed: int = 0,
    api: str = "benchmark",
    workers: int = 1,
) -> tuple[LoadOutcome, list[dict[str, Any]]]:
    """Return the outcome of a run, and its rows in the order of their index."""
    lengths = {"duration_s": duration_s, "warmup_s": warmup_s}
    plan = LoadPlan(url, arrivals, workload, **lengths, seed=seed, api=api, workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        outcome = generate_load(plan, path)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    return outcome, sorted(rows, key=lambda row: row["index"])


def per_second(rows: list[dict[str, Any]], outcome: LoadOutcome) -> float:
    """The rows that were done per second of the measuring window."""
    start_s = outcome.window_start_s
    end_s = outcome.window_end_s
    done = sum(start_s <= row["done_s"] < end_s for row in rows)
    return done / (end_s - start_s)


def measured_s(rows: list[dict[str, Any]]) -> list[float]:
    """The latencies, in seconds, of the rows in the measuring window."""
    return [row["latency_s"] for row in rows if row["phase"] == "measure"]
