"""The sides that `serving.py` compares, each a process that stands still but when it is measured, and one run of one.

Knows how each is started and when it is ready. Ignorant of what is compared with what.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import benchlib.serving  # noqa: F401 - sets how long torch's threads spin, for every side alike
from benchlib.load.arrivals import Arrivals
from benchlib.load.runner import LoadPlan, generate_load
from benchlib.load.workload import Workload

ROOT = Path(__file__).parents[1]
OURS = ("serial", "dynamic", "continuous")
LITSERVE = {"litserve 5 ms": 0.005, "litserve 50 ms": 0.05}
START_S = 120.0
MAX_BATCH = 8


@dataclass(frozen=True)
class Measured:
    """One run: images a second in its window, the latency of each request, how many failed, the generator's share, and
    the generator's rows."""

    images_per_s: float
    latencies_s: list[float]
    failed: int = 0
    generator_cpu_cores: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mean_s(self) -> float:
        return statistics.mean(self.latencies_s)

    @property
    def median_s(self) -> float:
        return statistics.median(self.latencies_s)

    @property
    def p95_s(self) -> float:
        return float(np.quantile(self.latencies_s, 0.95, method="inverted_cdf"))


@dataclass(frozen=True)
class Side:
    """A process that stands still but within `awake`, and what ours says of itself."""

    process: subprocess.Popen[bytes]
    url: str
    spec: dict[str, Any]

    @contextmanager
    def awake(self) -> Iterator[None]:
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)


class DidNotStart(RuntimeError):
    """The side's last words."""


@contextmanager
def start(name: str, threads: int | None) -> Iterator[Side]:
    """Load a side and stop it in its tracks. Raises DidNotStart; ends its process group in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module, ready = ["benchmarks.rivals", name], "openapi.json"
    environment = (
        os.environ
        | {"HF_HUB_OFFLINE": "1"}
        | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    )
    if name in OURS:
        module, ready = ["benchlib", "serve"], "ready"
        environment |= {
            "BENCHLIB_MODEL": "tiny",
            "BENCHLIB_DEVICE": "cpu",
            "BENCHLIB_BATCHING": name,
        }
        environment |= {"BENCHLIB_MAX_BATCH_SIZE": str(MAX_BATCH), "BENCHLIB_MAX_QUEUE": "1000"}
        environment |= {"BENCHLIB_SIZES": "64x64"}
    elif name in LITSERVE:
        module, ready = ["benchmarks.litserve_rival", f"--batch-timeout={LITSERVE[name]}"], "health"
        module += [f"--max-batch-size={MAX_BATCH}"]
    command = [sys.executable, "-m", *module, f"--port={port}"]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE if name == "loop" else subprocess.DEVNULL,
    }
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=errors, start_new_session=True, **pipes
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            answer = (
                process.stdout.readline() if process.stdout else _answer(process, f"{url}/{ready}")
            )
            if not answer:
                errors.seek(0)
                last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                raise DidNotStart(last[0] if last else "it gave no answer")
            side = Side(process, url, json.loads(answer)["spec"] if name in OURS else {})
            with side.awake():
                pass
            yield side
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _answer(process: subprocess.Popen[bytes], url: str) -> bytes:
    """What it answers with 200 within START_S; nothing as soon as it has ended."""
    end_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end_s:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bytes(answer.read())
        time.sleep(0.1)
    return b""


def load(
    side: Side,
    arrivals: Arrivals,
    workload: Workload,
    *,
    duration_s: float,
    warmup_s: float,
    seed: int = 0,
) -> Measured:
    """One run of benchlib's generator on a side; throughput counts what was done within the window."""
    with tempfile.TemporaryDirectory() as folder, side.awake():
        path = Path(folder) / "requests.jsonl"
        plan = LoadPlan(
            side.url, arrivals, workload, duration_s=duration_s, warmup_s=warmup_s, seed=seed
        )
        outcome = generate_load(plan, path)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    good = [row for row in rows if row["error"] is None]
    start_s, end_s = outcome.window_start_s, outcome.window_end_s
    return Measured(
        images_per_s=sum(start_s <= row["done_s"] < end_s for row in good) / (end_s - start_s),
        latencies_s=[row["latency_s"] for row in good if row["phase"] == "measure"],
        failed=len(rows) - len(good),
        generator_cpu_cores=outcome.generator_cpu_cores,
        rows=rows,
    )


def back_to_back(side: Side, workload: Workload, *, duration_s: float) -> Measured:
    """The stock call, one after the other, without a server."""
    assert side.process.stdin
    assert side.process.stdout
    requests = [workload.request(index) for index in range(100)]
    with side.awake():
        side.process.stdin.write(json.dumps([duration_s, requests]).encode() + b"\n")
        side.process.stdin.flush()
        took_s = json.loads(side.process.stdout.readline())
    return Measured(len(took_s) / sum(took_s), took_s)
