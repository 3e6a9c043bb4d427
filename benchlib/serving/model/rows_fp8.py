"""Transformer blocks in fp8 whose rows our own kernels add, norm and round, one pass for each.

inductor adds a residual again in each kernel that reads it: a norm's kernel reads up to five tensors.
A row of 1,280 is too long for its one-pass reductions, so it also reads each row twice. Here a row is
read once, and its sum is written. Of each number a kernel reads 4 bytes and writes 3. A step of eight
guided images of 1024x1024 has 180 norms of 16,384 x 1,280 and 30 of 65,536 x 640:

    (180 x 0.15 GB + 30 x 0.29 GB) / 3.0 TB/s = 12 ms

Attention's answer is rounded so, too: 3 bytes a number. The gated product is `geglu_fp8`.
Knows diffusers' blocks. Ignorant of the other recipes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, library

from benchlib.serving.model.geglu_fp8 import (
    LARGEST,
    LEAST,
    geglu_fp8,
    is_fp8,
    product_fp8,
    round_to,
)
from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.normed_blocks import (
    Addends,
    ChainedBlock,
    affine_of,
    chain_blocks,
    is_plain_block,
)
from benchlib.serving.model.plain_attention import attended, is_plain
from benchlib.serving.model.row_parts import (
    added_part,
    normed_parts,
    parts_of,
    parts_of_rows,
    rows_and_warps,
)

Rounded = tuple[Tensor, Tensor]  # numbers (rows, width) in fp8, and their scales (rows, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _rounded_rows(  # type: ignore[no-untyped-def]
    x,
    more,
    weight,
    bias,
    total,
    rounded,
    scales,
    rows,
    eps,
    least,
    largest,
    WIDTH: tl.constexpr,  # noqa: N803
    MOST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    ADDS: tl.constexpr,  # noqa: N803
    NORMS: tl.constexpr,  # noqa: N803
):
    # 1) Read rows in two parts, since a part is a power of two: 1,280 are 1,024 and 256
    row, first, rest, there, left = parts_of_rows(rows, WIDTH, MOST, REST, ROWS)
    start = row.to(tl.int64) * WIDTH
    one = added_part(x, more, total, start + first, there, ADDS)
    other = added_part(x, more, total, start + rest, left, ADDS)

    # 2) Norm them
    if NORMS:
        one, other = normed_parts(one, other, weight, bias, eps, WIDTH, MOST, REST)

    # 3) Round them
    most = tl.maximum(tl.max(tl.abs(one), axis=1), tl.max(tl.abs(other), axis=1))[:, None]
    scale = tl.maximum(most, least) / largest
    per_scale = 1.0 / scale
    tl.store(scales + row, scale, mask=row < rows)
    kind: tl.constexpr = rounded.dtype.element_ty
    places = rounded + start
    tl.store(places + first, round_to(one, per_scale, largest, kind), mask=there)
    tl.store(places + rest, round_to(other, per_scale, largest, kind), mask=left)


def _rows_into(
    x: Tensor,
    rounded: Tensor,
    scales: Tensor,
    *,
    norm: tuple[Tensor, Tensor, float] | None = None,
    more: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """Round `x` (rows, width). With `more`, add it first and write the sum to `total`.

    `norm` is a layer norm's weight, bias and epsilon.
    """
    rows, width = x.shape
    weight, bias, eps = norm or (x, x, 0.0)
    most, rest = parts_of(width)
    together, warps = rows_and_warps(most)
    _rounded_rows[(triton.cdiv(rows, together),)](
        x,
        x if more is None else more,
        weight,
        bias,
        x if total is None else total,
        rounded,
        scales,
        rows,
        eps,
        LEAST,
        LARGEST,
        WIDTH=width,
        MOST=most,
        REST=rest,
        ROWS=together,
        ADDS=more is not None,
        NORMS=norm is not None,
        num_warps=warps,
    )


def _places(x: Tensor) -> Rounded:
    rounded = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return rounded, torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)


@library.custom_op(
    "benchlib::round_fp8",
    mutates_args=(),
    schema="(Tensor x) -> (Tensor, Tensor)",
)
def round_fp8(x: Tensor) -> Rounded:
    """`x` (rows, width), rounded with a scale for each row."""
    rounded, scales = _places(x)
    _rows_into(x.contiguous(), rounded, scales)
    return rounded, scales


@library.custom_op(
    "benchlib::norm_fp8",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
)
def norm_fp8(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Rounded:
    """The layer norm of `x` (rows, width), rounded with a scale for each row."""
    rounded, scales = _places(x)
    _rows_into(x.contiguous(), rounded, scales, norm=(weight, bias, eps))
    return rounded, scales


@library.custom_op(
    "benchlib::add_norm_fp8",
    mutates_args=(),
    schema="(Tensor x, Tensor more, Tensor weight, Tensor bias, float eps)"
    " -> (Tensor, Tensor, Tensor)",
)
def add_norm_fp8(
    x: Tensor,
    more: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of `x` and `more` (rows, width), and its layer norm as `norm_fp8` has it."""
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rounded, scales = _places(x)
    _rows_into(
        x.contiguous(),
        rounded,
        scales,
        norm=(weight, bias, eps),
        more=more.contiguous(),
        total=total,
    )
    return total, rounded, scales


@round_fp8.register_fake
def _like_round(x: Tensor) -> Rounded:
    return _places(x)


@norm_fp8.register_fake
def _like_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Rounded:  # noqa: ARG001
    return _places(x)


@add_norm_fp8.register_fake
def _like_add_norm(
    x: Tensor,
    more: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return (total, *_places(x))


class QuantisedBlock(ChainedBlock):
    """A transformer block whose products get their inputs in fp8 from our kernels."""

    def first_norm(self, hidden_states: Tensor | Addends) -> tuple[Tensor, Tensor, Tensor]:
        """The block's input, and its layer norm (rows * tokens, features) as `norm_fp8` has it."""
        norm = affine_of(self.norm1)
        if isinstance(hidden_states, Tensor):
            return hidden_states, *norm_fp8(hidden_states.flatten(0, 1), *norm)
        x, more = hidden_states
        total, *rounded = add_norm_fp8(x.flatten(0, 1), more.flatten(0, 1), *norm)
        return total.view(x.shape), *rounded

    def forward(
        self,
        normed_input: tuple[Tensor, Tensor, Tensor],
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor | Addends:
        """`normed_input` is what `first_norm` returns. With a mask, the answer is the sum."""
        hidden_states, *rounded = normed_input
        if attention_mask is not None or encoder_attention_mask is not None:
            options |= {"encoder_attention_mask": encoder_attention_mask}
            options |= {"encoder_hidden_states": encoder_hidden_states}
            masked: Tensor = super().forward(hidden_states, attention_mask, **options)
            return masked
        images = len(hidden_states)
        x = hidden_states.flatten(0, 1)

        # 1) Attention to the image itself
        attn = self.attn1
        names = ("to_qkv",) if attn.fused_projections else ("to_q", "to_k", "to_v")
        products = [product_fp8(getattr(attn, name), *rounded) for name in names]
        parts = products[0].chunk(3, dim=-1) if len(products) == 1 else products
        seen = _attend(attn, images, *parts)
        x, *rounded = add_norm_fp8(x, seen, *affine_of(self.norm2))

        # 2) Attention to the text
        attn = self.attn2
        query = product_fp8(attn.to_q, *rounded)
        seen = _attend(attn, images, query, *_text_of(attn, encoder_hidden_states))
        x, *rounded = add_norm_fp8(x, seen, *affine_of(self.norm3))

        # 3) Feed-forward
        projected = product_fp8(self.ff.net[0].proj, *rounded)
        fed = product_fp8(self.ff.net[2], *geglu_fp8(projected))
        shape = hidden_states.shape
        return x.view(shape), fed.view(shape)


def _text_of(attn: Any, text: Any) -> tuple[Tensor, ...]:
    """The keys and values of a text; the recipe `text-once` has projected them already."""
    if isinstance(text, tuple):
        projected = text
    elif attn.fused_projections:
        projected = (attn.to_kv(text),)
    else:
        projected = (attn.to_k(text), attn.to_v(text))
    if len(projected) == 1:
        projected = projected[0].chunk(2, dim=-1)
    keys, values = projected
    return keys, values


def _attend(attn: Any, images: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention, and the product after it: (rows, features), as `query` is."""
    q, k, v = (tensor.view(images, -1, tensor.shape[-1]) for tensor in (query, key, value))
    joined = attended(attn, q, k, v).flatten(0, 1)
    return product_fp8(attn.to_out[0], *round_fp8(joined))


def use_in_blocks(unet: torch.nn.Module) -> None:
    """Let the blocks of `unet` use the kernels. Raises UnfitModel if a block can't: then all stay."""
    modules: list[Any] = list(unet.modules())
    blocks = [module for module in modules if type(module) is BasicTransformerBlock]
    for module in blocks:
        if not is_fp8(module.ff.net[2]):
            raise UnfitModel("recipe: 'fp8-rows' rounds for products in fp8; add 'fp8'")
        attentions = (module.attn1, module.attn2)
        if not is_plain_block(module) or not all(is_plain(attn) for attn in attentions):
            raise UnfitModel("recipe: 'fp8-rows' knows SDXL's transformers only; leave it out")
    for module in blocks:
        module.__class__ = QuantisedBlock
    chain_blocks(unet)
