"""Starts, follows and ends a load run: a child process sends the requests, this one watches.

Standard library only: Locust and gevent live in the child, because importing them hangs a
notebook's kernel. Ignorant of how requests are sent (child.py) and of what the rows mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from benchlib.load.bearer import without_secrets
from benchlib.load.plan import LoadPlan
from benchlib.load.run_progress import Progress as Progress
from benchlib.load.run_progress import ProgressReader
from benchlib.load.workers import announce, token_of_environment

_TICK_S = 0.5
_STOP_S = 3.0  # for the child's last rows, which take 0.1 s on an idle machine


@dataclass(frozen=True)
class LoadOutcome:
    """What became of a run; times are in seconds from its start, None where there is no value.

    started_at, started_monotonic_s: the start in ISO UTC, and on `time.monotonic()`.
    window_start_s, window_end_s: the measuring window. A cut ends the window. It has no length if
        the run was cut during its warm-up.
    wall_s: how long the run took.
    scheduled, finished, censored: numbers of requests. A finished one ended, well or not; a
        censored one had not ended when the run did.
    generator_cpu_cores: the mean CPU cores that the child took in the window. Of several processes
        the busiest counts.
    send_lag_p99_s: the 99th percentile (nearest rank) of how late the measured requests were sent.
        In a closed loop this includes the time that a ready user waited for its turn in the
        child. A request that was never sent counts with its whole wait.
    in_flight_mean: the mean number of requests that were due and had not ended, at random moments
        about 0.05 s apart.
    in_flight_max: the highest number of such requests, counted whenever a measured one was due.
    max_in_flight_hits: the measured requests that were sent late because `max_in_flight` others
        were with the server (see `OpenLoop`).
    nonfinite_images: the measured requests whose images are NaN or infinite numbers, as this
        server's header X-Nonfinite says. Other servers don't tell.
    workers: where there are several, which were `lost`, the `clock_error_s`, and figures of `each`.
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
    nonfinite_images: int
    workers: dict[str, Any] | None = None


class GeneratorError(RuntimeError):
    """The load generator died or failed: the message ends with its last words; rows are kept."""


class LoadInterrupted(KeyboardInterrupt):
    """An interrupted run; `outcome` is None if it had not begun, or the child was killed."""

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
    """Runs `plan` in a child process, and returns the outcome at its end.

    The child, which is the master where there are several workers, appends a row per request to
    `rows_path`. `on_start(started_monotonic_s, child_pid)` is called once, `on_progress` at most
    twice a second and once at the end. Raises GeneratorError where the child dies or fails, and
    LoadInterrupted, a KeyboardInterrupt, for an interrupt. However the run ends, the child is gone
    and the rows stay.
    """
    announce(plan.workers)
    order = {
        "plan": plan.to_dict(),
        "headers": dict(plan.headers),
        "token": token_of_environment(),
        "rows_path": str(Path(rows_path).resolve()),
    }
    started_s: float | None = None
    outcome: LoadOutcome | None = None
    with (
        tempfile.TemporaryFile() as stderr,
        open(rows_path, "ab+") as rows,
        _child(stderr, "child" if plan.workers == 1 else "master_process") as child,
    ):
        reader = ProgressReader(plan, rows)
        try:
            # 1) Give the order, and follow the child's messages: first its start, last its outcome.
            _write_line(child, json.dumps(order))
            for message in _messages(child):
                if message and "outcome" in message:
                    outcome = LoadOutcome(**message["outcome"])
                elif message:
                    started_s = float(message["started_monotonic_s"])
                    if on_start:
                        on_start(started_s, child.pid)
                if started_s is not None and on_progress:
                    on_progress(reader.progress(time.monotonic() - started_s))

        # 2) After an interrupt, let a child that has begun write its last rows.
        except KeyboardInterrupt:
            if started_s is None:
                child.kill()
            else:
                _write_line(child, "stop")
                for message in _messages(child, _STOP_S):
                    if message and "outcome" in message:
                        outcome = LoadOutcome(**message["outcome"])
            raise LoadInterrupted(outcome, rows_path) from None

        # 3) Without an outcome, raise the child's last words.
        code = child.wait()
        if outcome is None or code != 0:
            raise GeneratorError(
                f"the load generator ended with code {code} before its run did; "
                f"its rows are kept in {rows_path}. Its last words:\n"
                f"{without_secrets(_last_words(stderr), plan.headers)}"
            )
    return outcome


def own_environment() -> dict[str, str]:
    """The environment of a child, without what Locust, gevent and the locustfile would read."""
    foreign = ("LOCUST_", "GEVENT", "BENCHLIB_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@contextlib.contextmanager
def _child(stderr: IO[bytes], module: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yields the child process. At the end the child may write its last rows, then it is killed."""
    child = subprocess.Popen(
        # -P: no module in the working folder may stand in for one that the child imports.
        [sys.executable, "-P", "-m", f"benchlib.load.{module}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        env=own_environment(),
        # Jupyter and terminals send an interrupt to the whole process group.
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child
    finally:
        try:
            child.stdin.close()  # the child takes this for our death
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_S)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _write_line(child: subprocess.Popen[bytes], line: str) -> None:
    assert child.stdin is not None
    # A child that has died can't read; the end of its messages will show that.
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(line.encode() + b"\n")


def _messages(
    child: subprocess.Popen[bytes], limit_s: float = math.inf
) -> Iterator[dict[str, Any] | None]:
    """Each message of the child, and None after each silent tick, until its end or `limit_s`."""
    assert child.stdout is not None
    end_s = time.monotonic() + limit_s
    unread = b""
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


def _last_words(stderr: IO[bytes]) -> str:
    end = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, end - 4000))
    return stderr.read().decode("utf-8", "replace").strip() or "(none)"
