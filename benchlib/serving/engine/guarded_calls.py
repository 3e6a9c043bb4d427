"""Calls of the model that several jobs share, and what becomes of the jobs if a call fails.

Knows errors, and a lack of memory. Ignorant of what a call computes, of the queue, and of which
jobs should run together. Every call is made on the torch thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from benchlib.serving.engine.faults import (
    Faults,
    NotFinite,
    Part,
    ShortOfMemory,
    forget_frames,
    reason_of,
)
from benchlib.serving.engine.jobs import DoesNotFit, Job
from benchlib.serving.engine.memory_limits import MemoryLimits
from benchlib.serving.engine.step_times import Size

if TYPE_CHECKING:
    from benchlib.serving.engine.options import OnNotFinite
    from benchlib.serving.model.pipeline import SDXLPipeline

log = logging.getLogger(__name__)

T = TypeVar("T")


# Of MPS and CUDA's driver, of torch's allocator on a CPU, and of cuBLAS.
_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed")


class NoMemory(Exception):
    """A call ran out of memory."""


class GuardedCalls:
    """Makes calls for jobs of one size, so that a fault of one job ends no other.

    **A lack of memory**: the call is repeated with fewer jobs at a time, and later calls have no
    more (see `MemoryLimits`). A job alone is tried once more, after the allocator has given back
    all that it kept. If memory still does not suffice, the job ends. It is told to try again
    if an image of its size has been made since such an end, else that its size does not fit.

    **Any other error**: the call is repeated as it was, and then without each job in turn. So the
    others get what they would have got without the job at fault, to the bit: the number of jobs in
    a call changes the last bits of an image. If several jobs are at fault, each is tried by itself.
    A job that fails alone ends with its error.

    An error is logged where it ends a job. The frames that it has passed are forgotten, because they
    hold tensors. What is no `Exception`, and an error of the pipeline's memory figures, is not
    caught: it ends the engine.
    """

    def __init__(self, pipeline: SDXLPipeline, faults: Faults) -> None:
        self.pipeline = pipeline
        self.faults = faults
        self._limits = MemoryLimits()
        self._made: set[Size] = set()  # sizes of images since a lack of memory ended a job

    def most(self, part: Part, size: Size) -> int | None:
        """The most jobs of this size in one call, or None for any number."""
        return self._limits.most(part, size)

    def call(
        self, part: Part, jobs: Sequence[Job], function: Callable[[Sequence[Job]], T]
    ) -> list[T]:
        """What `function` returns for `jobs`: one result, if nothing fails.

        After a failure it is called for fewer jobs at a time. A job that ends gets its `outcome`.
        """
        size = jobs[0].size
        results: list[T] = []
        waiting = list(jobs)
        while waiting:
            most = self._limits.most(part, size)
            batch = waiting[:most]
            error = self._try(part, batch, function, results)
            if error is None:
                self._limits.went_well(part, size, len(batch))
            elif len(batch) == 1:
                self._finish_alone(part, batch[0], function, results, error)
            elif isinstance(error, NoMemory):
                self._limits.failed(part, size, len(batch))
                continue
            else:
                log.warning("%d requests failed together: %s", len(batch), reason_of(error))
                forget_frames(error)
                for job in self._left_over(part, batch, function, results):
                    results += self.call(part, [job], function)
            waiting = waiting[len(batch) :]
        return results

    def fail(self, job: Job, error: Exception) -> None:
        """End one job. Its client gets a 500, and the log has the reason."""
        log.error("request %s failed", job.request_id, exc_info=error)
        forget_frames(error)
        job.outcome = error

    def end_without_memory(self, job: Job) -> None:
        """End one job, for which memory does not suffice even alone."""
        width, height = job.size
        if job.size in self._made:
            self._made.remove(job.size)
            job.outcome = ShortOfMemory(width, height)
        else:
            job.outcome = DoesNotFit(job.size)
        log.warning("request %s: %s", job.request_id, job.outcome)

    def tell_not_finite(self, job: Job, place: str, on_nonfinite: OnNotFinite) -> None:
        """Count an image that has no meaning. It ends its job, unless such images are allowed."""
        error = NotFinite(place)
        log.warning("request %s: %s", job.request_id, error)
        if on_nonfinite == "allow":
            self.faults.not_finite["answered"] += 1
        else:
            self.faults.not_finite["refused"] += 1
            job.outcome = error

    def _try(
        self,
        part: Part,
        jobs: Sequence[Job],
        function: Callable[[Sequence[Job]], T],
        results: list[T],
    ) -> Exception | None:
        """Call `function` and append its result. Returns its error, or NoMemory."""
        self.pipeline.reset_peak_memory()
        try:
            result = function(jobs)
        except Exception as error:  # noqa: BLE001 - returned
            if not is_out_of_memory(error):
                return error
            forget_frames(error)
        else:
            results.append(result)
            self._note_success(part, jobs)
            return None
        # The error is gone by now, and so are the frames that held the call's tensors.
        self.faults.out_of_memory[part] += 1
        log.warning("%s of %d requests ran out of memory", part, len(jobs))
        torch.cuda.empty_cache()
        return NoMemory()

    def _left_over(
        self,
        part: Part,
        jobs: Sequence[Job],
        function: Callable[[Sequence[Job]], T],
        results: list[T],
    ) -> list[Job]:
        """Repeat a call that failed, without one job if need be. Returns who must be tried alone."""
        if self._try(part, jobs, function, results) is None:
            return []
        if len(jobs) > 2:
            # The others have gone well before, so the newest is the likeliest to be at fault.
            for job in sorted(jobs, key=lambda job: job.arrived_s, reverse=True):
                others = [other for other in jobs if other is not job]
                if self._try(part, others, function, results) is None:
                    return [job]
        return list(jobs)

    def _note_success(self, part: Part, jobs: Sequence[Job]) -> None:
        peak = self.pipeline.peak_memory()
        for job in jobs:
            job.memory = peak if job.memory is None else job.memory.highest(peak)
        if part == "step":
            self.faults.step_went_well()
        elif part == "decode":
            self._made.add(jobs[0].size)

    def _finish_alone(
        self,
        part: Part,
        job: Job,
        function: Callable[[Sequence[Job]], T],
        results: list[T],
        error: Exception | None,
    ) -> None:
        """Give a job that failed alone by `error` its end, or a second try if memory was short."""
        if isinstance(error, NoMemory):
            error = self._try(part, [job], function, results)
        if isinstance(error, NoMemory):
            self.end_without_memory(job)
        elif error is not None:
            self.fail(job, error)
            self.faults.call_failed(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory is what a call lacked: of a GPU, of its libraries, or of the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in words for sign in _SIGNS)
