"""Transformer blocks whose rows a kernel of ours adds and norms in one pass (norm_rows.py).

A sum is rounded to 16 bits before it is normed, as torch does without a compiler. Attention and
feed-forward are called as they are, so adapters and other recipes change them as before.

A transformer of SDXL has up to ten blocks in a row. A block's last sum is left to the next block,
whose first norm reads the same numbers. So a step of SDXL has 59 passes fewer.

Knows diffusers' blocks. Ignorant of Triton until the first call.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Transformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, library

from benchlib.serving.model.gated_products import HALVES
from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.plain_attention import leave_out_division

Addends = tuple[Tensor, Tensor]  # of (rows, tokens, features); the second may be one row of all


@library.custom_op(
    "benchlib::norm_rows",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? owed=None) -> Tensor",
)
def norm_rows(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, owed: Tensor | None = None
) -> Tensor:
    """The layer norm of `x` (rows, width), and of `owed` (width,) float32, which each row lacks."""
    from benchlib.serving.model.norm_rows import norm_rows_into  # needs Triton

    normed = _whole_like(x)
    norm_rows_into(normed, x.contiguous(), (weight, bias, eps), owed=owed)
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
def _fake_norm(
    x: Tensor,
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    owed: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
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


class ChainedBlock(BasicTransformerBlock):  # type: ignore[misc] # diffusers is not typed
    """A transformer block that can leave its last sum to the first norm of the next block.

    The first norm comes before the call that is compiled, and the last sum after it. Else torch
    would compile a first, a middle and a last block, which are alike, one by one.
    """

    hands_on = False  # whether the next block takes addends

    def __call__(
        self, hidden_states: Tensor | Addends, *others: Any, **options: Any
    ) -> Tensor | Addends:
        """Takes (rows, tokens, features), or addends of it. Answers addends if it hands on."""
        answer: Tensor | Addends
        answer = super().__call__(self.first_norm(hidden_states), *others, **options)
        if self.hands_on or isinstance(answer, Tensor):
            return answer
        return self.last_sum(*answer)

    def first_norm(self, hidden_states: Tensor | Addends) -> tuple[Tensor, ...]:
        """The block's input (rows, tokens, features), and what its kernel makes of its rows."""
        raise NotImplementedError

    def last_sum(self, x: Tensor, more: Tensor) -> Tensor:
        """The block's answer, where the next block does not take addends."""
        return more + x


class NormedBlock(ChainedBlock):
    """A transformer block that adds and norms by `add_norm_rows`."""

    def first_norm(self, hidden_states: Tensor | Addends) -> tuple[Tensor, Tensor]:
        """The block's input, and its layer norm (rows * tokens, features)."""
        norm = affine_of(self.norm1)
        if isinstance(hidden_states, Tensor):
            return hidden_states, norm_rows(hidden_states.flatten(0, 1), *norm)
        x, more = hidden_states
        total, normed = add_norm_rows(x.flatten(0, 1), more.flatten(0, 1), *norm)
        return total.view(x.shape), normed

    def forward(
        self,
        normed_input: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor | Addends:
        """`normed_input` is what `first_norm` returns."""
        hidden_states, normed = normed_input
        shape = hidden_states.shape
        options = cross_attention_kwargs or {}
        x = hidden_states.flatten(0, 1)

        # 1) Attention to the image itself
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
        return x.view(shape), self.ff(normed.view(shape))


def affine_of(norm: Any) -> tuple[Tensor, Tensor, float]:
    """A layer norm's weight, bias and epsilon."""
    return norm.weight, norm.bias, norm.eps


def is_plain_block(block: Any) -> bool:
    """Whether a block is as SDXL's: plain layer norms, and attention to the image and to the text."""
    attends = not block.only_cross_attention and None not in (block.attn1, block.attn2)
    return attends and block.norm_type == "layer_norm" and block.pos_embed is None


def norm_in_one_pass(unet: torch.nn.Module) -> None:
    """Let the blocks of `unet` use the kernel.

    Raises UnfitModel if one of them can't; then all stay as they are.
    """
    modules: list[Any] = list(unet.modules())
    blocks = [module for module in modules if type(module) is BasicTransformerBlock]
    for module in blocks:
        plain = is_plain_block(module) and not hasattr(module, "fuser")
        if not plain or module.norm1.weight is None or module.norm1.weight.dtype not in HALVES:
            raise UnfitModel(
                "recipe: 'norm-rows' knows SDXL's transformers in 16 bits only; leave it out"
            )
    for module in blocks:
        module.__class__ = NormedBlock
        leave_out_division(module.attn1)
        leave_out_division(module.attn2)
    chain_blocks(unet)


def chain_blocks(unet: torch.nn.Module) -> None:
    """Let blocks hand their last sum on, in each transformer of `unet` that has only such blocks.

    diffusers' transformer passes a block's answer to the next block without a look at it.
    """
    for module in unet.modules():
        if not isinstance(module, Transformer2DModel):
            continue
        blocks: list[Any] = list(module.transformer_blocks)
        if passes_on(module) and all(isinstance(block, ChainedBlock) for block in blocks):
            for block in blocks[:-1]:
                block.hands_on = True


def passes_on(transformer: Transformer2DModel) -> bool:
    """Whether diffusers' own code calls the blocks, which reads neither their inputs nor answers."""
    return type(transformer).forward is Transformer2DModel.forward
