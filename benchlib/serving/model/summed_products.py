"""Transformer blocks whose products add to the residual in place, by cuBLAS.

Two products of attention and one of the feed-forward end with a residual in each block. Here cuBLAS
adds each to the residual where it lies, and the next norm reads one tensor in place of two. cuBLAS
adds a residual or a bias, but not both. So the residual lacks the biases of the products so far. The
missing sum is one vector, the same for all rows. Each norm adds that vector to what it reads. The last
block adds it to the residual.

The products of an adapter by request are added in place, too. Where its layer is more than two
products, as a DoRA's is, the layer computes as it does without the recipe, and its bias is taken off.

Knows the blocks of `norm-rows`, and peft's layers. Ignorant of kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Transformer2DModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, library

from benchlib.serving.model.gated_products import HALVES, GatedFeedForward, plain_linear
from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.normed_blocks import (
    Addends,
    NormedBlock,
    affine_of,
    norm_rows,
    passes_on,
)
from benchlib.serving.model.plain_attention import can_leave_out_product


@library.custom_op(
    "benchlib::add_product_",
    mutates_args=("total",),
    schema="(Tensor(a!) total, Tensor tokens, Tensor weight) -> ()",
)
def add_product_(total: Tensor, tokens: Tensor, weight: Tensor) -> None:
    """Add the product of `tokens` (rows, depth) and `weight` (width, depth) to `total` (rows, width).

    On a GPU the sums are float32, and are rounded once. Compiled, torch's own `addmm_` would copy
    `total` first.
    """
    total.addmm_(tokens, weight.t())


@add_product_.register_fake
def _adds_nothing(total: Tensor, tokens: Tensor, weight: Tensor) -> None:
    pass


def add_in_place(total: Tensor, layer: Any, tokens: Tensor) -> None:
    """Add what `layer` makes of `tokens` (rows, tokens, depth), less its bias, to `total`."""
    tokens = tokens.flatten(0, -2)
    linear = plain_linear(layer)
    names = _plain_adapters(layer, total.dtype) if linear is None else []
    if names is None:
        total += layer(tokens) - layer.base_layer.bias
        return
    base = layer.base_layer if linear is None else linear
    add_product_(total, tokens, base.weight)
    for name in names:
        down, up = layer.lora_A[name], layer.lora_B[name]
        fewer = down(layer.lora_dropout[name](tokens)) * layer.scaling[name]
        add_product_(total, fewer, up.weight)


def _plain_adapters(layer: Any, dtype: torch.dtype) -> list[str] | None:
    """The adapters that are on in `layer`, if each is two products in `dtype` and no more."""
    if not isinstance(layer, LoraLinear) or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    for name in names:
        up: Any = layer.lora_B[name]
        if name in layer.lora_variant or up.bias is not None or up.weight.dtype != dtype:
            return None
    return names


class SummedBlock(NormedBlock):
    """A transformer block whose products add to its input. It hands that on with what it is owed.

    A block that is alone adds to a copy, since its input is its caller's.
    """

    owns_input = False  # whether nobody else reads an input that no block has handed on

    # In float32 (features,): the biases that the residual lacks, from the start of the chain
    owed_attn1: Tensor
    owed_attn2: Tensor
    owed: Tensor

    def first_norm(self, hidden_states: Tensor | Addends) -> tuple[Tensor, Tensor]:
        """The residual, and the layer norm (rows * tokens, features) of the block's input."""
        norm = affine_of(self.norm1)
        if isinstance(hidden_states, Tensor):
            x = hidden_states if self.owns_input else hidden_states.clone()
            return x, norm_rows(x.flatten(0, 1), *norm)
        x, owed = hidden_states
        return x, norm_rows(x.flatten(0, 1), *norm, owed)

    def forward(
        self,
        normed_input: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> Addends:
        """`normed_input` is what `first_norm` returns. Answers the residual, and what it is owed."""
        x, normed = normed_input
        shape = x.shape
        total = x.flatten(0, 1)
        options = cross_attention_kwargs or {}

        # 1) Attention to the image itself
        seen = self.attn1(
            normed.view(shape), attention_mask=attention_mask, without_product=True, **options
        )
        add_in_place(total, self.attn1.to_out[0], seen)
        normed = norm_rows(total, *affine_of(self.norm2), self.owed_attn1)

        # 2) Attention to the text
        seen = self.attn2(
            normed.view(shape),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            without_product=True,
            **options,
        )
        add_in_place(total, self.attn2.to_out[0], seen)
        normed = norm_rows(total, *affine_of(self.norm3), self.owed_attn2)

        # 3) Feed-forward
        first, _dropout, last = self.ff.net
        gate = self.ff.gated if isinstance(self.ff, GatedFeedForward) else first
        add_in_place(total, last, gate(normed.view(shape)))
        return total.view(shape), self.owed

    def last_sum(self, x: Tensor, more: Tensor) -> Tensor:
        """The residual with what it is owed, in place; `x` is the block's own by now."""
        return x.add_(more)


def sum_in_products(unet: torch.nn.Module) -> None:
    """Let the blocks of `unet`, which has `norm-rows`, add in place.

    Raises UnfitModel if one of them can't; then all stay as they are.
    """
    # 1) Check all blocks
    modules: list[Any] = list(unet.modules())
    blocks = [module for module in modules if type(module) is NormedBlock]
    if not blocks:
        raise UnfitModel("recipe: 'summed-products' changes blocks of 'norm-rows'; add 'norm-rows'")
    for block in blocks:
        if not all(_fits(layer) for layer in _last_layers(block)):
            raise UnfitModel(
                "recipe: 'summed-products' adds products in 16 bits, with a bias, in SDXL's "
                "transformers; leave it out"
            )

    # 2) Change them, and sum the biases along each chain
    handed_on: Tensor | None = None
    for block in blocks:
        block.__class__ = SummedBlock
        attn1, attn2, last = (layer.bias.detach().float() for layer in _last_layers(block))
        owed_attn1 = attn1 if handed_on is None else handed_on + attn1
        owed_attn2 = owed_attn1 + attn2
        owed = owed_attn2 + last
        for name, sums in (("owed_attn1", owed_attn1), ("owed_attn2", owed_attn2), ("owed", owed)):
            block.register_buffer(name, sums, persistent=False)
        handed_on = owed if block.hands_on else None

    # 3) The first block of a chain gets what the transformer's first product has just made
    for module in modules:
        if isinstance(module, Transformer2DModel) and module.is_input_continuous:
            first = module.transformer_blocks[0]
            first.owns_input = isinstance(first, SummedBlock) and passes_on(module)


def _last_layers(block: Any) -> list[Any]:
    """The layers that end with a residual; None in place of one that something else follows."""
    attentions = (block.attn1, block.attn2)
    found = [attn.to_out[0] if can_leave_out_product(attn) else None for attn in attentions]
    found.append(block.ff.net[2] if len(block.ff.net) == 3 else None)
    return found


def _fits(layer: Any) -> bool:
    """Whether a layer's product can be added. An integer or fp8 weight is a tensor of another class."""
    linear = None if layer is None else plain_linear(layer)
    if linear is None or linear.bias is None:
        return False
    return type(linear.weight) is torch.nn.Parameter and linear.weight.dtype in HALVES
