"""Between a route and the engine: hands jobs in, waits no longer than client and deadline do, says what it took.

Knows which status stands for what the engine says, the Server-Timing header, and the threads that write image files.
Ignorant of routes, bodies and torch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from benchlib.rows import write_server_timing
from benchlib.serving.engine.engine import (
    Cancelled,
    DeadlinePassed,
    DoesNotFit,
    Done,
    Engine,
    Job,
    Refused,
)
from benchlib.serving.prometheus import Metrics
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.worker_threads import WorkerThreads

log = logging.getLogger(__name__)

FILE_THREADS = 2
# A client that leaves sooner is noticed then. Watching from the start would double a route's time.
WATCH_AFTER_S = 0.02


class Unserved(HTTPException):
    """A request that gets no image; `reason` is the word for it in the metrics and in OpenAI's errors."""

    def __init__(
        self, status: int, reason: str, detail: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


@dataclass(frozen=True)
class Made:
    """What was made of a request: its jobs and what became of them, the files in base64, and how long those took."""

    jobs: list[Job]
    done: list[Done]
    files: list[str]
    files_s: float


class Desk:
    """Where the routes hand in what they are asked for. `deadline_s` and `max_pixel_steps`: see `create_app`."""

    def __init__(
        self, engine: Engine, *, deadline_s: float | None, max_pixel_steps: int | None
    ) -> None:
        self.engine, self.metrics = engine, Metrics(engine)
        self.deadline_s, self.max_pixel_steps = deadline_s, max_pixel_steps
        self._files = WorkerThreads("benchlib-files", FILE_THREADS)

    def close(self) -> None:
        self._files.close()

    async def make(
        self,
        request: Request,
        asked: Sequence[GenerateRequest],
        write_file: Callable[[Any], str] | None = None,
    ) -> Made:
        """Make the images asked for, in order, and their files where `write_file` makes one of a PIL image.

        One that is refused or fails ends them all. Raises `Unserved`, or RequestValidationError for too many pixels.
        """
        try:
            made = await self._make(request, asked, write_file)
        except Unserved as error:
            self.metrics.count_unserved(error.reason)
            raise
        route = request.scope["path"]
        self.metrics.images.labels(route).inc(len(asked))
        self.metrics.latency_s.labels(route).observe(time.monotonic() - request.state.arrived_s)
        return made

    async def _make(
        self,
        request: Request,
        asked: Sequence[GenerateRequest],
        write_file: Callable[[Any], str] | None,
    ) -> Made:
        state = request.state
        state.jobs = []
        self._check_pixel_steps(asked)
        try:
            for one in asked:
                job = self.engine.submit(
                    one,
                    request_id=state.request_id,
                    arrived_s=state.arrived_s,
                    deadline_s=self.deadline_s,
                )
                state.jobs.append(job)
            done, ended_s = await self._wait(request, state.jobs), time.monotonic()
            files = (
                [] if write_file is None else await self._write(write_file, done, state.request_id)
            )
            return Made(state.jobs, done, files, time.monotonic() - ended_s if files else 0.0)
        except HTTPException:
            raise
        except Exception as error:
            raise self._explained(error, state.request_id) from error
        finally:
            for job in state.jobs:
                if not job.future.done():
                    self.engine.cancel(job)

    def _check_pixel_steps(self, asked: Sequence[GenerateRequest]) -> None:
        most = max(one.pixel_steps for one in asked)
        if self.max_pixel_steps is not None and most > self.max_pixel_steps:
            self.metrics.count_unserved("too_large")
            message = f"width x height x num_inference_steps is {most}, above this server's {self.max_pixel_steps}"
            fields = ("width", "height", "num_inference_steps")
            raise RequestValidationError(
                [{"loc": ("body", f), "msg": message, "type": "too_large"} for f in fields]
            )

    async def _wait(self, request: Request, jobs: list[Job]) -> list[Done]:
        """What became of the jobs, waiting no longer than their client or their deadline. One that fails ends it."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()
        watchers: list[asyncio.Task[None]] = []

        def end(error: Exception | None = None) -> None:
            if not ended.done():
                ended.set_result(error)

        def look() -> None:
            if all(job.future.done() for job in jobs) or any(_failed(job) for job in jobs):
                end()

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass  # the body has been read, so nothing else can arrive
            end(Unserved(499, "client_gone", "the client has gone"))

        for job in jobs:
            job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(look))
        timers = [
            loop.call_later(WATCH_AFTER_S, lambda: watchers.append(loop.create_task(watch())))
        ]
        if self.deadline_s is not None:
            left_s = request.state.arrived_s + self.deadline_s - time.monotonic()
            timers.append(loop.call_later(left_s, end, DeadlinePassed()))
        try:
            if error := await ended:
                raise error
            # Failed ones first, as they raise: then not all of the others are done.
            return [job.future.result() for job in sorted(jobs, key=_failed, reverse=True)]
        finally:
            for timer in timers:
                timer.cancel()
            for watcher in watchers:
                watcher.cancel()

    async def _write(
        self, write_file: Callable[[Any], str], done: list[Done], request_id: str
    ) -> list[str]:
        written = [self._files.submit(write_file, one.image) for one in done]
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, written))
        except Exception as error:  # what fails inside the engine is logged there
            log.error(
                "request %s: its image could not be written as a file", request_id, exc_info=error
            )
            raise

    def _explained(self, error: Exception, request_id: str) -> Unserved:
        """What HTTP says of the engine's `error`."""
        if isinstance(error, Refused) and error.retry_after_s is not None:
            reason = "loading" if self.engine.state == "loading" else "queue_full"
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            return Unserved(503, reason, str(error), headers=headers)
        if isinstance(
            error, Refused | Cancelled
        ):  # the engine is stopping, or was stopped meanwhile
            return Unserved(503, "stopping", str(error))
        if isinstance(error, DeadlinePassed):
            return Unserved(504, "deadline", f"not done within the deadline of {self.deadline_s} s")
        if isinstance(error, DoesNotFit):
            return Unserved(507, "too_large", str(error))
        detail = f"the engine failed; the log says why under request id {request_id}"
        return Unserved(500, "failed", detail)


def _failed(job: Job) -> bool:
    return job.future.done() and job.future.exception() is not None


def server_timing(made: Made) -> str:
    """The W3C Server-Timing header: milliseconds that add up to `total`, which ends as the answer begins.

    `wait` is what is left after the queue and the work: between steps, and between the threads. Of several images it
    tells of the last one, and the time of all files.
    """
    job, work = made.jobs[-1], made.done[-1].work
    assert job.admitted_s is not None
    parts = {
        "queue": job.admitted_s - job.arrived_s,
        "encode": work.encode_s,
        "denoise": work.denoise_s,
        "decode": work.decode_s,
        "image": made.files_s,
    }
    total_s = time.monotonic() - job.arrived_s
    parts["wait"] = total_s - sum(parts.values())
    batch_size = work.batch_rows / work.steps_done
    return write_server_timing(parts | {"total": total_s}, batch_size)


def unserved_timing(request: Request) -> str:
    """The Server-Timing of an answer without an image: how long it waited to be begun, and all in all."""
    now_s, arrived_s = time.monotonic(), request.state.arrived_s
    jobs: list[Job] = getattr(request.state, "jobs", [])
    queue_s = max((job.admitted_s or now_s for job in jobs), default=arrived_s) - arrived_s
    return write_server_timing({"queue": queue_s, "total": now_s - arrived_s})
