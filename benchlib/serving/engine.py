"""The engine: a bounded queue, and the one worker that takes from it.

Knows waiting, admission, cancellation and what an error in one job means for the others. Ignorant of HTTP, and of what
a denoising step computes. One worker, because a diffusers pipeline is not thread-safe.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from benchlib.serving.compute import compute
from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from benchlib.serving.pipeline import PeakMemory, SDXLPipeline, Work

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "stopped"]
BATCHING = ("serial",)


class Refused(RuntimeError):
    """The engine takes no job now. `retry_after_s` estimates when it would; None where waiting is no use."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DoesNotFit(RuntimeError):
    """The device has too little memory for this job alone."""


class Cancelled(RuntimeError):
    """Whoever asked has gone; the work was dropped."""


class DeadlinePassed(RuntimeError):
    """The work was dropped because its deadline had passed."""


@dataclass(frozen=True)
class Done:
    """A finished job: the work with its times, the images' peak memory, and the image."""

    work: Work
    memory: PeakMemory
    image: Any  # PIL.Image.Image


@dataclass(eq=False)
class Job:
    """One request in the engine. `future` ends with `Done` or with one of this module's exceptions.

    Times are of `time.monotonic()`; `admitted_s` is None as long as the job waits in the queue.
    """

    request: GenerateRequest
    request_id: str
    arrived_s: float
    future: Future[Done] = field(default_factory=Future)
    admitted_s: float | None = None
    cancelled: bool = False


class Engine:
    """Runs jobs first come first served, one at a time.

    `source` is a pipeline, or a callable that makes one: then the engine owns it and frees it at the end. Loading and
    the first, unmeasured image happen behind `start()`; `settled` is set when they have ended, well or badly.
    """

    def __init__(
        self,
        source: SDXLPipeline | Callable[[], SDXLPipeline],
        *,
        batching: str = "serial",
        max_batch_size: int = 8,
        max_wait_ms: float = 5.0,
        max_queue: int = 64,
        batch_buckets: Sequence[int] | None = None,  # noqa: ARG002 - of the policies to come
        sizes: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002
    ) -> None:
        if batching not in BATCHING:
            raise ValueError(f"batching: {batching!r} is not known; use {' or '.join(map(repr, BATCHING))}")
        if max_queue < 1:
            raise ValueError(f"max_queue: {max_queue} is too few; use 1 or more")
        self.batching = batching
        self.max_queue = max_queue
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.settled = threading.Event()
        self.busy_s = 0.0
        self.on_step: Callable[[int, float], None] = lambda *_: None
        self.max_batch_size, self.max_wait_ms = max_batch_size, max_wait_ms
        self.spec: dict[str, Any] = {}
        self._source = source
        self._pipeline: SDXLPipeline | None = None
        self._queue: deque[Job] = deque()
        self._current: Job | None = None
        self._change = threading.Condition()
        self._should_exit = False
        self._service_s: deque[float] = deque(maxlen=16)  # of the latest finished jobs
        self._thread = threading.Thread(target=self._run, name="benchlib-engine", daemon=True)

    def start(self) -> None:
        """Begin to load. Does nothing where it has begun."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return int(self._current is not None)

    def submit(
        self,
        request: GenerateRequest,
        *,
        request_id: str | None = None,
        arrived_s: float | None = None,
        deadline_s: float | None = None,  # noqa: ARG002 - of the policies to come
    ) -> Job:
        """Queue a request. Raises `Refused` where the engine is not ready, is stopping, or its queue is full."""
        job = Job(
            request=request,
            request_id=request_id or uuid.uuid4().hex,
            arrived_s=time.monotonic() if arrived_s is None else arrived_s,
        )
        with self._change:
            if self.state == "loading":
                raise Refused("the model is still loading; wait for /ready", retry_after_s=1.0)
            if self.state == "failed":
                raise Refused(f"the model could not be loaded: {self.failure}")
            if self.state == "stopped" or self._should_exit:
                raise Refused("the server is stopping")
            if len(self._queue) >= self.max_queue:
                raise Refused(f"the queue is full ({self.max_queue} wait)", retry_after_s=self._next_place_s())
            job.future.set_running_or_notify_cancel()  # from here on only this class ends it
            self._queue.append(job)
            self._change.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Drop a job: at once where it waits, before its next denoising step where it runs. Safe at any time."""
        with self._change:
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)
                job.future.set_exception(Cancelled("cancelled while waiting"))

    def stop(self, *, drain_s: float = 30.0) -> None:
        """Take no more jobs, finish those inside within `drain_s`, refuse the rest, free an owned pipeline."""
        with self._change:
            self._should_exit = True
            self._change.notify()
        if self._thread.ident is None:
            self.state = "stopped"
            return
        self._thread.join(drain_s)
        if self._thread.is_alive():
            with self._change:
                if self._current is not None:
                    self._current.cancelled = True  # dropped before its next step
                self._refuse_waiting()
            self._thread.join()

    # -- the worker thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._startup()
        except BaseException as error:  # noqa: BLE001 - whatever it is, `serve` raises it in the thread that waits
            self.failure, self.state = error, "failed"
            self.settled.set()
            return
        self._main_loop()
        self._shutdown()

    def _startup(self) -> None:
        self._pipeline = compute(self._source) if callable(self._source) else self._source
        warm_up = GenerateRequest(prompt="warm-up", **self._pipeline.spec["showcase"] | {"num_inference_steps": 2})
        self._pipeline.generate(warm_up)
        self.spec = self._pipeline.spec | {"batching": self.batching, "max_queue": self.max_queue}
        self.state = "ready"
        self.settled.set()

    def _main_loop(self) -> None:
        while True:
            with self._change:
                self._current = None
                self._change.wait_for(lambda: self._queue or self._should_exit)
                if not self._queue:
                    return
                job = self._current = self._queue.popleft()
                job.admitted_s = time.monotonic()
            try:
                done = compute(self._make, job)
            except Cancelled as error:
                job.future.set_exception(error)
            except Exception as error:  # noqa: BLE001 - it ends this job only; the app reports it and the log explains it
                job.future.set_exception(self._explained(error, job))
            else:
                self._service_s.append(done.work.service_s)
                self.busy_s += done.work.service_s
                job.future.set_result(done)

    def _make(self, job: Job) -> Done:
        pipeline = self._pipeline
        assert pipeline is not None
        pipeline.reset_peak_memory()
        self._check(job)
        work = pipeline.encode(job.request)
        while not work.finished:
            self._check(job)
            pipeline.step([work])
            self.on_step(1, work.step_s[-1])
        self._check(job)
        [image] = pipeline.decode([work])
        return Done(work=work, memory=pipeline.peak_memory(), image=image)

    def _shutdown(self) -> None:
        with self._change:
            self.state = "stopped"
            self._refuse_waiting()
        self._pipeline = None
        if callable(self._source):
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # -- helpers ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _check(job: Job) -> None:
        if job.cancelled:
            raise Cancelled("cancelled while running")

    def _explained(self, error: Exception, job: Job) -> Exception:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            request = job.request
            return DoesNotFit(f"{request.width}x{request.height} does not fit in the device's memory; ask for less")
        log.error("request %s failed", job.request_id, exc_info=error)
        return error

    def _refuse_waiting(self) -> None:
        while self._queue:
            self._queue.popleft().future.set_exception(Refused("the server is stopping"))

    def _next_place_s(self) -> float:
        """When a place in the queue should come free: what is left of the running job, by recent service times."""
        if not self._service_s or self._current is None or self._current.admitted_s is None:
            return 1.0
        mean_s = sum(self._service_s) / len(self._service_s)
        return max(0.0, mean_s - (time.monotonic() - self._current.admitted_s))
