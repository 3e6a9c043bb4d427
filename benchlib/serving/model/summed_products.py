"""Transformer blocks whose products add the residual by themselves (sum_product.py).

Two products of attention and one of the feed-forward end with a residual in each block. Here each
writes the sum, rounded once, and the next norm reads one tensor in place of two. A layer that has an
adapter by request on computes as it does without the recipe.

Knows the blocks of `norm-rows`. Ignorant of Triton until the first call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from benchlib.serving.model.gated_products import HALVES, GatedFeedForward, plain_linear
from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.normed_blocks import NormedBlock, affine_of, norm_rows
from benchlib.serving.model.plain_attention import can_leave_out_product


@library.custom_op(
    "benchlib::sum_product",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor more, Tensor tokens, Tensor weight, Tensor bias) -> Tensor",
)
def sum_product(more: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`more` (rows, width) and the product of `tokens` (rows, depth) with a linear layer.

    The sums are float32, rounded once to the dtype of `more`. `weight` is (width, depth).
    """
    from benchlib.serving.model.sum_product import sum_product_into  # needs Triton

    total = torch.empty(more.shape, dtype=more.dtype, device=more.device)
    sum_product_into(total, more, tokens, weight, bias)
    return total


@sum_product.register_fake
def _sum_like(more: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty(more.shape, dtype=more.dtype, device=more.device)


def summed(residual: Tensor, layer: torch.nn.Module, tokens: Tensor) -> Tensor:
    """`residual` and what `layer` makes of `tokens`, all (rows, tokens, features)."""
    linear = plain_linear(layer)
    if linear is None:
        product: Tensor = layer(tokens)
        return product + residual
    more = residual.flatten(0, -2)
    total: Tensor = sum_product(more, tokens.flatten(0, -2), linear.weight, linear.bias)
    return total.view(residual.shape)


class SummedBlock(NormedBlock):
    """A transformer block whose products add. It leaves no sum to the next block."""

    def forward(
        self,
        normed_input: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        """`normed_input` is what `first_norm` returns. The answer is (rows, tokens, features)."""
        x, normed = normed_input
        shape = x.shape
        options = cross_attention_kwargs or {}

        # 1) Attention to the image itself
        seen = self.attn1(
            normed.view(shape), attention_mask=attention_mask, without_product=True, **options
        )
        x = summed(x, self.attn1.to_out[0], seen)
        normed = norm_rows(x.flatten(0, 1), *affine_of(self.norm2))

        # 2) Attention to the text
        seen = self.attn2(
            normed.view(shape),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            without_product=True,
            **options,
        )
        x = summed(x, self.attn2.to_out[0], seen)
        normed = norm_rows(x.flatten(0, 1), *affine_of(self.norm3))

        # 3) Feed-forward
        first, _dropout, last = self.ff.net
        gate = self.ff.gated if isinstance(self.ff, GatedFeedForward) else first
        return summed(x, last, gate(normed.view(shape)))


def sum_in_products(unet: torch.nn.Module) -> None:
    """Let the blocks of `unet`, which has `norm-rows`, use the kernel.

    Raises UnfitModel if one of them can't; then all stay as they are.
    """
    blocks: list[Any] = [module for module in unet.modules() if type(module) is NormedBlock]
    if not blocks:
        raise UnfitModel("recipe: 'summed-products' changes blocks of 'norm-rows'; add 'norm-rows'")
    for block in blocks:
        if not all(_fits(layer) for layer in _last_layers(block)):
            raise UnfitModel(
                "recipe: 'summed-products' adds to products in 16 bits, with a bias, whose sides "
                "are multiples of 8, in SDXL's transformers; leave it out"
            )
    for block in blocks:
        block.__class__ = SummedBlock


def _last_layers(block: Any) -> list[Any]:
    """The layers that end with a residual; None in place of one that something else follows."""
    attentions = (block.attn1, block.attn2)
    found = [attn.to_out[0] if can_leave_out_product(attn) else None for attn in attentions]
    found.append(block.ff.net[2] if len(block.ff.net) == 3 else None)
    return found


def _fits(layer: Any) -> bool:
    """Whether the kernel takes this layer. An integer or fp8 weight is a tensor of another class."""
    linear = None if layer is None else plain_linear(layer)
    if linear is None or linear.bias is None:
        return False
    is_half = type(linear.weight) is torch.nn.Parameter and linear.weight.dtype in HALVES
    return is_half and all(side % 8 == 0 for side in linear.weight.shape)
