"""A replica that lives in a process of Ray Serve: its calls, its deaths and its returns.

Knows how Ray Serve names the process behind a replica, and what Ray raises when it is gone. Ignorant
of how replicas are put into service (ray_launcher.py) and of who gets which request.

Calls go to the process that Ray Serve keeps, and not through Ray Serve's own handle: a handle keeps
requests in a queue of its own while there is no process, sends those again that a dying process had
not accepted, and takes longer. The fleet does both itself, and must know.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from benchlib.serving.engine.faults import EngineEnded, reason_of
from benchlib.serving.engine.jobs import Cancelled
from benchlib.serving.engine.made import Made
from benchlib.serving.replicas.ray_session import NAMESPACE
from benchlib.serving.replicas.replica import Order, ReplicaLost, ReplicaStatus
from benchlib.serving.schemas import GenerateRequest

log = logging.getLogger(__name__)

LOOK_S = 0.1  # how often a replica without a process looks for one
STATUS_S = 1.0  # how often a status is asked for, which also finds an idle replica dead
WORD_S = 30.0  # how often it asks Ray Serve why there is no process
MOST_DEATHS = 3  # of processes that were never ready


class Launcher(Protocol):
    """What puts replicas into service and takes them out again."""

    def launch(self) -> None:
        """Return once all replicas are being started. Raises what makes that impossible."""
        ...

    def release(self) -> None:
        """Say that one replica is not needed any more."""
        ...


class RayReplica:
    """The replica behind an application of Ray Serve; a `Replica` to the fleet."""

    def __init__(self, name: str, application: str, deployment: str, launcher: Launcher) -> None:
        self._name = name
        self._application = application
        self._prefix = f"SERVE_REPLICA::{application}#{deployment}#"
        self._launcher = launcher
        self._spec: Mapping[str, Any] | None = None
        self._failure: BaseException | None = None
        self._life = 0
        self._status = ReplicaStatus()
        self._changed: Callable[[], None] = lambda: None
        self._actor: Any = None  # the process that takes calls, None while there is none
        self._dead: set[str] = set()  # the names of the processes before
        self._inside: dict[int, Future[Made]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name=f"benchlib-replica-{name}", daemon=True
        )

    # -- for any thread ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """ "0", "1" and so on."""
        return self._name

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """The spec of its engine, None while there is no process that is ready."""
        return self._spec

    @property
    def status(self) -> ReplicaStatus:
        """The latest that is known, at most some seconds old."""
        return self._status

    @property
    def failure(self) -> BaseException | None:
        """Why it could not start, such as what loading has raised."""
        return self._failure

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to load. `changed()` is called on a thread of this replica, or on one of Ray's."""
        self._changed = changed
        self._thread.start()

    def make(self, order: Order) -> Future[Made]:
        """Begin an image. The future ends on a thread of Ray's."""
        made: Future[Made] = Future()
        with self._lock:
            actor = self._actor
            if actor is None:
                made.set_exception(ReplicaLost(f"replica {self.name} is gone", inside=False))
                return made
            self._inside[order.number] = made
            life = self._life
        answer = call(actor, "make", order)
        answer.add_done_callback(partial(self._end_order, order.number, life))
        return made

    def count_calls(self, request: GenerateRequest) -> Future[int]:
        """The calls of the UNet that `request` takes."""
        counted: Future[int] = Future()
        actor = self._actor
        if actor is None:
            counted.set_exception(ReplicaLost(f"replica {self.name} is gone", inside=False))
            return counted

        def finish(answer: Future[Any]) -> None:
            error = self._error_in(answer)
            if error is None:
                counted.set_result(answer.result())
            else:
                counted.set_exception(error)

        call(actor, "count_calls", request).add_done_callback(finish)
        return counted

    def cancel(self, number: int) -> None:
        """Drop the order of this number."""
        actor = self._actor
        if actor is not None and number in self._inside:
            call(actor, "cancel", number)

    def stop(self) -> None:
        """Take the replica out of service; return once its process has ended."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._lose(Cancelled("the server is stopping"))
        self._launcher.release()

    # -- the replica's own thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._launcher.launch()
            while not self._stopping:
                self._live()
        except Exception as error:  # noqa: BLE001 - the fleet tells it, and `serve` raises it
            self._failure = error
            self._lose(ReplicaLost(reason_of(error)))
            self._changed()

    def _live(self) -> None:
        """One life, from the start of a process to its end. Raises what the first has failed with."""
        found = self._wait_for_process()
        if found is None:
            return
        name, actor = found
        try:
            spec = self._wait_until_settled(actor)
            if spec is None:
                return
            self._begin_life(actor, spec)
            self._follow(actor)
        except ReplicaLost as lost:
            log.log(
                logging.DEBUG if self._stopping else logging.WARNING,
                "replica %s is gone: %s",
                self.name,
                lost,
            )
            self._dead.add(name)
            if self._life == 0 and len(self._dead) == MOST_DEATHS:
                raise RuntimeError(
                    f"replica {self.name} has died {MOST_DEATHS} times before it was ready: {lost}"
                ) from lost
            self._lose(lost)
            self._changed()

    def _wait_for_process(self) -> tuple[str, Any] | None:
        """The name and the handle of the process that Ray Serve has started; None at a stop."""
        import ray
        from ray.util import list_named_actors

        asked_s = time.monotonic()
        while not self._stopping:
            for actor in list_named_actors(all_namespaces=True):
                name = actor["name"]
                if name.startswith(self._prefix) and name not in self._dead:
                    try:
                        return name, ray.get_actor(name, namespace=NAMESPACE)
                    except ValueError:  # it has just died
                        continue
            if time.monotonic() - asked_s > WORD_S:
                asked_s = time.monotonic()
                self._ask_why_absent()
            self._wake.wait(LOOK_S)
        return None

    def _ask_why_absent(self) -> None:
        """Log why Ray Serve has no process. Raises RuntimeError if it has given up."""
        from ray import serve

        application = serve.status().applications.get(self._application)
        if application is None:
            raise RuntimeError(f"replica {self.name}: somebody has deleted it from Ray Serve")
        words = "; ".join(one.message for one in application.deployments.values() if one.message)
        if application.status == "DEPLOY_FAILED":
            raise RuntimeError(f"replica {self.name}: Ray Serve could not start it: {words}")
        log.warning("replica %s waits for a process: %s", self.name, words or application.status)

    def _wait_until_settled(self, actor: Any) -> Mapping[str, Any] | None:
        """The spec of the engine behind `actor` once it is warm; None at a stop.

        Raises `ReplicaLost`, and in the first life what loading has raised.
        """
        from ray.exceptions import RayTaskError

        while not self._stopping:
            answer = call(actor, "settle")
            if not self._wait_for(answer):
                return None
            if isinstance(answer.exception(), RayTaskError):
                # Ray Serve has not called the deployment's constructor yet.
                self._wake.wait(LOOK_S)
                continue
            error = self._error_in(answer)
            if error is None:
                return dict(answer.result())
            if isinstance(error, ReplicaLost) or self._life == 0:
                raise error
            raise ReplicaLost(reason_of(error))
        return None

    def _begin_life(self, actor: Any, spec: Mapping[str, Any]) -> None:
        with self._lock:
            self._life += 1
            self._actor = actor
            self._status = ReplicaStatus(life=self._life)
            self._spec = spec
        self._changed()

    def _follow(self, actor: Any) -> None:
        """Ask for the status from time to time, until a stop. Raises `ReplicaLost`."""
        while not self._stopping:
            answer = call(actor, "status")
            if not self._wait_for(answer):
                return
            error = self._error_in(answer)
            if error is not None:
                raise ReplicaLost(reason_of(error)) from error
            before = self._status
            self._status = replace(answer.result(), life=self._life)
            if (before.trouble is None) != (self._status.trouble is None):
                self._changed()
            self._wake.wait(STATUS_S)
            if not self._stopping:
                self._wake.clear()

    def _wait_for(self, answer: Future[Any]) -> bool:
        """Whether `answer` has ended before a stop."""
        answer.add_done_callback(lambda _: self._wake.set())
        while not answer.done():
            if self._stopping:
                return False
            self._wake.wait()
            if not self._stopping:
                self._wake.clear()
        return True

    # -- a thread of Ray's, or the replica's own ---------------------------------------------------

    def _end_order(self, number: int, life: int, answer: Future[Any]) -> None:
        error = self._error_in(answer)
        with self._lock:
            if life != self._life:
                return
            made = self._inside.pop(number, None)
        if isinstance(error, ReplicaLost):
            self._wake.set()  # the next status will tell, too
        if made is None:
            return
        if error is None:
            made.set_result(answer.result())
        else:
            made.set_exception(error)

    def _lose(self, error: Exception) -> None:
        """Take no more calls, and end all orders inside with `error`."""
        with self._lock:
            self._actor = None
            self._spec = None
            inside = list(self._inside.values())
            self._inside.clear()
        for made in inside:
            made.set_exception(error)

    def _error_in(self, answer: Future[Any]) -> Exception | None:
        """The error that an ended call stands for, None if it has a value."""
        from ray.exceptions import RayError, RayTaskError

        raised = answer.exception()
        if raised is None:
            error = answer.result()
            if not isinstance(error, Exception):
                return None
            if isinstance(error, EngineEnded):
                return ReplicaLost(str(error))
            return error
        if isinstance(raised, RayError) and not isinstance(raised, RayTaskError):
            return ReplicaLost(f"replica {self.name} is gone: {reason_of(raised)}")
        return RuntimeError(reason_of(raised))


def call(actor: Any, method: str, *arguments: object) -> Future[Any]:
    """Call a method of `EngineDeployment` in the process behind `actor`.

    The call enters where those of Ray Serve's own handles do.
    """
    from ray.serve._private.common import RequestMetadata

    metadata = RequestMetadata(request_id="", internal_request_id="", call_method=method)
    try:
        reference = actor.handle_request.remote(pickle.dumps(metadata), *arguments)
    except Exception as error:  # noqa: BLE001 - whoever waits for the answer raises it
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed
    answer: Future[Any] = reference.future()
    return answer
