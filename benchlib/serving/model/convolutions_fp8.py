"""Convolutions of the UNet's residual blocks in fp8, by our kernel (`convolution_kernel.py`).

Their input is SiLU of a group norm, so its size is known, and one fixed scale does for all. Times 16:

    above 28            is cut off at 448, e4m3's largest: 28 deviations, if the norm's weight is 1
    0.001 to 28         has e4m3's full precision: 4 bits, so an error of at most 1/16
    below 0.001         is off by at most 0.00006

A norm that multiplies by 10 loses what lies above 2.8 deviations: this scale is not for it. Each
channel of the answer has a scale of its weights. Both roundings together cost some 4 %.

Knows diffusers' residual blocks. Ignorant of Triton and of the other recipes.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, library

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448
LEAST = 1e-6  # of a channel's largest weight: the scale of zeros must not be 0
ACTIVATIONS_UP = 16.0  # a power of two, so that the factor itself rounds nothing


@library.custom_op(
    "benchlib::convolution_fp8",
    mutates_args=(),
    schema="(Tensor image, Tensor weight, Tensor scales, Tensor bias) -> Tensor",
)
def convolution_fp8(
    image: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor,
) -> Tensor:
    """A padded 3x3 convolution of `image` (n, h, w, channels): (n, h, w, columns) in bias's dtype.

    The operands are as `convolution_into` has them.
    """
    from benchlib.serving.model.convolution_kernel import convolution_into  # needs Triton

    answer = _answer_of(image, len(weight), bias.dtype)
    convolution_into(answer, image, weight, scales, bias)
    return answer


def _answer_of(image: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    n, height, width, _ = image.shape
    return torch.empty(
        (n, height, width, columns),
        dtype=dtype,
        device=image.device,
    )


@convolution_fp8.register_fake
def _fake_answer(
    image: Tensor,
    weight: Tensor,
    scales: Tensor,  # noqa: ARG001
    bias: Tensor,
) -> Tensor:
    return _answer_of(image, len(weight), bias.dtype)


class QuantisedConvolution(torch.nn.Module):
    """A convolution whose weights are in e4m3, and which rounds SiLU of a norm so, too."""

    def __init__(self, convolution: torch.nn.Conv2d) -> None:
        """`convolution` is one that `can_be_fp8`."""
        super().__init__()
        by_pixel = convolution.weight.detach().permute(0, 2, 3, 1).flatten(1).float()
        most = by_pixel.abs().amax(1, keepdim=True).clamp(min=LEAST)
        scales = most / LARGEST
        rounded = (by_pixel / scales).clamp(-LARGEST, LARGEST).to(FP8)
        self.register_buffer("weight", rounded.contiguous())
        self.register_buffer("scales", scales.flatten() / ACTIVATIONS_UP)
        bias = convolution.bias
        if bias is None:
            bias = convolution.weight.new_zeros(len(rounded))
        self.register_buffer("bias", bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """`x` is (n, channels, h, w), and so is the answer, in channels-last.

        The compiler joins the rounding and the layout with the pass that norms.
        """
        rounded = (x * ACTIVATIONS_UP).clamp(-LARGEST, LARGEST).to(FP8)
        image = rounded.permute(0, 2, 3, 1).contiguous()
        answer: Tensor = convolution_fp8(image, self.weight, self.scales, self.bias)
        return answer.permute(0, 3, 1, 2)


def is_padded_3x3(convolution: Any) -> bool:
    """Whether `convolution` is torch's own: 3x3, padded by one row of zeros, without groups."""
    if type(convolution) is not torch.nn.Conv2d:
        return False
    wanted: dict[str, Any] = {
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": "zeros",
    }
    return all(getattr(convolution, name) == value for name, value in wanted.items())


def can_be_fp8(convolution: Any) -> bool:
    """Whether the kernel computes what `convolution` does.

    Descriptors ask for rows of 16 bytes, so channels are a multiple of 16.
    """
    if not is_padded_3x3(convolution):
        return False
    channels = (convolution.in_channels, convolution.out_channels)
    return all(number % 16 == 0 for number in channels)


def use_in_resnets(unet: torch.nn.Module) -> None:
    """Round the convolutions of `unet`'s residual blocks; those that the kernel can't do stay.

    A block whose time embedding scales the second norm's answer keeps that convolution: its input
    has no known size.
    """
    modules: list[Any] = list(unet.modules())
    for module in modules:
        if not isinstance(module, ResnetBlock2D):
            continue
        if type(module.nonlinearity) is not torch.nn.SiLU:
            continue
        names = ["conv1"]
        if module.time_embedding_norm == "default":
            names.append("conv2")
        for name in names:
            convolution = getattr(module, name)
            if can_be_fp8(convolution):
                setattr(module, name, QuantisedConvolution(convolution))
