"""One image that has been made: what its answer says of the work, and the file if one was written.

Pure, and plain enough to cross from one process to another. Ignorant of torch, queues and HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchlib.serving.model.denoise import Work
    from benchlib.serving.model.memory import PeakMemory

File = tuple[bytes, str]  # an image's file, and its base64 if that is wanted
WriteFile = Callable[["Image"], File]


@dataclass(frozen=True)
class Made:
    """One image and its cost. Seconds are those of whole calls, which several images may share.

    `batch_rows` is the sum of the batch sizes of its `steps_done`. `peak_gib` is the highest peak of
    memory; None is unknown. `not_finite` is "latents" or "pixels" where numbers are NaN or infinite.
    `queued_s` is how long a replica's own queue has held the request. `file` took `file_s` to write.
    """

    seed: int
    encode_s: float
    denoise_s: float
    decode_s: float
    batch_rows: int
    steps_done: int
    peak_gib: float | None
    not_finite: str | None = None
    queued_s: float = 0.0
    file: File | None = None
    file_s: float = 0.0

    @property
    def service_s(self) -> float:
        """Seconds of engine work without queueing: the `time_s` of the HTTP answer."""
        return self.encode_s + self.denoise_s + self.decode_s

    @property
    def mean_batch(self) -> float:
        """The mean number of requests in a denoising step."""
        return self.batch_rows / self.steps_done


def made_of(work: Work | None, memory: PeakMemory | None) -> Made | None:
    """What `work` has cost, with the highest peak of its calls. None if either is None."""
    if work is None or memory is None:
        return None
    return Made(
        seed=work.seed,
        encode_s=work.encode_s,
        denoise_s=work.denoise_s,
        decode_s=work.decode_s,
        batch_rows=work.batch_rows,
        steps_done=work.steps_done,
        peak_gib=memory.headline_gib,
        not_finite=work.not_finite,
    )
