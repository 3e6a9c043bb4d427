"""A stop under load, on each of three ways to start: how long it takes, and who is left without.

    python -m benchmarks.stops FOLDER [--quick]

Users send long requests on new connections while SIGTERM comes. Half-sent bodies and idle
connections stand beside them. FOLDER gets `stops.json`. The exit status is 1 if a limit is broken.

The process of a stand-alone server has the limit, too. A script that uses `bl.serve` has none: once
its server has stopped, Python itself unloads torch, which takes a second or two.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.held_lines import report
from benchmarks.served import WAYS, Served, served

USERS = 12
STRANGERS = 10
DRAIN_S = 2.0
LOAD_S = 3.0
MOST_MORE_S = 1.0
BODY = {"prompt": "a", "width": 64, "height": 64}
HEAD = "POST /benchmark/generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


def ask(port: int, steps: int) -> str | None:
    """The status of one request: None if no connection was made, "" if no answer came."""
    body = json.dumps(BODY | {"num_inference_steps": steps})
    try:
        client = socket.create_connection(("127.0.0.1", port), timeout=120)
    except OSError:
        return None
    with client:
        try:
            client.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = client.recv(2**16)
        except OSError:
            return ""
    return answer[9:12].decode()


def use(port: int, steps: int) -> Iterator[str]:
    """The statuses of one user's requests, until no connection can be made."""
    while (status := ask(port, steps)) is not None:
        yield status


@dataclass(frozen=True)
class Stop:
    """Seconds from SIGTERM to the last answer and to the process's end; the answers by status."""

    answered_s: float
    ended_s: float
    statuses: dict[str, int]


def stop_under_load(server: Served) -> Stop:
    """Stop a server that users and strangers have connections to."""
    port = int(server.url.rsplit(":", 1)[1])

    # 1) Strangers and users come; the short requests end within the limit, the long ones do not
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(STRANGERS)]
    for stranger in strangers[::2]:
        stranger.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n{{".encode())
    with ThreadPoolExecutor(USERS) as threads:
        steps = [150 if number % 2 else 3 for number in range(USERS)]
        asked = [threads.submit(lambda most: list(use(port, most)), most) for most in steps]
        time.sleep(LOAD_S)

        # 2) Stop
        began_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        statuses = [status for one in asked for status in one.result()]
        answered_s = time.monotonic() - began_s
        server.process.wait()
        ended_s = time.monotonic() - began_s
    for stranger in strangers:
        stranger.close()
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    return Stop(answered_s, ended_s, counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where stops.json goes")
    parser.add_argument("--quick", action="store_true", help="one stop a way; else three")
    chosen = parser.parse_args()
    repeats = 1 if chosen.quick else 3
    figures = []
    all_stops = {}
    for way in WAYS:
        # 1) Stop it
        stops = []
        for _ in range(repeats):
            with served(way, drain_s=DRAIN_S, batching="continuous") as server:
                stop = stop_under_load(server)
            print(f"{way}: {stop}", file=sys.stderr, flush=True)
            stops.append(stop)
        all_stops[way] = [asdict(stop) for stop in stops]

        # 2) Its figures
        more_s = max(stop.answered_s for stop in stops) - DRAIN_S
        unanswered = sum(stop.statuses.get("", 0) for stop in stops)
        figures += [
            Figure.once(way, "last answer, seconds beyond the limit", more_s, high=MOST_MORE_S),
            Figure.once(way, "requests without an answer", unanswered, high=0),
        ]
        if way != "bl.serve":
            end_s = max(stop.ended_s for stop in stops) - DRAIN_S
            name = "end of the process, seconds beyond the limit"
            figures.append(Figure.once(way, name, end_s, high=MOST_MORE_S))
    notes = {"users": USERS, "drain_s": DRAIN_S, "stops": all_stops}
    return report("stops", figures, chosen.folder, notes)


if __name__ == "__main__":
    sys.exit(main())
