"""What diffusers computes between the parts of a UNet that a compiler gets, moved into these parts.

- An up block joins its image with a skip, and a residual block reads the answer. Here the residual
  block takes both and joins them itself. The compiler writes the joint image by one kernel.
- The last group norm and its activation become one module. On a GPU, torch's own norm returns
  channels-first: that took two copies of the image, and two further passes.

Knows diffusers' UNet and up blocks. Ignorant of compilers and of recipes. No parameter gets another
name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # an image and its skip


def join_in_resnets(unet: torch.nn.Module) -> None:
    """Let the residual blocks of SDXL's up blocks join images with skips. Other blocks stay."""
    modules: list[Any] = list(unet.modules())
    for block in modules:
        if type(block) not in (CrossAttnUpBlock2D, UpBlock2D):
            continue
        if any(type(resnet) is not ResnetBlock2D for resnet in block.resnets):
            continue
        kind: Any = type(block)
        block.__class__ = _with_pairs(kind)
        for resnet in block.resnets:
            resnet.__class__ = JoiningResnet


class JoiningResnet(ResnetBlock2D):  # type: ignore[misc] # diffusers is not typed
    """A residual block that takes an image, or an image and its skip."""

    def forward(self, input_tensor: Tensor | Pair, temb: Tensor) -> Tensor:
        """Tensors are (n, channels, height, width); the channels of a pair follow each other."""
        if not isinstance(input_tensor, Tensor):
            input_tensor = _joined(*input_tensor)
        answer: Tensor = super().forward(input_tensor, temb)
        return answer


def _joined(image: Tensor, skip: Tensor) -> Tensor:
    """The channels of `image` and `skip` behind each other, in the layout of `image`.

    On a GPU inductor would lay out a joint image in channels-first, to norm it, and copy it back. As
    rows of pixels, channels-last images stay as they are.
    """
    if not image.is_contiguous(memory_format=torch.channels_last):
        return torch.cat((image, skip), dim=1)
    pixels = torch.cat((image.permute(0, 2, 3, 1), skip.permute(0, 2, 3, 1)), dim=3)
    return pixels.permute(0, 3, 1, 2)


class _GivesPairs(torch.nn.Module):
    """An up block that gives its residual blocks pairs.

    With FreeU, which changes both before they are joined, and in training it does as diffusers.
    """

    resnets: Any
    upsamplers: Any
    gradient_checkpointing: bool

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        *,
        upsample_size: Any = None,
        **options: Any,
    ) -> Tensor:
        """`options` are those of a transformer. The last skip is the first block's."""
        if self.gradient_checkpointing or all(getattr(self, name, None) for name in _FREEU):
            as_diffusers: Tensor = super().forward(
                hidden_states, res_hidden_states_tuple, temb, upsample_size=upsample_size, **options
            )
            return as_diffusers
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        skips = reversed(res_hidden_states_tuple)
        for resnet, attention, skip in zip(self.resnets, attentions, skips, strict=True):
            hidden_states = resnet((hidden_states, skip), temb)
            if attention is not None:
                hidden_states = attention(hidden_states, return_dict=False, **options)[0]
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


_FREEU = ("s1", "s2", "b1", "b2")


@cache
def _with_pairs(kind: Any) -> type:
    """A class of up blocks like `kind` that gives pairs."""
    return type(kind.__name__, (_GivesPairs, kind), {})


def norm_and_activate_at_once(unet: torch.nn.Module, kind: type) -> list[torch.nn.Module]:
    """Let the last norm of a UNet apply SiLU, too. Returns that norm; none if the UNet differs.

    `kind` is the class of the norm.
    """
    changed: list[torch.nn.Module] = []
    modules: list[Any] = list(unet.modules())
    for network in modules:
        if not isinstance(network, UNet2DConditionModel):
            continue
        norm, activation = network.conv_norm_out, network.conv_act
        if type(norm) is torch.nn.GroupNorm and type(activation) is torch.nn.SiLU:
            norm.__class__ = _with_silu(kind)
            network.conv_act = torch.nn.Identity()
            changed.append(norm)
    return changed


class _Activates(torch.nn.Module):
    """A module that applies SiLU to its answer."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.nn.functional.silu(super().forward(image))


@cache
def _with_silu(kind: type) -> type:
    """A class of modules like `kind` that apply SiLU."""
    return type(kind.__name__, (_Activates, kind), {})
