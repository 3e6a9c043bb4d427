"""What has gone wrong in an engine: the errors of its jobs, and what is counted of them.

Knows when so much has failed that the engine is not ready. An error whose words are not its arguments
says how to pickle it, because a replica's errors cross to another process. Ignorant of jobs, of the model, and of
how HTTP tells it.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Literal

log = logging.getLogger(__name__)

Part = Literal["encode", "step", "decode"]
Outcome = Literal["refused", "answered"]
PARTS: tuple[Part, ...] = ("encode", "step", "decode")
OUTCOMES: tuple[Outcome, ...] = ("refused", "answered")
MOST_FAILED_CALLS = 30
"""So many failed calls without a step that succeeds are the device's fault, not the requests'."""
MOST_WORDS = 300  # of an error, which clients read
SHORT_OF_MEMORY_S = 5.0
"""When to try again. Nobody can foretell when another process frees its memory."""


class EngineEnded(RuntimeError):
    """The engine's thread has ended by an error. `str` is the reason."""


class ShortOfMemory(RuntimeError):
    """Memory did not suffice for one image, of a size that has been made before."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(
            f"the device is short of memory for {width}x{height}, which it has made before"
        )
        self.retry_after_s = SHORT_OF_MEMORY_S
        self.size = width, height

    def __reduce__(self) -> tuple[type[ShortOfMemory], tuple[int, int]]:
        return ShortOfMemory, self.size


class NotFinite(RuntimeError):
    """An image was computed from numbers that are NaN or infinite. `place` is where they are."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"the image has no meaning, because its {place} are NaN or infinite: the model's "
            "weights are broken, or numbers are too large for its type"
        )
        self.place = place

    def __reduce__(self) -> tuple[type[NotFinite], tuple[str]]:
        return NotFinite, (self.place,)


class Faults:
    """Counts of an engine's faults.

    `out_of_memory` is by part of the work. `not_finite` is by what became of the images: "refused"
    or "answered". `failed_calls` are the calls for one request that have failed since a step last
    succeeded, and `last_reason` is the last one's. A lack of memory is not among them: many
    requests that are too large say nothing about the device.
    """

    def __init__(self) -> None:
        self.out_of_memory: Counter[Part] = Counter()
        self.not_finite: Counter[Outcome] = Counter()
        self.failed_calls = 0
        self.last_reason: str | None = None

    @property
    def failing(self) -> bool:
        """Whether so many calls have failed that the device may be lost."""
        return self.failed_calls >= MOST_FAILED_CALLS

    @property
    def why_failing(self) -> str | None:
        """The reason in words, None unless `failing`."""
        if not self.failing:
            return None
        words = "calls of the model have failed and no step has succeeded since"
        return f"{self.failed_calls} {words}; the last error is {self.last_reason}"

    def call_failed(self, error: Exception) -> None:
        """Count a call for one request that failed."""
        self.failed_calls += 1
        self.last_reason = reason_of(error)
        if self.failed_calls == MOST_FAILED_CALLS:
            log.error("not ready until a step succeeds: %s", self.why_failing)

    def step_went_well(self) -> None:
        """Forget the calls that failed."""
        if self.failing:
            log.warning("a step has succeeded after %d failed calls: ready", self.failed_calls)
        self.failed_calls = 0


def reason_of(error: BaseException) -> str:
    """The kind and the words of an error, on one line of at most MOST_WORDS characters."""
    words = " ".join(str(error).split())
    kind = type(error).__name__
    reason = f"{kind}: {words}" if words else kind
    return reason[:MOST_WORDS]


def forget_frames(error: BaseException | None) -> None:
    """Forget where `error` and its causes were raised, once it has been logged.

    A traceback holds frames, and frames hold tensors, images and often the error itself. Such a
    circle stays until Python looks for circles, which takes minutes.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
