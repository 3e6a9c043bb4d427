"""A stop under load, on each of three ways to start: how long it takes, and who is left without.

    python -m benchmarks.stops FOLDER [--quick]

Users send long requests on new connections while SIGTERM comes. Half-sent bodies and idle
connections stand beside them. FOLDER gets `stops.json`. The exit status is 1 if a limit is broken.
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


def stop_under_load(server: Served) -> tuple[float, dict[str, int]]:
    """Seconds from SIGTERM to the process's end, and the number of answers by status."""
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
        server.process.wait()
        took_s = time.monotonic() - began_s
        statuses = [status for one in asked for status in one.result()]
    for stranger in strangers:
        stranger.close()
    return took_s, {status: statuses.count(status) for status in sorted(set(statuses))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where stops.json goes")
    parser.add_argument("--quick", action="store_true", help="one stop a way; else three")
    chosen = parser.parse_args()
    repeats = 1 if chosen.quick else 3
    figures = []
    for way in WAYS:
        more_s = []
        unanswered = []
        for _ in range(repeats):
            with served(way, drain_s=DRAIN_S, batching="continuous") as server:
                took_s, statuses = stop_under_load(server)
            print(f"{way}: {took_s:.2f} s, {statuses}", file=sys.stderr, flush=True)
            more_s.append(took_s - DRAIN_S)
            unanswered.append(float(statuses.get("", 0)))
        figures += [
            Figure(way, "longest stop, seconds beyond the limit", [max(more_s)], high=MOST_MORE_S),
            Figure(way, "requests without an answer", [sum(unanswered)], high=0),
        ]
    return report("stops", figures, chosen.folder, {"users": USERS, "drain_s": DRAIN_S})


if __name__ == "__main__":
    sys.exit(main())
