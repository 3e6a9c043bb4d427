"""A real SDXL pipeline that goes wrong for the requests whose prompts say so.

Knows the networks' hooks: a fault comes out of the middle of a real call, as a real one would.
Ignorant of HTTP, of queues and of who asks. The prompt's first word names the fault:

| word | what happens |
|---|---|
| encode-error, step-error, decode-error | each such call with this request in it raises |
| nan | its latents are NaN from the start |
| encode-memory, step-memory, decode-memory | its first such call runs out of memory, the next not |

Every image that is made is compared with its truth: a digest of the image that was made alone.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image

from benchlib.serving.model.denoise import Work
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.random_models import TINY, assemble, no_progress_bars
from benchlib.serving.schemas import GenerateRequest

WORDS = "planted by the soak"
# Less than `tiny`: two levels, one layer each, and a narrow VAE.
SMALLER = {
    "unet": {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 1],
    },
    "vae": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
}


def smallest_pipeline() -> SDXLPipeline:
    """A whole SDXL of 0.9 million parameters, which computes in float64 on one thread.

    In float32 an image of a batch differs from the same image alone by a level here and there,
    because sums are rounded in another order. In float64 the rounding is too small to show in
    eight bits, so the bytes are equal.
    """
    config = {part: options | SMALLER.get(part, {}) for part, options in TINY.items()}
    with tempfile.TemporaryDirectory() as folder, no_progress_bars():
        stock = assemble(config, torch.device("cpu"), torch.float32, seed=0)
        stock.save_pretrained(folder)
        pipeline = load_pipeline(folder, device="cpu", torch_threads=1)
    networks = pipeline.diffusers
    for network in (networks.unet, networks.vae, networks.text_encoder, networks.text_encoder_2):
        network.double()
    return pipeline


def digest(image: Image) -> str:
    """What stands for the pixels of an image."""
    return hashlib.sha256(image.tobytes()).hexdigest()


class FaultyPipeline:
    """Passes each call on to `pipeline`, which has hooks that raise.

    `truth` has the digest of each image by its seed. `on_wrong(seed)` is called for an image of
    other pixels. `made` and `wrong` count images.
    """

    def __init__(self, pipeline: SDXLPipeline) -> None:
        self.truth: Mapping[int, str] = {}
        self.on_wrong: Callable[[int], None] = lambda seed: None  # noqa: ARG005
        self.made = 0
        self.wrong = 0
        self._pipeline = pipeline
        self._armed: Exception | None = None  # the next hook raises it
        self._ran_out: set[int] = set()  # seeds of those whose first call ran out of memory
        networks = pipeline.diffusers
        for network in (networks.text_encoder, networks.unet, networks.vae.decoder):
            network.register_forward_hook(self._raise_if_armed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def encode(self, requests: Sequence[GenerateRequest]) -> list[Work]:
        self._arm("encode", requests)
        works = self._pipeline.encode(requests)
        for work in works:
            if work.request.prompt.startswith("nan"):
                with torch.inference_mode():
                    work.latents.fill_(math.nan)
        return works

    def step(self, works: Sequence[Work], *, rows: int | None = None) -> float:
        self._arm("step", [work.request for work in works])
        return self._pipeline.step(works, rows=rows)

    def decode(self, works: Sequence[Work]) -> list[Image]:
        self._arm("decode", [work.request for work in works])
        images = self._pipeline.decode(works)
        for work, image in zip(works, images, strict=True):
            self._ran_out.discard(work.seed)
            self._compare(work, image)
        return images

    def _arm(self, call: str, requests: Sequence[GenerateRequest]) -> None:
        """Decide if the call's network will raise."""
        self._armed = None
        for request in requests:
            kind = request.prompt.split()[0]
            if kind == f"{call}-error":
                self._armed = RuntimeError(f"{kind}, {WORDS}")
            first_time = request.seed not in self._ran_out
            if kind == f"{call}-memory" and first_time and request.seed is not None:
                self._ran_out.add(request.seed)
                self._armed = torch.OutOfMemoryError(f"{kind}, {WORDS}")

    def _raise_if_armed(self, *_: object) -> None:
        armed, self._armed = self._armed, None
        try:
            if armed is not None:
                raise armed
        finally:
            del armed  # the error's traceback holds this frame

    def _compare(self, work: Work, image: Image) -> None:
        if work.not_finite is not None:  # the engine must refuse it
            return
        self.made += 1
        expected = self.truth.get(work.seed)
        if expected is not None and digest(image) != expected:
            self.wrong += 1
            self.on_wrong(work.seed)
