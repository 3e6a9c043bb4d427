"""Whether an image was computed from numbers: NaN and infinite ones give a black or a broken image.

Ignorant of pipelines, and of what a server answers then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def largest_numbers(latents: Tensor, pixels: Tensor) -> Tensor:
    """The largest magnitudes (images, 2) of latents and pixels, each (images, ...); on the device.

    They are NaN or infinite where a number is: a maximum keeps NaN. This takes one pass without a
    copy, and does not wait for a GPU.
    """
    largest = [
        torch.linalg.vector_norm(tensor.flatten(1), ord=math.inf, dim=1).float()
        for tensor in (latents, pixels)
    ]
    return torch.stack(largest, dim=1)


def places_not_finite(largest: Iterable[tuple[float, float]]) -> list[str | None]:
    """For each image "latents" or "pixels", the first place that is not finite, or None.

    `largest` are the values of `largest_numbers`. If the latents are finite and the pixels are not,
    the VAE's numbers are too large for its type.
    """
    places: list[str | None] = []
    for of_latents, of_pixels in largest:
        if not math.isfinite(of_latents):
            places.append("latents")
        elif not math.isfinite(of_pixels):
            places.append("pixels")
        else:
            places.append(None)
    return places
