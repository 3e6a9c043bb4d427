"""What the front itself takes of a request, beside one engine and beside a plain Ray Serve.

    python -m benchmarks.front                       # three minutes
    python -m benchmarks.front --rounds 1 --duration 1   # shows that every part works
    python -m benchmarks.front --results results/reference-scale   # keeps a record

No model runs: replicas and the engine answer at once. Each side has processes of its own, and the
client is this process. The sides take turns in each round, back and forth:

- *engine*: our app over one engine. *fleet*: our app over four replicas in the same process.
- *replicas*: our app over two processes of Ray. *bare*: a plain application of Ray Serve with
  FastAPI and two processes, behind Ray Serve's own proxy.

- *requests/s*: 16 connections that send the next request when they have the last one's answer.
- *one at a time*: milliseconds of a request when there is no other, median and p99.
- *server CPU*: milliseconds of the side's processes for each of its requests, at 16 connections.

Knows processes and plain HTTP/1.1. Ignorant of how a side is made (fakes/instant_engine.py and
fakes/instant_ray.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import psutil

from benchlib.other_work import OtherWork
from benchmarks.figures import Figure, percentile, print_table
from benchmarks.held_lines import report

CONNECTIONS = 16
START_S = 60.0
SIDES = {
    "engine": ["benchmarks.fakes.instant_engine", "engine"],
    "fleet": ["benchmarks.fakes.instant_engine", "fleet"],
    "replicas": ["benchmarks.fakes.instant_ray", "replicas"],
    "bare": ["benchmarks.fakes.instant_ray", "bare"],
}
OURS = ("fleet", "replicas")
BODY = json.dumps({"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 1}).encode()
REQUEST = (
    b"POST /benchmark/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
Found = dict[tuple[str, str], list[float]]
LEAST_PER_S = 500.0
MOST_MS = 3.0


@dataclass(frozen=True)
class Side:
    """A server that runs, by its port and its first process."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU seconds of the server's processes that live, since their start."""
        times = [process.cpu_times() for process in self.processes()]
        return float(sum(one.user + one.system for one in times))

    def processes(self) -> list[psutil.Process]:
        """All its processes that live."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def start(module: list[str]) -> Iterator[Side]:
    """Starts a side and yields it once it is ready; ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-m", *module, f"--port={port}"]) as process:
        try:
            _wait_until_ready(port, process)
            yield Side(port, psutil.Process(process.pid))
        finally:
            process.terminate()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"the side at port {port} did not start")


async def latencies_s(port: int, connections: int, duration_s: float) -> list[float]:
    """Seconds of each request that `connections` users sent one after the other."""
    until_s = time.monotonic() + duration_s
    found: list[float] = []

    async def user() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until_s:
            sent_s = time.monotonic()
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                raise RuntimeError(head.decode())
            await reader.readexactly(int(length[1]))
            found.append(time.monotonic() - sent_s)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(user() for _ in range(connections)))
    return found


def measure_side(side: Side, duration_s: float) -> dict[str, float]:
    """The figures of one side in one round."""
    # 1) One request at a time
    alone_s = asyncio.run(latencies_s(side.port, 1, duration_s / 2))

    # 2) As many as it can
    cpu_s = side.cpu_s()
    began_s = time.monotonic()
    together_s = asyncio.run(latencies_s(side.port, CONNECTIONS, duration_s))
    wall_s = time.monotonic() - began_s
    requests = len(together_s)
    return {
        "requests/s": requests / wall_s,
        "one at a time, median ms": 1000 * percentile(alone_s, 0.5),
        "one at a time, p99 ms": 1000 * percentile(alone_s, 0.99),
        "server CPU, ms a request": 1000 * (side.cpu_s() - cpu_s) / requests,
    }


def measure(rounds: int, duration_s: float) -> Found:
    """The figures of all sides, by side and figure; each value is one round's."""
    found: Found = {}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(start(module)) for name, module in SIDES.items()}
        for side in sides.values():
            asyncio.run(latencies_s(side.port, CONNECTIONS, 0.5))
        ours = [one.pid for side in sides.values() for one in side.processes()]
        other_work = OtherWork()
        for number in range(rounds):
            other_work.read(ours)
            names = list(sides) if number % 2 == 0 else list(reversed(sides))
            for name in names:
                for figure, value in measure_side(sides[name], duration_s).items():
                    found.setdefault((name, figure), []).append(value)
            others = other_work.read(ours).others_cpu_cores
            if others is not None:
                found.setdefault(("machine", "cores that others took"), []).append(others)
    return found


def figures_of(found: Found) -> list[Figure]:
    """The figures with their limits, and the ratios of sides, round by round."""
    figures = []
    for (name, figure), values in found.items():
        low = high = None
        if name in OURS and figure == "requests/s":
            low = LEAST_PER_S
        if name in OURS and figure == "one at a time, median ms":
            high = MOST_MS
        figures.append(Figure(name, figure, values, low, high))
    for name, other in (("fleet", "engine"), ("replicas", "bare")):
        for (side, figure), values in found.items():
            if side == name and (other, figure) in found:
                pairs = zip(values, found[other, figure], strict=True)
                ratios = [value / beside for value, beside in pairs]
                figures.append(Figure(f"{name} / {other}", figure, ratios))
    return figures


def main() -> int:
    """Prints the table, and keeps a record if wanted; returns 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--duration", type=float, default=4.0, help="seconds of a side in a round")
    parser.add_argument("--results", type=Path, help="folder that gets front.json")
    wanted = parser.parse_args()
    figures = figures_of(measure(wanted.rounds, wanted.duration))
    print_table(figures)
    if wanted.results is not None:
        notes = {"rounds": wanted.rounds, "duration_s": wanted.duration}
        return report("front", figures, wanted.results, notes)
    return int(any(figure.passed is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
