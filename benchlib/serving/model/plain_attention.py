"""Attention of diffusers' transformers without the division by 1 that diffusers ends with.

diffusers divides each answer by `rescale_output_factor`, which is 1 in SDXL. A compiler may join that
with what follows, but not with a kernel of ours: then it is a pass that reads and writes the whole
answer. 140 of them took 4.8 ms of a step of 205 ms (eight guided images of 1024x1024 on an H200).

Knows diffusers' attention. Ignorant of blocks, of kernels and of recipes.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

USUAL = (AttnProcessor2_0, FusedAttnProcessor2_0)


def is_plain(attn: Any) -> bool:
    """Whether an attention is projections, products and softmax alone, as SDXL's are."""
    others = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    kept = attn.residual_connection or attn.rescale_output_factor != 1.0
    return not any(others) and not kept


def projected_alike(attn: Any, tokens: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values of `tokens`, by one joined product or by three."""
    if attn.fused_projections:
        parts: tuple[Tensor, ...] = attn.to_qkv(tokens).chunk(3, dim=-1)
        return parts
    return attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)


def attended(
    attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention of projected rows, all (rows, tokens, features), before the product that follows.

    `mask` is as `scaled_dot_product_attention` has it. Without one, an attention that has a method
    `by_kernel` computes by that, unless it returns None.
    """
    by_kernel = getattr(attn, "by_kernel", None)
    if by_kernel is not None and mask is None:
        answer: Tensor | None = by_kernel(query, key, value)
        if answer is not None:
            return answer
    q, k, v = (
        tensor.view(*tensor.shape[:2], attn.heads, -1).transpose(1, 2)
        for tensor in (query, key, value)
    )
    seen = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return seen.transpose(1, 2).flatten(2)


def finished(attn: Any, joined: Tensor, *, without_product: bool) -> Tensor:
    """What `attended` returned, after the product that follows, unless the caller computes that."""
    if without_product:
        return joined
    dropped: Tensor = attn.to_out[1](attn.to_out[0](joined))
    return dropped


class _Undivided:
    """A processor of an attention that `is_plain`: the bits of diffusers' usual ones."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        without_product: bool = False,
        **_: Any,
    ) -> Tensor:
        """`hidden_states` is (rows, tokens, features), and so is the answer."""
        # 1) Queries, keys and values, in joined products or one by one
        text = encoder_hidden_states
        if text is None:
            query, key, value = projected_alike(attn, hidden_states)
        elif attn.fused_projections:
            query = attn.to_q(hidden_states)
            key, value = attn.to_kv(text).chunk(2, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)

        # 2) Attention
        mask = attention_mask
        if mask is not None:
            rows, keys = key.shape[:2]
            mask = attn.prepare_attention_mask(mask, keys, rows)
            mask = mask.view(rows, attn.heads, -1, mask.shape[-1])
        joined = attended(attn, query, key, value, mask)
        return finished(attn, joined, without_product=without_product)


_UNDIVIDED = _Undivided()  # one for all, so that like blocks are compiled once


def is_usual(attn: Any) -> bool:
    """Whether `attn` is plain, and computes as diffusers' usual ones or without their division."""
    return is_plain(attn) and type(attn.processor) in (*USUAL, _Undivided)


def leave_out_division(attn: Any) -> None:
    """Let `attn` end with its product, if it is plain and computes as diffusers' usual ones."""
    if is_plain(attn) and type(attn.processor) in USUAL:
        attn.set_processor(_UNDIVIDED)


def can_leave_out_product(attn: Any) -> bool:
    """Whether `attn` takes `without_product`, and ends with that product."""
    return type(attn.processor) is _Undivided
