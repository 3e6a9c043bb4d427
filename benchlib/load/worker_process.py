"""One worker of a run, a process that sends its share of the load and every row home.

Takes {"master", "port", "token", "headers"} as the first line of stdin; the end of stdin ends it.
The exit status is 0 after a run, 2 if the run refused this worker, and 3 if no master answered.

Knows Locust's worker, and the messages of master_process.py. Ignorant of who started it, and of the
other workers.
"""

# Locust's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import uuid
from argparse import Namespace
from typing import Any

import gevent
from gevent.event import AsyncResult, Event
from gevent.socket import wait_read
from locust.env import Environment

from benchlib.load.bearer import without_secrets
from benchlib.load.child import (
    ClosedUser,
    OpenUser,
    instruct_users,
    read_order,
    sleep_until,
)
from benchlib.load.ledger import Ledger
from benchlib.load.outbox import Outbox
from benchlib.load.plan import LoadPlan
from benchlib.load.sealed import CHANNEL, Seal, own_versions
from benchlib.load.workers import Share, schedule_digest
from benchlib.printing import print_line

REFUSED, NO_MASTER = 2, 3
FLUSH_EVERY_S = 0.1
HELLO_EVERY_S = 1.0
HELLOS = 10
LINGER_MS = 200
SILENT_S = 10
"""A master that says nothing for so long is gone: it asks for a sign of life four times a second."""
MASTER_DIED = "the process that started the run has died"


class LoadWorker:
    """The worker's side of the conversation, from its hello to the master's goodbye."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.nonce = uuid.uuid4().hex
        self.seal = Seal(order["token"].encode(), "worker")
        self.is_welcome = False
        self.heard_s = time.monotonic()
        self.answer = AsyncResult()  # the master's, to our hello
        self.begin = AsyncResult()
        self.goodbye = Event()
        self.outbox = Outbox()
        self.ledger: Ledger | None = None
        self.locust: Any = None
        # Both kinds of users, as the plan comes later. Options, so that Locust reads no files.
        environment = Environment(user_classes=[ClosedUser, OpenUser], catch_exceptions=False)
        environment.parsed_options = Namespace(web_base_path="")
        self.environment = environment

    def run(self) -> int:
        """Takes part in one run, and returns the exit status."""
        # 1) Meet the master, and get ready. Locust's users wait until the run begins.
        try:
            self.locust = self.environment.create_worker_runner(
                self.order["master"], self.order["port"]
            )
        except ConnectionError:
            return NO_MASTER
        self.locust.register_message(CHANNEL, self.hear)
        welcome = self.meet()
        if welcome is None or "words" in welcome:
            return self.explain(welcome)
        ledger = self.prepare(welcome)

        # 2) Carry out the own share of the plan.
        begin = self.begin.get()
        self.start(ledger, begin)
        cut = ledger.end.get()

        # 3) Send the last rows home, and stay until the master has read this clock once more.
        self.locust.stop()
        ledger.censor(str(cut))
        self.flush()
        while len(self.outbox):
            gevent.sleep(0.01)
            self.flush()
        self.say("rows", **self.outbox.batch(ledger))  # the last of the gauge
        self.say("done", rows=self.outbox.sent)
        self.goodbye.wait()
        self.say("left")
        return 0

    # ---- the conversation

    def say(self, kind: str, **fields: Any) -> None:
        self.locust.send_message(CHANNEL, self.seal.close(kind=kind, **fields))

    def hear(self, *, msg: Any, **_: Any) -> None:
        """Takes a message of the master. It must not raise: Locust would only log that."""
        message = self.seal.open(msg.data)
        if message is None:
            return
        self.heard_s = time.monotonic()
        kind = message["kind"]
        if kind == "ping":
            self.outbox.confirmed = message["rows"]
            self.say("pong", sent_s=message["sent_s"], theirs_s=self.heard_s)
        elif kind == "welcome":
            self.seal = self.seal.of_session(self.nonce, message["run"])
            self.answer.set(message)
        elif kind == "refused":
            self.answer.set(message)
        elif kind == "begin":
            self.begin.set(message)
        elif kind == "stop" and self.ledger is not None:
            self.ledger.stop(message["why"])
        elif kind == "goodbye":
            self.goodbye.set()

    def meet(self) -> dict[str, Any] | None:
        """The master's answer to our hello; None where none comes."""
        hello = {"versions": own_versions(), "nonce": self.nonce, "pid": os.getpid()}
        headers = sorted(self.order["headers"])  # their names; the values stay here
        for _ in range(HELLOS):
            self.say("hello", **hello, headers=headers)
            answer: dict[str, Any] | None = self.answer.wait(HELLO_EVERY_S)
            if answer is not None:
                return answer
            # A master that ended just now may have heard us in place of the next one.
            self.locust.connect_to_master()
        return None

    def explain(self, answer: dict[str, Any] | None) -> int:
        """Says why this worker takes no part, and returns the exit status."""
        if answer is not None:
            print_line(f"The run refused this worker: {answer['words']}", sys.stderr)
            return REFUSED
        place = f"{self.order['master']}:{self.order['port']}"
        print_line(
            f"The master at {place} has no place for this worker, or another BENCHLIB_LOAD_TOKEN.",
            sys.stderr,
        )
        return NO_MASTER

    # ---- the load

    def prepare(self, welcome: dict[str, Any]) -> Ledger:
        """Gets the plan ready, and tells the master."""
        plan = LoadPlan.from_dict(welcome["plan"])
        plan.workload.request(0)
        ledger = Ledger(plan, self.outbox.add)
        instruct_users(ledger, self.order["headers"])
        self.environment.events.request.add_listener(ledger.record)
        self.environment.events.user_error.add_listener(ledger.fail)
        self.ledger = ledger
        gevent.spawn(self.watch_master)
        self.say("prepared", schedule=schedule_digest(plan))
        return ledger

    def start(self, ledger: Ledger, begin: dict[str, Any]) -> None:
        """Lets the users begin at the master's moment, told in readings of this clock."""
        # 1) Which share is ours
        share = Share(begin["number"], begin["of"])
        ledger.take(share)
        self.outbox.worker = str(share.number)
        ClosedUser.spans = iter(share.spans(ledger.plan))
        gc.freeze()  # the collector must not walk all imports while requests wait

        # 2) Begin
        start_s = begin["start_s"]
        sleep_until(start_s)
        ledger.start(start_s)
        gevent.spawn(ledger.watch)
        gevent.spawn(self.flush_for_ever).link_exception(lambda ended: ledger.fail(ended.exception))
        users_end = gevent.spawn(self.locust.user_greenlets.join)
        users_end.link_value(lambda _: ledger.stop(None))

    def flush_for_ever(self) -> None:
        while True:
            gevent.sleep(FLUSH_EVERY_S)
            self.flush()

    def flush(self) -> None:
        """Sends the rows that wait, in batches, and the gauge once a second."""
        assert self.ledger is not None
        while self.outbox.may_send() or len(self.ledger.gauge) > 20:
            self.say("rows", **self.outbox.batch(self.ledger))

    # ---- the end

    def leave(self) -> None:
        """Closes Locust's socket, which would otherwise wait without end for a lost master.

        Before that, Locust's greenlets must end: the one that reads would try again for ever.
        """
        if self.locust is not None:
            self.locust.greenlet.kill(block=True)
            self.locust.client.close(linger=LINGER_MS)

    def fail(self, words: str) -> None:
        """Tells the master why this worker ends early."""
        if self.ledger is not None:
            self.say("failed", words=words)
            gevent.sleep(0.2)  # Locust's socket sends it meanwhile

    def watch_master(self) -> None:
        """Ends the work of a master that says nothing any more."""
        while time.monotonic() < self.heard_s + SILENT_S:
            gevent.sleep(1)
        self.end("the master was silent")

    def watch_stdin(self) -> None:
        """Ends the work at the end of stdin: whoever started this process has died."""
        wait_read(0)
        self.end(MASTER_DIED)

    def end(self, why: str) -> None:
        if self.ledger is None or not self.ledger.started.is_set():
            os._exit(NO_MASTER)
        self.ledger.stop(why)
        gevent.sleep(1)
        os._exit(1)


def main() -> None:
    """Takes part in the run that the order on stdin names."""
    logging.basicConfig(level=logging.ERROR)
    order = read_order()
    worker = LoadWorker(order)
    gevent.spawn(worker.watch_stdin)
    status = 1
    try:
        status = worker.run()
    except BaseException as error:
        words = without_secrets(f"{type(error).__name__}: {error}", order["headers"])
        worker.fail(words)
        raise
    finally:
        worker.leave()
    sys.exit(status)


if __name__ == "__main__":
    main()
