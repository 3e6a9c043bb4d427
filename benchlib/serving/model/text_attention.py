"""Attention to the text by a kernel of ours (text_attention_kernel.py), in place of SDPA's.

A mask, or more keys than the kernel takes, goes to SDPA as before. The projections are called as
they are, so adapters and other recipes change them as before. The recipe needs no other one.

Knows diffusers' attention. Ignorant of Triton until the first call.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, library

from benchlib.serving.model.gated_products import HALVES
from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.plain_attention import is_usual, leave_out_division

MOST_KEYS = 128  # with 255 keys, 64 tokens' numbers spill out of a Hopper's registers
HEAD_WIDTHS = (16, 32, 64, 128)


@library.custom_op(
    "benchlib::text_attention",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor query, Tensor key, Tensor value, int heads) -> Tensor",
)
def text_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of `query` (rows, tokens, features) to `key` and `value` (rows, keys, features).

    The answer is as large as `query`, and contiguous. The exponentials are rounded to 16 bits.
    """
    from benchlib.serving.model.text_attention_kernel import text_attention_into  # needs Triton

    if query.stride(2) != 1:
        query = query.contiguous()
    if key.stride(2) != 1 or key.stride() != value.stride():
        key, value = key.contiguous(), value.contiguous()
    answer = _answer_like(query)
    text_attention_into(answer, query, key, value, heads=heads)
    return answer


def _answer_like(query: Tensor) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@text_attention.register_fake
def _fake_text_attention(
    query: Tensor,
    key: Tensor,  # noqa: ARG001
    value: Tensor,  # noqa: ARG001
    heads: int,  # noqa: ARG001
) -> Tensor:
    return _answer_like(query)


class TextAttention(Attention):  # type: ignore[misc] # diffusers is not typed
    """An attention whose softmax and products are the kernel's, where that takes them."""

    def by_kernel(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """The answer (rows, tokens, features), or None if the kernel does not take the operands."""
        alike = key.shape == value.shape and key.shape[::2] == query.shape[::2]
        halves = query.dtype in HALVES and query.dtype == key.dtype == value.dtype
        if not alike or not halves or key.shape[1] > MOST_KEYS:
            return None
        seen: Tensor = text_attention(query, key, value, self.heads)
        return seen


def attend_to_text_by_kernel(unet: torch.nn.Module) -> None:
    """Let the attentions of `unet` to the text use the kernel.

    Raises UnfitModel if one of them can't, or if there is none; then all stay as they are.
    """
    modules: list[Any] = list(unet.modules())
    blocks = [module for module in modules if isinstance(module, BasicTransformerBlock)]
    attentions = [block.attn2 for block in blocks if block.attn2 is not None]
    attentions = [attn for attn in attentions if attn.is_cross_attention]
    if not attentions:
        raise UnfitModel("recipe: 'text-attention' finds no attention to a text; leave it out")
    for attn in attentions:
        width = attn.inner_dim // attn.heads
        if not is_usual(attn) or attn.to_q.weight.dtype not in HALVES or width not in HEAD_WIDTHS:
            raise UnfitModel(
                "recipe: 'text-attention' knows plain attention in 16 bits, with 16, 32, 64 or 128 "
                f"numbers a head, and not {type(attn.processor).__name__} in {attn.to_q.weight.dtype} with "
                f"{width}; leave it out"
            )
    for attn in attentions:
        leave_out_division(attn)
        attn.__class__ = TextAttention
