"""Whether images and weights are finite numbers: NaN and infinity give a black or broken image.

Knows the networks of a stock pipeline. Ignorant of what a server answers then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchlib.serving.model.model_errors import ModelError

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def sums_of(latents: Tensor, pixels: Tensor) -> Tensor:
    """The sums (images, 2) of latents and of pixels, each (images, ...); on the device.

    They are NaN or infinite where a number is. This takes one pass, and does not wait for a GPU.
    """
    sums = [tensor.flatten(1).sum(1, dtype=torch.float32) for tensor in (latents, pixels)]
    return torch.stack(sums, dim=1)


def places_not_finite(sums: Iterable[tuple[float, float]]) -> list[str | None]:
    """For each image "latents" or "pixels", the first place that is not finite, or None.

    `sums` are the values of `sums_of`. If the latents are finite and the pixels are not, the VAE's
    numbers are too large for its type.
    """
    places: list[str | None] = []
    for of_latents, of_pixels in sums:
        if not math.isfinite(of_latents):
            places.append("latents")
        elif not math.isfinite(of_pixels):
            places.append("pixels")
        else:
            places.append(None)
    return places


@torch.inference_mode()
def require_finite_weights(pipe: Any, name: str) -> None:
    """Raises `ModelError`, which names the network and the weights that are NaN or infinite."""
    for part in PARTS:
        network = getattr(pipe, part)
        if network is None:
            continue
        # 1) The extremes of all weights, fetched at once: a GPU is waited for once a network
        keys = []
        extremes = []
        for key, weights in network.named_parameters():
            if weights.is_floating_point() and weights.numel():
                keys.append(key)
                extremes.append(torch.stack(weights.aminmax()).float())

        # 2) The first that are not finite
        for key, pair in zip(keys, torch.stack(extremes).tolist(), strict=True):
            if not all(map(math.isfinite, pair)):
                dtype = str(network.dtype).removeprefix("torch.")
                raise ModelError(
                    f"model: {name}: its {part} has weights that are NaN or infinite in {dtype} "
                    f"({key}), so its images would have no meaning; download the model again, or "
                    "take a dtype with a wider range, such as dtype='bfloat16'"
                )
