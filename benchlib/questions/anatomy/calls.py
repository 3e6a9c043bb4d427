"""Times single calls of the UNet, the VAE and matrix products, and counts their arithmetic.

Knows torch and the pipeline. Ignorant of how the figures are kept (measure.py) and of what they
mean (judge.py).
"""

from __future__ import annotations

import copy
import time
from itertools import product
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchlib.questions.anatomy.judge import MATMUL
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.schemas import GenerateRequest

PRODUCTS: tuple[int, ...] = (512, 1024, 2048)
"""Sides of the square matrices whose product is the limit of the arithmetic."""
LARGE_PRODUCTS = (4096, 8192)
"""More sides on a GPU, which smaller products don't fill. On a CPU they would take too long."""
Row = dict[str, Any]


def timed_calls(
    pipe: SDXLPipeline,
    request: GenerateRequest,
    repeat: int,
) -> list[Row]:
    """Returns a row for each timed call of a UNet step, a VAE decode and the matrix products."""
    step_flop, decode_flop = _count_flop(pipe, request)
    dtypes = {name: network["dtype"] for name, network in pipe.spec["networks"].items()}
    step = {"part": "UNet step", "dtype": dtypes["unet"], "flop": step_flop}
    decode = {"part": "VAE decode", "dtype": dtypes["vae"], "flop": decode_flop}

    works = pipe.encode([request])
    pipe.step(works)  # the first step is slower
    rows: list[Row] = []
    for _ in range(repeat):
        rows.append(step | {"time_s": pipe.step(works)})
        pipe.decode(works)
        rows.append(decode | {"time_s": works[0].decode_s})
    return rows + _all_products(pipe.device, {dtypes["unet"], dtypes["vae"]}, repeat)


def _count_flop(pipe: SDXLPipeline, request: GenerateRequest) -> tuple[int, int]:
    """Returns the floating point operations of one step and of one decode."""
    # The counter sees no operator of a network that was compiled or recorded.
    counted = _stock(pipe) if pipe.compiled else pipe
    works = counted.encode([request])
    counted.step(works)
    # The counter misses fused kernels of attention on some devices. SDPBackend.MATH has none.
    step = FlopCounterMode(display=False)
    decode = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        with step:
            counted.step(works)
        with decode:
            counted.decode(works)
    return step.get_total_flops(), decode.get_total_flops()


def _stock(pipe: SDXLPipeline) -> SDXLPipeline:
    """Returns a pipeline without recipes, over the same weights.

    The VAE is a copy, because its dtype may be changed.
    """
    stock = copy.copy(pipe.diffusers)
    stock.vae = copy.deepcopy(stock.vae)
    return SDXLPipeline(stock, spec=pipe.spec)


def _all_products(
    device: torch.device,
    dtypes: set[str],
    repeat: int,
) -> list[Row]:
    """Returns a row for each timed matrix product, with TF32 where cuDNN's convolutions use it."""
    sides = PRODUCTS
    if device.type != "cpu":
        sides += LARGE_PRODUCTS
    before = torch.get_float32_matmul_precision()
    rows = []
    try:
        if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            torch.set_float32_matmul_precision("high")
        for dtype, side in product(sorted(dtypes), sides):
            rows += _products(device, dtype, side, repeat)
    finally:
        torch.set_float32_matmul_precision(before)
    return rows


@torch.inference_mode()
def _products(
    device: torch.device,
    dtype: str,
    n: int,
    repeat: int,
) -> list[Row]:
    """Returns a row for each of `repeat` products of two n x n matrices.

    The first product does not count and has no row.
    """
    factor = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    row = {"part": MATMUL, "dtype": dtype, "flop": 2 * n**3}
    rows = []
    for _ in range(repeat + 1):
        _synchronise(device)
        began_s = time.perf_counter()
        _ = factor @ factor
        _synchronise(device)
        rows.append(row | {"time_s": time.perf_counter() - began_s})
    return rows[1:]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
