"""A turn in calls of the pipeline: encode the newcomers, step, decode.

Knows padding, a lack of memory, and what an error means for the jobs of a batch. Ignorant of the
queue, of locks, and of which jobs should run together. Every call is made on the torch thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from benchlib.serving.engine.jobs import DoesNotFit, Job
from benchlib.serving.engine.memory_limits import MemoryLimits, Part
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.step_times import Size, StepTimes, measure_step_times, warm

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline

log = logging.getLogger(__name__)

T = TypeVar("T")


class ModelCalls:
    """Carries out turns with one pipeline. A job that ends gets its `outcome`."""

    def __init__(self, pipeline: SDXLPipeline, options: EngineOptions) -> None:
        self.pipeline = pipeline
        self._limits = MemoryLimits()
        self._most = options.max_batch_size
        if options.batching == "serial":
            self._most = 1
        self.buckets = sorted(options.batch_buckets or ())
        if pipeline.compiled and not self.buckets:
            self.buckets = _powers_of_two(2 * self._most)

    def warm_up(self, size: Size) -> StepTimes:
        """Return the measured step times of `size`. A compiled model is warmed for each bucket."""
        times = measure_step_times(
            self.pipeline,
            size,
            max_batch_size=self._most,
            padded=self._padded,
        )
        if self.pipeline.compiled:
            for rows in self.buckets:
                warm(self.pipeline, size, rows)
        return times

    def within_limits(self, turn: Turn[Job]) -> Turn[Job]:
        """The turn, with fewer jobs if memory does not suffice for all of them."""
        step = turn.step
        decode = turn.decode
        if step:
            most = self._limits.most("step", step[0].size)
            step = step[:most]
        if decode:
            size = decode[0].size
            most = self._limits.most("decode", size)
            decode = decode[:most]
            while len(decode) > 1 and not self.pipeline.fits(*size, len(decode)):
                decode = decode[: len(decode) // 2]
        if len(step) == len(turn.step) and len(decode) == len(turn.decode):
            return turn
        return replace(turn, step=step, decode=decode)

    def carry_out(self, turn: Turn[Job]) -> float | None:
        """Decode and step as `turn` says. Returns the step's seconds, or None without a step."""
        if turn.decode:
            self._decode(turn.decode)
        newcomers = [job for job in turn.step if job.work is None]
        if newcomers:
            self._encode(newcomers, sharing=len(turn.step))
        if turn.step and all(job.work is not None for job in turn.step):
            return self._step(turn.step)
        return None

    def _encode(self, newcomers: Sequence[Job], *, sharing: int) -> None:
        """Encode all newcomers in one call. `sharing` is the number of all jobs in their step."""
        size = newcomers[0].size
        if not self.pipeline.fits(*size):
            for job in newcomers:
                job.outcome = DoesNotFit(size)
            return
        requests = [job.request for job in newcomers]
        works = self._call(
            "step",
            newcomers,
            lambda: self.pipeline.encode(requests),
            again=lambda job: self._encode([job], sharing=sharing),
            sharing=sharing,
        )
        if works is not None:
            for job, work in zip(newcomers, works, strict=True):
                job.work = work

    def _step(self, jobs: Sequence[Job]) -> float | None:
        works = [job.work for job in jobs if job.work is not None]
        rows = sum(job.rows for job in jobs)
        bucket = self._padded(rows)
        seconds = self._call(
            "step",
            jobs,
            lambda: self.pipeline.step(works, rows=bucket),
            again=lambda job: self._step([job]),
        )
        if seconds is not None:
            self._limits.went_well("step", jobs[0].size, len(jobs))
            for job, work in zip(jobs, works, strict=True):
                if work.failure is not None:
                    self._fail(job, work.failure)
        return seconds

    def _decode(self, jobs: Sequence[Job]) -> None:
        works = [job.work for job in jobs if job.work is not None]
        images = self._call(
            "decode",
            jobs,
            lambda: self.pipeline.decode(works),
            again=lambda job: self._decode([job]),
        )
        if images is not None:
            self._limits.went_well("decode", jobs[0].size, len(jobs))
            for job, image in zip(jobs, images, strict=True):
                job.outcome = image

    def _call(
        self,
        part: Part,
        jobs: Sequence[Job],
        function: Callable[[], T],
        *,
        again: Callable[[Job], object],
        sharing: int | None = None,
    ) -> T | None:
        """Return the result of `function`, a call of the pipeline for `jobs`; None if it raises.

        A lack of memory lowers the limit of a batch of `sharing` jobs (by default all of `jobs`).
        A job alone ends instead. After any other error each job is tried `again` by itself, so that
        the fault of one ends no other. A job alone then ends with its error.
        """
        import torch

        self.pipeline.reset_peak_memory()
        try:
            result = function()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self._ran_out_of_memory(part, jobs, sharing or len(jobs))
            return None
        except Exception as error:  # noqa: BLE001 - a job alone ends with it
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return None
            log.warning("%d requests failed together (%s), and are tried alone", len(jobs), error)
            for job in jobs:
                again(job)
            return None
        peak = self.pipeline.peak_memory()
        for job in jobs:
            job.memory = peak if job.memory is None else job.memory.highest(peak)
        return result

    def _fail(self, job: Job, error: Exception) -> None:
        """End one job. Its client gets a 500, and the log has the reason."""
        log.error("request %s failed", job.request_id, exc_info=error)
        job.outcome = error

    def _ran_out_of_memory(self, part: Part, jobs: Sequence[Job], sharing: int) -> None:
        size = jobs[0].size
        if sharing > 1:
            self._limits.failed(part, size, sharing)
            return
        [job] = jobs
        job.outcome = DoesNotFit(size)
        log.warning("request %s is alone and ran out of memory", job.request_id)

    def _padded(self, rows: int) -> int | None:
        """The smallest bucket that holds `rows`, or None if there is none."""
        for bucket in self.buckets:
            if bucket >= rows:
                return bucket
        return None


def _powers_of_two(at_least: int) -> list[int]:
    """The powers of two from 2 up to the first that is `at_least` or more."""
    powers = [2]
    while powers[-1] < at_least:
        powers.append(2 * powers[-1])
    return powers
