"""How a plan is carried out with Locust: the process behind `runner.generate_load`.

Takes {"plan", "headers", "rows_path"} as the first line of stdin. Writes {"started_monotonic_s"} and, at the
end, {"outcome"} to stdout, a JSON line each, and appends one row per request to the file. A further
byte on stdin, or its end (the parent has died), ends the run.

Knows Locust: its users send the requests, and its `request` event reports each one. Its rounded
statistics are not used. Ignorant of notebooks, of what is counted (ledger.py) and of what the
numbers mean.
"""

# Locust's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Group
from gevent.socket import wait_read
from locust.env import Environment
from locust.exception import StopUser

from benchlib.load.arrivals import MOST_IN_FLIGHT
from benchlib.load.connections import mark_moments, sending
from benchlib.load.ledger import INTERRUPTED, Ledger
from benchlib.load.locustfile import ImageUser
from benchlib.load.plan import LoadPlan
from benchlib.load.rows_file import RowsFile
from benchlib.rows import Call


class PlannedUser(ImageUser):
    """An `ImageUser` that keeps to the plan."""

    ledger: ClassVar[Ledger]

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        agent: Any = self.client.client
        for address in self.addresses:
            mark_moments(agent.clientpool.get_client(address.url)._connection_pool)

    def on_start(self) -> None:
        self.ledger.started.wait()

    def send(self, call: Call) -> None:
        sending.call = call
        super().send(call)
        if call.index in self.ledger.in_flight:  # Locust only logs what a listener raises
            raise RuntimeError(f"request {call.index} has ended without a row")


class ClosedUser(PlannedUser):
    """A user who sends the next request once the answer has come, within its span."""

    spans: ClassVar[Iterator[tuple[float, float]]]

    def on_start(self) -> None:
        super().on_start()
        come_s, leave_s = next(self.spans)
        self.due_s = self.ledger.started_s + come_s
        self.leaves_s = self.ledger.started_s + leave_s
        gevent.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Seconds for Locust to sleep before this user's next request."""
        if self.ledger.over(self.due_s) or self.due_s >= self.leaves_s:
            raise StopUser
        return max(0.0, self.due_s - time.monotonic())

    def next_call(self) -> Call:
        # The request is due when this process gets round to its user. Otherwise, if ten users were
        # answered at once, the tenth would be charged for the time that this process spends on the
        # first nine. This time counts as lag.
        now_s = time.monotonic()
        if self.ledger.over(now_s):
            raise StopUser
        return self.ledger.schedule(now_s, late_s=now_s - self.due_s)

    def send(self, call: Call) -> None:
        super().send(call)
        assert call.done_s is not None
        self.due_s = call.done_s + self.ledger.plan.arrivals.think_time_s


class OpenUser(PlannedUser):
    """The one user of open arrivals: it spawns each request when due, and waits for no answer."""

    def dispatch(self) -> None:
        """Carries out the schedule, waits for the requests in flight, and stops."""
        ledger = self.ledger
        plan = ledger.plan
        most = ledger.share.most_in_flight(plan)
        slots = BoundedSemaphore(most)
        requests = Group()

        def send(call: Call) -> None:
            with slots:
                self.send(call)

        try:
            # 1) Spawn each request at its moment.
            for moment_s in ledger.share.moments(plan):
                due_s = ledger.started_s + moment_s
                if ledger.over(due_s):
                    break
                sleep_until(due_s)
                call = ledger.schedule(due_s)
                if ledger.is_measured(due_s) and len(ledger.in_flight) > most:
                    ledger.max_in_flight_hits += 1
                requests.spawn(send, call).link_exception(
                    lambda ended: ledger.fail(ended.exception)
                )

            # 2) Wait for the end of the window, even a quiet one, and for the last answers.
            if plan.duration_s is not None and ledger.measured != ledger.quota:
                sleep_until(ledger.started_s + plan.warmup_s + plan.duration_s)
            requests.join()
        finally:
            requests.kill()
        raise StopUser


# Set here: in the class body, Locust would add it to the tasks of `ImageUser`.
OpenUser.tasks = [OpenUser.dispatch]


def sleep_until(due_s: float) -> None:
    """Lets other greenlets run until `due_s` on `time.monotonic()`.

    gevent wakes up to a millisecond late, so the last millisecond of a long sleep is spent awake.
    For short sleeps, staying awake would take too much of a core.
    """
    left_s = due_s - time.monotonic()
    awake_s = 0.001 if left_s > 0.01 else 0.0
    gevent.sleep(max(0.0, left_s - awake_s))
    while time.monotonic() < due_s:
        gevent.sleep(0)


def main() -> None:
    """Carries out the plan on stdin. An error in any user, ours or Locust's, ends the process."""
    # 1) Read the order. The prompts are read now, not while the first request waits.
    logging.basicConfig(level=logging.ERROR)
    order = read_order()
    plan = LoadPlan.from_dict(order["plan"])
    plan.workload.request(0)
    ledger = Ledger(plan, RowsFile(order["rows_path"]).append)

    # 2) Start Locust's users; they wait for the ledger to start.
    instruct_users(ledger, order["headers"])
    spans = plan.arrivals.spans()
    ClosedUser.spans = iter(spans)
    runner = start_users(ledger, ClosedUser if spans else OpenUser, len(spans) or 1)
    gc.freeze()  # the collector must not walk all imports while requests wait

    # 3) Run, until all is done or something ends it.
    cut: str | None = "the load generator failed"
    ledger.start()
    say({"started_monotonic_s": ledger.started_s})
    gevent.spawn(watch_stdin, ledger)
    gevent.spawn(ledger.watch)
    gevent.spawn(runner.user_greenlets.join).link_value(lambda _: ledger.stop(None))
    if plan.max_s is not None:
        gevent.spawn_later(
            plan.max_s, ledger.stop, f"the run reached its max_s of {plan.max_s:g} s"
        )
    try:
        cut = ledger.end.get()
    finally:
        wall_s = time.monotonic() - ledger.started_s
        runner.quit()
        censored = ledger.censor(str(cut))

    # 4) Report the outcome.
    say({"outcome": asdict(ledger.outcome(cut, wall_s, censored))})


def read_order() -> dict[str, Any]:
    """The first line of stdin, parsed. Ends the process where stdin ends before it."""
    # Not sys.stdin: its buffer would hide the byte that asks to stop from `watch_stdin`.
    order = b""
    while not order.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            sys.exit("the process that started the run has died")
        order += chunk
    return dict(json.loads(order))


def instruct_users(ledger: Ledger, headers: dict[str, str]) -> None:
    """Tells the users of this process what the ledger's plan says of all requests."""
    raise_file_limit()
    plan = ledger.plan
    PlannedUser.ledger = ledger
    PlannedUser.api = plan.api
    PlannedUser.timeout_s = plan.timeout_s
    PlannedUser.insecure = not plan.verify
    PlannedUser.secret_headers = headers
    PlannedUser.addresses = plan.addresses


def raise_file_limit() -> None:
    """Lets this process open MOST_IN_FLIGHT connections; many systems begin with 1,024 files."""
    wanted = MOST_IN_FLIGHT + 100
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


def start_users(ledger: Ledger, kind: type[PlannedUser], users: int) -> Any:
    """Locust's runner, after it has spawned all its users."""
    environment = Environment(user_classes=[kind], catch_exceptions=False)
    environment.events.request.add_listener(ledger.record)
    environment.events.user_error.add_listener(ledger.fail)
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=users)
    spawning: Any = runner.spawning_greenlet
    spawning.get()
    return runner


def say(message: dict[str, Any]) -> None:
    """Writes `message` to stdout as one JSON line."""
    os.write(1, json.dumps(message).encode() + b"\n")


def watch_stdin(ledger: Ledger) -> None:
    """Ends the run at the next byte on stdin, or at the end of stdin."""
    wait_read(0)
    ledger.stop(INTERRUPTED if os.read(0, 1) else "the process that started the run has died")


if __name__ == "__main__":
    main()
