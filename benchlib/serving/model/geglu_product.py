"""A kernel: the first product of a feed-forward, with GELU and gate before the sums are rounded.

cuBLAS writes a value and a gate for each number of the answer, and a second pass reads both. Here a
tile has the sums of both in registers, and writes the answer alone. The weights stay as they are: a
tile fetches rows of both halves of the matrix. The sums are float32, and are rounded once.

The bound is the product. A step of eight guided images of 1024x1024 has 60 calls of 16,384 rows of
5,120 and 10 of 65,536 rows of 2,560. Each call has 0.43 TFLOP:

    70 x 0.43 TFLOP = 30 TFLOP, so 43 ms at the 700 TFLOP/s of cuBLAS on an H100

The gate takes 26 instructions for each number of the answer; meanwhile the tile multiplies nothing.
Beside cuBLAS, inductor's pass over values and gates takes 13 ms of a step, which is what the kernel
can gain.

Knows Triton. Ignorant of the model.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from benchlib.serving.model.geglu_fp8 import normal_share

GROUP = 8  # so many rows of tiles share the columns that L2 holds
TALL = 128  # rows of a tile
INTERPRETED_PROGRAMS = 3


@triton.jit  # type: ignore[untyped-decorator]
def tile_of(  # type: ignore[no-untyped-def]
    number,
    down,
    across,
    GROUP: tl.constexpr,  # noqa: N803 - as Triton writes its constants
):
    """The row and column, in tiles, of the tile that comes as `number`."""
    first = number // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    inside = number % (GROUP * across)
    return first + inside % height, inside // height


@triton.jit  # type: ignore[untyped-decorator]
def _geglu_product(  # type: ignore[no-untyped-def]
    tokens,
    weight,
    bias,
    gated,
    rows,
    width,
    DEPTH: tl.constexpr,  # noqa: N803
    TALL: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    DEEP: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
):
    down = tl.cdiv(rows, TALL)
    across = tl.cdiv(width, WIDE)
    for number in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        # 1) Multiply with rows of the values, and with the same rows of the gates
        high, broad = tile_of(number, down, across, GROUP)
        row = high * TALL
        column = broad * WIDE
        sums = tl.zeros((TALL, 2 * WIDE), dtype=tl.float32)
        for depth in range(0, DEPTH, DEEP):
            left = tokens.load([row, depth])
            right = tl.reshape(weight.load([0, column, depth]), (2 * WIDE, DEEP))
            sums = tl.dot(left, right.T, sums)

        # 2) Gate; a thread has the value and the gate of a number
        half = tl.arange(0, 2 * WIDE) // WIDE
        places = column + tl.arange(0, 2 * WIDE) % WIDE
        shift = tl.load(bias + half * width + places, mask=places < width, other=0.0)
        sums += shift.to(tl.float32)[None, :]
        value, gate = tl.split(tl.permute(tl.reshape(sums, (TALL, 2, WIDE)), (0, 2, 1)))
        product = value * gate * normal_share(gate)
        gated.store([row, column], product.to(gated.dtype))


def geglu_product_into(
    gated: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    wide: int = 128,
    deep: int = 64,
    warps: int = 8,
    stages: int = 4,
    per_processor: int = 1,
) -> None:
    """Writes GEGLU of `tokens` (rows, depth) to `gated` (rows, width), all in one 16-bit dtype.

    `weight` (2 * width, depth) and `bias` have the values first, and then the gates. `depth` and
    `width` are multiples of 8. A tile has 128 rows and `wide` columns, and stays on a processor
    with others, `per_processor` in all. The default was within 2 % of the fastest of three tiles at
    each of four shapes on an H200, with values and gates by turns in the matrix.
    """
    rows, depth = tokens.shape
    width = gated.shape[1]
    tiles = triton.cdiv(rows, TALL) * triton.cdiv(width, wide)
    _geglu_product[(programs_for(tiles, per_processor, tokens),)](
        tiles_of(tokens, [TALL, deep]),
        tiles_of(weight.reshape(2, width, depth), [2, wide, deep]),
        bias,
        TensorDescriptor.from_tensor(gated, [TALL, wide]),
        rows,
        width,
        DEPTH=depth,
        TALL=TALL,
        WIDE=wide,
        DEEP=deep,
        GROUP=GROUP,
        num_warps=warps,
        num_stages=stages,
    )


def tiles_of(operand: Tensor, block: list[int]) -> TensorDescriptor:
    """A descriptor that fetches tiles of the size `block`; of a copy, if the address is odd.

    torch calls a single row contiguous whatever its stride is, so the strides are computed.
    """
    whole = operand.contiguous()
    if whole.data_ptr() % 16:
        whole = whole.clone()
    shape = list(operand.shape)
    strides = [math.prod(shape[place:]) for place in range(1, len(shape) + 1)]
    return TensorDescriptor(whole, shape, strides, block)


def programs_for(tiles: int, per_processor: int, operand: Tensor) -> int:
    """The number of programs: they stay, and go from tile to tile."""
    if operand.device.type != "cuda":
        return min(tiles, INTERPRETED_PROGRAMS)
    processors = torch.cuda.get_device_properties(operand.device).multi_processor_count
    return min(tiles, processors * per_processor)
