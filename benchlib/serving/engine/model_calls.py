"""A turn in calls of the pipeline: encode the newcomers, step, decode.

Knows padding, and which jobs may share a call. Ignorant of what becomes of a call that fails
(guarded_calls.py), of the queue, of locks, and of which jobs should run together. Every call is
made on the torch thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from benchlib.serving.engine.buckets import powers_of_two, smallest_that_holds
from benchlib.serving.engine.faults import Faults
from benchlib.serving.engine.guarded_calls import GuardedCalls
from benchlib.serving.engine.jobs import Job
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.step_times import (
    Size,
    StepTimes,
    measure_step_times,
    warm,
    warm_up_request,
)
from benchlib.serving.engine.told_rows import tell_rows_of

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline


class ModelCalls:
    """Carries out turns with one pipeline. A job that ends gets its `outcome`."""

    def __init__(self, pipeline: SDXLPipeline, options: EngineOptions, faults: Faults) -> None:
        self.pipeline = pipeline
        self._guard = GuardedCalls(pipeline, faults)
        self._on_nonfinite = options.on_nonfinite
        self._probe_size: Size = (64, 64)  # until a size is warmed
        self._most = options.max_batch_size
        if options.batching == "serial":
            self._most = 1
        self._guided_rows: int = pipeline.spec.get("guided_rows", 2)
        self.buckets = sorted(options.batch_buckets or ())
        if pipeline.compiled and not self.buckets:
            most_rows = self._guided_rows * self._most
            self.buckets = powers_of_two(self._guided_rows, at_least=most_rows)

    def warm_up(self, size: Size, tell: Callable[[str], None]) -> StepTimes:
        """Return the measured step times of `size`. A compiled model is warmed for each bucket.

        Before each batch, `tell` gets what is done now, in words, and what is compiled is kept.
        """
        to_compile = self.buckets if self.pipeline.compiled else []
        tell_rows = tell_rows_of(size, to_compile, tell, lambda: self.pipeline.keep_artefacts())
        times = measure_step_times(
            self.pipeline,
            size,
            max_batch_size=self._most,
            padded=self._padded,
            tell_rows=tell_rows,
        )
        if self.pipeline.compiled:
            for rows in to_compile:
                tell_rows(rows)
                warm(self.pipeline, size, rows)
            self.pipeline.keep_artefacts()
        self._probe_size = size
        return times

    def within_limits(self, turn: Turn[Job]) -> Turn[Job]:
        """The turn, with fewer jobs if memory does not suffice for all of them."""
        step = turn.step
        decode = turn.decode
        if step:
            most = self._guard.most("step", step[0].size)
            step = step[:most]
        if decode:
            size = decode[0].size
            most = self._guard.most("decode", size)
            decode = decode[:most]
            while len(decode) > 1 and not self.pipeline.fits(*size, len(decode)):
                decode = decode[: len(decode) // 2]
        if len(step) == len(turn.step) and len(decode) == len(turn.decode):
            return turn
        return replace(turn, step=step, decode=decode)

    def carry_out(self, turn: Turn[Job]) -> float | None:
        """Decode and step as `turn` says. Returns the step's seconds, or None without a step.

        A step that had to be repeated in parts has no seconds.
        """
        if turn.decode:
            self._guard.call("decode", turn.decode, self._decode)
        newcomers = [job for job in turn.step if job.work is None]
        if newcomers:
            self._encode_what_fits(newcomers)
        if turn.step and all(job.work is not None for job in turn.step):
            seconds = self._guard.call("step", turn.step, self._step)
            return seconds[0] if len(seconds) == 1 else None
        return None

    def probe(self) -> None:
        """Try a step of an image of its own, to see whether the device works again."""
        request = warm_up_request(self._probe_size, steps=self.pipeline.schedules.nearest_steps(1))
        rows = request.rows(self._guided_rows)
        job = Job(request, "probe", time.monotonic(), request.num_inference_steps, rows)
        self._guard.call("encode", [job], self._encode)
        if job.work is not None:
            self._guard.call("step", [job], self._step)

    def _encode_what_fits(self, newcomers: Sequence[Job]) -> None:
        size = newcomers[0].size
        if self.pipeline.fits(*size):
            self._guard.call("encode", newcomers, self._encode)
            return
        for job in newcomers:
            self._guard.end_without_memory(job)

    def _encode(self, newcomers: Sequence[Job]) -> None:
        works = self.pipeline.encode([job.request for job in newcomers])
        for job, work in zip(newcomers, works, strict=True):
            job.work = work

    def _step(self, jobs: Sequence[Job]) -> float:
        works = [job.work for job in jobs if job.work is not None]
        rows = sum(job.rows for job in jobs)
        seconds = self.pipeline.step(works, rows=self._padded(rows))
        for job, work in zip(jobs, works, strict=True):
            if work.failure is not None:
                self._guard.fail(job, work.failure)
        return seconds

    def _decode(self, jobs: Sequence[Job]) -> None:
        works = [job.work for job in jobs if job.work is not None]
        images = self.pipeline.decode(works)
        for job, work, image in zip(jobs, works, images, strict=True):
            job.outcome = image
            if work.not_finite is not None:
                self._guard.tell_not_finite(job, work.not_finite, self._on_nonfinite)

    def _padded(self, rows: int) -> int | None:
        return smallest_that_holds(rows, self.buckets)
