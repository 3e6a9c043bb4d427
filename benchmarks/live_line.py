"""Does a run's live line change the run's figures? Makes runs with and without the line, in turns.

    python -m benchmarks.live_line

serves `tiny` in a Jupyter kernel, as a notebook does. It prints throughput and mean latency as
ratios, with the line over without the line. The 95 % intervals are over the pairs. The exit status
is 1 if an interval reaches LIMIT on the bad side. The benchmark takes about four minutes on a
machine without other work. It does not measure a browser's own work.
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
SESSION = "JPY_SESSION_NAME"  # if it is set, benchlib assumes that a person watches


def measure(pairs: int = 12, requests: int = 150) -> bool:
    """Makes `pairs` of runs in this kernel; returns whether both intervals stay within LIMIT."""
    workload = bl.Workload(width=64, height=64, num_inference_steps=4)
    logs: dict[str, list[float]] = {"throughput": [], "mean latency": []}
    with bl.serve("tiny", batching="serial") as server, tempfile.TemporaryDirectory() as results:
        # 1) Make the runs, in turns with and without the line
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
                figures[watched] = {
                    "throughput": run.summary()["throughput_images_per_s"],
                    "mean latency": run.requests["latency_s"].mean(),
                }
            for name, found in logs.items():
                found.append(math.log(figures[True][name] / figures[False][name]))

    # 2) Judge
    passed = True
    for name, found in logs.items():
        low, high = map(math.exp, runs_interval(found) or (-math.inf, math.inf))
        ratio = math.exp(statistics.mean(found))
        print(f"{name}: with the line {ratio:.4f} times ({low:.4f} to {high:.4f})")
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
