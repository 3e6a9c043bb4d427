"""A kernel: GELU, gate and rounding to fp8 with a scale for each row, in one pass.

For fp8 the UNet's feed-forward needs the largest number of each row before it can round the row.
inductor's kernel reads the row twice and computes it twice. Here a program holds a row in registers.

The bound is the bytes: read 4 of each number of the answer, write 1, and 4 for each row. A step of
eight guided images of 1024x1024 has 60 calls of 16,384 rows of 5,120 and 10 of 65,536 rows of 2,560:

    60 x 0.42 GB + 10 x 0.84 GB = 34 GB, so 11 ms at the 3.0 TB/s that an H100 copies

Knows Triton and torchao's scales. Ignorant of the products around it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from diffusers.models.attention import FeedForward
from torch import Tensor, library

LEAST = 1e-6  # of a row's largest number: the scale of a row of zeros must not be 0
LARGEST = 448.0  # in float8_e4m3fn


@triton.jit  # type: ignore[untyped-decorator]
def _row(  # type: ignore[no-untyped-def]
    projected,
    rounded,
    scales,
    least,
    largest,
    WIDTH: tl.constexpr,  # noqa: N803 - as Triton writes its constants
    BLOCK: tl.constexpr,  # noqa: N803
):
    # 1) Read a row: the values, and the gates after them
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = projected + row * 2 * WIDTH + columns
    gates = values + WIDTH
    value = tl.load(values, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)

    # 2) Compute it
    share = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    product = value * gate * share
    most = tl.max(tl.abs(product), axis=0)
    scale = tl.maximum(most, least) / largest

    # 3) Round it
    scaled = product / scale
    scaled = tl.maximum(scaled, -largest)
    scaled = tl.minimum(scaled, largest)
    kind = rounded.dtype.element_ty
    places = rounded + row * WIDTH + columns
    tl.store(places, scaled.to(kind), mask=inside)
    tl.store(scales + row, scale)


def _geglu_into(projected: Tensor, rounded: Tensor, scales: Tensor) -> None:
    rows, width = rounded.shape
    block = triton.next_power_of_2(width)
    warps = 8 if block >= 4096 else 4
    _row[(rows,)](
        projected,
        rounded,
        scales,
        LEAST,
        LARGEST,
        WIDTH=width,
        BLOCK=block,
        num_warps=warps,
    )


@library.custom_op(
    "benchlib::geglu_fp8",
    mutates_args=(),
    schema="(Tensor projected) -> (Tensor, Tensor)",
)
def geglu_fp8(projected: Tensor) -> tuple[Tensor, Tensor]:
    """The gated product of (rows, 2 * width), rounded: (rows, width) in fp8, and scales (rows, 1).

    The first half are the values, the second the gates. A number is the rounded one times the scale
    of its row.
    """
    rounded, scales = _empty(projected)
    _geglu_into(projected.contiguous(), rounded, scales)
    return rounded, scales


@geglu_fp8.register_fake
def _empty(projected: Tensor) -> tuple[Tensor, Tensor]:
    rows, doubled = projected.shape
    rounded = projected.new_empty((rows, doubled // 2), dtype=torch.float8_e4m3fn)
    return rounded, projected.new_empty((rows, 1), dtype=torch.float32)


class QuantisedFeedForward(FeedForward):  # type: ignore[misc] # diffusers is not typed
    """A feed-forward whose second product gets its input in fp8 from the kernel."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """`hidden_states` is (rows, tokens, features), and so is the answer."""
        projected = self.net[0].proj(hidden_states)
        rounded, scales = geglu_fp8(projected.flatten(0, -2))
        last = self.net[2]
        product = torch._scaled_mm(
            rounded,
            last.weight.qdata.t(),
            scale_a=scales,
            scale_b=last.weight.scale.t(),
            bias=last.bias,
            out_dtype=projected.dtype,
            use_fast_accum=True,
        )
        return product.view(*hidden_states.shape[:-1], -1)


def use_in(unet: torch.nn.Module) -> None:
    """Let the feed-forwards of `unet` use the kernel. Raises ValueError if they are not in fp8."""
    modules: list[Any] = list(unet.modules())
    for module in modules:
        if type(module) is not FeedForward:
            continue
        weight = module.net[2].weight
        if getattr(getattr(weight, "qdata", None), "dtype", None) != torch.float8_e4m3fn:
            raise ValueError("recipe: 'fp8-geglu' rounds for products in fp8; add 'fp8'")
        module.__class__ = QuantisedFeedForward
