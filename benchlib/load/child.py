"""Knows how a plan is carried out with Locust: the process behind `runner.generate_load`.

Takes {"plan", "rows_path"} as the first line of stdin; says {"started_monotonic_s"} and, at the end, {"outcome"} on
stdout, a JSON line each; appends one row per request to the file. A further byte on stdin, or its end (the parent has
died), ends the run. Locust sends, and reports by its `request` event; its statistics are rounded and not looked at.
Ignorant of notebooks, of files other than the rows, and of what the numbers mean.
"""

# Locust's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, ClassVar

import gevent
from gevent.event import AsyncResult, Event
from gevent.socket import wait_read
from locust.env import Environment
from locust.exception import StopUser

from benchlib.load.locustfile import ImageUser
from benchlib.load.rows import Call, make_row
from benchlib.load.runner import LoadOutcome, LoadPlan

INTERRUPTED = "interrupted"


class Load:
    """What is scheduled, in flight and done, and the file that tells of it."""

    def __init__(self, plan: LoadPlan, rows_path: str) -> None:
        self.plan = plan
        self.rows_fd = os.open(rows_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.started = Event()
        self.started_s = math.nan
        self.end = AsyncResult()  # why the run is cut, None where all is done, or the error that broke it
        self.in_flight: dict[int, Call] = {}
        self.scheduled = self.measured = self.finished = 0
        self.last_done_s = 0.0  # of the measured ones

    def start(self) -> None:
        """Time zero. Every user sends its first request now."""
        self.started_s = time.monotonic()
        self.started.set()

    def stop(self, why: str | None) -> None:
        """End the run, unless something else has ended it already; `why` is for what is still in flight."""
        if not self.end.ready():
            self.end.set(why)

    def fail(self, exception: Exception, **_: Any) -> None:
        """End the run with an error that Locust would only count: its `user_error` event."""
        self.end.set_exception(exception)

    def schedule(self, due_s: float) -> Call:
        """The next request, due at `due_s` on `time.monotonic()`. Raises StopUser once the scheduling is over."""
        plan, measured = self.plan, due_s - self.started_s >= self.plan.warmup_s
        if self.over(due_s) or (measured and self.measured == plan.requests):
            raise StopUser
        index = self.scheduled
        self.scheduled += 1
        self.measured += measured
        request = plan.workload.request(index)
        self.in_flight[index] = Call(index, uuid.uuid4().hex, request, due_s, sent_s=time.monotonic())
        return self.in_flight[index]

    def over(self, due_s: float) -> bool:
        """Whether a request due then comes after the end of the measuring window."""
        duration_s = self.plan.duration_s
        return duration_s is not None and due_s - self.started_s >= self.plan.warmup_s + duration_s

    def record(self, context: dict[str, Any], response: Any, exception: Exception | None, **_: Any) -> None:
        """Append the row of a request that ended: Locust's `request` event."""
        call: Call = context["call"]
        timing = (response.headers or {}).get("server-timing", "")
        row = self.write(
            call,
            http_status=response.status_code or None,
            error=None if exception is None else str(exception),
            server_timing=timing if isinstance(timing, str) else ", ".join(timing),
            body=b"" if exception else response.content,
        )
        self.finished += 1
        if row["phase"] == "measure":
            self.last_done_s = max(self.last_done_s, row["done_s"])
        if self.measured == self.plan.requests and not self.in_flight:
            self.stop(None)

    def write(self, call: Call, **answer: Any) -> dict[str, Any]:
        """Append the row of `call`, which is over, and return it."""
        row = make_row(call, started_s=self.started_s, warmup_s=self.plan.warmup_s, **answer)
        line = json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if os.write(self.rows_fd, line) != len(line):
            raise OSError("a row was written in part only: is the disk full?")
        del self.in_flight[call.index]
        return row

    def window_end_s(self, cut_s: float) -> float:
        """The end of the measuring window, in seconds from the start, of a run cut at `cut_s` (infinite: not cut)."""
        plan = self.plan
        if self.measured == plan.requests and math.isinf(cut_s):
            return self.last_done_s
        duration_s = math.inf if plan.duration_s is None or self.measured == plan.requests else plan.duration_s
        return max(plan.warmup_s, min(cut_s, plan.warmup_s + duration_s))


class PlannedUser(ImageUser):
    """An `ImageUser` that starts with all the others and keeps to the plan."""

    load: ClassVar[Load]
    call: Call | None = None

    def on_start(self) -> None:
        self.load.started.wait()

    def next_call(self) -> Call:
        # A request is due when its user has thought, whether or not this process gets round to sending it.
        due_s = self.load.started_s if self.call is None else self.next_due_s(self.call)
        self.call = self.load.schedule(due_s)
        return self.call

    def next_due_s(self, call: Call) -> float:
        if call.done_s is None or call.index in self.load.in_flight:
            raise RuntimeError(f"request {call.index} has ended without a row")  # Locust logs what a listener raises
        return call.done_s + self.load.plan.arrivals.think_time_s

    def wait_time(self) -> float:
        """Seconds for Locust to sleep before this user's next request."""
        assert self.call is not None
        due_s = self.next_due_s(self.call)
        if self.load.over(due_s):
            raise StopUser
        return max(0.0, due_s - time.monotonic())


def say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def watch_stdin(load: Load) -> None:
    wait_read(0)
    load.stop(INTERRUPTED if os.read(0, 1) else "the process that ran it has died")


def read_order() -> dict[str, Any]:
    # Not sys.stdin: its buffer would hide the byte that asks to stop from `watch_stdin`.
    order = b""
    while not order.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            sys.exit("the process that ran it has died")
        order += chunk
    return dict(json.loads(order))


def main() -> None:
    """Carry out the plan on stdin. An error of ours or Locust's, in any user, ends the run and the process with it."""
    logging.basicConfig(level=logging.ERROR)
    order = read_order()
    plan = LoadPlan.from_dict(order["plan"])
    plan.workload.request(0)  # reads the prompts now, not while the first request waits
    load = PlannedUser.load = Load(plan, order["rows_path"])
    PlannedUser.timeout_s = plan.timeout_s
    environment = Environment(user_classes=[PlannedUser], host=plan.url, catch_exceptions=False)
    environment.events.request.add_listener(load.record)
    environment.events.user_error.add_listener(load.fail)
    runner = environment.create_local_runner()
    runner.start(plan.arrivals.users, spawn_rate=plan.arrivals.users)
    spawning: Any = runner.spawning_greenlet
    spawning.get()

    cut: str | None = "the load generator failed"
    started_at, cpu_s = datetime.now(UTC).isoformat(), time.process_time()
    load.start()
    say({"started_monotonic_s": load.started_s})
    gevent.spawn(watch_stdin, load)
    gevent.spawn(runner.user_greenlets.join).link_value(lambda _: load.stop(None))
    if plan.max_s is not None:
        gevent.spawn_later(plan.max_s, load.stop, f"the run reached its max_s of {plan.max_s:g} s")
    try:
        cut = load.end.get()
    finally:
        wall_s, cpu_s = time.monotonic() - load.started_s, time.process_time() - cpu_s
        runner.quit()
        censored = list(load.in_flight.values())
        for call in censored:
            call.done_s = None
            load.write(call, error=f"censored: {cut}")
    outcome = LoadOutcome(
        status="interrupted" if cut == INTERRUPTED else "finished",
        started_at=started_at,
        started_monotonic_s=load.started_s,
        window_start_s=plan.warmup_s,
        window_end_s=load.window_end_s(math.inf if cut is None else wall_s),
        wall_s=wall_s,
        scheduled=load.scheduled,
        finished=load.finished,
        censored=len(censored),
        generator_cpu_cores=cpu_s / wall_s,
    )
    say({"outcome": asdict(outcome)})


if __name__ == "__main__":
    main()
