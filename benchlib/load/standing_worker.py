"""`python -m benchlib load-worker`: a worker that takes part in one run after another.

Each run gets a process of its own. Standard library only. Ignorant of how requests are sent, and of
what the runs measure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchlib.load.bearer import headers_of_environment
from benchlib.load.runner import own_environment
from benchlib.load.workers import token_of_environment
from benchlib.printing import print_line

REFUSED, NO_MASTER = 2, 3  # of worker_process.py, which imports Locust
STOP_S = 3.0
INTERRUPTED = 130


def work(master: str, port: int, *, once: bool = False) -> int:
    """Works for the master at this address until an interrupt, and returns the exit status.

    With `once` it works for one run only. A run that refuses this worker ends it with status 2, as
    the next run would refuse it too.
    """
    order = {
        "master": master,
        "port": port,
        "token": token_of_environment(),
        "headers": headers_of_environment(),
    }
    print_line(f"Working for the master at {master}:{port}. Ctrl+C ends it.")
    try:
        while True:
            status = _work_once(order)
            print_line(_words_of(status))
            if once or status == REFUSED:
                return status
            time.sleep(1)
    except KeyboardInterrupt:
        return INTERRUPTED


def _work_once(order: dict[str, object]) -> int:
    """Takes part in the next run, and returns the exit status of the process that did."""
    command = [sys.executable, "-P", "-m", "benchlib.load.worker_process"]
    # An interrupt of the terminal reaches this process alone, which ends the other in order.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=own_environment(), start_new_session=True
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        return process.wait()
    finally:
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _words_of(status: int) -> str:
    words = {
        0: "A run is over.",
        REFUSED: "The run has refused this worker.",
        NO_MASTER: "No master has answered.",
    }
    return words.get(status, f"The worker's process ended with status {status}.")
