"""Feed-forwards whose first product computes GELU and gate by itself (geglu_product.py).

The weights stay as they are, so all that reads, saves, fuses or swaps them goes on as before. A layer
that has an adapter by request on computes as it does without the recipe: its sums get the adapter's
share before the gate.

Knows diffusers' feed-forwards. Ignorant of Triton until the first call.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from torch import Tensor, library

from benchlib.serving.model.model_errors import UnfitModel

HALVES = (torch.bfloat16, torch.float16)  # of 16 bits


@library.custom_op(
    "benchlib::geglu_product",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor tokens, Tensor weight, Tensor bias) -> Tensor",
)
def geglu_product(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GEGLU (rows, width) of `tokens` (rows, depth); float32 sums, rounded once to their dtype.

    `weight` (2 * width, depth) and `bias` have the values first, and then the gates.
    """
    from benchlib.serving.model.geglu_product import geglu_product_into  # needs Triton

    gated = tokens.new_empty((len(tokens), len(weight) // 2))
    geglu_product_into(gated, tokens, weight, bias)
    return gated


@geglu_product.register_fake
def _gated_like(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return tokens.new_empty((len(tokens), len(weight) // 2))


class GatedFeedForward(FeedForward):  # type: ignore[misc] # diffusers is not typed
    """A feed-forward whose first product is `geglu_product`.

    The plain path computes where an adapter is on.
    """

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """`hidden_states` is (rows, tokens, features), and so is the answer."""
        answer = self.gated(hidden_states)
        for module in self.net[1:]:
            answer = module(answer)
        return answer

    def gated(self, hidden_states: Tensor) -> Tensor:
        """The first product of `hidden_states`, after GELU and gate: (rows, tokens, width)."""
        proj = plain_linear(self.net[0].proj)
        if proj is None:
            plain: Tensor = self.net[0](hidden_states)
            return plain
        gated: Tensor = geglu_product(hidden_states.flatten(0, -2), proj.weight, proj.bias)
        return gated.view(*hidden_states.shape[:-1], -1)


def plain_linear(layer: Any) -> torch.nn.Linear | None:
    """The linear layer that `layer` computes now: itself, or the base of an adapter that is off.

    None if an adapter is on, or if it is another layer.
    """
    if getattr(layer, "disable_adapters", False):
        layer = layer.base_layer
    return layer if type(layer) is torch.nn.Linear else None


def gate_in_products(unet: torch.nn.Module) -> None:
    """Let the feed-forwards of `unet` use the kernel.

    Raises UnfitModel if one of them can't; then all stay as they are.
    """
    modules: list[Any] = list(unet.modules())
    gated = []
    for module in modules:
        if type(module) is not FeedForward or type(module.net[0]) is not GEGLU:
            continue
        proj = module.net[0].proj
        columns, depth = proj.weight.shape
        fits = depth % 8 == 0 and columns % 16 == 0 and proj.bias is not None
        if not fits or proj.weight.dtype not in HALVES:
            raise UnfitModel(
                "recipe: 'geglu-product' computes feed-forwards in 16 bits, with a bias, whose "
                f"sides are multiples of 8, and not {proj}; leave it out"
            )
        gated.append(module)
    for module in gated:
        module.__class__ = GatedFeedForward
