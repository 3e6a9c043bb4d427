"""A kernel: GELU, gate and rounding to fp8 with a scale for each row, in one pass.

For fp8 the UNet's feed-forward needs the largest number of each row before it can round the row.
inductor's kernel reads the row twice and computes it twice. Here a program holds a row in registers.

The bound is the bytes: read 4 of each number of the answer, write 1, and 4 for each row. A step of
eight guided images of 1024x1024 has 60 calls of 16,384 rows of 5,120 and 10 of 65,536 rows of 2,560:

    60 x 0.42 GB + 10 x 0.84 GB = 34 GB, so 11 ms at the 3.0 TB/s that an H100 copies

The instructions must stay below that. By the machine code there are 26 for each number, so 6 ms.

Knows Triton and torchao's scales. Ignorant of the products around it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from diffusers.models.attention import FeedForward
from torch import Tensor, library

from benchlib.serving.model.row_parts import parts_of

LEAST = 1e-6  # of a row's largest number: the scale of a row of zeros must not be 0
LARGEST = 448.0  # in float8_e4m3fn


@triton.jit
def normal_share(gate):  # type: ignore[no-untyped-def]
    """The share of a normal distribution below `gate`, which GELU multiplies by.

    It is 1 / (1 + 2^(-gate * q)), and q is a polynomial of gate^2. The five numbers were fitted to
    the share's logit by least squares, weighted so that GELU's error is alike everywhere. That error
    is at most 2.8e-4 of GELU, or 2.8e-7 where GELU is below 1e-3. bf16 rounds by up to 2e-3.

    The machine code has ten instructions fewer than with Abramowitz and Stegun's 7.1.26, which is
    within 1e-7. The code squares a reciprocal square root. A division would take three instructions
    more, because it also handles numbers that do not occur here.
    """
    square = gate * gate
    power = -1.103812968750173e-06 * square + 3.0367375348210088e-05
    power = power * square + 0.0008650852102963732
    power = power * square - 0.1068135893789579
    power = power * square - 2.300692287593533
    root = tl.math.rsqrt(1.0 + tl.math.exp2(power * gate))
    return root * root


@triton.jit  # type: ignore[untyped-decorator]
def _gated(  # type: ignore[no-untyped-def]
    values,
    columns,
    inside,
    WIDTH: tl.constexpr,  # noqa: N803 - as Triton writes its constants
):
    value = tl.load(values + columns, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(values + WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    return value * gate * normal_share(gate)


@triton.jit  # type: ignore[untyped-decorator]
def round_to(product, per_scale, largest, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    scaled = tl.maximum(product * per_scale, -largest)
    return tl.minimum(scaled, largest).to(kind)


@triton.jit  # type: ignore[untyped-decorator]
def _row(  # type: ignore[no-untyped-def]
    projected,
    rounded,
    scales,
    least,
    largest,
    WIDTH: tl.constexpr,  # noqa: N803
    MOST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
):
    # 1) Compute a row in two parts, since a part is a power of two: 5,120 are 4,096 and 1,024
    row = tl.program_id(0).to(tl.int64)
    values = projected + row * 2 * WIDTH
    places = rounded + row * WIDTH
    first = tl.arange(0, MOST)
    rest = MOST + tl.arange(0, REST)
    one = _gated(values, first, first < WIDTH, WIDTH)
    other = _gated(values, rest, rest < WIDTH, WIDTH)

    # 2) Find its scale
    most = tl.maximum(tl.max(tl.abs(one), axis=0), tl.max(tl.abs(other), axis=0))
    scale = tl.maximum(most, least) / largest
    per_scale = 1.0 / scale
    tl.store(scales + row, scale)

    # 3) Round it
    kind: tl.constexpr = rounded.dtype.element_ty
    tl.store(places + first, round_to(one, per_scale, largest, kind), mask=first < WIDTH)
    tl.store(places + rest, round_to(other, per_scale, largest, kind), mask=rest < WIDTH)


def _geglu_into(
    projected: Tensor, rounded: Tensor, scales: Tensor, *, warps: int | None = None
) -> None:
    rows, width = rounded.shape
    most, rest = parts_of(width)
    warps = warps or (8 if most >= 4096 else 4)
    _row[(rows,)](
        projected,
        rounded,
        scales,
        LEAST,
        LARGEST,
        WIDTH=width,
        MOST=most,
        REST=rest,
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
        product = product_fp8(self.net[2], rounded, scales)
        return product.view(*hidden_states.shape[:-1], -1)


def product_fp8(linear: Any, rounded: Tensor, scales: Tensor) -> Tensor:
    """A linear of torchao's with a scale for each row, of numbers (rows, features) in fp8."""
    return torch._scaled_mm(
        rounded,
        linear.weight.qdata.t(),
        scale_a=scales,
        scale_b=linear.weight.scale.t(),
        bias=linear.bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def is_fp8(linear: Any) -> bool:
    """Whether torchao has quantised `linear` to fp8."""
    return getattr(getattr(linear.weight, "qdata", None), "dtype", None) == torch.float8_e4m3fn


def use_in(unet: torch.nn.Module) -> None:
    """Let the feed-forwards of `unet` use the kernel. Raises ValueError if they are not in fp8."""
    modules: list[Any] = list(unet.modules())
    for module in modules:
        if type(module) is not FeedForward:
            continue
        if not is_fp8(module.net[2]):
            raise ValueError("recipe: 'fp8-geglu' rounds for products in fp8; add 'fp8'")
        module.__class__ = QuantisedFeedForward
