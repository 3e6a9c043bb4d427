"""Do 1,000 connections that are idle or slow slow 8 users down?

    python -m benchmarks.strangers FOLDER            1,000 strangers, five pairs of rounds
    python -m benchmarks.strangers FOLDER --quick    200 strangers, one pair

Rounds with strangers and rounds without them take turns, so that other work on the machine meets
both. A pair's figure is the ratio of its users' p95. A third of the strangers send nothing, a third
send half of their headers, and a third send a byte of a body each second. FOLDER gets
`strangers.json`. The exit status is 1 if a limit is broken.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

from benchmarks.figures import Figure, percentile
from benchmarks.held_lines import report
from benchmarks.served import served

USERS = 8
ROUND_S = 8.0
MOST_RATIO = 1.1
BODY = {"prompt": "a lighthouse", "num_inference_steps": 2, "width": 64, "height": 64}
HALF_HEADERS = b"GET /health HTTP/1.1\r\nHost: here\r\n"
HALF_BODY = (
    b"POST /benchmark/generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100000\r\n\r\n{"
)


def be_strangers(port: int, count: int, parent: Connection) -> None:
    """Connect `count` times, and stay until the parent says something. Tell how many are left."""
    # 1) Come
    starts = (b"", HALF_HEADERS, HALF_BODY)
    strangers = []
    for number in range(count):
        stranger = socket.create_connection(("127.0.0.1", port))
        stranger.sendall(starts[number % len(starts)])
        strangers.append(stranger)
    parent.send(len(strangers))

    # 2) Stay
    while not parent.poll(1.0):
        for stranger in strangers[2 :: len(starts)]:
            stranger.send(b" ")

    # 3) Count those that the server has not closed
    left = 0
    for stranger in strangers:
        stranger.setblocking(False)
        try:
            stranger.recv(1)
        except BlockingIOError:
            left += 1
        stranger.close()
    parent.send(left)


def users_p95_s(url: str, round_s: float) -> float:
    """The 95th percentile of the latencies of USERS users in a round."""
    end_s = time.monotonic() + round_s

    def use(number: int) -> list[float]:
        seconds = []
        with httpx.Client(base_url=url, timeout=60) as client:
            while time.monotonic() < end_s:
                began_s = time.monotonic()
                answer = client.post("/benchmark/generate", json=BODY | {"seed": number})
                answer.raise_for_status()
                seconds.append(time.monotonic() - began_s)
        return seconds

    with ThreadPoolExecutor(USERS) as threads:
        latencies = [second for found in threads.map(use, range(USERS)) for second in found]
    return percentile(latencies, 0.95)


def with_strangers_p95_s(url: str, count: int, round_s: float) -> tuple[float, int]:
    """The users' p95 beside strangers, and the number of strangers that stayed to the end."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    port = int(url.rsplit(":", 1)[1])
    process = spawn.Process(target=be_strangers, args=(port, count, there))
    process.start()
    try:
        here.recv()
        p95_s = users_p95_s(url, round_s)
        here.send("go")
        left: int = here.recv()
    finally:
        process.kill()
        process.join()
    return p95_s, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where strangers.json goes")
    parser.add_argument("--quick", action="store_true", help="200 strangers, one pair of rounds")
    chosen = parser.parse_args()
    count, pairs = (200, 1) if chosen.quick else (1000, 5)

    # 1) Allow as many files as the machine does
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    # 2) Measure in turns
    ratios = []
    stayed = []
    limits = {"headers_s": 600, "body_s": 600, "max_connections": 2 * count}
    with served("python -m benchlib serve", **limits) as server:
        users_p95_s(server.url, ROUND_S / 2)  # warm-up
        for number in range(pairs):
            strange_first = number % 2 == 1
            alone_s = 0.0
            if not strange_first:
                alone_s = users_p95_s(server.url, ROUND_S)
            beside_s, left = with_strangers_p95_s(server.url, count, ROUND_S)
            if strange_first:
                alone_s = users_p95_s(server.url, ROUND_S)
            ratios.append(beside_s / alone_s)
            stayed.append(float(left))
            words = f"p95 alone {alone_s:.3f} s, beside {count} strangers {beside_s:.3f} s"
            print(f"{words}: ratio {ratios[-1]:.3f}", file=sys.stderr, flush=True)

    # 3) Tell
    figures = [
        Figure(
            "strangers",
            f"p95 of {USERS} users beside {count}, to p95 alone",
            ratios,
            high=MOST_RATIO,
        ),
        Figure("strangers", "connected to the end", stayed, low=count),
    ]
    return report("strangers", figures, chosen.folder, {"ratios": ratios, "strangers": count})


if __name__ == "__main__":
    sys.exit(main())
