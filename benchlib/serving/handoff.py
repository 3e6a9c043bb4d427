"""Between a route and the engine: submits jobs, waits for them, and writes their files.

Knows deadlines, clients that leave, and the threads that write image files (replicas write theirs).
Ignorant of routes, bodies, headers and torch, of what is refused at once (admission.py), and of the
HTTP status of each error (unserved.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from benchlib.serving.admission import TOO_LARGE, Admission
from benchlib.serving.backend import Backend, ImageJob
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.engine.faults import forget_frames
from benchlib.serving.engine.made import File, Made, WriteFile
from benchlib.serving.image_links import ImageLinks
from benchlib.serving.last_call import LastCall
from benchlib.serving.prometheus import Metrics
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.unserved import NO_RETRY, Unserved, unserved
from benchlib.serving.worker_threads import WorkerThreads

log = logging.getLogger(__name__)

FILE_THREADS = 2
# A route watches its client's connection from this time on: earlier would double a route's time.
WATCH_AFTER_S = 0.02


@dataclass(frozen=True)
class Answer:
    """The finished jobs of one HTTP request, their files, and the time of writing."""

    jobs: list[ImageJob]
    made: list[Made]
    files: list[File]
    files_s: float


class HandOff:
    """Makes the images that routes request, as far as `door` lets them in."""

    def __init__(self, engine: Backend[Any], door: DoorOptions, links: ImageLinks) -> None:
        self.engine = engine
        self.door = door
        self.admission = Admission(engine, door)
        self.links = links
        self.metrics = Metrics(engine, links)
        self._file_threads = WorkerThreads("benchlib-files", FILE_THREADS)
        self.last_call = LastCall()

    def close(self) -> None:
        """End the threads that write files, and forget the files of links."""
        self._file_threads.close()
        self.links.drop_all()

    async def make_images(
        self,
        http: Request,
        wanted: Sequence[GenerateRequest],
        write_file: WriteFile | None = None,
    ) -> Answer:
        """Return the finished jobs of `wanted`, in order, and their files if `write_file` is given.

        `write_file` turns an image into a file. If one image is refused or fails, all
        end. Raises `Unserved`. Raises RequestValidationError for too many pixel steps or images, for a
        size that the model can't make, and for what its scheduler refuses.
        """
        http.state.jobs = []
        try:
            calls = await self.admission.check(wanted)
            address = http.client.host if http.client else ""
            with self.admission.enter(address, wanted, calls) as jobs:
                http.state.jobs = jobs
                answer = await self.last_call.wait_for(self._run_jobs(http, wanted, write_file))
        except Unserved as error:
            self.metrics.count_unserved(error.reason)
            forget_frames(error)
            raise
        except RequestValidationError as error:
            if error.errors()[0]["type"] == TOO_LARGE:
                self.metrics.count_unserved(TOO_LARGE)
            raise
        route = http.state.path
        self.metrics.images.labels(route).inc(len(wanted))
        self.metrics.latency_s.labels(route).observe(time.monotonic() - http.state.arrived_s)
        return answer

    async def _run_jobs(
        self,
        http: Request,
        wanted: Sequence[GenerateRequest],
        write_file: WriteFile | None,
    ) -> Answer:
        arrived_s = http.state.arrived_s
        request_id = http.state.request_id
        jobs: list[ImageJob] = http.state.jobs
        try:
            for request in wanted:
                job = self.engine.submit(
                    request, request_id=request_id, arrived_s=arrived_s, write_file=write_file
                )
                jobs.append(job)
            await self._wait(http, jobs)
            made = [job.made for job in jobs if job.made is not None]
            if write_file is None:
                return Answer(jobs, made, files=[], files_s=0.0)
            written = [one.file for one in made if one.file is not None]
            if written:  # by the replicas
                return Answer(jobs, made, written, files_s=made[-1].file_s)
            began_s = time.monotonic()
            files = await self._write_files(write_file, jobs)
            return Answer(jobs, made, files, files_s=time.monotonic() - began_s)
        except HTTPException:
            raise
        except Exception as error:
            loading = self.engine.state == "loading"
            raise unserved(error, request_id, loading=loading) from error
        finally:
            for job in jobs:
                if not job.future.done():
                    self.engine.cancel(job)

    async def _wait(self, http: Request, jobs: list[ImageJob]) -> None:
        """Return once all jobs have images. Raises a job's error, or `Unserved`."""
        # 1) What ends the wait: a failed job, the last image, or the end of the connection
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()

        def end(error: Exception | None = None) -> None:
            if not ended.done():
                ended.set_result(error)

        left = len(jobs)

        def note(error: Exception | None) -> None:
            nonlocal left
            left -= 1
            if error is not None or not left:
                end(error)

        def job_ended(future: Future[Any]) -> None:
            # A future keeps this function. So it must not know the jobs, or their images would stay
            # until Python looks for cycles, which takes minutes.
            error = future.exception()
            assert error is None or isinstance(error, Exception)
            loop.call_soon_threadsafe(note, error)

        async def watch_client() -> None:
            # The body has been read, so nothing but the end of the connection can arrive.
            while (await http.receive())["type"] != "http.disconnect":
                pass
            end(Unserved(499, "client_gone", "the client has gone"))

        def start_watching() -> None:
            watchers.append(loop.create_task(watch_client()))

        # 2) Start to watch the client, the deadline and the jobs
        watchers: list[asyncio.Task[None]] = []
        timers = [loop.call_later(WATCH_AFTER_S, start_watching)]
        deadline_s = self.door.deadline_s
        if deadline_s is not None:
            left_s = http.state.arrived_s + deadline_s - time.monotonic()
            words = f"not done within the deadline of {deadline_s} s"
            late = Unserved(504, "deadline", words, headers=NO_RETRY)
            timers.append(loop.call_later(left_s, end, late))
        for job in jobs:
            job.future.add_done_callback(job_ended)

        # 3) Wait
        try:
            error = await ended
            if error is not None:
                raise error
        finally:
            for timer in timers:
                timer.cancel()
            for watcher in watchers:
                watcher.cancel()

    async def _write_files(self, write_file: WriteFile, jobs: list[ImageJob]) -> list[File]:
        images = [job.future.result() for job in jobs]
        files = [self._file_threads.submit(write_file, image) for image in images]
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, files))
        except Exception as error:
            # The engine logs its own errors; this one is not the engine's.
            words = "request %s: its image could not be written as a file"
            log.error(words, jobs[0].request_id, exc_info=error)
            raise
