"""Replicas without Ray, for tests and benchmarks of a fleet.

`ThreadReplica` has an engine on a thread of this process. `ScriptedReplica` has none: a test ends
its orders. `InstantReplica` answers at once.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace

from benchlib.serving.engine.faults import EngineEnded
from benchlib.serving.engine.jobs import Refused
from benchlib.serving.engine.made import Made
from benchlib.serving.replicas.hosted_engine import HostedEngine
from benchlib.serving.replicas.replica import ReplicaLost, ReplicaStatus


def fake_spec(step_s=1000.0, **changes):
    """The spec of a replica that takes `step_s` for a step, whatever it holds."""
    one = {"1": step_s}
    times = {"step_s": {"1": step_s, "16": step_s}, "encode_s": one, "decode_s": one}
    return {
        "model": "fake", "device": "cpu", "model_params": 7, "guided_rows": 2,
        "showcase": {"width": 64, "height": 64, "num_inference_steps": 2},
        "batching": "serial", "max_batch_size": 8, "max_wait_ms": 5.0,
        "step_times": {"64x64": times},
    } | changes  # fmt: skip


def made_for(order, **changes):
    """What a replica says of an image that cost nothing."""
    made = Made(order.request.seed, 0.0, 0.0, 0.0, batch_rows=1, steps_done=1, peak_gib=0.5)
    return replace(made, **changes)


class ScriptedReplica:
    """Has no engine. A test makes it ready with `rise`, and ends its orders."""

    def __init__(self, name, spec=None):
        self.name = name
        self.spec = None
        self.failure = None
        self.status = ReplicaStatus(life=0)
        self.orders = {}  # those that have not ended, by number
        self.seen = []  # all orders that ever came
        self.cancelled = []
        self.stopped = False
        self.rises_at_start = False
        self._own_spec = spec or fake_spec()
        self._futures = {}
        self._changed = lambda: None

    def start(self, changed):
        self._changed = changed
        if self.rises_at_start:
            self.rise()

    def make(self, order):
        future = Future()
        if self.spec is None:
            future.set_exception(ReplicaLost("it is not there", inside=False))
            return future
        self.seen.append(order)
        self.orders[order.number] = order
        self._futures[order.number] = future
        return future

    def count_calls(self, request):
        counted = Future()
        counted.set_result(request.num_inference_steps)
        return counted

    def cancel(self, number):
        self.cancelled.append(number)

    def stop(self):
        self.stopped = True
        for number in list(self.orders):
            self.end(number, ReplicaLost("it stops"))

    # -- what a test does --------------------------------------------------------------------------

    def rise(self):
        """A new life begins, and is ready."""
        self.status = replace(self.status, life=self.status.life + 1)
        self.spec = self._own_spec
        self._changed()

    def die(self, reason="killed"):
        """The process ends, and with it all orders."""
        self.spec = None
        for number in list(self.orders):
            self.end(number, ReplicaLost(reason))
        self._changed()

    def change(self, **status):
        """It says something else of itself."""
        self.status = replace(self.status, **status)
        self._changed()

    def fail(self, error):
        """It will never be ready again."""
        self.failure = error
        self.spec = None
        self._changed()

    def end(self, number, outcome=None):
        """End an order with an error, or with an image."""
        order = self.orders.pop(number)
        future = self._futures.pop(number)
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome or made_for(order))

    def end_all(self):
        """Make the images of all orders."""
        for number in list(self.orders):
            self.end(number)


class InstantReplica(ScriptedReplica):
    """Answers at once, on the thread that asks."""

    def __init__(self, name, spec=None):
        super().__init__(name, spec)
        self.rises_at_start = True

    def make(self, order):
        future = Future()
        file = None if order.write_file is None else (b"file", "ZmlsZQ==")
        future.set_result(made_for(order, file=file))
        return future


class ThreadReplica:
    """A whole engine on a thread of this process. `kill` loses it, `raise_again` starts another."""

    def __init__(self, name, load, options):
        self.name = name
        self.failure = None
        self.hosted = None
        self.former = []
        self._load = load
        self._options = options
        self._life = 0
        self._futures = {}
        self._lock = threading.Lock()

    @property
    def spec(self):
        return None if self.hosted is None else self.hosted.engine.spec

    @property
    def status(self):
        if self.hosted is None:
            return ReplicaStatus(life=self._life)
        return replace(self.hosted.status(), life=self._life)

    def start(self, changed):
        self._changed = changed
        self._begin()

    def _begin(self):
        def load():
            hosted = HostedEngine(self._load, self._options)
            hosted.engine.start()
            try:
                hosted.settle()
            except Exception as error:  # noqa: BLE001 - the fleet tells it
                self.failure = error
            else:
                self._life += 1
                self.hosted = hosted
            self._changed()

        threading.Thread(target=load, daemon=True).start()

    def make(self, order):
        outer = Future()
        hosted = self.hosted
        if hosted is None:
            outer.set_exception(ReplicaLost("it is not there", inside=False))
            return outer
        with self._lock:
            self._futures[order.number] = outer
        try:
            inner = hosted.make(order)
        except Refused as error:
            self._end(order.number, ReplicaLost(str(error), inside=False))
        else:
            inner.add_done_callback(lambda ended: self._end(order.number, outcome_of(ended)))
        return outer

    def _end(self, number, outcome):
        with self._lock:
            future = self._futures.pop(number, None)
        if future is None:  # lost before
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def count_calls(self, request):
        counted = Future()
        counted.set_result(self.hosted.count_calls(request))
        return counted

    def cancel(self, number):
        if self.hosted is not None:
            self.hosted.cancel(number)

    def kill(self):
        """Lose the engine with all that is inside."""
        lost = self.hosted
        self.hosted = None
        self.former.append(lost)
        for number in list(self._futures):
            self._end(number, ReplicaLost("killed"))
        lost.engine.drop_jobs()
        self._changed()

    def raise_again(self):
        """Start another engine in its place."""
        self._begin()

    def stop(self):
        present = [] if self.hosted is None else [self.hosted]
        for hosted in (*self.former, *present):
            hosted.engine.stop(drain_s=0.0)


def outcome_of(future):
    """What a future has ended with, as a fleet wants to be told it."""
    error = future.exception()
    if isinstance(error, EngineEnded):
        return ReplicaLost(str(error))
    if isinstance(error, Refused):
        return ReplicaLost(str(error), inside=False)
    return error or future.result()
