"""Upsamplers that compute on the small image: four 2x2 kernels in place of one 3x3 on the doubled image.

diffusers doubles an image by copying each pixel, and a padded 3x3 convolution reads the copies. A row
of the answer reads three doubled rows, and two of them are one small row:

    row 2i        reads small rows i-1, i       with weights  first, middle + last
    row 2i + 1    reads small rows i, i+1       with weights  first + middle, last

Columns are alike. So each of the four phases (even or odd row, even or odd column) is a 2x2 convolution
of the small image: 16 products for each small pixel, where there were 36. It is the polyphase form of an
interpolating filter (Vaidyanathan, Multirate digital filters: a tutorial, 1990).

The sums of weights are taken in each call, in float32 or wider, and rounded once. So nothing is kept,
and all that moves, casts, fuses or swaps the weights goes on as before. Weights that peft fuses give no
sign of it, so sums that were kept would go stale. A call of SDXL's UNet in 16 bits reads 37 MB for the
sums, and writes 66 MB. Compiled, that is one pass over each weight.

Knows diffusers' upsamplers. Ignorant of compilers and of the other recipes.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from benchlib.serving.model.convolutions_fp8 import is_padded_3x3
from benchlib.serving.model.model_errors import UnfitModel


class PhasedUpsample2D(Upsample2D):  # type: ignore[misc] # diffusers is not typed
    """An upsampler that computes its four phases on the small image.

    The plain path computes where an adapter is on, or where the answer is not exactly twice as large.
    """

    def forward(
        self,
        hidden_states: Tensor,
        output_size: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """`hidden_states` is (n, channels, h, w); the answer is (n, out_channels, 2h, 2w)."""
        convolution = _convolution_of(self)
        height, width = hidden_states.shape[-2:]
        doubled = (2 * height, 2 * width)
        doubles = output_size is None or tuple(output_size) == doubled
        is_own = type(convolution) is torch.nn.Conv2d
        if args or kwargs or not doubles or not is_own:
            plain: Tensor = super().forward(hidden_states, output_size, *args, **kwargs)
            return plain

        weight = phase_weights(convolution.weight)
        bias = convolution.bias
        if bias is not None:
            bias = bias.repeat(4)
        phases = conv2d(hidden_states, weight, bias, padding=1)
        return interleaved(phases)


def _convolution_of(upsampler: Any) -> Any:
    """The convolution of an upsampler, without a layer of peft whose adapters are off."""
    convolution = _own_convolution(upsampler)
    if getattr(convolution, "disable_adapters", False) and not convolution.merged:
        convolution = convolution.base_layer
    return convolution


def _own_convolution(upsampler: Any) -> Any:
    if upsampler.name == "conv":
        return upsampler.conv
    return upsampler.Conv2d_0


def phase_weights(weight: Tensor) -> Tensor:
    """The 2x2 kernels (4 * rows, columns, 2, 2) of a 3x3 one, `weight` (rows, columns, 3, 3).

    The phases come one after the other: (even, even), (even, odd), (odd, even), (odd, odd), where the
    row comes first. Taps 2r + a of `sums`, r being 0 and 1, are those of parity a: the windows of two
    over (0, first, middle, last, 0). Summed in float32 or wider, and rounded once to the weight's dtype.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    sums = avg_pool2d(
        wide,
        kernel_size=2,
        stride=1,
        padding=1,
        divisor_override=1,
    )
    rows, columns = weight.shape[:2]
    taps = sums.to(weight.dtype)
    taps = taps.view(rows, columns, 2, 2, 2, 2)  # (rows, columns, r, a, s, b)
    if weight.is_contiguous(memory_format=torch.channels_last):
        kernels = taps.permute(3, 5, 0, 2, 4, 1)
        return kernels.flatten(0, 2).permute(0, 3, 1, 2)
    kernels = taps.permute(3, 5, 0, 1, 2, 4)
    return kernels.flatten(0, 2)


def interleaved(phases: Tensor) -> Tensor:
    """The image (n, channels, 2h, 2w) of `phases` (n, 4 * channels, h + 1, w + 1), in their layout.

    Phase (a, b) has the answer's pixel (2i + a, 2j + b) at (i + a, j + b). All steps but the last are
    views, so one pass reads and writes each pixel once, and a compiler can join it with others.
    """
    # 1) For each phase, the windows that begin in its row or column 0 or 1
    n, _, height, width = phases.shape
    windows = phases.view(n, 2, 2, -1, height, width)  # (n, a, b, channels, h + 1, w + 1)
    windows = windows.unfold(4, height - 1, 1)  # (n, a, b, channels, row, w + 1, h)
    windows = windows.unfold(5, width - 1, 1)  # (n, a, b, channels, row, column, h, w)

    # 2) Row 1 for an odd row, column 1 for an odd column: (n, channels, h, w, a, b)
    image = windows.diagonal(0, 1, 4)
    image = image.diagonal(0, 1, 3)

    # 3) Pixels in the answer's order
    size = (2 * height - 2, 2 * width - 2)
    if phases.is_contiguous(memory_format=torch.channels_last):
        image = image.permute(0, 2, 4, 3, 5, 1)
        by_pixel = image.reshape(n, *size, -1).contiguous()
        return by_pixel.permute(0, 3, 1, 2)
    image = image.permute(0, 1, 2, 4, 3, 5)
    return image.reshape(n, -1, *size).contiguous()


def can_be_phased(module: Any) -> bool:
    """Whether `module` doubles an image and then reads it by a 3x3 convolution, padded by zeros."""
    if type(module) is not Upsample2D:
        return False
    doubles = module.interpolate and module.norm is None
    if not doubles or module.use_conv_transpose or not module.use_conv:
        return False
    return is_padded_3x3(_own_convolution(module))


def upsample_in_phases(*networks: torch.nn.Module) -> None:
    """Let the upsamplers of `networks` compute in phases. Raises UnfitModel if none of them can."""
    modules: list[Any] = []
    for network in networks:
        modules += [module for module in network.modules() if can_be_phased(module)]
    if not modules:
        raise UnfitModel(
            "recipe: 'phased-upsampling' knows upsamplers that double an image and read it by a "
            "padded 3x3 convolution, and this model has none; leave it out"
        )
    for module in modules:
        module.__class__ = PhasedUpsample2D
