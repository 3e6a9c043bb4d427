"""How near one image is to another: PSNR and SSIM. Pure functions on arrays; ignorant of where images come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]
WINDOW, SIGMA = 11, 1.5  # pixels; of the Gaussian in Wang et al.


def psnr_db(a: Image, b: Image) -> float:
    """The peak signal-to-noise ratio of two images in dB; infinite where they are equal.

    Arrays (H, W, 3), both uint8 (peak 255) or both floats in [0, 1] (peak 1). Raises ValueError for others.
    """
    a, b = _checked(a, b)
    error = float(np.mean((a - b) ** 2))
    return -10 * math.log10(error) if error else math.inf


def ssim(a: Image, b: Image) -> float:
    """The mean structural similarity of two images, 1 where they are equal: the mean over the channels.

    Wang, Bovik, Sheikh & Simoncelli, IEEE Transactions on Image Processing 13 (2004): a Gaussian window of 11 pixels
    with a deviation of 1.5, K1 = 0.01, K2 = 0.03, only windows that lie within the image. Arrays as in `psnr_db`, of
    11 x 11 pixels at the least.
    """
    a, b = _checked(a, b)
    if min(a.shape[:2]) < WINDOW:
        raise ValueError(
            f"a and b: {a.shape[1]}x{a.shape[0]} pixels are too few; SSIM needs {WINDOW}x{WINDOW}"
        )
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)))


def _checked(a: Image, b: Image) -> tuple[Image, Image]:
    """Both in [0, 1], as float64."""
    for name, image in (("a", a), ("b", b)):
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"{name}: its shape is {image.shape}; give an image as an array of (height, width, 3)"
            )
    if a.shape != b.shape or (a.dtype == np.uint8) != (b.dtype == np.uint8):
        raise ValueError(
            f"a and b: {a.shape} of {a.dtype} and {b.shape} of {b.dtype}; give two of one size and kind"
        )
    scale = 255.0 if a.dtype == np.uint8 else 1.0
    scaled = np.asarray(a, dtype=float) / scale, np.asarray(b, dtype=float) / scale
    if not all(0 <= image.min() <= image.max() <= 1 for image in scaled):
        raise ValueError(
            "a and b: floats must lie in [0, 1]; divide by the highest value, or give uint8"
        )
    return scaled


def _blurred(image: Image) -> Image:
    """Gaussian means over the windows that lie within the image, rows first, then columns."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, WINDOW, axis=axis) @ weights
    return image
