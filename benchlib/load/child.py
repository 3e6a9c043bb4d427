"""Knows how a plan is carried out with Locust: the process behind `runner.generate_load`.

Takes {"plan", "rows_path"} as the first line of stdin; says {"started_monotonic_s"} and, at the end, {"outcome"} on
stdout, a JSON line each; appends one row per request to the file. A further byte on stdin, or its end (the parent has
died), ends the run. Locust sends, and reports by its `request` event; its statistics are rounded and not looked at.
Ignorant of notebooks, of files other than the rows, and of what the numbers mean.
"""

# Locust's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import gc
import itertools
import json
import logging
import math
import os
import random
import resource
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from select import POLLIN
from typing import Any, ClassVar

import gevent
from gevent.event import AsyncResult, Event
from gevent.local import local
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from gevent.pool import Group
from gevent.socket import wait_read
from locust.env import Environment
from locust.exception import StopUser

from benchlib.load.arrivals import MOST_IN_FLIGHT
from benchlib.load.locustfile import ImageUser
from benchlib.load.runner import LoadOutcome, LoadPlan
from benchlib.rows import Call, make_row

INTERRUPTED = "interrupted"
poll = get_original("select", "poll")
GAUGE_EVERY_S = 0.05


class Load:
    """What is scheduled, in flight and done, and the file that tells of it."""

    def __init__(self, plan: LoadPlan, rows_path: str) -> None:
        self.plan = plan
        self.rows_fd = os.open(rows_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.started = Event()
        self.started_s = math.nan
        self.end = (
            AsyncResult()
        )  # why the run is cut, None where all is done, or the error that broke it
        self.in_flight: dict[int, Call] = {}
        self.scheduled = self.measured = self.finished = 0
        self.last_done_s = 0.0  # of the measured ones
        self.lags_s: list[float] = []  # of the measured ones
        self.gauge: list[
            tuple[float, int, float]
        ] = []  # moments, how many were in flight, this process's CPU seconds
        self.in_flight_max = self.max_in_flight_hits = 0

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

    def schedule(self, due_s: float, late_s: float = 0.0) -> Call:
        """The next request, due at `due_s` on `time.monotonic()`. Raises StopUser once the scheduling is over."""
        if self.over(due_s):
            raise StopUser
        index = self.scheduled
        self.scheduled += 1
        self.in_flight[index] = Call(
            index, uuid.uuid4().hex, self.plan.request(index), due_s, late_s
        )
        if self.is_measured(due_s):
            self.measured += 1
            self.in_flight_max = max(self.in_flight_max, len(self.in_flight))
        return self.in_flight[index]

    def is_measured(self, due_s: float) -> bool:
        return due_s - self.started_s >= self.plan.warmup_s

    def over(self, due_s: float) -> bool:
        """Whether a request due then is one too many, or comes after the end of the measuring window."""
        if self.is_measured(due_s) and self.measured == self.plan.requests:
            return True
        duration_s = self.plan.duration_s
        return duration_s is not None and due_s - self.started_s >= self.plan.warmup_s + duration_s

    def watch(self) -> None:
        """Count what is in flight, for ever: at a random moment in each 0.05 s, lest it keep step with the arrivals."""
        draw = random.Random(self.plan.seed).random
        for cell in itertools.count():
            gevent.sleep(
                max(0.0, self.started_s + (cell + draw()) * GAUGE_EVERY_S - time.monotonic())
            )
            self.gauge.append(
                (time.monotonic() - self.started_s, len(self.in_flight), time.process_time())
            )

    def record(
        self, context: dict[str, Any], response: Any, exception: Exception | None, **_: Any
    ) -> None:
        """Append the row of a request that ended: Locust's `request` event."""
        call: Call = context["call"]
        timing = (response.headers or {}).get("server-timing", "")
        row = self.write(
            call,
            http_status=response.status_code or None,
            error=None if exception is None else str(exception),
            server_timing=timing if isinstance(timing, str) else ", ".join(timing),
            # What OpenAI's API answers is the image: megabytes that tell nothing of a row.
            body=response.content if exception is None and self.plan.api == "benchmark" else b"",
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
        if row["phase"] == "measure":
            sent_s = time.monotonic() if call.sent_s is None else call.sent_s
            self.lags_s.append(call.late_s + sent_s - call.due_s)
        del self.in_flight[call.index]
        return row

    def window_end_s(self, cut_s: float) -> float:
        """The end of the measuring window, in seconds from the start, of a run cut at `cut_s` (infinite: not cut)."""
        plan = self.plan
        if plan.duration_s is None or self.measured == plan.requests:
            return max(plan.warmup_s, self.last_done_s if math.isinf(cut_s) else cut_s)
        return max(plan.warmup_s, min(cut_s, plan.warmup_s + plan.duration_s))


class PlannedUser(ImageUser):
    """An `ImageUser` that keeps to the plan."""

    load: ClassVar[Load]
    sending = local()  # of each greenlet: its call

    class Socket(gevent.socket.socket):  # type: ignore[misc]
        """Marks when an answer was there to be read, before any of those that came with it is worked on."""

        def recv(self, *args: Any) -> bytes:
            data: bytes = super().recv(*args)
            PlannedUser.sending.call.read_s = time.monotonic()
            gevent.sleep(0)
            return data

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        # A connection that has to be waited for is lag: a request counts as sent once it has one.
        agent: Any = self.client.client
        pool = agent.clientpool.get_client(self.host)._connection_pool
        pool._create_tcp_socket = self.Socket
        pool._is_socket_alive = self.is_alive
        get_socket = pool.get_socket

        def get_socket_and_mark() -> Any:
            socket = get_socket()
            self.sending.call.sent_s = time.monotonic()
            return socket

        pool.get_socket = get_socket_and_mark

    @staticmethod
    def is_alive(socket: Any) -> bool:
        """Whether nothing has come, an end neither, to an idle connection. The client's own way to ask would let all
        others have their turns first, and takes connections past the 1,024th for dead."""
        asked = poll()
        asked.register(socket, POLLIN)
        return not asked.poll(0)

    def on_start(self) -> None:
        self.load.started.wait()

    def send(self, call: Call) -> None:
        self.sending.call = call
        super().send(call)
        if call.index in self.load.in_flight:
            raise RuntimeError(
                f"request {call.index} has ended without a row"
            )  # Locust logs what a listener raises


class ClosedUser(PlannedUser):
    """A user who asks again once it has its answer, within its span."""

    spans: ClassVar[Iterator[tuple[float, float]]]

    def on_start(self) -> None:
        super().on_start()
        come_s, leave_s = next(self.spans)
        self.due_s, self.leaves_s = self.load.started_s + come_s, self.load.started_s + leave_s
        gevent.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Seconds for Locust to sleep before this user's next request."""
        if self.load.over(self.due_s) or self.due_s >= self.leaves_s:
            raise StopUser
        return max(0.0, self.due_s - time.monotonic())

    def next_call(self) -> Call:
        # Due when this process gets round to the user: of ten who are answered at once, the last one's latency would
        # hold this process's work on the nine before. The delay counts as lag.
        now_s = time.monotonic()
        return self.load.schedule(now_s, late_s=now_s - self.due_s)

    def send(self, call: Call) -> None:
        super().send(call)
        assert call.done_s is not None
        self.due_s = call.done_s + self.load.plan.arrivals.think_time_s


class OpenUser(PlannedUser):
    """The one user of open arrivals: it spawns each request when it is due, whatever has become of those before."""

    @staticmethod
    def sleep_until(due_s: float) -> None:
        """Let others have their turns until then. gevent wakes up to a millisecond late, so the last one of a long
        sleep is spent awake; of short ones that would take too much of a core."""
        left_s = due_s - time.monotonic()
        gevent.sleep(max(0.0, left_s - 0.001 * (left_s > 0.01)))
        while time.monotonic() < due_s:
            gevent.sleep(0)

    def dispatch(self) -> None:
        """Carry out the schedule, wait for what is in flight, and stop."""
        load, requests = self.load, Group()
        most = load.plan.arrivals.max_in_flight
        slots = BoundedSemaphore(most)

        def send(call: Call) -> None:
            with slots:
                self.send(call)

        try:
            for moment_s in load.plan.arrivals.times(load.plan.seed):
                due_s = load.started_s + moment_s
                if load.over(due_s):
                    break
                self.sleep_until(due_s)
                call = load.schedule(due_s)
                load.max_in_flight_hits += load.is_measured(due_s) and len(load.in_flight) > most
                requests.spawn(send, call).link_exception(lambda ended: load.fail(ended.exception))
            if load.plan.duration_s is not None and load.measured != load.plan.requests:
                self.sleep_until(
                    load.started_s + load.plan.warmup_s + load.plan.duration_s
                )  # a quiet end counts, too
            requests.join()
        finally:
            requests.kill()
        raise StopUser


OpenUser.tasks = [OpenUser.dispatch]  # in the class it would be added to those of `ImageUser`


def cores(samples: list[tuple[float, int, float]]) -> float | None:
    """The CPU time between the first and the last sample of the gauge, over the time."""
    if len(samples) < 2:
        return None
    (begin_s, _, before_s), (end_s, _, after_s) = samples[0], samples[-1]
    return (after_s - before_s) / (end_s - begin_s)


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
    PlannedUser.api, PlannedUser.timeout_s = plan.api, plan.timeout_s
    spans = plan.arrivals.spans()
    ClosedUser.spans = iter(spans)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_IN_FLIGHT + 100  # a connection each; many systems begin with 1024 or fewer
    resource.setrlimit(
        resource.RLIMIT_NOFILE,
        (files if most == resource.RLIM_INFINITY else min(files, most), most),
    )
    environment = Environment(
        user_classes=[ClosedUser if spans else OpenUser], host=plan.url, catch_exceptions=False
    )
    environment.events.request.add_listener(load.record)
    environment.events.user_error.add_listener(load.fail)
    runner = environment.create_local_runner()
    runner.start(len(spans) or 1, spawn_rate=len(spans) or 1)
    spawning: Any = runner.spawning_greenlet
    spawning.get()
    gc.freeze()  # what was imported is not searched for garbage while requests wait

    cut: str | None = "the load generator failed"
    started_at = datetime.now(UTC).isoformat()
    load.start()
    say({"started_monotonic_s": load.started_s})
    gevent.spawn(watch_stdin, load)
    gevent.spawn(load.watch)
    gevent.spawn(runner.user_greenlets.join).link_value(lambda _: load.stop(None))
    if plan.max_s is not None:
        gevent.spawn_later(plan.max_s, load.stop, f"the run reached its max_s of {plan.max_s:g} s")
    try:
        cut = load.end.get()
    finally:
        wall_s = time.monotonic() - load.started_s
        runner.quit()
        censored = list(load.in_flight.values())
        for call in censored:
            call.done_s = None
            load.write(call, error=f"censored: {cut}")
    window_end_s = load.window_end_s(math.inf if cut is None else wall_s)
    inside = [sample for sample in load.gauge if plan.warmup_s <= sample[0] < window_end_s]
    outcome = LoadOutcome(
        status="interrupted" if cut == INTERRUPTED else "finished",
        started_at=started_at,
        started_monotonic_s=load.started_s,
        window_start_s=plan.warmup_s,
        window_end_s=window_end_s,
        wall_s=wall_s,
        scheduled=load.scheduled,
        finished=load.finished,
        censored=len(censored),
        generator_cpu_cores=cores(inside),
        send_lag_p99_s=sorted(load.lags_s)[math.ceil(0.99 * len(load.lags_s)) - 1]
        if load.lags_s
        else None,
        in_flight_mean=sum(count for _, count, _ in inside) / len(inside) if inside else None,
        in_flight_max=load.in_flight_max or None,
        max_in_flight_hits=load.max_in_flight_hits,
    )
    say({"outcome": asdict(outcome)})


if __name__ == "__main__":
    main()
