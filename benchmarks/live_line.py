"""Is the live line of a run seen in what it measures? The same runs with and without it, in turns.

    python -m benchmarks.live_line

serves `tiny` in a Jupyter kernel, as a notebook does, and prints what the line makes of throughput and of the mean
latency, as ratios with 95 % intervals over the pairs; the exit status is 1 where one lies beyond LIMIT on the bad side.
It takes some four minutes, and the machine should have nothing else to do. A browser's own work is not in it.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import benchlib as bl
from benchlib.study.intervals import runs_interval

LIMIT = 0.02
SESSION = "JPY_SESSION_NAME"  # what tells benchlib that a person watches


def measure(pairs: int = 12, requests: int = 150) -> bool:
    """Within a kernel: `pairs` of runs; whether both intervals leave room for less than LIMIT."""
    workload = bl.Workload(width=64, height=64, num_inference_steps=4)
    logs: dict[str, list[float]] = {"throughput": [], "mean latency": []}
    with bl.serve("tiny", batching="serial") as server, tempfile.TemporaryDirectory() as results:
        for number in range(pairs):
            figures = {}
            for watched in (True, False) if number % 2 else (False, True):
                os.environ.pop(SESSION, None)
                os.environ |= {SESSION: "live_line"} if watched else {}
                silent = None if watched else lambda _: None
                run = bl.run_load(
                    server,
                    bl.ClosedLoop(2),
                    workload,
                    requests=requests,
                    results=results,
                    on_progress=silent,
                )
                images_per_s, mean_s = (
                    run.summary()["throughput_images_per_s"],
                    run.requests["latency_s"].mean(),
                )
                figures[watched] = {"throughput": images_per_s, "mean latency": mean_s}
            for name, found in logs.items():
                found.append(math.log(figures[True][name] / figures[False][name]))
    passed = True
    for name, found in logs.items():
        low, high = map(math.exp, runs_interval(found) or (-math.inf, math.inf))
        print(
            f"{name}: with the line {math.exp(statistics.mean(found)):.4f} times ({low:.4f} to {high:.4f})"
        )
        passed &= low > 1 - LIMIT if name == "throughput" else high < 1 + LIMIT
    return passed


def main() -> int:
    cell = nbformat.v4.new_code_cell("from benchmarks import live_line\nassert live_line.measure()")
    book = nbformat.v4.new_notebook(cells=[cell])
    try:
        NotebookClient(
            book, kernel_name="python3", resources={"metadata": {"path": Path(__file__).parents[1]}}
        ).execute()
        status = 0
    except CellExecutionError as error:
        if "AssertionError" not in str(error):
            raise
        status = 1
    outputs = book.cells[0].outputs
    widgets = sum(
        "application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs
    )
    print(
        *(output.text for output in outputs if output.get("name") == "stdout"),
        f"{widgets} bars were drawn",
        sep="\n",
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
