"""A job: one request in the engine, from the queue to its image or to an error.

Knows the progress of a job. Ignorant of who runs next, of threads, and of HTTP.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchlib.serving.engine.made import Made, made_of
from benchlib.serving.engine.step_times import Size
from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchlib.serving.model.denoise import Work
    from benchlib.serving.model.memory import PeakMemory


class Refused(RuntimeError):
    """The engine refuses a job. `retry_after_s` is estimated; None if waiting won't help."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DoesNotFit(RuntimeError):
    """The device has too little memory for one image of this size."""

    def __init__(self, size: Size) -> None:
        super().__init__(f"{size[0]}x{size[1]} does not fit in the device's memory; ask for less")
        self.size = size

    def __reduce__(self) -> tuple[type[DoesNotFit], tuple[Size]]:
        return DoesNotFit, (self.size,)


class Cancelled(RuntimeError):
    """The job was dropped, because its client left or the engine is stopping."""


@dataclass(eq=False)
class Job:
    """One request in the engine.

    `future` ends with the image, with one of the errors above, or with the model's own error. Times
    are readings of `time.monotonic()`. `admitted_s` is None while the job waits in the queue.
    `steps_left` are calls of the UNet, less those that are done: some samplers take two for a step.
    `rows` are those that the job takes in the UNet's batch.
    `memory` is the highest peak of the calls that the job took part in. `outcome` is what the
    future will end with, or None before that. A job is a `Task` to the policies.
    """

    request: GenerateRequest
    request_id: str
    arrived_s: float
    steps_left: int
    rows: int
    future: Future[Image] = field(default_factory=Future)
    admitted_s: float | None = None
    cancelled: bool = False
    work: Work | None = None  # the request's work in the model, from `encode` on
    memory: PeakMemory | None = None
    outcome: Image | Exception | None = None
    replica: str | None = None  # the engine is alone
    retries: int = 0

    @property
    def made(self) -> Made | None:
        """What the job has cost; None before its last call."""
        return made_of(self.work, self.memory)

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.request.width, self.request.height

    @property
    def lora(self) -> str | None:
        """The adapter with its scale, or None."""
        return self.request.lora

    @property
    def begun(self) -> bool:
        """Whether the job has left the queue."""
        return self.admitted_s is not None
