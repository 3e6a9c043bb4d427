"""A server in a process of its own, started in one of three ways, for benchmarks of its edge.

Knows the command lines. Ignorant of what is measured.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

SCRIPT = """
import sys, time
import benchlib as bl
from benchlib.serving.connection_limits import ConnectionLimits

server = bl.serve("tiny", device="cpu", limits=ConnectionLimits(drain_s=float(sys.argv[1])))
print("running on", server.url, file=sys.stderr, flush=True)
time.sleep(1_000_000)
"""
WAYS = ("bl.serve", "python -m benchlib serve", "uvicorn")


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    process: subprocess.Popen[str]
    url: str


@contextmanager
def served(way: str, **settings: object) -> Iterator[Served]:
    """Start the tiny model in one of WAYS; `settings` are those of the environment.

    Kills the process at the end, if it is there still. Raises RuntimeError if it does not start.
    """
    command = {
        "bl.serve": ["-c", SCRIPT, str(settings.get("drain_s", 30))],
        "python -m benchlib serve": ["-m", "benchlib", "serve", "--port", "0"],
        "uvicorn": ["-m", "uvicorn", "benchlib.serving.app:app", "--port", "0"],
    }[way]
    given = {f"BENCHLIB_{name.upper()}": str(value) for name, value in settings.items()}
    given |= {"BENCHLIB_MODEL": "tiny", "BENCHLIB_DEVICE": "cpu"}
    process = subprocess.Popen(
        [sys.executable, *command], env=os.environ | given, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                url = found[1]
                break
        else:
            raise RuntimeError(f"{way}: the server did not start")
        while httpx.get(f"{url}/ready").status_code != 200:
            time.sleep(0.1)
        yield Served(process, url)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
