"""Transformer blocks whose rows a kernel of ours adds and norms in one pass (norm_rows.py).

A sum is rounded to 16 bits before it is normed, as torch does without a compiler. Attention and
feed-forward are called as they are, so adapters and other recipes change them as before.

Knows diffusers' blocks. Ignorant of Triton until the first call.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, library

from benchlib.serving.model.gated_products import HALVES


@library.custom_op(
    "benchlib::norm_rows",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor",
)
def norm_rows(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of `x` (rows, width)."""
    from benchlib.serving.model.norm_rows import norm_rows_into  # needs Triton

    normed = _whole_like(x)
    norm_rows_into(normed, x.contiguous(), (weight, bias, eps))
    return normed


@library.custom_op(
    "benchlib::add_norm_rows",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor more, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
)
def add_norm_rows(
    x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum of `x` and `more` (rows, width), and the layer norm of that sum."""
    from benchlib.serving.model.norm_rows import norm_rows_into  # needs Triton

    total, normed = _whole_like(x), _whole_like(x)
    norm = (weight, bias, eps)
    norm_rows_into(normed, x.contiguous(), norm, more=more.contiguous(), total=total)
    return total, normed


def _whole_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@norm_rows.register_fake
def _fake_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:  # noqa: ARG001
    return _whole_like(x)


@add_norm_rows.register_fake
def _fake_add_norm(
    x: Tensor,
    more: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return _whole_like(x), _whole_like(x)


class NormedBlock(BasicTransformerBlock):  # type: ignore[misc] # diffusers is not typed
    """A transformer block that adds and norms by `add_norm_rows`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        """`hidden_states` is (rows, tokens, features), and so is the answer."""
        shape = hidden_states.shape
        options = cross_attention_kwargs or {}
        x = hidden_states.flatten(0, 1)

        # 1) Attention to the image itself
        normed = norm_rows(x, *affine_of(self.norm1))
        seen = self.attn1(normed.view(shape), attention_mask=attention_mask, **options)
        x, normed = add_norm_rows(x, seen.flatten(0, 1), *affine_of(self.norm2))

        # 2) Attention to the text
        seen = self.attn2(
            normed.view(shape),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            **options,
        )
        x, normed = add_norm_rows(x, seen.flatten(0, 1), *affine_of(self.norm3))

        # 3) Feed-forward
        answer: Tensor = self.ff(normed.view(shape)) + x.view(shape)
        return answer


def affine_of(norm: Any) -> tuple[Tensor, Tensor, float]:
    """A layer norm's weight, bias and epsilon."""
    return norm.weight, norm.bias, norm.eps


def is_plain_block(block: Any) -> bool:
    """Whether a block is as SDXL's: plain layer norms, and attention to the image and to the text."""
    attends = not block.only_cross_attention and None not in (block.attn1, block.attn2)
    return attends and block.norm_type == "layer_norm" and block.pos_embed is None


def norm_in_one_pass(unet: torch.nn.Module) -> None:
    """Let the blocks of `unet` use the kernel. Raises ValueError if one of them can't."""
    modules: list[Any] = list(unet.modules())
    for module in modules:
        if type(module) is not BasicTransformerBlock:
            continue
        plain = is_plain_block(module) and not hasattr(module, "fuser")
        if not plain or module.norm1.weight is None or module.norm1.weight.dtype not in HALVES:
            raise ValueError(
                "recipe: 'norm-rows' knows SDXL's transformers in 16 bits only; leave it out"
            )
        module.__class__ = NormedBlock
