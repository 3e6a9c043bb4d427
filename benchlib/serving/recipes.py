"""Named optimisations of a pipeline, each a frozen value, to be joined: "channels-last+vae-tiling".

Knows torch's and diffusers' switches and when they can't be used. Ignorant of requests, and of whether an optimisation
pays: that is measured (benchlib/settings.py).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel


@dataclass
class Networks:
    """The UNet and the VAE that a wrapper computes with. A recipe changes or replaces them."""

    unet: Any
    vae: Any

    @classmethod
    def of(cls, pipe: StableDiffusionXLPipeline, recipes: tuple[Recipe, ...]) -> Networks:
        """Those of a stock pipeline with `recipes` applied, in the order of RECIPES.

        With a recipe that changes a network, both are modules of their own over the same tensors, so that the stock
        pipeline runs none of what is switched on. Shared all the same: "channels-last" lays the stock's weights out
        anew (their values stay), and "fused-qkv" adds its matrices to those that the stock keeps.
        """
        if not any(recipe.apply for recipe in recipes):
            return cls(pipe.unet, pipe.vae)
        networks = cls(_own(pipe.unet), _own(pipe.vae))
        for recipe in recipes:
            if recipe.apply:
                recipe.apply(networks)
        return networks


def _own(network: torch.nn.Module) -> torch.nn.Module:
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


@dataclass(frozen=True)
class Recipe:
    """One optimisation.

    `exact`: same algorithm, steps and number format as the baseline's, so that the image differs by the order of sums
    at most. `start` says what it costs before the first image. `dtype` is the one it computes in, None for any.
    `why_not` tells from device and dtype why it can't be used there and what to do, or None where it can.
    """

    name: str
    changes: str
    exact: bool
    start: str
    apply: Callable[[Networks], None] | None = None
    dtype: str | None = None
    why_not: Callable[[torch.device, str], str | None] = lambda device, dtype: None  # noqa: ARG005

    def check(self, device: torch.device, dtype: str) -> None:
        """Raises ValueError that names the recipe and the fix where it can't be used."""
        if self.dtype not in (None, dtype):
            raise ValueError(f"recipe: {self.name!r} computes in {self.dtype}, not in {dtype}; leave one of them out")
        if reason := self.why_not(device, dtype):
            raise ValueError(f"recipe: {self.name!r} can't be used: {reason}")


def parse_recipes(text: str) -> tuple[Recipe, ...]:
    """The recipes of a text such as "channels-last+vae-tiling", in the order in which they are applied.

    Raises ValueError for a name that is not known, or is there twice, and for two that set the dtype.
    """
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if name not in RECIPES:
            raise ValueError(f"recipe: {name!r} is not known; use {', '.join(RECIPES)}, or some joined with '+'")
        if names.count(name) > 1:
            raise ValueError(f"recipe: {name!r} is there twice; name it once")
    recipes = tuple(recipe for name, recipe in RECIPES.items() if name in names)
    if len(setting := [recipe.name for recipe in recipes if recipe.dtype]) > 1:
        raise ValueError(f"recipe: {' and '.join(setting)} each set the dtype; keep one")
    return recipes


# -- what they do -----------------------------------------------------------------------------------------------------


def _channels_last(networks: Networks) -> None:
    for network in (networks.unet, networks.vae):
        network.to(memory_format=torch.channels_last)


def _fused_qkv(networks: Networks) -> None:
    networks.unet.fuse_qkv_projections()
    networks.vae.fuse_qkv_projections()


def _vae_bf16(networks: Networks) -> None:
    networks.vae = copy.deepcopy(networks.vae).bfloat16()


def _vae_tiling(networks: Networks) -> None:
    """Tiles of half the model's own side: diffusers' default is the whole side, which tiles nothing at that size."""
    vae, per_latent = networks.vae, 2 ** (len(networks.vae.config.block_out_channels) - 1)
    vae.enable_tiling()
    vae.tile_latent_min_size = networks.unet.config.sample_size // 2
    vae.tile_sample_min_size = vae.tile_latent_min_size * per_latent


def _vae_slicing(networks: Networks) -> None:
    networks.vae.enable_slicing()


def _compile(networks: Networks) -> None:
    """Batch and image size vary, so shapes are dynamic; a batch of one row is a case of its own to torch."""
    networks.unet.compile(dynamic=True)
    networks.vae.decoder.compile(dynamic=True)


# -- and when they can't ----------------------------------------------------------------------------------------------


def _no_bf16(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU has no bfloat16; leave it out for float16"
    return None


def _no_vae_bf16(device: torch.device, dtype: str) -> str | None:
    return "the VAE is in bfloat16 already; leave it out" if dtype == "bfloat16" else _no_bf16(device, dtype)


def _no_fusing(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if not hasattr(UNet2DConditionModel, "fuse_qkv_projections"):
        return "this diffusers can't fuse projections; install diffusers 0.42"
    return None


def _no_compiler(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """Whether inductor can compile is tried on one sum: it needs a C++ compiler, on CUDA also Triton."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        words = str(error).strip().splitlines()[0]
        return f"torch.compile does not work here ({words}); install a C++ compiler such as g++, or leave it out"
    return None


_ALL = (
    Recipe("baseline", "Nothing: diffusers as it comes.", True, "Nothing."),
    Recipe("fp32", "Computes in float32.", False, "Twice the memory of 16 bits.", dtype="float32"),
    Recipe("bf16", "Computes in bfloat16.", False, "Nothing.", dtype="bfloat16", why_not=_no_bf16),
    Recipe("channels-last", "Convolutions read pixel by pixel.", True, "A moment.", _channels_last),
    Recipe("fused-qkv", "Q, K and V in one product.", True, "A second copy of them.", _fused_qkv, why_not=_no_fusing),
    Recipe("vae-bf16", "Decodes in bfloat16.", False, "A second VAE.", _vae_bf16, why_not=_no_vae_bf16),
    Recipe("vae-tiling", "Decodes overlapping tiles and blends them.", False, "Nothing.", _vae_tiling),
    Recipe("vae-slicing", "Decodes a batch image by image.", True, "Nothing.", _vae_slicing),
    Recipe("compile", "Inductor compiles UNet and decoder.", True, "Minutes, once.", _compile, why_not=_no_compiler),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
"""By name, in the order in which they are applied: what compiles comes last."""
