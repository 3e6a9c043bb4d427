"""Rows in two parts, as kernels over rows read, add and norm them. A part is a power of two.

Knows Triton. Ignorant of what becomes of the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


def parts_of(width: int) -> tuple[int, int]:
    """Two powers of two that hold a row: the largest one within it, and one for the rest."""
    most = 1 << (width.bit_length() - 1)
    return most, int(triton.next_power_of_2(max(width - most, 1)))


def rows_and_warps(most: int) -> tuple[int, int]:
    """The rows of a program, and its warps, where a row's larger part is `most`.

    A warp that holds whole rows sums them without the others. Two rows of 1,280 are 80 numbers a
    thread. On an H200, such a norm of 2,048 rows takes 4.1 us, and 5.0 us by four warps a row.
    """
    return (2, 1) if most <= 1024 else (1, 4)


@triton.jit  # type: ignore[untyped-decorator]
def parts_of_rows(  # type: ignore[no-untyped-def]
    rows,
    WIDTH: tl.constexpr,  # noqa: N803 - as Triton writes its constants
    MOST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    """The rows of this program, the columns of their two parts, and which of these numbers are there."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    first = tl.arange(0, MOST)[None, :]
    rest = MOST + tl.arange(0, REST)[None, :]
    real = row < rows
    return row, first, rest, real & (first < WIDTH), real & (rest < WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def added_part(  # type: ignore[no-untyped-def]
    x,
    more,
    total,
    columns,
    inside,
    ADDS: tl.constexpr,  # noqa: N803 - as Triton writes its constants
):
    """Part of each row. With ADDS, it is the sum of two, which is written as it is rounded."""
    numbers = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        numbers += tl.load(more + columns, mask=inside, other=0.0).to(tl.float32)
        stored = numbers.to(total.dtype.element_ty)
        tl.store(total + columns, stored, mask=inside)
        numbers = stored.to(tl.float32)
    return numbers


@triton.jit
def affine_part(numbers, weight, bias, columns, inside):  # type: ignore[no-untyped-def]
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return numbers * factor + shift


@triton.jit  # type: ignore[untyped-decorator]
def normed_parts(  # type: ignore[no-untyped-def]
    one,
    other,
    weight,
    bias,
    eps,
    WIDTH: tl.constexpr,  # noqa: N803
    MOST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
):
    """The layer norm of rows in two parts; beyond their width the parts are zeros."""
    first = tl.arange(0, MOST)[None, :]
    rest = MOST + tl.arange(0, REST)[None, :]
    there = first < WIDTH
    left = rest < WIDTH
    mean = (tl.sum(one, axis=1) + tl.sum(other, axis=1))[:, None] / WIDTH
    one = tl.where(there, one - mean, 0.0)
    other = tl.where(left, other - mean, 0.0)
    variance = (tl.sum(one * one, axis=1) + tl.sum(other * other, axis=1))[:, None] / WIDTH
    spread = tl.rsqrt(variance + eps)
    one = affine_part(one * spread, weight, bias, first, there)
    other = affine_part(other * spread, weight, bias, rest, left)
    return one, other
