"""The sides that `serving.py` compares, and one run of a side.

A side is a process that is stopped between its runs. Knows how each side starts and when it is
ready. Ignorant of the comparisons.
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

import benchlib.serving  # noqa: F401 - sets how long torch's threads spin, for every side alike
from benchlib.load.arrivals import Arrivals
from benchlib.load.workload import Workload
from benchmarks.figures import percentile
from benchmarks.one_run import measured_s, one_run, per_second

ROOT = Path(__file__).parents[1]
WITHOUT_SERVER = ("loop", "batches")
OURS = ("serial", "dynamic", "continuous")
LITSERVE = {"litserve 5 ms": 0.005, "litserve 50 ms": 0.05}
ASLEEP = "asleep "  # before one of OURS: its model sleeps
START_S = 120.0
MAX_BATCH = 8


@dataclass(frozen=True)
class Measured:
    """One run of a side: images per second in its window, and the latency of each request.

    Also the number of failed requests, the CPU cores of the generator, and the generator's rows.
    """

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
        return percentile(self.latencies_s, 0.95)


@dataclass(frozen=True)
class Side:
    """A process that runs only within `awake`. `spec` is empty unless it is benchlib's own server."""

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
    """A side could not be started. The message is its last line of standard error."""


@contextmanager
def start(name: str, threads: int | None) -> Iterator[Side]:
    """Loads a side, suspends its process, and yields it. Ends its process group.

    Raises DidNotStart.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    arguments, environment, ready = _command(name)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", *arguments, f"--port={port}"],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if name in WITHOUT_SERVER else subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        ) as process,
    ):
        try:
            answer = _first_answer(process, f"{url}/{ready}")
            if not answer:
                errors.seek(0)
                raise DidNotStart(_last_line(errors.read()))
            side = Side(process, url, json.loads(answer)["spec"] if name in OURS else {})
            with side.awake():
                pass
            yield side
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _command(name: str) -> tuple[list[str], dict[str, str], str]:
    """A side's module and options, its environment, and the route that answers once it is ready."""
    if name in OURS:
        environment = {
            "BENCHLIB_MODEL": "tiny",
            "BENCHLIB_DEVICE": "cpu",
            "BENCHLIB_BATCHING": name,
            "BENCHLIB_MAX_BATCH_SIZE": str(MAX_BATCH),
            "BENCHLIB_MAX_QUEUE": "1000",
            "BENCHLIB_SIZES": "64x64",
        }
        return ["benchlib", "serve"], environment, "ready"
    if name.startswith(ASLEEP):
        batching = name.removeprefix(ASLEEP)
        return ["benchmarks.fakes.sleeping_server", batching], {}, "ready"
    if name in LITSERVE:
        options = [f"--batch-timeout={LITSERVE[name]}", f"--max-batch-size={MAX_BATCH}"]
        return ["benchmarks.litserve_rival", *options], {}, "health"
    return ["benchmarks.rivals", name], {}, "openapi.json"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it gave no answer"


def _first_answer(process: subprocess.Popen[bytes], url: str) -> bytes:
    """A side's first answer: a line of its standard output (without a server), or else the body at `url`."""
    if process.stdout:
        return process.stdout.readline()
    return _answer(process, url)


def _answer(process: subprocess.Popen[bytes], url: str) -> bytes:
    """The body of the first 200 at `url`; empty if the process ends first or after START_S."""
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
    api: str = "benchmark",
) -> Measured:
    """One run of benchlib's generator on a side. Throughput counts images done within the window."""
    with side.awake():
        outcome, rows = one_run(
            side.url,
            arrivals,
            workload,
            duration_s=duration_s,
            warmup_s=warmup_s,
            seed=seed,
            api=api,
        )
    good = [row for row in rows if row["error"] is None]
    return Measured(
        images_per_s=per_second(good, outcome),
        latencies_s=measured_s(good),
        failed=len(rows) - len(good),
        generator_cpu_cores=outcome.generator_cpu_cores,
        rows=rows,
    )


def back_to_back(side: Side, workload: Workload, *, duration_s: float) -> Measured:
    """One run of a side without a server."""
    assert side.process.stdin
    assert side.process.stdout
    requests = [workload.request(index) for index in range(100)]
    with side.awake():
        side.process.stdin.write(json.dumps([duration_s, requests]).encode() + b"\n")
        side.process.stdin.flush()
        took_s = json.loads(side.process.stdout.readline())
    return Measured(len(took_s) / sum(took_s), took_s)
