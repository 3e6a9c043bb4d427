"""A kernel: a product with bias that adds a residual before its sums are rounded.

cuBLAS writes the product, and a second pass reads it with the residual and writes their sum. Here a
tile reads its part of the residual and writes the sum. The sums are float32, and are rounded once.

The bound is the product. A step of eight guided images of 1024x1024 has 140 products of attention and
70 of feed-forwards that end with a residual, 60 and 10 of each three at the two sizes:

    180 x 42 MB and 30 x 84 MB of residuals, which the products read: 10 GB
    the pass that adds and norms reads and writes half as much: 20 GB less

At the 3.0 TB/s of such passes this is 6.7 ms less, and at most 3.3 ms more where nothing hides a tile's
reading.

Knows Triton. Ignorant of the model.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from benchlib.serving.model.geglu_product import programs_for, tile_of, tiles_of

GROUP = 8  # so many rows of tiles share the columns that L2 holds


@triton.jit  # type: ignore[untyped-decorator]
def _store_sum(  # type: ignore[no-untyped-def]
    sums,
    more,
    total,
    row,
    column,
    TALL: tl.constexpr,  # noqa: N803 - as Triton writes its constants
    WIDE: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
):
    """Adds the residual and stores the sums, by so many parts of their columns."""
    if PARTS == 1:
        residual = more.load([row, column])
        total.store([row, column], (sums + residual.to(tl.float32)).to(total.dtype))
    else:
        half: tl.constexpr = WIDE // 2
        fewer: tl.constexpr = PARTS // 2
        one, other = tl.split(tl.permute(tl.reshape(sums, (TALL, 2, half)), (0, 2, 1)))
        _store_sum(one, more, total, row, column, TALL, half, fewer)
        _store_sum(other, more, total, row, column + half, TALL, half, fewer)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_product(  # type: ignore[no-untyped-def]
    tokens,
    weight,
    bias,
    more,
    total,
    rows,
    width,
    DEPTH: tl.constexpr,  # noqa: N803
    TALL: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    DEEP: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
):
    down = tl.cdiv(rows, TALL)
    across = tl.cdiv(width, WIDE)
    for number in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        # 1) Multiply
        high, broad = tile_of(number, down, across, GROUP)
        row = high * TALL
        column = broad * WIDE
        sums = tl.zeros((TALL, WIDE), dtype=tl.float32)
        for depth in range(0, DEPTH, DEEP):
            left = tokens.load([row, depth])
            right = weight.load([column, depth])
            sums = tl.dot(left, right.T, sums)

        # 2) Add the bias and the residual; in parts, since a part takes less shared memory
        places = column + tl.arange(0, WIDE)
        shift = tl.load(bias + places, mask=places < width, other=0.0)
        _store_sum(
            sums + shift.to(tl.float32)[None, :], more, total, row, column, TALL, WIDE, PARTS
        )


def sum_product_into(
    total: Tensor,
    more: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    tall: int = 128,
    wide: int = 128,
    deep: int = 64,
    warps: int = 4,
    stages: int = 3,
    per_processor: int = 2,
    parts: int = 4,
) -> None:
    """Writes `more` and the product of `tokens` with a linear layer to `total` (rows, width).

    `tokens` is (rows, depth), `weight` (width, depth), all in one 16-bit dtype. `depth` and `width`
    are multiples of 8. A tile has `tall` rows and `wide` columns, and stays on a processor with
    others, `per_processor` in all. It ends by `parts` of its columns.
    """
    rows, depth = tokens.shape
    width = total.shape[1]
    tiles = triton.cdiv(rows, tall) * triton.cdiv(width, wide)
    end = [tall, wide // parts]
    _sum_product[(programs_for(tiles, per_processor, tokens),)](
        tiles_of(tokens, [tall, deep]),
        tiles_of(weight, [wide, deep]),
        bias,
        tiles_of(more, end),
        TensorDescriptor.from_tensor(total, end),
        rows,
        width,
        DEPTH=depth,
        TALL=tall,
        WIDE=wide,
        DEEP=deep,
        GROUP=GROUP,
        PARTS=parts,
        num_warps=warps,
        num_stages=stages,
    )
