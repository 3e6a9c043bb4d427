"""What `SDXLPipeline.generate` returns: images, seeds, times and memory.

Pure. Ignorant of how images are made (pipeline.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL.Image import Image

from benchlib.cell_view import CellView, ShownInCell
from benchlib.serving.model.memory import PeakMemory
from benchlib.serving.model.model_views import view_of_images


@dataclass(frozen=True)
class Timings:
    """Seconds of a `generate` call and of its stages, by the device's own clock on CUDA.

    The host runs ahead of a GPU, so a stage's launches may lie in the stage before it.
    """

    encode_s: float
    denoise_s: float
    decode_s: float
    total_s: float
    step_s: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class GenerateResult(ShownInCell):
    """The images and seeds in the order of the requests, the times, and the memory peak."""

    images: list[Image]
    seeds: list[int]
    timings: Timings
    memory: PeakMemory

    @property
    def peak_memory_gib(self) -> float | None:
        """On CUDA the allocator's peak, on a CPU the process's peak RSS, else None."""
        return self.memory.headline_gib

    def _view(self) -> CellView:
        return view_of_images(len(self.images), self.timings)
