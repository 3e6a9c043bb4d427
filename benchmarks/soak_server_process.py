"""Starts the soak's server as a process, watches what it holds, and ends it.

Knows process ids, the server's line of JSON and its record. Ignorant of what users ask.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchlib.telemetry import GIB

ROOT = Path(__file__).parents[1]
SETTLES_WITHIN_S = 60.0
RESTS_S = 0.5


@dataclass(frozen=True)
class Held:
    """What the server's process holds while it has nothing to do."""

    rss_gib: float
    threads: int
    files: int


class ServerProcess:
    """The process of `fakes/soak_server.py`: URLs by policy, and the truth by seed."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdout is not None
        first_line = process.stdout.readline()
        if not first_line:
            process.wait()
            words = (folder / "server.log").read_text()[-2000:]
            raise RuntimeError(f"the server did not start: {words}")
        said = json.loads(first_line)
        self.process = process
        self.folder = folder
        self.urls: dict[str, str] = said["urls"]
        self.truth = {int(seed): of_image for seed, of_image in said["truth"].items()}
        self._watched = psutil.Process(process.pid)

    def record(self, policy: str) -> list[dict[str, Any]]:
        """What the server wrote down of each request; a torn last line is left out."""
        path = self.folder / f"{policy}.jsonl"
        whole = path.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def metrics(self, policy: str) -> dict[tuple[str, str], float]:
        """Each counter and gauge of /metrics, by its name and its labels' values."""
        with urllib.request.urlopen(f"{self.urls[policy]}/metrics", timeout=60) as answer:
            page = answer.read().decode()
        found = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found[sample.name, " ".join(sample.labels.values())] = sample.value
        return found

    def wait_idle(self, policy: str) -> None:
        """Return once nothing waits and nothing runs. Raises TimeoutError."""
        end_s = time.monotonic() + SETTLES_WITHIN_S
        while time.monotonic() < end_s:
            metrics = self.metrics(policy)
            if not metrics["benchlib_queue_length", ""] + metrics["benchlib_running_batch", ""]:
                return
            time.sleep(0.1)
        raise TimeoutError(f"{policy}: the server still has work after {SETTLES_WITHIN_S:g} s")

    def held(self, *, at_most: Held | None = None) -> Held:
        """What the idle process holds. Waits a while for threads and files above `at_most`."""
        end_s = time.monotonic() + SETTLES_WITHIN_S
        while True:
            time.sleep(RESTS_S)
            threads = self._watched.num_threads()
            files = self._watched.num_fds()
            is_calm = at_most is None or (threads <= at_most.threads and files <= at_most.files)
            if is_calm or time.monotonic() > end_s:
                return Held(self._watched.memory_info().rss / GIB, threads, files)

    def log(self) -> str:
        """All that the server wrote to stderr."""
        return (self.folder / "server.log").read_text()

    def stop(self) -> dict[str, Any]:
        """End the server in order; return what it says of the images it made."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        said = self.process.stdout.read()
        status = self.process.wait(SETTLES_WITHIN_S)
        if status:
            raise RuntimeError(f"the server ended with {status}: {self.log()[-2000:]}")
        return dict(json.loads(said))


@contextmanager
def server_process(
    folder: Path, policies: Sequence[str], *, port: int = 0, bare: bool = False
) -> Iterator[ServerProcess]:
    """Start a server for these policies, and yield it once it is ready.

    `port` is for a single policy. A `bare` server computes no truth. The process is killed at the
    end, unless `stop` has ended it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.fakes.soak_server", str(folder), f"--port={port}"]
    if bare:
        command.append("--bare")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (
        (folder / "server.log").open("a") as log,
        subprocess.Popen(
            [*command, "--batching", *policies],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        ) as process,
    ):
        try:
            yield ServerProcess(process, folder)
        finally:
            process.kill()
