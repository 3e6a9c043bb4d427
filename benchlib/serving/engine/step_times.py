"""Warm-up: what a batch of each size costs on this machine, measured before the first request is taken.

Knows a pipeline's calls. Ignorant of queues and of what is made of the times (policies.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchlib.serving.engine.policies import Size, StepTimes
from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline

REPEATS = 6
ENOUGH_S = 1.0
GAIN = 1.05  # the images per second of a batch over those of one half its size


def measure(
    pipeline: SDXLPipeline, size: Size, *, max_batch_size: int, padded: Callable[[int], int | None]
) -> StepTimes:
    """Times of 1, 2, 4, ... guided requests at once, while twice as many make 5 % more images a second, and fit.

    Where batches are made, also one row: a request without guidance. `padded` tells how many rows the UNet is given for
    so many, or None for no padding: all that are padded to as many take as long, and each bucket that a batch can come
    to is measured, with as many requests as fit, as it has to be made ready anyway. Raises what the pipeline does where
    a single image fails.
    """
    import torch

    step_s: dict[int, float] = {}
    encode_s: dict[int, float] = {}
    decode_s: dict[int, float] = {}

    def measure_batch(n: int, guidance_scale: float) -> float:
        width, height = size
        request = GenerateRequest(
            prompt="warm-up",
            width=width,
            height=height,
            num_inference_steps=1 + REPEATS,
            guidance_scale=guidance_scale,
        )
        rows = n * (2 if guidance_scale > 1 else 1)
        shape = {} if padded(rows) is None else {"rows": padded(rows)}
        works = pipeline.encode([request] * n)

        def decode() -> float:
            pipeline.decode(works)
            return works[0].decode_s

        fewest, most = rows, padded(rows) or rows
        while shape and fewest > 1 and padded(fewest - 1) == most:
            fewest -= 1
        step_s[fewest] = step_s[most] = _least_s(lambda: pipeline.step(works, **shape))
        encode_s[n] = _least_s(lambda: pipeline.encode([request] * n)[0].encode_s)
        decode_s[n] = _least_s(decode)
        return step_s[most] / n

    if max_batch_size > 1:
        measure_batch(1, 0.0)
    per_image_s = measure_batch(1, 7.5)
    for n in range(2, max_batch_size + 1):
        bucket = padded(2 * n)
        fullest = n == max_batch_size or padded(2 * n + 2) != bucket
        if not (n.bit_count() == 1 if bucket is None else fullest):
            continue
        if not pipeline.fits(*size, n):
            break
        half_s = per_image_s
        try:
            per_image_s = measure_batch(n, 7.5)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if bucket is None and half_s / per_image_s < GAIN:
            break
    return StepTimes(_rising(step_s), _rising(encode_s), _rising(decode_s))


def warm(pipeline: SDXLPipeline, size: Size, rows: int) -> None:
    """Step with so many rows until nothing is compiled any more and CUDA graphs are captured: the third one replays."""
    width, height = size
    works = pipeline.encode(
        [GenerateRequest(prompt="warm-up", width=width, height=height, num_inference_steps=3)]
    )
    for _ in range(3):
        pipeline.step(works, rows=rows)


def _rising(seconds: dict[int, float]) -> dict[int, float]:
    """No batch takes longer than a larger one: where it was measured so, something else ran on the machine."""
    return {n: min(s for m, s in seconds.items() if m >= n) for n in seconds}


def _least_s(call: Callable[[], float]) -> float:
    """The least of a few after one that is not counted, for a first call of a shape may take twenty times as long: what
    other work on the machine adds is none of the batch's cost."""
    call()
    taken = [call()]
    while len(taken) < REPEATS and sum(taken) < ENOUGH_S:
        taken.append(call())
    return min(taken)
