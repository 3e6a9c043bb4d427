"""How a plan is carried out by several workers: the process behind `runner.generate_load`.

Takes the same first line of stdin as child.py and {"token"}, and writes the same messages. It starts
Locust's master, and its workers unless they are external. Each row comes home in a message of ours,
because Locust's own carry sums, and is appended to the file at once.

Knows Locust's master, and who takes part in the run. Ignorant of notebooks, of how requests are sent
(child.py), and of how the figures of workers add up (collected.py).
"""

# Locust's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeAlias

import gevent
from gevent.event import AsyncResult, Event
from gevent.queue import Queue
from gevent.socket import wait_read
from locust.env import Environment
from locust.exception import RPCError
from locust.runners import MasterRunner

from benchlib.load.child import ClosedUser, OpenUser, read_order, say, sleep_until
from benchlib.load.clocks import Alignment, ClockReading, Echo, read_clock
from benchlib.load.collected import Collected, WorkerTally
from benchlib.load.ledger import INTERRUPTED, GaugeSample
from benchlib.load.plan import LoadPlan
from benchlib.load.runner import LoadOutcome
from benchlib.load.sealed import CHANNEL, Seal, version_fault
from benchlib.load.workers import Share, schedule_digest, worker_count

TICK_S = 0.25
SILENT_TICKS = 16
"""A worker that says nothing for so many ticks, 4 s, is lost. They pass only while this process runs."""
LOCAL_WAIT_S = 120.0
SPAWN_S = 60.0
BEGIN_IN_S = 0.3
"""The run begins so long after the word to begin, by when it has reached all workers."""
LEAVE_S = 0.5
PINGS = 16
ANSWER_S = 2.0
"""An echo, and the last rows of a run that is cut, are waited for so long."""


Process: TypeAlias = "subprocess.Popen[bytes]"


class DealOnce(MasterRunner):
    """Locust's master, but it deals out the users once.

    Locust gives the users of a worker that was lost to the others, after a minute. It deals them
    anew also when a worker comes late or comes back. Either would change the load unseen.
    """

    has_dealt = False

    def start(self, *arguments: Any, **options: Any) -> None:
        if not self.has_dealt:
            self.has_dealt = True
            super().start(*arguments, **options)


class Member:
    """A worker, as the master knows it. `process` is None for one that was started elsewhere."""

    def __init__(self, client_id: str, seal: Seal, process: Process | None) -> None:
        self.client_id = client_id
        self.seal = seal
        self.process = process
        self.tally = WorkerTally()
        self.echoes: deque[Echo] = deque(maxlen=PINGS)
        self.echoed = Event()
        self.silent_ticks = 0
        self.is_prepared = False
        self.is_done = False
        self.has_left = False

    @property
    def is_lost(self) -> bool:
        return self.tally.lost is not None

    def read_clock(self, ping: Callable[[Member], None]) -> ClockReading | None:
        """The worker's clock by the quickest of PINGS echoes; None where it does not answer."""
        self.echoes.clear()
        for _ in range(PINGS):
            self.echoed.clear()
            ping(self)
            if not self.echoed.wait(ANSWER_S):
                break
        return read_clock(self.echoes) if self.echoes else None


class LoadMaster:
    """The master's side of a run, from the workers' hellos to its goodbye."""

    def __init__(self, plan: LoadPlan, order: dict[str, Any]) -> None:
        self.plan = plan
        self.order = order
        self.count = worker_count(plan.workers)
        self.run_id = uuid.uuid4().hex
        self.collected = Collected(plan, order["rows_path"])
        self.members: dict[str, Member] = {}  # by Locust's id
        self.crew: list[Member] = []  # the same, by the number of their share
        self.processes: list[Process] = []  # of the workers that were started here
        self.heard = Queue()
        self.strangers = 0  # messages that another secret has sealed, or none
        self.ready = AsyncResult()
        # Why the run is cut, or None where all is done, or the exception that broke the run.
        self.end = AsyncResult()
        self.all_done = Event()
        self.started_s = 0.0
        spans = plan.arrivals.spans()
        self.users = len(spans) or self.count
        # No host: the URL travels in our own messages alone.
        kind = ClosedUser if spans else OpenUser
        environment = Environment(user_classes=[kind], catch_exceptions=False)
        self.locust: Any = master_at(environment, order["host"], order["port"])
        self.locust.register_message(CHANNEL, self.hear)
        gevent.spawn(self.follow).link_exception(self.fail)

    def fail(self, ended: Any) -> None:
        """Breaks the run off by the exception of a greenlet."""
        for result in (self.ready, self.end):
            if not result.ready():
                result.set_exception(ended.exception)

    def stop(self, why: str | None) -> None:
        """Ends the run, if it has not ended."""
        if not self.end.ready():
            self.end.set(why)

    # ---- the conversation

    def tell(self, member: Member, kind: str, **fields: Any) -> None:
        wire = member.seal.close(kind=kind, **fields)
        self.locust.send_message(CHANNEL, wire, client_id=member.client_id)

    def ping(self, member: Member) -> None:
        self.tell(member, "ping", sent_s=time.monotonic(), rows=member.tally.rows)

    def hear(self, *, msg: Any, **_: Any) -> None:
        """Notes a message. It must not raise: Locust would only log that."""
        self.heard.put((time.monotonic(), msg.node_id, msg.data))

    def follow(self) -> None:
        """Acts on each message, for ever."""
        while True:
            heard_s, client_id, wire = self.heard.get()
            member = self.members.get(client_id)
            if member is None:
                self.greet(client_id, wire)
                continue
            message = member.seal.open(wire)
            if message is not None:
                member.silent_ticks = 0
                self.act(member, message, heard_s)

    def greet(self, client_id: str, wire: Any) -> None:
        """Welcomes a worker that has the secret, or refuses it in words; others wait in vain."""
        seal = Seal(self.order["token"].encode(), "master")
        hello = seal.open(wire)
        if hello is None:
            self.strangers += 1
            return
        if hello["kind"] != "hello" or len(self.members) == self.count:
            return
        fault = version_fault(hello["versions"])
        if hello["headers"] != sorted(self.order["headers"]):
            fault = (
                "its BENCHLIB_LOAD_API_KEY and BENCHLIB_LOAD_HEADERS must set the headers that the "
                f"run sends, {', '.join(sorted(self.order['headers'])) or 'none'}"
            )
        if fault is not None:
            refusal = seal.close(kind="refused", words=fault)
            self.locust.send_message(CHANNEL, refusal, client_id=client_id)
            raise RuntimeError(f"a worker can't take part: {fault}")
        welcome = seal.close(kind="welcome", run=self.run_id, plan=self.plan.to_dict())
        session = seal.of_session(hello["nonce"], self.run_id)
        by_pid = {process.pid: process for process in self.processes}
        self.members[client_id] = Member(client_id, session, by_pid.get(hello["pid"]))
        self.locust.send_message(CHANNEL, welcome, client_id=client_id)

    def act(self, member: Member, message: dict[str, Any], heard_s: float) -> None:
        kind = message["kind"]
        if kind == "pong":
            echo = Echo(message["sent_s"], message["theirs_s"], heard_s)
            member.echoes.append(echo)
            member.echoed.set()
        elif kind == "rows":
            self.collected.add(member.tally, message)
        elif kind == "prepared":
            self.note_prepared(member, message["schedule"])
        elif kind == "done":
            self.note_done(member, message["rows"])
        elif kind == "left":
            member.has_left = True
        elif kind == "failed":
            raise RuntimeError(f"a worker failed: {message['words']}")

    def note_prepared(self, member: Member, schedule: str) -> None:
        if schedule != schedule_digest(self.plan):
            raise RuntimeError("a worker's machine draws another schedule from the same seed")
        member.is_prepared = True
        prepared = [one for one in self.members.values() if one.is_prepared]
        if len(prepared) == self.count and not self.ready.ready():
            self.ready.set()

    def note_done(self, member: Member, rows: int) -> None:
        home = member.tally.rows
        if rows != home:
            raise RuntimeError(f"worker {member.tally.name} sent {rows} rows, {home} came home")
        member.is_done = True
        if all(one.is_done or one.is_lost for one in self.crew):
            self.all_done.set()
            self.stop(None)

    # ---- the run

    def gather(self, wait_s: float) -> None:
        """Waits until as many workers as the plan has are ready. Raises RuntimeError else."""
        until_s = time.monotonic() + wait_s
        while not self.ready.ready():
            self.ready.wait(TICK_S)
            for process in self.processes:
                if process.poll() is not None:
                    raise RuntimeError(
                        f"a worker ended with code {process.returncode} before the run began"
                    )
            if time.monotonic() > until_s and not self.ready.ready():
                came = f"{len(self.members)} of {self.count} workers came within {wait_s:g} s"
                others = f"; {self.strangers} messages had another BENCHLIB_LOAD_TOKEN"
                raise RuntimeError(came + (others if self.strangers else ""))
        self.ready.get()

    def deal(self) -> None:
        """Lets Locust spawn the users, who wait, and numbers the workers by how many they got.

        The first shares have one user more where the users are no multiple of the workers.
        """
        # 1) Locust deals to all workers that it knows: leave out those who came too late.
        for client_id in self.locust.clients:
            if client_id not in self.members:
                del self.locust.clients[client_id]
        self.locust.start(self.users, spawn_rate=self.users)
        with gevent.Timeout(SPAWN_S, RuntimeError("not all users were spawned")):
            while self.locust.user_count != self.users:
                gevent.sleep(0.01)

        # 2) Number the workers.
        clients = self.locust.clients
        order = sorted(self.members, key=lambda one: (-clients[one].user_count, one))
        for number, client_id in enumerate(order):
            due = Share(number, self.count).part(self.users)
            if clients[client_id].user_count != due:
                raise RuntimeError("Locust did not deal the users out evenly")
            member = self.members[client_id]
            self.collected.enrol(member.tally)
            self.crew.append(member)

    def begin(self) -> None:
        """Reads the workers' clocks, and starts all of them at one moment."""
        offsets_s = []
        for member in self.crew:
            reading = member.read_clock(self.ping)
            if reading is None:
                raise RuntimeError("a worker does not answer")
            alignment = Alignment(reading)
            member.tally.alignment = alignment
            offsets_s.append(alignment.used_offset_s)
        self.started_s = time.monotonic() + BEGIN_IN_S
        for number, member in enumerate(self.crew):
            start_s = self.started_s + offsets_s[number]
            self.tell(member, "begin", number=number, of=self.count, start_s=start_s)
        sleep_until(self.started_s)

    def watch(self) -> None:
        """Asks each worker for a sign of life, for ever, and ends the run where one is lost."""
        while True:
            gevent.sleep(TICK_S)
            passed_s = time.monotonic() - self.started_s
            own = GaugeSample(passed_s, 0, time.process_time())
            self.collected.own_gauge.append(own)
            for member in self.crew:
                member.silent_ticks += 1
                why = lost_reason(member)
                if why is not None:
                    self.lose(member, f"{passed_s:.1f} s after the start: {why}")
                self.ping(member)

    def lose(self, member: Member, words: str) -> None:
        """Ends the run: without this worker its load would not be the plan's."""
        member.tally.lost = f"worker {member.tally.name} was lost {words}"
        if member.process is not None:
            member.process.kill()  # it may only be stopped
        self.stop(member.tally.lost)

    def finish(self, cut: str | None) -> None:
        """Has the workers end, and reads their clocks once more."""
        if cut is not None:
            for member in self.crew:
                self.tell(member, "stop", why=cut)
            self.all_done.wait(ANSWER_S)
        for member in self.crew:
            alignment = member.tally.alignment
            if member.is_done and alignment is not None:
                alignment.end = member.read_clock(self.ping)

    def leave(self) -> None:
        """Lets all workers go, and waits a little until they are gone."""
        for member in self.members.values():
            self.tell(member, "goodbye")
        until_s = time.monotonic() + LEAVE_S
        while time.monotonic() < until_s:
            stay = [one for one in self.members.values() if not (one.has_left or one.is_lost)]
            if not stay and self.end.successful():
                break
            gevent.sleep(0.005)


def lost_reason(member: Member) -> str | None:
    """Why a worker must be given up now, in words; None for one that lives, or has done its part."""
    if member.is_done or member.is_lost:
        return None
    code = None if member.process is None else member.process.poll()
    if code is not None:
        return f"its process ended with code {code}"
    if member.silent_ticks > SILENT_TICKS:
        return f"it was silent for {SILENT_TICKS * TICK_S:g} s"
    return None


def master_at(environment: Environment, host: str, port: int) -> DealOnce:
    """Locust's master at this address. Raises RuntimeError where it can't listen there."""
    try:
        runner = DealOnce(environment, host, port)
    except (RPCError, SystemExit) as error:
        raise RuntimeError(f"workers: this process can't listen at {host}:{port}") from error
    environment.runner = runner
    return runner


@contextmanager
def started_workers(count: int, order: dict[str, Any]) -> Iterator[list[Process]]:
    """Yields `count` workers that were started here. At the end none of them is left."""
    processes = []
    try:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchlib.load.worker_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Carries out the plan on stdin. An error in any worker ends the run."""
    # 1) Read the order, and listen.
    logging.basicConfig(level=logging.ERROR)
    order = read_order()
    plan = LoadPlan.from_dict(order["plan"])
    plan.workload.request(0)
    external = order["plan"]["workers"]
    is_local = isinstance(external, int)
    if is_local:
        local = {"host": "127.0.0.1", "port": 0, "token": uuid.uuid4().hex}
        order |= local
        wait_s = LOCAL_WAIT_S
    else:
        order |= {"host": external["host"], "port": external["port"]}
        wait_s = external["wait_s"]
    master = LoadMaster(plan, order)

    # 2) Gather the workers, and run.
    to_workers = {
        "master": "127.0.0.1",
        "port": master.locust.server.port,
        "token": order["token"],
        "headers": order["headers"],
    }
    with started_workers(master.count if is_local else 0, to_workers) as processes:
        master.processes = processes
        try:
            gevent.spawn(follow_stdin, master)
            outcome = carry_out(master, wait_s)
            say({"outcome": asdict(outcome)})
        finally:
            master.leave()


def carry_out(master: LoadMaster, wait_s: float) -> LoadOutcome:
    """The whole run, until its outcome."""
    # 1) Begin, once all workers are there.
    master.gather(wait_s)
    master.deal()
    master.begin()
    started_at = datetime.now(UTC).isoformat()
    say({"started_monotonic_s": master.started_s})

    # 2) Run, until all is done or something ends it.
    gevent.spawn(master.watch).link_exception(master.fail)
    max_s = master.plan.max_s
    if max_s is not None:
        gevent.spawn_later(max_s, master.stop, f"the run reached its max_s of {max_s:g} s")
    cut = master.end.get()
    wall_s = time.monotonic() - master.started_s

    # 3) Sum it up.
    master.finish(cut)
    return master.collected.outcome(
        cut, started_at=started_at, started_s=master.started_s, wall_s=wall_s
    )


def follow_stdin(master: LoadMaster) -> None:
    """Ends the run at the next byte on stdin, or at the end of stdin."""
    wait_read(0)
    why = INTERRUPTED if os.read(0, 1) else "the process that started the run has died"
    if not master.ready.ready():
        os._exit(1)
    master.stop(why)


if __name__ == "__main__":
    main()
