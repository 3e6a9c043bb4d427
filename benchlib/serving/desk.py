"""Between a route and the engine: hands jobs in, waits no longer than client and deadline do, says what it took.

Knows which status stands for what the engine says, the Server-Timing header, and the threads that write image files.
Ignorant of routes, bodies and torch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from benchlib.serving.engine import Cancelled, DeadlinePassed, DoesNotFit, Done, Engine, Job, Refused
from benchlib.serving.metrics import Metrics
from benchlib.serving.schemas import GenerateRequest

FILE_THREADS = 2


class Unserved(HTTPException):
    """A request that gets no image; `reason` is the word for it in the metrics and in OpenAI's errors."""

    def __init__(self, status: int, reason: str, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


@dataclass(frozen=True)
class Made:
    """A job that is done, the file made of its image (empty where none was asked for), and how long that took."""

    job: Job
    done: Done
    file: str
    file_s: float
    ended_s: float


class Desk:
    """Where the routes hand in what they are asked for. `deadline_s` and `max_pixel_steps`: see `create_app`."""

    def __init__(self, engine: Engine, *, deadline_s: float | None, max_pixel_steps: int | None) -> None:
        self.engine, self.metrics = engine, Metrics(engine)
        self.deadline_s, self.max_pixel_steps = deadline_s, max_pixel_steps
        self._files = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="benchlib-files")

    def close(self) -> None:
        self._files.shutdown()

    async def make(
        self, request: Request, asked: Sequence[GenerateRequest], write_file: Callable[[Any], str] | None = None
    ) -> list[Made]:
        """Make the images asked for, each with its file where `write_file` makes one of a PIL image, in order.

        One that is refused or fails ends them all. Raises `Unserved`, or RequestValidationError for too many pixels.
        """
        try:
            made = await self._make(request, asked, write_file)
        except Unserved as error:
            self.metrics.count_unserved(error.reason)
            raise
        route = request.scope["path"]
        self.metrics.images.labels(route).inc(len(made))
        self.metrics.latency_s.labels(route).observe(time.monotonic() - request.state.arrived_s)
        return made

    async def _make(
        self, request: Request, asked: Sequence[GenerateRequest], write_file: Callable[[Any], str] | None
    ) -> list[Made]:
        state = request.state
        state.jobs = []
        self._check_pixel_steps(asked)
        try:
            for one in asked:
                job = self.engine.submit(
                    one, request_id=state.request_id, arrived_s=state.arrived_s, deadline_s=self.deadline_s
                )
                state.jobs.append(job)
            return await self._wait(request, state.jobs, write_file)
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
            raise RequestValidationError([{"loc": ("body", f), "msg": message, "type": "too_large"} for f in fields])

    async def _wait(self, request: Request, jobs: list[Job], write_file: Callable[[Any], str] | None) -> list[Made]:
        """Wait for the jobs, and no longer than their client or their deadline."""
        made = asyncio.gather(*(self._made(job, write_file) for job in jobs))
        gone = asyncio.ensure_future(_gone(request))
        left_s = None
        if self.deadline_s is not None:
            left_s = max(0.0, request.state.arrived_s + self.deadline_s - time.monotonic())
        waiting: set[asyncio.Future[Any]] = {made, gone}
        try:
            await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if made.done():
                return made.result()
            if gone.done():
                raise Unserved(499, "client_gone", "the client has gone")
            raise DeadlinePassed
        finally:
            gone.cancel()
            made.cancel()

    async def _made(self, job: Job, write_file: Callable[[Any], str] | None) -> Made:
        done, file, file_s = await asyncio.wrap_future(job.future), "", 0.0
        if write_file is not None:
            loop = asyncio.get_running_loop()
            file, file_s = await loop.run_in_executor(self._files, _timed, write_file, done.image)
        return Made(job, done, file, file_s, ended_s=time.monotonic())

    def _explained(self, error: Exception, request_id: str) -> Unserved:
        """What HTTP says of the engine's `error`."""
        if isinstance(error, Refused) and error.retry_after_s is not None:
            reason = "loading" if self.engine.state == "loading" else "queue_full"
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            return Unserved(503, reason, str(error), headers=headers)
        if isinstance(error, Refused | Cancelled):  # the engine is stopping, or was stopped meanwhile
            return Unserved(503, "stopping", str(error))
        if isinstance(error, DeadlinePassed):
            return Unserved(504, "deadline", f"not done within the deadline of {self.deadline_s} s")
        if isinstance(error, DoesNotFit):
            return Unserved(507, "too_large", str(error))
        detail = f"the engine failed; the log says why under request id {request_id}"
        return Unserved(500, "failed", detail)


async def _gone(request: Request) -> None:
    """Return when the client has closed its connection. The body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timed(write_file: Callable[[Any], str], image: Any) -> tuple[str, float]:
    started_s = time.monotonic()
    return write_file(image), time.monotonic() - started_s


def server_timing(made: Sequence[Made]) -> str:
    """The W3C Server-Timing header: milliseconds that add up to `total`, which ends as the answer begins.

    `wait` is what is left after the queue and the work: between steps, and between the threads. Of several images it
    tells of the one that was ready last, for the answer waited for that one.
    """
    last = max(made, key=lambda one: one.ended_s)
    job, work = last.job, last.done.work
    assert job.admitted_s is not None
    parts = {
        "queue": job.admitted_s - job.arrived_s,
        "encode": work.encode_s,
        "denoise": work.denoise_s,
        "decode": work.decode_s,
        "image": last.file_s,
    }
    total_s = time.monotonic() - job.arrived_s
    parts["wait"] = total_s - sum(parts.values())
    durations = ", ".join(f"{name};dur={seconds * 1000:.6f}" for name, seconds in [*parts.items(), ("total", total_s)])
    return f'{durations}, batch;desc="{work.batch_rows / work.steps_done}"'


def unserved_timing(request: Request) -> str:
    """The Server-Timing of an answer without an image: how long it waited to be begun, and all in all."""
    now_s, arrived_s = time.monotonic(), request.state.arrived_s
    jobs: list[Job] = getattr(request.state, "jobs", [])
    queue_s = max((job.admitted_s or now_s for job in jobs), default=arrived_s) - arrived_s
    return f"queue;dur={queue_s * 1000:.6f}, total;dur={(now_s - arrived_s) * 1000:.6f}"
