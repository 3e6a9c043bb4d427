"""Kernels that were tried, and that the package leaves out because they gain too little.

`image_attention_into` is attention of an image's tokens to each other. On an H200 it took 30.1 us
beside cuDNN's 33.3 for 2 rows of 1,024 tokens and 20 heads, with cuDNN's memset. With 4,096 tokens
or with 16 rows it was slower than cuDNN's. `python -m benchmarks.kernel_tries` times it again.

Knows Triton. Ignorant of the model.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TILE = 64  # tokens of a program, and keys that it reads at once
HEAD = 64  # numbers of a head


@triton.jit  # type: ignore[untyped-decorator]
def _image_attention(  # type: ignore[no-untyped-def]
    joined,
    answer,
    tokens,
    features,
    scale,
    TILE: tl.constexpr,  # noqa: N803 - as Triton writes its constants
    HEAD: tl.constexpr,  # noqa: N803
    STAGES: tl.constexpr,  # noqa: N803
):
    # 1) A head's queries of some tokens; its keys and values stand in the same rows, further right
    column = tl.program_id(1) * HEAD
    start = tl.program_id(2) * tokens
    row = start + tl.program_id(0) * TILE
    queries = joined.load([row, column])
    most = tl.full((TILE,), -float("inf"), tl.float32)
    whole = tl.zeros((TILE,), tl.float32)
    seen = tl.zeros((TILE, HEAD), tl.float32)

    # 2) Go through the keys; a larger score scales down what was summed before
    for first in tl.range(0, tokens, TILE, num_stages=STAGES):
        keys = joined.load([start + first, features + column])
        scores = tl.dot(queries, keys.T)
        more = tl.maximum(most, tl.max(scores, axis=1) * scale)
        shares = tl.exp2(scores * scale - more[:, None])
        kept = tl.exp2(most - more)
        whole = whole * kept + tl.sum(shares, axis=1)
        values = joined.load([start + first, 2 * features + column])
        seen = tl.dot(shares.to(values.dtype), values, seen * kept[:, None])
        most = more

    # 3) Divide last
    answer.store([row, column], (seen / whole[:, None]).to(answer.dtype))


def image_attention_into(
    answer: Tensor, joined: Tensor, *, warps: int = 4, stages: int = 3
) -> None:
    """Write attention of all tokens of `joined` to `answer` (rows, tokens, features).

    `joined` (rows, tokens, 3 * features) has queries, keys and values. A head has 64 features, and
    heads lie side by side. Both tensors are contiguous, and `tokens` is a multiple of 64.
    """
    rows, tokens, features = answer.shape
    if tokens % TILE or features % HEAD:
        raise ValueError(
            f"attention: {tokens} tokens or {features} features don't fill tiles of 64"
        )
    block = [TILE, HEAD]
    _image_attention[(tokens // TILE, features // HEAD, rows)](
        TensorDescriptor.from_tensor(joined.flatten(0, 1), block),
        TensorDescriptor.from_tensor(answer.flatten(0, 1), block),
        tokens,
        features,
        1.4426950408889634 * HEAD**-0.5,  # log2(e), since the kernel has powers of two
        TILE=TILE,
        HEAD=HEAD,
        STAGES=stages,
        num_warps=warps,
    )
