"""The cost of adapters by request: of a switch, and of a step with one.

Knows a pipeline's calls and its adapters. Ignorant of queues and of files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from benchlib.serving.model.denoise import Work
    from benchlib.serving.model.pipeline import SDXLPipeline

STEPS = 4  # with each adapter, and as many without


def measure_adapters(pipeline: SDXLPipeline, size: tuple[int, int]) -> tuple[float, float]:
    """The seconds of a switch, and how many times as long a step takes with an adapter.

    Both are the slowest adapter's. Steps with and without an adapter take turns, so that other work
    on the machine slows down both. Without adapters a switch takes 0 s, and the ratio is 1.
    """
    adapters = pipeline.adapters
    if not adapters.names:
        return 0.0, 1.0
    ratio = 1.0
    for name in adapters.names:
        without_s = []
        with_s = []
        for _ in range(STEPS):
            without_s.append(_step_s(pipeline, size, None))
            with_s.append(_step_s(pipeline, size, name))
        ratio = max(ratio, min(with_s) / min(without_s))
    switch_s = adapters.measure_switch_s()
    adapters.use(None)
    return switch_s, ratio


def _step_s(pipeline: SDXLPipeline, size: tuple[int, int], lora: str | None) -> float:
    """Seconds of a step of one guided image, after another step that switches to `lora`."""
    width, height = size
    request = GenerateRequest(
        prompt="warm-up",
        width=width,
        height=height,
        num_inference_steps=pipeline.schedules.nearest_steps(2),
        lora=lora,
    )
    works: list[Work] = pipeline.encode([request])
    pipeline.step(works)
    if works[0].finished:  # a sampler that takes one step
        works = pipeline.encode([request])
    return pipeline.step(works)
