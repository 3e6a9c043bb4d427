"""A fleet: the same public face as an engine's, over several replicas.

A central queue holds the requests that no replica can begin soon. A replica that dies costs time
only: its unfinished requests go back to the queue in the order of arrival, and are made again from
their seeds.

Knows waiting, sending, losses, retries, starting and stopping. Ignorant of HTTP, of who should get
which request (routing.py), of how orders reach a replica (replica.py), and of Ray.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from math import inf
from typing import Any

from benchlib.serving.backend import ReplicaView, State
from benchlib.serving.engine.faults import EngineEnded, Faults, reason_of
from benchlib.serving.engine.jobs import Cancelled, Refused
from benchlib.serving.engine.made import Made, WriteFile
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.engine.policies import Task
from benchlib.serving.engine.simulate import Finished, SimulatedTask, one_by_one_s
from benchlib.serving.replicas.call_counts import CallCounts
from benchlib.serving.replicas.fleet_job import FleetJob
from benchlib.serving.replicas.fleet_spec import describe_fleet
from benchlib.serving.replicas.foretelling import foretell_fleet
from benchlib.serving.replicas.replica import (
    LosesReplicas,
    Order,
    Replica,
    ReplicaLost,
    ReplicaStatus,
)
from benchlib.serving.replicas.routing import router_named
from benchlib.serving.replicas.slots import Slot, add_up
from benchlib.serving.schemas import MAX_SEED, GenerateRequest

log = logging.getLogger(__name__)

STOPPING = "the server is stopping"
SUSPECT_LOSSES = 2
"""After so many losses in a row a request gets a replica of its own: it may be the cause."""
MOST_LOSSES = 3
LONGEST_WAIT_S = 3600.0  # a lock can't wait for ever


class Fleet:
    """Makes images with `replicas`, which have one model and `options`.

    `start()` returns at once. `settled` is set when all replicas are ready, or when one can't be
    loaded; requests are taken as soon as one is ready. `failure` is why the fleet has ended: what
    loading has raised, or `EngineEnded` once no replica can come back. Nothing calls `on_step`:
    replicas count their own steps.
    """

    def __init__(self, replicas: Sequence[Replica], options: EngineOptions | None = None) -> None:
        if not replicas:
            raise ValueError("replicas: a fleet needs at least one")
        self.options = options or EngineOptions()
        self.on_step: Callable[[int, float], None] = lambda jobs, seconds: None  # noqa: ARG005
        self.failure: BaseException | None = None
        self.settled = threading.Event()
        self.ended = threading.Event()
        self.spec: dict[str, Any] = {}
        self._slots = [Slot(replica) for replica in replicas]
        self._counts = CallCounts(self._any_replica)
        self._router = router_named("foretold")
        self._waiting: list[FleetJob] = []  # in the order of arrival
        self._numbers = count(1)
        # When the full queue should have a place; None if there is no valid estimate.
        self._place_s: float | None = None
        self._startup_s: float | None = None
        self._lock = threading.RLock()
        self._alarm = threading.Condition(self._lock)  # wakes the thread that decides again
        self._ends = threading.Condition(self._lock)  # of jobs, once the fleet should exit
        # One thread at a time decides who is sent where; the others leave it a note.
        self._is_deciding = False
        self._should_decide = False
        self._decide_again_s = inf
        self._alarm_s = (
            inf  # for when the thread has set it; a thread that wakes up costs others time
        )
        self._should_exit = False
        self._has_begun = False
        self._has_stopped = False
        self._thread = threading.Thread(target=self._watch, name="benchlib-fleet", daemon=True)

    # -- how it is ---------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """ "degraded" means that some replicas are missing or failing, and others serve."""
        if self.failure is not None:
            return "failed"
        if self._has_stopped:
            return "stopped"
        ready = [slot for slot in self._slots if slot.ready]
        sound = [slot for slot in ready if slot.trouble is None]
        if len(sound) == len(self._slots):
            return "ready"
        if sound:
            return "degraded"
        return "failing" if ready else "loading"

    @property
    def trouble(self) -> str | None:
        """Why the fleet has failed, or which replicas are missing or failing, in words."""
        if self.failure is not None:
            return str(self.failure)
        if not self._has_begun or self._has_stopped:
            return None
        troubles = []
        for slot in self._slots:
            why = slot.trouble if slot.ready else slot.why_missing
            if why is not None:
                troubles.append(f"replica {slot.name}: {why}")
        return "; ".join(troubles) or None

    @property
    def doing(self) -> str:
        """How many replicas are ready, in words."""
        ready = sum(slot.ready for slot in self._slots)
        return f"{ready} of {len(self._slots)} are ready"

    @property
    def replicas(self) -> Sequence[ReplicaView]:
        """A view of each replica."""
        with self._lock:
            return [slot.view() for slot in self._slots]

    @property
    def schedules(self) -> CallCounts | None:
        """What counts the steps of a request, None before a replica was ready."""
        return self._counts if self.spec else None

    @property
    def waiting(self) -> int:
        """The number of requests that have not begun."""
        return len(self._waiting) + self._totals().waiting

    @property
    def running(self) -> int:
        """The requests in the latest steps of all replicas."""
        return self._totals().running

    @property
    def busy_s(self) -> float:
        """Seconds in encode, step and decode calls of all replicas."""
        return self._totals().busy_s

    @property
    def adapter_switches(self) -> int:
        """Switches from one adapter, or none, to another, in all replicas."""
        return self._totals().adapter_switches

    @property
    def faults(self) -> Faults:
        """The faults of all replicas."""
        totals = self._totals()
        faults = Faults()
        faults.out_of_memory.update(totals.out_of_memory)
        faults.not_finite.update(totals.not_finite)
        faults.failed_calls = totals.failed_calls
        return faults

    # -- for any thread ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load. Does nothing if loading has begun."""
        with self._lock:
            if self._has_begun or self._should_exit:
                return
            self._has_begun = True
        self._thread.start()
        for slot in self._slots:
            slot.begin()
            slot.replica.start(self._look)

    def submit(
        self,
        request: GenerateRequest,
        *,
        request_id: str = "without an id",
        arrived_s: float | None = None,
        write_file: WriteFile | None = None,
    ) -> FleetJob:
        """Queue a request; return its job. A request without a seed gets one: a retry needs it.

        Raises `Refused` if no replica is ready, the queue is full or the fleet is stopping, and
        `EngineEnded` if no replica can come back.
        """
        now_s = time.monotonic()
        if request.seed is None:
            seed = secrets.randbelow(MAX_SEED + 1)
            request = request.model_copy(update={"seed": seed})
        job = FleetJob(
            request,
            request_id,
            now_s if arrived_s is None else arrived_s,
            next(self._numbers),
            self._counts.estimate(request),
            request.rows(self.spec.get("guided_rows", 2)),
            write_file,
        )
        with self._lock:
            self._check_open()
            has_place = len(self._waiting) < self.options.max_queue
            if has_place:
                # From here on only this class ends the future.
                job.future.set_running_or_notify_cancel()
                self._enqueue(job)
        if not has_place:
            words = f"the queue is full ({self.options.max_queue} wait)"
            raise Refused(words, retry_after_s=self._until_place_s(now_s))
        self._decide()
        return job

    def route_by(self, routing: str) -> None:
        """Decide by another router from now on, to compare them. Raises ValueError for its name."""
        router = router_named(routing)
        with self._lock:
            self._router = router
        self._decide()

    def work_s(self) -> float:
        """Seconds that all jobs would take one by one, shared by the replicas that are ready."""
        with self._lock:
            jobs = self._jobs()
            ready = [slot for slot in self._slots if slot.ready]
            if not jobs or not ready:
                return 0.0
            return one_by_one_s(jobs, ready[0].times.__getitem__) / len(ready)

    def foretell(
        self, now_s: float, *newcomers: SimulatedTask
    ) -> Mapping[FleetJob | SimulatedTask, Finished]:
        """When each job and newcomer would begin and end from `now_s` on, if no other came."""
        with self._lock:
            tasks: list[Task] = [*self._waiting, *newcomers]
            foretell = foretell_fleet(tasks, [slot for slot in self._slots if slot.ready], now_s)
        return foretell()

    def cancel(self, job: FleetJob) -> None:
        """Drop a job: at once if it waits, before its next step if a replica has it."""
        with self._lock:
            job.cancelled = True
            if job.outcome is not None:
                return
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, Cancelled("cancelled while waiting"))
                return
            number = job.number
            [slot] = [slot for slot in self._slots if number in slot.inside]
        slot.replica.cancel(number)

    def drop_jobs(self) -> None:
        """Refuse new jobs and waiting jobs, and drop those inside before their next step."""
        with self._lock:
            self._should_exit = True
            for job in self._waiting:
                self._end(job, Refused(STOPPING))
            self._waiting.clear()
            inside = [job for slot in self._slots for job in slot.inside.values()]
        for job in inside:
            self.cancel(job)

    def stop(self, *, drain_s: float = 30.0) -> None:
        """Refuse new jobs, drop the others after `drain_s` seconds, end the replicas."""
        with self._lock:
            self._should_exit = True
            if self._has_begun and self.failure is None:
                self._ends.wait_for(lambda: not self._jobs(), drain_s)
        self.drop_jobs()
        with self._lock:
            self._has_stopped = True
            self._alarm.notify()
        if self._has_begun:
            for slot in self._slots:
                slot.replica.stop()
            self._thread.join()
        with self._lock:
            self._end_all(Refused(STOPPING))
        self.settled.set()
        self.ended.set()

    # -- what happens to replicas ------------------------------------------------------------------

    def _look(self) -> None:
        """Read anew how all replicas are: one of them has changed."""
        with self._lock:
            if self._has_stopped:
                return
            # 1) Who serves, and since when
            for slot in self._slots:
                slot.look()
                if slot.ready:
                    self._startup_s = slot.startup_s
                    for number in slot.numbers_of(slot.life, others=True):
                        self._take_back(slot, number, ReplicaLost("it has started again"))
            ready = [slot for slot in self._slots if slot.ready]
            if ready:
                self.spec = self._describe(ready)

            # 2) Whether the fleet is complete, or has come to its end
            failures = [slot.replica.failure for slot in self._slots if not slot.ready]
            final = [failure for failure in failures if failure is not None]
            if final and not self.settled.is_set():
                self._fail(final[0])
            elif len(final) == len(self._slots):
                self._fail(EngineEnded(f"no replica is left: {reason_of(final[0])}"))
            elif len(ready) == len(self._slots):
                self.settled.set()
        self._decide()

    def _describe(self, ready: Sequence[Slot]) -> dict[str, Any]:
        """The fleet's spec: what its replicas have in common, with the options of the whole."""
        specs = {slot.name: slot.spec for slot in ready if slot.spec is not None}
        return {
            **describe_fleet(specs),
            "max_queue": self.options.max_queue,
            "replicas": len(self._slots),
        }

    def _fail(self, error: BaseException) -> None:
        """The fleet has ended; everybody inside gets the reason. The caller holds the lock."""
        if self.failure is not None:
            return
        self.failure = error
        if isinstance(error, EngineEnded):
            log.critical("%s", error)
        self._end_all(EngineEnded(str(error)))
        self.settled.set()
        self.ended.set()
        self._alarm.notify()
        self._ends.notify_all()

    # -- from the queue to a replica ---------------------------------------------------------------

    def _watch(self) -> None:
        """Decide again when the router said so."""
        while True:
            with self._lock:
                if self._has_stopped or self.failure is not None:
                    return
                wait_s = self._decide_again_s - time.monotonic()
                if wait_s > 0:
                    self._alarm_s = self._decide_again_s
                    self._alarm.wait(min(wait_s, LONGEST_WAIT_S))
                    self._alarm_s = -inf  # it is awake, and looks at the time itself
                    continue
                self._decide_again_s = inf
            self._decide()

    def _decide(self) -> None:
        """Send what can be sent.

        Orders are sent without the lock. If another thread is at it, that thread does it once more.
        So a replica that answers within `make` causes no recursion.
        """
        with self._lock:
            self._should_decide = True
            if self._is_deciding:
                return
            self._is_deciding = True
        try:
            while self._should_go_on():
                with self._lock:
                    sent = self._choose(time.monotonic())
                for slot, job in sent:
                    self._send(slot, job)
        except BaseException as error:
            with self._lock:
                self._is_deciding = False
                self._fail(EngineEnded(f"the fleet has ended: {reason_of(error)}"))
            raise

    def _should_go_on(self) -> bool:
        with self._lock:
            self._is_deciding = self._should_decide
            self._should_decide = False
            return self._is_deciding

    def _choose(self, now_s: float) -> list[tuple[Slot, FleetJob]]:
        """Take jobs out of the queue, each for a replica."""
        self._decide_again_s = inf
        if not self._waiting:
            return []
        # 1) Who may get something: replicas that fail are for bad times
        ready = [slot for slot in self._slots if slot.ready]
        sound = [slot for slot in ready if slot.trouble is None]
        open_slots = [slot for slot in sound or ready if not slot.holds_suspect(SUSPECT_LOSSES)]
        chosen: list[tuple[Slot, FleetJob]] = []

        # 2) A suspect waits until a replica is empty, and nobody joins it there
        for job in self._waiting:
            if job.losses < SUSPECT_LOSSES or not open_slots:
                continue
            emptiest = min(open_slots, key=lambda slot: len(slot.inside))
            open_slots.remove(emptiest)
            if emptiest.inside:
                break  # it is kept free for this one; the others need not wait for more
            assert emptiest.foretold is not None
            emptiest.foretold.enter(job, now_s)
            chosen.append((emptiest, job))

        # 3) The others go by the router
        others = [job for job in self._waiting if job.losses < SUSPECT_LOSSES]
        foretold = {id(slot.foretold): slot for slot in open_slots}
        if others and open_slots:
            places = [slot.foretold for slot in open_slots if slot.foretold is not None]
            routes = self._router.route(others, places, now_s)
            chosen += [(foretold[id(place)], job) for job, place in routes.sent]
            if routes.again_s is not None:
                self._decide_again_s = routes.again_s
                if routes.again_s < self._alarm_s:
                    self._alarm.notify()

        # 4) They leave the queue
        for slot, job in chosen:
            self._waiting.remove(job)
            self._place_s = None
            job.number = next(self._numbers)
            job.admitted_s = now_s
            job.replica = slot.name
            job.life = slot.life
            slot.inside[job.number] = job
            if job.write_file is not None and slot.foretold is not None:
                slot.foretold.will_write(job)
        return chosen

    def _send(self, slot: Slot, job: FleetJob) -> None:
        """Send a job to a replica. The caller holds no lock."""
        number = job.number
        order = Order(
            number,
            job.request,
            job.request_id,
            max(0.0, time.monotonic() - job.arrived_s),
            job.write_file,
        )
        future = slot.replica.make(order)
        future.add_done_callback(partial(self._come_back, slot, number))
        if job.cancelled:  # meanwhile, when the replica did not know it yet
            slot.replica.cancel(number)

    # -- from a replica back -----------------------------------------------------------------------

    def _come_back(self, slot: Slot, number: int, future: Future[Made]) -> None:
        """An order has ended, in one way or another."""
        error = future.exception()
        if isinstance(error, Refused):  # the replica is being stopped
            error = ReplicaLost(str(error), inside=False)
        with self._lock:
            job = slot.inside.get(number)
            if job is None:  # it was taken back
                return
            if isinstance(error, ReplicaLost):
                if job.life == slot.life:
                    slot.lose(str(error))
                # The others inside are lost, too, and go back at once: so all keep their order.
                lost = slot.numbers_of(job.life) if error.inside else [number]
                for one in lost:
                    self._take_back(slot, one, error)
            else:
                self._leave(slot, number)
                outcome = error if isinstance(error, Exception) else future.result()
                if isinstance(outcome, Made):
                    slot.images += 1
                    assert job.admitted_s is not None
                    job.admitted_s += outcome.queued_s
                self._end(job, outcome)
        self._decide()

    def _take_back(self, slot: Slot, number: int, error: ReplicaLost) -> None:
        """A replica was lost with this job inside. The caller holds the lock."""
        job = self._leave(slot, number)
        job.losses += error.inside
        words = "request %s: replica %s was lost (%s)"
        log.warning(words, job.request_id, slot.name, error)
        if job.cancelled:
            self._end(job, Cancelled("cancelled while running"))
        elif self._has_stopped:
            self._end(job, Refused(STOPPING))
        elif job.losses >= MOST_LOSSES:
            self._end(job, LosesReplicas(job.losses))
        else:
            slot.retries += error.inside
            job.admitted_s = None
            job.replica = None
            self._enqueue(job)

    # -- helpers; the caller holds the lock --------------------------------------------------------

    def _check_open(self) -> None:
        """Raises the error of a fleet that takes no request."""
        if isinstance(self.failure, EngineEnded):
            raise EngineEnded(str(self.failure))
        if self.failure is not None:
            raise Refused(f"the model could not be loaded: {self.failure}")
        if self._should_exit:
            raise Refused(STOPPING)
        if any(slot.ready for slot in self._slots):
            return
        if not self.spec or self._startup_s is None:
            raise Refused("the model is still loading; wait for /ready", retry_after_s=1.0)
        soonest_s = min(slot.expected_s(self._startup_s) for slot in self._slots)
        raise Refused("no replica is left; one is starting again", retry_after_s=soonest_s)

    def _enqueue(self, job: FleetJob) -> None:
        insort(self._waiting, job, key=lambda waiting: waiting.place)
        self._place_s = None

    def _leave(self, slot: Slot, number: int) -> FleetJob:
        job = slot.inside.pop(number)
        if slot.foretold is not None:
            slot.foretold.leave(job, time.monotonic())
        return job

    def _end(self, job: FleetJob, outcome: Made | Exception) -> None:
        """End a job that is neither in the queue nor inside a replica any more."""
        job.outcome = outcome
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
        if self._should_exit:
            self._ends.notify_all()

    def _end_all(self, error: Exception) -> None:
        jobs = self._jobs()
        self._waiting.clear()
        for slot in self._slots:
            slot.inside.clear()
        for job in jobs:
            self._end(job, error)

    def _jobs(self) -> list[FleetJob]:
        """All that wait or are inside."""
        jobs = list(self._waiting)
        for slot in self._slots:
            jobs += slot.inside.values()
        return jobs

    def _totals(self) -> ReplicaStatus:
        with self._lock:
            return add_up([slot.totals() for slot in self._slots])

    def _any_replica(self) -> Replica | None:
        return next((slot.replica for slot in self._slots if slot.ready), None)

    def _until_place_s(self, now_s: float) -> float:
        """Estimated seconds until a place is free. Valid until that time, or until the next job."""
        if self._place_s is not None and self._place_s >= now_s:
            return self._place_s - now_s
        finished = self.foretell(now_s)
        begins_s = sorted(one.begun_s for one in finished.values() if one.begun_s is not None)
        too_many = max(0, len(begins_s) - self.options.max_queue)
        self._place_s = begins_s[too_many] if begins_s else now_s
        return max(0.0, self._place_s - now_s)
