"""One place in a network for adapters in turn: a switch overwrites weights, and changes no module.

So a compiled network is not compiled again, and the addresses that a CUDA graph has recorded stay.
The place is an adapter of peft with each layer that any adapter changes, of the highest rank there.
A lower rank is filled up with zeros, and no adapter is zeros, at the time of an adapter. Knows
peft's layers. Ignorant of files and of compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from benchlib.serving.model.lora_files import LoraWeights
from benchlib.serving.model.model_errors import ModelError

SLOT = "slot"

Load = Callable[[LoraWeights, str], object]
Pair = tuple[Tensor, Tensor]  # the two matrices of a layer, down and up


class AdapterSlot:
    """The slot of the network `unet`, which gets peft's layers. It begins with no adapter.

    `copy_with` returns a copy of the stock's network with an adapter, and `load` adds an adapter to
    `unet` itself, both as a stock loader does. Raises `ModelError` for a DoRA, and for a bias.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        adapters: Sequence[LoraWeights],
        keys: Sequence[str],
        *,
        copy_with: Callable[[LoraWeights, str], torch.nn.Module],
        load: Load,
    ) -> None:
        # 1) The adapters' own matrices, with their factors multiplied in
        pairs = {}
        for adapter, key in zip(adapters, keys, strict=True):
            pairs[key] = _pairs(copy_with(adapter, key), adapter, key)

        # 2) A slot that holds any of them
        ranks: dict[str, int] = {}
        largest: dict[str, Pair] = {}
        for own in pairs.values():
            for name, (down, up) in own.items():
                if len(down) > ranks.get(name, 0):
                    ranks[name] = len(down)
                    largest[name] = (down, up)
        tensors = {}
        for name, (down, up) in largest.items():
            tensors[f"unet.{name}.lora_A.weight"] = torch.zeros_like(down)
            tensors[f"unet.{name}.lora_B.weight"] = torch.zeros_like(up)
        load(LoraWeights(SLOT, SLOT, tensors), SLOT)
        unet.requires_grad_(False)

        # 3) What each adapter writes into it
        layers = dict(unet.named_modules())
        names = list(largest)
        self._downs = [_weight(layers[name].lora_A) for name in names]
        self._ups = [_weight(layers[name].lora_B) for name in names]
        self._written = {}
        for key, own in pairs.items():
            filled = [_filled(own.get(name), largest[name]) for name in names]
            downs = [down.to(place) for (down, _), place in zip(filled, self._downs, strict=True)]
            ups = [up.to(place) for (_, up), place in zip(filled, self._ups, strict=True)]
            self._written[key] = (downs, ups)

    def switch(self, key: str | None, scale: float) -> None:
        """Write the adapter `key` with its scale into the slot; zeros if it is None."""
        if key is None or key not in self._written:
            torch._foreach_zero_(self._ups)
            return
        downs, ups = self._written[key]
        torch._foreach_copy_(self._downs, downs)
        torch._foreach_copy_(self._ups, torch._foreach_mul(ups, scale))


def _pairs(network: torch.nn.Module, adapter: LoraWeights, key: str) -> dict[str, Pair]:
    """The matrices of each layer that an adapter changes, with its factor in the second one."""
    pairs = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        parts: Any = layer
        if key in parts.lora_magnitude_vector:
            raise ModelError(
                f"loras: {adapter.name}: {adapter.source} is a DoRA, which a compiled or recorded "
                f"UNet can't swap; fuse it (fuse={adapter.name!r})"
            )
        if parts.lora_B[key].bias is not None:
            raise ModelError(
                f"loras: {adapter.name}: {adapter.source} adds a bias, which a compiled or recorded "
                "UNet can't swap; leave the recipe out"
            )
        down = parts.lora_A[key].weight.detach()
        up = parts.lora_B[key].weight.detach() * parts.scaling[key]
        pairs[name] = (down, up)
    return pairs


def _weight(matrices: Any) -> Tensor:
    weight: Tensor = matrices[SLOT].weight
    return weight


def _filled(own: Pair | None, largest: Pair) -> Pair:
    """The matrices of a layer, with zeros up to the highest rank."""
    down = torch.zeros_like(largest[0])
    up = torch.zeros_like(largest[1])
    if own is not None:
        rank = len(own[0])
        down[:rank] = own[0]
        up[:, :rank] = own[1]
    return down, up
