"""A kernel: padded 3x3 convolutions of e4m3 numbers, for the UNet's residual blocks.

The bound is the products. A step of eight guided images of 1024x1024 has 34 such convolutions, 20.8
TFLOP: 16 ms at the 1,300 TFLOP/s of an H100's products in fp8. A program holds a tile of float32
sums, and fetches its operands through tensor descriptors, which have zeros beyond the image. So
nothing is copied first. A tile of 128 x 256 reads 1 byte for 171 operations.

Measured on an H200, its time is 0.64 to 0.83 of that of cuDNN's bf16:
`python -m benchmarks.kernel_tries`. Hopper's sums in fp8 keep fewer bits than float32: their error
was 0.2 to 0.4 %.

Knows Triton. Ignorant of the model.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from benchlib.serving.model.geglu_product import GROUP, programs_for, tile_of, tiles_of

TALL = 128  # pixels of a tile
NARROWEST = 8  # pixels of a tile's line
# The shape of a tile: columns, depth, warps, stages, and programs on a processor
WIDE_TILE = (256, 128, 8, 3, 1)
SMALL_TILE = (128, 64, 4, 4, 2)


@triton.jit  # type: ignore[untyped-decorator]
def _convolution(  # type: ignore[no-untyped-def]
    image,
    weight,
    scales,
    bias,
    answer,
    images,
    height,
    width,
    columns,
    DEPTH: tl.constexpr,  # noqa: N803 - as Triton writes its constants
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
    tile: tuple[int, ...] | None = None,
) -> None:
    """Writes a padded 3x3 convolution of `image` (n, h, w, channels) to `answer` (n, h, w, columns).

    `weight` is (columns, 9 * channels), by line, column and channel; `scales` (columns,) multiply
    the sums. Operands are both in fp8, or both in bf16. `tile` has the form of WIDE_TILE.
    """
    images, height, width, channels = image.shape
    columns = len(weight)
    wide, deep, warps, stages, per_processor = tile or tile_for(channels, columns)
    lines, span = lines_and_span(height, width)
    down = images * triton.cdiv(height, lines) * triton.cdiv(width, span)
    tiles = down * triton.cdiv(columns, wide)
    _convolution[(programs_for(tiles, per_processor, image),)](
        tiles_of(image, [1, lines, span, deep]),
        tiles_of(weight, [wide, deep]),
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


def lines_and_span(height: int, width: int) -> tuple[int, int]:
    """The lines and the pixels of a line of a tile. Of those that waste least, the widest."""

    def tiles(span: int) -> int:
        covering: int = triton.cdiv(height, TALL // span) * triton.cdiv(width, span)
        return covering

    spans = [TALL >> power for power in range(TALL.bit_length()) if TALL >> power >= NARROWEST]
    span = min(spans, key=tiles)
    return TALL // span, span


def tile_for(channels: int, columns: int) -> tuple[int, int, int, int, int]:
    """The quicker of two tiles, as measured on an H200 from 320 x 320 to 2,560 x 1,280 channels."""
    return WIDE_TILE if channels % 128 == 0 and columns >= 640 else SMALL_TILE
