"""A kernel: the UNet's attention to the text, whose few keys and values a program holds as a whole.

General kernels go through keys in blocks, and rescale their sums after each. A text has 77 keys, so
here a program reads all of them at once, and 64 tokens of the image. The bound is the bytes: each
number of the queries is read, and one of the answer is written. A step of eight guided images of
1024x1024 has 60 calls of 16,384 x 1,280 and 10 of 65,536 x 640. It takes at most

    (60 x 84 MB + 10 x 168 MB) / 3.0 TB/s = 2.2 ms

The sums are float32. The exponentials are rounded to 16 bits before the second product, as SDPA's
kernels round them. Knows Triton. Ignorant of the model.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TOKENS = 64  # of a program
LEAST_PART = 16  # the fewest rows that a product takes
MOST_OF_PART = 64


@triton.jit  # type: ignore[untyped-decorator]
def _text_attention(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    answer,
    tokens,
    query_stride,
    query_batch_stride,
    key_stride,
    key_batch_stride,
    scale,
    KEYS: tl.constexpr,  # noqa: N803 - as Triton writes its constants
    MOST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
    TALL: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
):
    # 1) Read a head's queries of some tokens, and all of its keys in two parts; REST may be 0
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * TALL + tl.arange(0, TALL)
    column = tl.arange(0, WIDTH)[None, :]
    real = (row < tokens)[:, None]
    places = row[:, None].to(tl.int64) * query_stride + head * WIDTH + column
    queries = tl.load(query + batch * query_batch_stride + places, mask=real, other=0.0)
    first = tl.arange(0, MOST)
    there = first < KEYS
    start = batch * key_batch_stride + head * WIDTH + column
    at_first = start + first[:, None] * key_stride
    keys = tl.load(key + at_first, mask=there[:, None], other=0.0)
    if REST > 0:
        rest = MOST + tl.arange(0, REST)
        left = rest < KEYS
        at_rest = start + rest[:, None] * key_stride
        more_keys = tl.load(key + at_rest, mask=left[:, None], other=0.0)

    # 2) Exponentials of all, and their sums
    one = tl.dot(queries, tl.trans(keys)) * scale
    one = tl.where(there[None, :], one, -float("inf"))
    most = tl.max(one, axis=1)
    if REST > 0:
        other = tl.dot(queries, tl.trans(more_keys)) * scale
        other = tl.where(left[None, :], other, -float("inf"))
        most = tl.maximum(most, tl.max(other, axis=1))
    one = tl.exp2(one - most[:, None])
    whole = tl.sum(one, axis=1)
    if REST > 0:
        other = tl.exp2(other - most[:, None])
        whole += tl.sum(other, axis=1)

    # 3) Multiply by the values, and divide last
    values = tl.load(value + at_first, mask=there[:, None], other=0.0)
    seen = tl.dot(one.to(values.dtype), values)
    if REST > 0:
        more_values = tl.load(value + at_rest, mask=left[:, None], other=0.0)
        seen = tl.dot(other.to(values.dtype), more_values, seen)
    features = tl.num_programs(1) * WIDTH
    places = row[:, None].to(tl.int64) * features + head * WIDTH + column
    seen = (seen / whole[:, None]).to(answer.dtype.element_ty)
    tl.store(answer + batch * tokens * features + places, seen, mask=real)


def key_parts(keys: int) -> tuple[int, int]:
    """Two powers of two that hold `keys` rows; the second is 0 if the first holds all.

    One part of 128 keys would spill out of a Hopper's registers where a head has 128 numbers.
    """
    most = min(max(1 << (keys.bit_length() - 1), LEAST_PART), MOST_OF_PART)
    if keys <= most:
        return most, 0
    return most, max(int(triton.next_power_of_2(keys - most)), LEAST_PART)


def text_attention_into(
    answer: Tensor, query: Tensor, key: Tensor, value: Tensor, *, heads: int
) -> None:
    """Write attention of all tokens of `query` (rows, tokens, features) to `answer`, as large.

    `answer` is contiguous. `key` and `value` (rows, keys, features) have the same strides. In all
    of them a token's features lie side by side, head after head; a head's are a power of two.
    """
    rows, tokens, features = query.shape
    width = features // heads
    most, rest = key_parts(key.shape[1])
    _text_attention[(triton.cdiv(tokens, TOKENS), heads, rows)](
        query,
        key,
        value,
        answer,
        tokens,
        query.stride(1),
        query.stride(0),
        key.stride(1),
        key.stride(0),
        1.4426950408889634 * width**-0.5,  # log2(e), since the kernel has powers of two
        KEYS=key.shape[1],
        MOST=most,
        REST=rest,
        TALL=TOKENS,
        WIDTH=width,
        num_warps=4,
        num_stages=1,
    )
