"""The engine: a bounded queue, and the one worker that carries out what its policy decides.

Knows waiting, admission, deadlines, cancellation, memory that does not suffice, and what an error in one batch means
for the others. Ignorant of HTTP, of what a denoising step computes, and of who should run with whom (policies.py). One
worker, because a diffusers pipeline is not thread-safe.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from benchlib.serving.engine.policies import Measured, Size, Turn, make_policy, until_place_s
from benchlib.serving.engine.step_times import measure, warm
from benchlib.serving.model.torch_thread import on_torch_thread, others_wait
from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from benchlib.serving.model.denoise import Work
    from benchlib.serving.model.memory import PeakMemory
    from benchlib.serving.model.pipeline import SDXLPipeline

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "stopped"]
T = TypeVar("T")


class Refused(RuntimeError):
    """The engine takes no job now. `retry_after_s` estimates when it would; None where waiting is no use."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DoesNotFit(RuntimeError):
    """The device has too little memory for one image of this size."""

    def __init__(self, size: Size) -> None:
        super().__init__(f"{size[0]}x{size[1]} does not fit in the device's memory; ask for less")


class Cancelled(RuntimeError):
    """Whoever asked has gone, or the engine stops; the work was dropped."""


class DeadlinePassed(RuntimeError):
    """The job was not done in time; the work was dropped."""


@dataclass(frozen=True)
class Done:
    """A finished job: the work with its times, the peak memory of the calls it took part in, and the image."""

    work: Work
    memory: PeakMemory
    image: Any  # PIL.Image.Image


@dataclass(eq=False)
class Job:
    """One request in the engine. `future` ends with `Done` or with one of this module's exceptions.

    Times are of `time.monotonic()`; `admitted_s` is None as long as the job waits in the queue. A `Task` to policies.
    """

    request: GenerateRequest
    request_id: str
    arrived_s: float
    deadline_s: float | None = None  # after arrival
    future: Future[Done] = field(default_factory=Future)
    admitted_s: float | None = None
    cancelled: bool = False
    work: Work | None = None
    memory: PeakMemory | None = None

    @property
    def size(self) -> Size:
        return self.request.width, self.request.height

    @property
    def rows(self) -> int:
        return 2 if self.request.guidance_scale > 1 else 1

    @property
    def steps_left(self) -> int:
        return self.request.num_inference_steps if self.work is None else self.work.steps_left

    @property
    def begun(self) -> bool:
        return self.admitted_s is not None

    @property
    def late_s(self) -> float:
        """When its deadline passes."""
        return math.inf if self.deadline_s is None else self.arrived_s + self.deadline_s


class Engine:
    """Runs jobs as `batching` says: "serial", "dynamic" or "continuous" (see policies.py).

    `source` is a pipeline, or a callable that makes one: then the engine owns it and frees it at the end. Loading and
    warm-up happen behind `start()`; `settled` is set when they have ended, well or badly. Warm-up measures what a batch
    of each of `sizes` (pairs of width and height; the model's showcase if not given) costs: `spec["step_times"]`.

    At most `max_batch_size` jobs share a step, and `max_queue` wait. "dynamic" gathers a batch for `max_wait_ms`.
    `batch_buckets` are the UNet's batch sizes in rows (two for a guided request) that a compiled model is made ready
    for before it serves (2, 4, 8, ... if not given): smaller batches are padded up to the next. `on_step(jobs,
    seconds)` is called after each step, on the engine's thread.
    """

    def __init__(
        self,
        source: SDXLPipeline | Callable[[], SDXLPipeline],
        *,
        batching: str = "continuous",
        max_batch_size: int = 8,
        max_wait_ms: float = 5.0,
        max_queue: int = 64,
        batch_buckets: Sequence[int] | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> None:
        self._measured = Measured()
        self._times = self._measured.__getitem__
        self._policy = make_policy(
            batching, self._times, max_batch_size=max_batch_size, max_wait_s=max_wait_ms / 1000
        )
        if max_queue < 1:
            raise ValueError(f"max_queue: {max_queue} is too few; use 1 or more")
        if batch_buckets is not None and (not batch_buckets or min(batch_buckets) < 1):
            raise ValueError(
                f"batch_buckets: {batch_buckets!r} are no batch sizes; use rows from 1, or None"
            )
        self.batching = batching
        self.max_queue = max_queue
        self.on_step: Callable[[int, float], None] = lambda jobs, seconds: None  # noqa: ARG005
        self.busy_s = 0.0  # of encode, step and decode calls
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.settled = threading.Event()
        self.spec: dict[str, Any] = {}
        self._settings = {
            "batching": batching,
            "max_batch_size": max_batch_size,
            "max_wait_ms": max_wait_ms,
            "max_queue": max_queue,
        }
        self._most = 1 if batching == "serial" else max_batch_size
        self._buckets = sorted(batch_buckets or ())
        self._sizes = sizes
        self._source = source
        self._pipeline: SDXLPipeline  # from the start-up to the shutdown
        self._limits: dict[
            tuple[str, Size], int
        ] = {}  # most jobs in one call, where more ran out of memory
        self._jobs: list[Job] = []  # waiting and begun, in the order of arrival
        self._turn: Turn | None = None  # holds until a job comes, ends its steps or leaves
        self._stepping: tuple[Job, ...] = ()  # in the step under way
        self._place_s: float | None = (
            None  # when the full queue should have a place, if nobody came since
        )
        self._change = threading.Condition()
        self._should_exit = False
        self._thread = threading.Thread(target=self._run, name="benchlib-engine", daemon=True)

    @property
    def waiting(self) -> int:
        """Jobs in the queue now: those that have not been begun."""
        return sum(not job.begun for job in tuple(self._jobs))

    @property
    def running(self) -> int:
        """Jobs that share the step under way."""
        return len(self._stepping)

    def start(self) -> None:
        """Begin to load. Does nothing where it has begun."""
        if self._thread.ident is None:
            self._thread.start()

    def submit(
        self,
        request: GenerateRequest,
        *,
        request_id: str = "without an id",
        arrived_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Job:
        """Queue a request. Raises `Refused` where the engine is not ready, is stopping, or its queue is full.

        A job that is not done `deadline_s` after it arrived ends with `DeadlinePassed`.
        """
        now_s = time.monotonic()
        job = Job(request, request_id, now_s if arrived_s is None else arrived_s, deadline_s)
        with self._change:
            if self.state == "loading":
                raise Refused("the model is still loading; wait for /ready", retry_after_s=1.0)
            if self.state == "failed":
                raise Refused(f"the model could not be loaded: {self.failure}")
            if self.state == "stopped" or self._should_exit:
                raise Refused("the server is stopping")
            if self.waiting < self.max_queue:
                job.future.set_running_or_notify_cancel()  # from here on only this class ends it
                self._jobs.append(job)
                self._turn = self._place_s = None
                self._change.notify()
                return job
            ahead, stepping, place_s = tuple(self._jobs), self._stepping, self._place_s
        if place_s is None or place_s < now_s:
            place_s = now_s + until_place_s(
                self._policy, ahead, stepping, now_s, self._times, self.max_queue
            )
            self._place_s = place_s
        raise Refused(f"the queue is full ({self.max_queue} wait)", retry_after_s=place_s - now_s)

    def cancel(self, job: Job) -> None:
        """Drop a job: at once where it waits, before its next denoising step where it runs. Safe at any time."""
        with self._change:
            job.cancelled = True
            if job in self._jobs and not job.begun:
                self._end(job, Cancelled("cancelled while waiting"))

    def stop(self, *, drain_s: float = 30.0) -> None:
        """Take no more jobs, finish those inside within `drain_s`, refuse the rest, free an owned pipeline."""
        with self._change:
            self._should_exit = True
            self._change.notify()
        if self._thread.ident is None:
            self.state = "stopped"
            return
        self._thread.join(drain_s)
        self.drop_jobs()
        self._thread.join()

    def drop_jobs(self) -> None:
        """Take no more jobs, refuse those that wait, and drop those that have begun before their next step."""
        with self._change:
            self._should_exit = True
            self._change.notify()
            for job in tuple(self._jobs):
                if job.begun:
                    job.cancelled = True
                else:
                    self._end(job, Refused("the server is stopping"))

    # -- the worker thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._startup()
        except BaseException as error:  # noqa: BLE001 - whatever it is, `serve` raises it in the thread that waits
            self.failure, self.state = error, "failed"
            self.settled.set()
            return
        try:
            while turn := self._next_turn():
                on_torch_thread(self._take_turns, turn)
        finally:
            self._shutdown()

    def _take_turns(self, turn: Turn | None) -> None:
        """On the torch thread: this turn and those after it, until there is none or others want the thread: to hand
        it each turn takes longer than a small model's step."""
        while turn:
            if turn.decode:
                self._decode(cast("tuple[Job, ...]", turn.decode))
            if turn.step:
                self._step(cast("tuple[Job, ...]", turn.step))
            turn = None if others_wait() else self._next_turn(wait=False)

    def _startup(self) -> None:
        self._pipeline = pipeline = (
            on_torch_thread(self._source) if callable(self._source) else self._source
        )
        if pipeline.compiled and not self._buckets:
            self._buckets = [2**n for n in range(1, (self._most - 1).bit_length() + 2)]
        showcase = pipeline.spec["showcase"]["width"], pipeline.spec["showcase"]["height"]
        for size in self._sizes or [showcase]:
            self._measured[size] = on_torch_thread(
                measure, pipeline, size, max_batch_size=self._most, padded=self._padded
            )
            for rows in self._buckets if pipeline.compiled else ():
                on_torch_thread(warm, pipeline, size, rows)
        self.spec = pipeline.spec | self._settings | {"step_times": self._measured.told()}
        if callable(self._source):
            gc.collect()
            gc.freeze()  # to walk all that loading made takes the collector 0.2 s, in which nobody is answered
        self.state = "ready"
        self.settled.set()

    def _next_turn(self, *, wait: bool = True) -> Turn | None:
        """Drop who has gone or is late, `wait` while there is nothing to do, and begin those whose turn it is."""
        with self._change:
            while True:
                now_s = time.monotonic()
                for job in tuple(self._jobs):
                    if job.cancelled:
                        self._end(job, Cancelled("cancelled while running"))
                    elif now_s >= job.late_s:
                        self._end(
                            job,
                            DeadlinePassed(f"not done within the deadline of {job.deadline_s} s"),
                        )
                if self._turn is None:
                    asked_s = (
                        math.inf if self._should_exit else now_s
                    )  # nobody comes any more: no use in waiting
                    self._turn = self._within_limits(self._policy.turn(tuple(self._jobs), asked_s))
                turn = self._turn
                if turn.step or turn.decode:
                    self._stepping = cast("tuple[Job, ...]", turn.step)
                    for job in self._stepping:
                        job.admitted_s = job.admitted_s or now_s
                    return turn
                self._turn, self._stepping = None, ()
                if not wait or (self._should_exit and not self._jobs):
                    return None
                until_s = min([turn.wait_until_s or math.inf, *(job.late_s for job in self._jobs)])
                self._change.wait(None if until_s == math.inf else max(0.0, until_s - now_s))

    def _within_limits(self, turn: Turn) -> Turn:
        """Fewer at once where as many have run out of memory, or on a CPU would do so in the decoder."""
        step = turn.step and turn.step[: self._limits.get(("step", turn.step[0].size))]
        decode = turn.decode and turn.decode[: self._limits.get(("decode", turn.decode[0].size))]
        while len(decode) > 1 and not self._pipeline.fits(*decode[0].size, len(decode)):
            decode = decode[: len(decode) // 2]
        return replace(turn, step=step, decode=decode)

    def _step(self, jobs: Sequence[Job]) -> None:
        """Encode those of `jobs` that have just begun, together, then move all on by one denoising step."""
        if new := [job for job in jobs if job.work is None]:
            if not self._pipeline.fits(*new[0].size):
                for job in new:
                    self._end(job, DoesNotFit(job.size))
                return
            works = self._call(
                "step", new, lambda: self._pipeline.encode([job.request for job in new])
            )
            if works is None:
                return
            for job, work in zip(new, works, strict=True):
                job.work = work
        batch = [job.work for job in jobs if job.work is not None]
        rows = self._padded(sum(job.rows for job in jobs))
        seconds = self._call("step", jobs, lambda: self._pipeline.step(batch, rows=rows))
        if seconds is not None:
            self.on_step(len(jobs), seconds)
        if any(work.finished for work in batch):
            self._turn = None

    def _decode(self, jobs: Sequence[Job]) -> None:
        works = [job.work for job in jobs if job.work is not None]
        images = self._call("decode", jobs, lambda: self._pipeline.decode(works))
        if images is None:
            return
        for job, work, image in zip(jobs, works, images, strict=True):
            assert job.memory is not None
            self._end(job, Done(work=work, memory=job.memory, image=image))

    def _call(self, part: str, jobs: Sequence[Job], function: Callable[[], T]) -> T | None:
        """Call the pipeline for `jobs`. None where it raised: then they have ended, or fewer will be tried next."""
        import torch

        self._pipeline.reset_peak_memory()
        started = time.monotonic()
        try:
            result = function()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self._turn = None
            self._limits[part, jobs[0].size] = max(1, len(jobs) // 2)
            if len(jobs) == 1:
                self._end(jobs[0], DoesNotFit(jobs[0].size))
        except (
            Exception
        ) as error:  # it ends these jobs only; the app reports it and the log explains it
            log.error(
                "request %s failed", ", ".join(job.request_id for job in jobs), exc_info=error
            )
            for job in jobs:
                self._end(job, error)
        else:
            peak = self._pipeline.peak_memory()
            for job in jobs:
                job.memory = peak if job.memory is None else job.memory.highest(peak)
            return result
        finally:
            self.busy_s += time.monotonic() - started
        return None

    def _shutdown(self) -> None:
        with self._change:
            self.state = "stopped"
            self._stepping = ()
            for job in tuple(self._jobs):
                self._end(job, Refused("the server is stopping"))
        del self._pipeline
        if callable(self._source):
            import torch

            gc.unfreeze()
            gc.collect()
            torch.cuda.empty_cache()

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _end(self, job: Job, outcome: Done | Exception) -> None:
        with self._change:
            self._jobs.remove(job)
            self._turn = None
        if isinstance(outcome, Done):
            job.future.set_result(outcome)
        else:
            job.future.set_exception(outcome)

    def _padded(self, rows: int) -> int | None:
        """Rows of the next bucket, or None where there is none to fill."""
        return next((bucket for bucket in self._buckets if bucket >= rows), None)
