"""Triton kernels that `kernel_tries.py` measures, and that no recipe uses yet.

Both hold a tile of float32 sums, and fetch their operands through tensor descriptors. Their programs
stay, and go from tile to tile. Tiles that share operands follow each other, so L2 serves them.

Knows Triton. Ignorant of the model and of what else computes the same.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from benchlib.serving.model.geglu_product import GROUP, programs_for, tile_of

TALL = 128  # rows of a tile


@triton.jit
def _convolution(
    image,
    weight,
    scales,
    bias,
    answer,
    images,
    height,
    width,
    columns,
    DEPTH: tl.constexpr,  # noqa: N803
    LINES: tl.constexpr,  # noqa: N803
    SPAN: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    DEEP: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
):
    lines = tl.cdiv(height, LINES)
    spans = tl.cdiv(width, SPAN)
    down = images * lines * spans
    across = tl.cdiv(columns, WIDE)
    chunks: tl.constexpr = (DEPTH + DEEP - 1) // DEEP
    for number in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        # 1) Find the tile: some lines of one image, and some of the answer's channels
        place, broad = tile_of(number, down, across, GROUP)
        column = broad * WIDE
        x = place % spans * SPAN
        y = place // spans % lines * LINES
        which = place // (spans * lines)

        # 2) Multiply the nine shifted tiles; a descriptor has zeros beyond the image
        sums = tl.zeros((LINES * SPAN, WIDE), dtype=tl.float32)
        for step in range(9 * chunks):
            tap = step // chunks
            depth = step % chunks * DEEP
            left = image.load([which, y + tap // 3 - 1, x + tap % 3 - 1, depth])
            left = tl.reshape(left, (LINES * SPAN, DEEP))
            right = weight.load([column, tap * DEPTH + depth])
            sums = tl.dot(left, right.T, sums)

        # 3) Scale
        places = column + tl.arange(0, WIDE)
        inside = places < columns
        scale = tl.load(scales + places, mask=inside, other=0.0)
        shift = tl.load(bias + places, mask=inside, other=0.0).to(tl.float32)
        sums = sums * scale[None, :] + shift[None, :]
        tile = tl.reshape(sums.to(answer.dtype), (1, LINES, SPAN, WIDE))
        answer.store([which, y, x, column], tile)


def convolution_into(
    answer: Tensor,
    image: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor,
    *,
    wide: int = 128,
    deep: int = 128,
    warps: int = 4,
    stages: int = 4,
    per_processor: int = 1,
) -> None:
    """Writes a padded 3x3 convolution of `image` (n, h, w, channels) to `answer` (n, h, w, columns).

    `weight` is (columns, 9 * channels), by line, column and channel; `scales` (columns,) multiply
    the sums. Operands are both in fp8, or both in bf16.
    """
    images, height, width, channels = image.shape
    columns = len(weight)
    span = min(TALL, triton.next_power_of_2(width))
    lines = TALL // span
    down = images * triton.cdiv(height, lines) * triton.cdiv(width, span)
    tiles = down * triton.cdiv(columns, wide)
    _convolution[(programs_for(tiles, per_processor, image),)](
        TensorDescriptor.from_tensor(image, [1, lines, span, deep]),
        TensorDescriptor.from_tensor(weight, [wide, deep]),
        scales,
        bias,
        TensorDescriptor.from_tensor(answer, [1, lines, span, wide]),
        images,
        height,
        width,
        columns,
        DEPTH=channels,
        LINES=lines,
        SPAN=span,
        WIDE=wide,
        DEEP=deep,
        GROUP=GROUP,
        num_warps=warps,
        num_stages=stages,
    )
