"""Attention in a VAE's middle by plain products, since no quick kernel has heads that wide.

SDXL's decoder has one head of 512 features there. SDPA's flash kernels, and cuDNN's, end at 256, so
SDPA takes its memory-efficient kernel. That one was made for older cards: some 130 TFLOP/s on a
Hopper, where a plain product has 600. So the scores are written out and read again.

For 1024x1024 pixels, 16,384 tokens, both products have 550 GFLOP: 0.9 ms. The scores are written in
float32 and read by one kernel of inductor's, which writes their exponentials in 16 bits: 3.2 GB, or
1 ms. All of it shrinks with the square of the tokens, as SDPA's time does. With 1,024 tokens SDPA's
kernel has 16 blocks for 132 processors. So products take over at any size.

Roundings are those of SDPA's kernels: scores, maxima and sums are float32. The exponentials have
the dtype of the values, and are divided by their sum after the second product.

Knows diffusers' attention. Ignorant of compilers.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from benchlib.serving.model.plain_attention import projected_alike

WIDEST_HEAD = 256
"""The most features of a head for which SDPA has a flash kernel."""

ROWS = 4096
"""The rows of scores at once: 16 KiB for each token, so 0.25 GiB for 1024x1024 pixels.

A slice of so many rows fills 132 processors in either product. The decoder's peak comes later, where
one tensor in bf16 takes 32 KiB for each token.
"""


def multiply_in_attention(vae: torch.nn.Module) -> None:
    """Let the attentions of `vae` that have no flash kernel use products. A tiny VAE has none."""
    for module in vae.modules():
        if isinstance(module, Attention) and is_wide(module):
            module.set_processor(_BY_PRODUCTS)


def is_wide(attention: Any) -> bool:
    """Whether an attention has one head that is too wide for flash, and is otherwise as a VAE's."""
    others = (attention.norm_q, attention.norm_k, attention.spatial_norm)
    is_plain = others == (None, None, None) and attention.group_norm is not None
    is_single = attention.heads == 1
    return bool(is_plain and is_single and attention.to_q.out_features > WIDEST_HEAD)


class AttentionByProducts:
    """A processor of an attention of diffusers with one head, from an image to itself."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002 - for a spatial norm
    ) -> Tensor:
        """`hidden_states` is (images, features, height, width), and so is the answer."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        pixels = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        images = zip(*projected_alike(attn, pixels), strict=True)
        seen = torch.stack([attend(*image) for image in images])
        image = attn.to_out[0](seen).transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            image = image + hidden_states
        answer: Tensor = image / attn.rescale_output_factor
        return answer


_BY_PRODUCTS = AttentionByProducts()


def attend(query: Tensor, key: Tensor, value: Tensor, rows: int = ROWS) -> Tensor:
    """SDPA of one head, `rows` rows at a time; all tensors are (tokens, features).

    The scale comes after the maximum is taken off. So inductor reads the scores twice: for the
    maximum, and for the exponential with its sum. After a softmax it would read them three times.
    """
    scale = query.shape[1] ** -0.5
    seen = []
    for part in torch.split(query, rows):
        scores = product(part, key.T)
        weights = ((scores - scores.amax(1, keepdim=True)) * scale).exp()
        total = product(weights.to(value.dtype), value)
        seen.append((total / weights.sum(1, keepdim=True)).to(value.dtype))
    return torch.cat(seen)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices of one dtype, in float32. Only CUDA has it for 16 bits."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
