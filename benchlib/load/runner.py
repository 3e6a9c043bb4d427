"""Knows how a load run is asked for, followed and ended: a child process sends it, this one watches.

Standard library only: Locust and gevent live in the child, because importing them hangs a notebook's kernel. Ignorant
of how requests are sent (child.py) and of what the rows mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from benchlib.load.plan import LoadPlan

_TICK_S = 0.5
_STOP_S = 3.0  # The child writes the rows of what is in flight: 0.1 s on an idle machine.


@dataclass(frozen=True)
class Progress:
    """How far a run is: requests `done` (warm-up included; `errors` among them failed), seconds since its start.

    Of those after the warm-up: `images_per_s` so far, `median_latency_s` of the images, and `p95_latency_s` of all (one
    that failed is longer than any image), from 20 on. `time_left_s` is until the last is scheduled. Each is None while
    it is unknown.
    """

    elapsed_s: float
    done: int
    errors: int
    images_per_s: float | None
    median_latency_s: float | None
    p95_latency_s: float | None
    time_left_s: float | None


@dataclass(frozen=True)
class LoadOutcome:
    """What became of a run, in seconds from its start (which was `started_at` in ISO UTC, `started_monotonic_s` on
    `time.monotonic()`). Of the requests `scheduled`, `finished` ended, well or not, and `censored` never did.
    `generator_cpu_cores` is the CPU time that the child took in the window, over the window (None: it was too short).

    Of the measured requests: `send_lag_p99_s` is the 99th percentile (nearest rank) of how late they were sent: sent
    minus scheduled, and in a closed loop what a user, ready, waited for its turn in the child; one that was never sent
    counts with the time that it waited; `in_flight_mean` the mean, over a random moment in every
    0.05 s of the window, of how many were due or sent and not ended, `in_flight_max` the most when any became due; each
    is None where there was none. `max_in_flight_hits` counts the requests that were held back, and so sent late,
    because `max_in_flight` others were with the server (see `OpenLoop`).

    The window of a run that was cut ends with the cut; one of no length means a cut during warm-up.
    """

    status: Literal["finished", "interrupted"]
    started_at: str
    started_monotonic_s: float
    window_start_s: float
    window_end_s: float
    wall_s: float
    scheduled: int
    finished: int
    censored: int
    generator_cpu_cores: float | None
    send_lag_p99_s: float | None
    in_flight_mean: float | None
    in_flight_max: int | None
    max_in_flight_hits: int


class GeneratorError(RuntimeError):
    """The load generator died or failed; its message ends with the generator's last words. The rows are kept."""


class LoadInterrupted(KeyboardInterrupt):
    """The user interrupted the run. `outcome` is None where it had not begun, or the child had to be killed."""

    def __init__(self, outcome: LoadOutcome | None, rows_path: str | Path) -> None:
        super().__init__(f"the load run was interrupted; its rows are kept in {rows_path}")
        self.outcome = outcome


def generate_load(
    plan: LoadPlan,
    rows_path: str | Path,
    *,
    on_start: Callable[[float, int], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> LoadOutcome:
    """Run `plan` in a child process that appends a row per request to `rows_path`, and wait for its end.

    `on_start(started_monotonic_s, child_pid)` is called once, `on_progress` at most twice a second and once at the end.
    Raises GeneratorError where the child dies or fails, and LoadInterrupted, a KeyboardInterrupt, for an interrupt.
    However it ends, the child is gone and the rows stay.
    """
    order = {"plan": plan.to_dict(), "rows_path": str(Path(rows_path).resolve())}
    started_s: float | None = None
    outcome: LoadOutcome | None = None
    with (
        tempfile.TemporaryFile() as stderr,
        open(rows_path, "ab+") as rows,
        _child(stderr) as child,
    ):
        reader = _Reader(plan, rows)
        try:
            _tell(child, json.dumps(order))
            for message in _messages(child):
                if message and "outcome" in message:
                    outcome = LoadOutcome(**message["outcome"])
                elif message:
                    started_s = float(message["started_monotonic_s"])
                    if on_start:
                        on_start(started_s, child.pid)
                if started_s is not None and on_progress:
                    on_progress(reader.progress(time.monotonic() - started_s))
        except KeyboardInterrupt:
            if started_s is None:
                child.kill()
            else:
                _tell(child, "stop")
                ends = [message["outcome"] for message in _messages(child, _STOP_S) if message]
                outcome = LoadOutcome(**ends[0]) if ends else outcome
            raise LoadInterrupted(outcome, rows_path) from None
        code = child.wait()
        if outcome is None or code != 0:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - 4000))
            raise GeneratorError(
                f"the load generator ended with code {code} before its run did; its rows are kept in {rows_path}. "
                f"Its last words:\n{stderr.read().decode('utf-8', 'replace').strip() or '(none)'}"
            )
    return outcome


@contextlib.contextmanager
def _child(stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The child process; it and its pipes are gone in the end, after it was let write its last rows."""
    # What Locust, gevent or the locustfile would take for settings is not passed on; and -P: a module of the user's in
    # the working folder must not stand in for one of theirs.
    foreign = ("LOCUST_", "GEVENT", "BENCHLIB_")
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "benchlib.load.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        env={name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        start_new_session=True,  # Jupyter and terminals send an interrupt to the whole process group
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child
    finally:
        try:
            child.stdin.close()  # it takes this for our death
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_S)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _tell(child: subprocess.Popen[bytes], line: str) -> None:
    assert child.stdin is not None
    with contextlib.suppress(
        BrokenPipeError
    ):  # it has died, which the end of its messages will show
        child.stdin.write(line.encode() + b"\n")


def _messages(
    child: subprocess.Popen[bytes], limit_s: float = math.inf
) -> Iterator[dict[str, Any] | None]:
    """Each message of the child, and None after each tick of silence, until it closes its end or `limit_s` is over."""
    assert child.stdout is not None
    end_s, unread = time.monotonic() + limit_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while (left_s := end_s - time.monotonic()) > 0:
            if not selector.select(min(left_s, _TICK_S)):
                yield None
                continue
            chunk = child.stdout.read(65536)
            if not chunk:
                return
            *lines, unread = (unread + chunk).split(b"\n")
            yield from map(json.loads, lines)


class _Reader:
    """Reads the rows that the child appends, as far as they are whole, for the progress."""

    def __init__(self, plan: LoadPlan, rows: IO[bytes]) -> None:
        self.plan, self.rows, self.unread = plan, rows, b""
        self.done = self.errors = self.measured = self.images = 0
        self.latencies_s: list[float] = []

    def progress(self, elapsed_s: float) -> Progress:
        *lines, self.unread = (self.unread + self.rows.read()).split(b"\n")
        for row in map(json.loads, lines):
            self.done += row["done_s"] is not None
            self.errors += row["done_s"] is not None and row["error"] is not None
            self.images += row["error"] is None and row["done_s"] >= self.plan.warmup_s
            if row["phase"] == "measure":
                self.measured += 1
                if row["error"] is None:
                    self.latencies_s.append(row["latency_s"])
        self.latencies_s.sort()  # kept sorted, a new sort is quick; this process may be the server's
        known_s, rank = self.latencies_s, -(-95 * self.measured // 100)  # rounded up
        measuring_s = elapsed_s - self.plan.warmup_s
        images_per_s = self.images / measuring_s if measuring_s > 0 else None
        median_s = statistics.median(known_s) if known_s else None
        p95_s = known_s[rank - 1] if self.measured >= 20 and rank <= len(known_s) else None
        left_s = self._time_left_s(elapsed_s)
        return Progress(elapsed_s, self.done, self.errors, images_per_s, median_s, p95_s, left_s)

    def _time_left_s(self, elapsed_s: float) -> float | None:
        plan, measuring_s = self.plan, elapsed_s - self.plan.warmup_s
        left_s = [end_s - elapsed_s for end_s in (plan.max_s,) if end_s is not None]
        if plan.duration_s is not None:
            left_s.append(plan.duration_s - measuring_s)
        if plan.requests is not None and self.measured and measuring_s > 0:
            left_s.append((plan.requests - self.measured) * measuring_s / self.measured)
        elif plan.duration_s is None:
            return None
        return max(0.0, min(left_s))
