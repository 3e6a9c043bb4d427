"""A kernel: the layer norm of rows of 16 bits; if asked, of the sum of two, which it writes as well.

Where rows lack a vector that is the same for all, the kernel norms them as if they had it.

inductor adds a residual again in each kernel that reads it, and reads a row of 1,280 twice. Here a
row is read once. The bound is the bytes: with the sum, 8 of each number; without it, 4. A step of
eight guided images of 1024x1024 has 174 such sums of 16,384 x 1,280 and 25 of 65,536 x 640. Only the
first blocks of its 11 transformers norm without a sum. With a sum in all 210 calls it takes at most

    (180 x 0.17 GB + 30 x 0.34 GB) / 3.0 TB/s = 14 ms

The statistics are float32. Knows Triton. Ignorant of the model.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from benchlib.serving.model.row_parts import (
    added_part,
    normed_parts,
    parts_of,
    parts_of_rows,
    rows_and_warps,
)


@triton.jit  # type: ignore[untyped-decorator]
def _normed_rows(  # type: ignore[no-untyped-def]
    x,
    more,
    weight,
    bias,
    total,
    owed,
    normed,
    rows,
    eps,
    WIDTH: tl.constexpr,  # noqa: N803 - as Triton writes its constants
    MOST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    ADDS: tl.constexpr,  # noqa: N803
    OWES: tl.constexpr,  # noqa: N803
):
    # 1) Read rows in two parts, since a part is a power of two: 1,280 are 1,024 and 256
    row, first, rest, there, left = parts_of_rows(rows, WIDTH, MOST, REST, ROWS)
    start = row.to(tl.int64) * WIDTH
    one = added_part(x, more, total, start + first, there, ADDS)
    other = added_part(x, more, total, start + rest, left, ADDS)
    if OWES:
        one += tl.load(owed + first, mask=first < WIDTH, other=0.0)
        other += tl.load(owed + rest, mask=rest < WIDTH, other=0.0)

    # 2) Norm them
    one, other = normed_parts(one, other, weight, bias, eps, WIDTH, MOST, REST)
    kind: tl.constexpr = normed.dtype.element_ty
    tl.store(normed + start + first, one.to(kind), mask=there)
    tl.store(normed + start + rest, other.to(kind), mask=left)


def norm_rows_into(
    normed: Tensor,
    x: Tensor,
    norm: tuple[Tensor, Tensor, float],
    *,
    more: Tensor | None = None,
    total: Tensor | None = None,
    owed: Tensor | None = None,
) -> None:
    """Norm `x` (rows, width). With `more`, add it first and write the sum to `total`.

    `norm` is a layer norm's weight, bias and epsilon. `owed` (width,), in float32, is what each row
    lacks: it is added before the norm alone, and is not rounded. All tensors are contiguous.
    """
    rows, width = x.shape
    weight, bias, eps = norm
    most, rest = parts_of(width)
    together, warps = rows_and_warps(most)
    _normed_rows[(triton.cdiv(rows, together),)](
        x,
        x if more is None else more,
        weight,
        bias,
        x if total is None else total,
        x if owed is None else owed,
        normed,
        rows,
        eps,
        WIDTH=width,
        MOST=most,
        REST=rest,
        ROWS=together,
        ADDS=more is not None,
        OWES=owed is not None,
        num_warps=warps,
    )
