"""An engine as the process of a replica holds it: orders in, made images and errors out.

Knows an engine's jobs. Ignorant of how orders come here, and of who sends them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.jobs import Job
from benchlib.serving.engine.made import Made, WriteFile
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.replicas.replica import Order, ReplicaStatus
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.worker_threads import WorkerThreads
from benchlib.telemetry import cuda_memory_gib, process_memory_gib

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline

FILE_THREADS = 2
MOST_INSIDE = 100_000


class HostedEngine:
    """Carries out orders with an engine of its own. All methods may be called from any thread."""

    def __init__(self, load: Callable[[], SDXLPipeline], options: EngineOptions) -> None:
        # The bound is the fleet's: its own queue holds back what this engine can't begin soon.
        unbounded = options.model_copy(update={"max_queue": MOST_INSIDE})
        self.engine = Engine(load, unbounded)
        self.engine.on_step = self._count_step
        self._steps_by_batch: Counter[int] = Counter()
        self._jobs: dict[int, Job] = {}  # those that have not ended, by their order's number
        self._file_threads = WorkerThreads("benchlib-files", FILE_THREADS)

    def settle(self) -> dict[str, Any]:
        """Wait until the model is loaded and warm; return its spec. Raises what loading has raised."""
        self.engine.settled.wait()
        if self.engine.failure is not None:
            raise self.engine.failure
        return self.engine.spec

    def make(self, order: Order) -> Future[Made]:
        """Begin an image. The future ends with it, or with the engine's own error.

        Raises what `Engine.submit` raises.
        """
        came_s = time.monotonic()
        job = self.engine.submit(
            order.request,
            request_id=order.request_id,
            arrived_s=came_s - order.waited_s,
        )
        made: Future[Made] = Future()
        self._jobs[order.number] = job

        def finish(_: object) -> None:
            # The job's future keeps this function, so the function must not keep the job.
            job = self._jobs.pop(order.number)
            if isinstance(job.outcome, Exception):
                made.set_exception(job.outcome)
            elif order.write_file is None:
                made.set_result(_describe(job, came_s))
            else:
                self._file_threads.submit(_write, order.write_file, job, came_s, made)

        job.future.add_done_callback(finish)
        return made

    def cancel(self, number: int) -> None:
        """Drop the order of this number, if it has not ended."""
        job = self._jobs.get(number)
        if job is not None:
            self.engine.cancel(job)

    def count_calls(self, request: GenerateRequest) -> int:
        """The calls of the UNet that a request takes. Raises `BadField`."""
        schedules = self.engine.schedules
        if schedules is None:
            return request.num_inference_steps
        return schedules.count_calls(request)

    def status(self) -> ReplicaStatus:
        """What the engine does, and what it has counted since its start."""
        engine = self.engine
        faults = engine.faults
        allocated_gib, reserved_gib = cuda_memory_gib()
        memory_gib = {
            "rss": process_memory_gib(),
            "cuda_allocated": allocated_gib,
            "cuda_reserved": reserved_gib,
        }
        return ReplicaStatus(
            running=engine.running,
            waiting=engine.waiting,
            busy_s=engine.busy_s,
            adapter_switches=engine.adapter_switches,
            steps_by_batch=dict(self._steps_by_batch),
            out_of_memory=dict(faults.out_of_memory),
            not_finite=dict(faults.not_finite),
            failed_calls=faults.failed_calls,
            trouble=engine.trouble,
            memory_gib={kind: gib for kind, gib in memory_gib.items() if gib is not None},
        )

    def _count_step(self, requests: int, _: float) -> None:
        self._steps_by_batch[requests] += 1


def _describe(job: Job, came_s: float) -> Made:
    """What the answer of a finished job needs to know."""
    made = job.made
    assert made is not None
    assert job.admitted_s is not None
    return replace(made, queued_s=max(0.0, job.admitted_s - came_s))


def _write(write_file: WriteFile, job: Job, came_s: float, made: Future[Made]) -> None:
    """Write the image of a finished job as a file, and end `made` with it."""
    began_s = time.monotonic()
    try:
        file = write_file(job.future.result())
    except Exception as error:  # noqa: BLE001 - whoever waits for the order raises it
        made.set_exception(error)
        return
    seconds = time.monotonic() - began_s
    made.set_result(replace(_describe(job, came_s), file=file, file_s=seconds))
