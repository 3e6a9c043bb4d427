"""How much one image is like another: PSNR, SSIM and FLIP.

Pure functions on arrays. Ignorant of where images come from, and of how many pairs there are.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]

WINDOW = 11
"""The side of SSIM's window, in pixels."""
SIGMA = 1.5
"""The deviation of the Gaussian in the window, in pixels."""
C1 = 0.01**2
C2 = 0.03**2


def psnr_db(a: Pixels, b: Pixels) -> float:
    """The peak signal-to-noise ratio of two images in dB; infinite where they are equal.

    Arrays (H, W, 3), both uint8 (peak 255) or both floats in [0, 1] (peak 1). Raises ValueError for
    others.
    """
    a, b = _checked(a, b)
    squares = (a - b) ** 2
    error = float(np.mean(squares))
    if error == 0:
        return math.inf
    return -10 * math.log10(error)


def ssim(a: Pixels, b: Pixels) -> float:
    """The structural similarity of two images, 1 where equal: the mean over windows and channels.

    Source: Wang, Bovik, Sheikh & Simoncelli, IEEE Transactions on Image Processing 13 (2004).
    WINDOW, SIGMA, C1 and C2 are the source's values, and only windows within the image count.
    Arrays as in `psnr_db`, of at least WINDOW x WINDOW pixels.
    """
    a, b = _checked(a, b)
    height, width, _ = a.shape
    if min(height, width) < WINDOW:
        raise ValueError(
            f"a and b: {width}x{height} pixels are too few; SSIM needs {WINDOW}x{WINDOW}"
        )
    mean_a = _blurred(a)
    mean_b = _blurred(b)
    square_a = mean_a**2
    square_b = mean_b**2
    product = mean_a * mean_b
    variance_a = _blurred(a * a) - square_a
    variance_b = _blurred(b * b) - square_b
    covariance = _blurred(a * b) - product
    luminance = (2 * product + C1) / (square_a + square_b + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    similarity = np.mean(luminance * structure)
    return float(similarity)


def flip(reference: Pixels, test: Pixels) -> float:
    """The mean over all pixels of FLIP: 0 where the images are equal, 1 at most.

    FLIP estimates what a person sees who flips between two images in one place, with 67 pixels in a
    degree of vision. Source: Andersson, Nilsson, Akenine-Möller, Oskarsson, Åström & Fairchild,
    "FLIP: A Difference Evaluator for Alternating Images", Proceedings of the ACM on Computer
    Graphics and Interactive Techniques 3 (2020). The package flip-evaluator is its authors' own.
    Arrays as in `psnr_db`. Raises ModuleNotFoundError where the package is missing.
    """
    import flip_evaluator

    scaled = _checked(reference, test)
    first, second = [image.astype(np.float32) for image in scaled]
    _, mean, _ = flip_evaluator.evaluate(first, second, "LDR", applyMagma=False, parameters={})
    return float(mean)


def why_no_flip() -> str | None:
    """What to install for `flip`, in words; None where it is installed."""
    if importlib.util.find_spec("flip_evaluator") is not None:
        return None
    return "FLIP is left out, as flip-evaluator is not installed: pip install flip-evaluator"


def _checked(a: Pixels, b: Pixels) -> tuple[Pixels, Pixels]:
    """Both images in [0, 1], as float64. Raises ValueError for two that can't be compared."""
    _check_shape("a", a)
    _check_shape("b", b)
    a_is_bytes = a.dtype == np.uint8
    b_is_bytes = b.dtype == np.uint8
    if a.shape != b.shape or a_is_bytes != b_is_bytes:
        kinds = f"{a.shape} of {a.dtype} and {b.shape} of {b.dtype}"
        raise ValueError(f"a and b: {kinds}; give two of one size and kind")
    peak = 255.0 if a_is_bytes else 1.0
    return _scaled(a, peak), _scaled(b, peak)


def _check_shape(name: str, image: Pixels) -> None:
    if image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    wanted = "give an image as an array of (height, width, 3)"
    raise ValueError(f"{name}: its shape is {image.shape}; {wanted}")


def _scaled(image: Pixels, peak: float) -> Pixels:
    scaled = np.asarray(image, dtype=float) / peak
    # Written so that a NaN is refused too.
    if not 0 <= scaled.min() <= scaled.max() <= 1:
        raise ValueError(
            "a and b: floats must lie in [0, 1]; divide by the highest value, or give uint8"
        )
    return scaled


def _blurred(image: Pixels) -> Pixels:
    """Gaussian means over the windows that lie within the image: along one axis, then the other."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(image, WINDOW, axis=axis)
        image = windows @ weights
    return image
