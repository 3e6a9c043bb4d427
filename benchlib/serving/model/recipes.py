"""Named optimisations of a pipeline, each a frozen value, to be joined: "channels-last+vae-tiling".

Knows torch's and diffusers' switches and when they can't be used. Ignorant of requests, and of whether an optimisation
pays: that is measured (benchlib/settings.py).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline
from torch.nn.attention import SDPBackend

from benchlib.serving.model import optimisations as do
from benchlib.serving.model.optimisations import Networks


@dataclass(frozen=True)
class Recipe:
    """One optimisation.

    `exact`: same algorithm, weights and steps, and no format coarser than bfloat16, so that the image is as near to
    float32's as plain bfloat16's, by PSNR and but for 1 dB (measured for SDXL: `python -m benchmarks.gpu --table`).
    `start` says what it costs before the first image. `dtype` is the one it computes in, None for any. Of those that
    set the same thing, told by `sets`, a text names one. `why_not` tells from device and dtype why it can't be used
    there and what to do, or None where it can.
    """

    name: str
    changes: str
    exact: bool
    start: str
    apply: Callable[[Networks], None] | None = None
    dtype: str | None = None
    sets: str | None = None
    why_not: Callable[[torch.device, str], str | None] = lambda device, dtype: None  # noqa: ARG005

    def check(self, device: torch.device, dtype: str) -> None:
        """Raises ValueError that names the recipe and the fix where it can't be used."""
        if self.dtype not in (None, dtype):
            raise ValueError(
                f"recipe: {self.name!r} computes in {self.dtype}, not in {dtype}; leave one of them out"
            )
        if reason := self.why_not(device, dtype):
            raise ValueError(f"recipe: {self.name!r} can't be used: {reason}")


def parse_recipes(text: str) -> tuple[Recipe, ...]:
    """The recipes of a text such as "channels-last+vae-tiling", in the order in which they are applied.

    A name of COMBINATIONS stands for all of its recipes. Raises ValueError for a name that is not known, or is there
    twice, and for two that set the same thing.
    """
    asked = [name.strip() for name in text.split("+")]
    names = [name for one in asked for name in COMBINATIONS.get(one, one).split("+")]
    for name in names:
        if name not in RECIPES:
            known = ", ".join([*RECIPES, *COMBINATIONS])
            raise ValueError(f"recipe: {name!r} is not known; use {known}, or some joined with '+'")
        if names.count(name) > 1:
            raise ValueError(f"recipe: {name!r} is there twice; name it once")
    recipes = tuple(recipe for name, recipe in RECIPES.items() if name in names)
    for what in dict.fromkeys(recipe.sets for recipe in recipes if recipe.sets):
        if len(setting := [recipe.name for recipe in recipes if recipe.sets == what]) > 1:
            raise ValueError(f"recipe: {' and '.join(setting)} each set the {what}; keep one")
    return recipes


def apply_recipes(pipe: StableDiffusionXLPipeline, recipes: tuple[Recipe, ...]) -> Networks:
    """The networks of a stock pipeline with `recipes` applied, in the order of RECIPES.

    With a recipe that changes a network, both are modules of their own over the same tensors, so that the stock
    pipeline runs none of what is switched on. Shared all the same: "channels-last" lays the stock's weights out anew,
    and "fused-qkv" makes them parts of joined matrices; their values stay.
    """
    if not any(recipe.apply for recipe in recipes):
        return Networks(pipe.unet, pipe.vae)
    networks = Networks(_own(pipe.unet), _own(pipe.vae))
    for recipe in recipes:
        if recipe.apply:
            recipe.apply(networks)
    return networks


def _own(network: torch.nn.Module) -> torch.nn.Module:
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _sdpa(name: str, backend: SDPBackend, operator: str) -> Recipe:
    apply, why_not = partial(do.attention, backend), partial(do.no_attention, backend, operator)
    words = f"Attention by SDPA's {backend.name}."
    return Recipe(name, words, True, "Nothing.", apply, sets="attention backend", why_not=why_not)


def _compiler(name: str, changes: str, start: str, apply: Callable[[Networks], None]) -> Recipe:
    return Recipe(name, changes, True, start, apply, sets="compiler", why_not=do.no_compiler)


def _vae(name: str, changes: str, kind: Any, hub_id: str) -> Recipe:
    apply, why_not = partial(do.hub_vae, kind, hub_id), partial(do.no_hub_vae, hub_id)
    return Recipe(name, changes, False, "A download, once.", apply, sets="VAE", why_not=why_not)


def _quantiser(
    name: str, config: Callable[[Any], Any], why_not: Callable[[torch.device, str], str | None]
) -> Recipe:
    apply = partial(do.quantise, config)
    words = f"The UNet's linears multiply in {name}."
    return Recipe(
        name, words, False, "Seconds; slow unless compiled.", apply, sets="linears", why_not=why_not
    )


_ALL = (
    Recipe("baseline", "Nothing: diffusers as it comes.", True, "Nothing."),
    Recipe("fp32", "Computes in float32.", True, "Twice the memory of 16 bits.", dtype="float32", sets="dtype"),
    Recipe("bf16", "Computes in bfloat16.", True, "Nothing.", dtype="bfloat16", sets="dtype", why_not=do.no_bf16),
    Recipe("vae-bf16", "Decodes in bfloat16.", True, "A second VAE.", do.vae_bf16, sets="VAE", why_not=do.no_vae_bf16),
    _vae("vae-fp16-fix", "Decodes by a VAE that float16 suffices for.", AutoencoderKL, "madebyollin/sdxl-vae-fp16-fix"),
    _vae("tiny-vae", "Decodes by a small VAE (TAESDXL).", AutoencoderTiny, "madebyollin/taesdxl"),
    Recipe("channels-last", "Convolutions read pixel by pixel.", True, "A moment.", do.channels_last),
    Recipe("fused-qkv", "Q, K and V in one product.", True, "A moment.", do.fused_qkv, why_not=do.no_fusing),
    Recipe("vae-tiling", "Decodes overlapping tiles and blends them.", False, "Nothing.", do.vae_tiling),
    Recipe("vae-slicing", "Decodes a batch image by image.", True, "Nothing.", do.vae_slicing),
    _sdpa("sdpa-flash", SDPBackend.FLASH_ATTENTION, "flash_attention"),
    _sdpa("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION, "cudnn_attention"),
    _sdpa("sdpa-efficient", SDPBackend.EFFICIENT_ATTENTION, "efficient_attention"),
    _quantiser("int8", do.int8, do.no_torchao),
    _quantiser("fp8", do.fp8, do.no_fp8),
    _compiler("compile", "Inductor compiles UNet and decoder.", "Minutes, once.", do.compiled),
    _compiler(
        "compile-tuned",
        "As compile, and each kernel's launch is tried out.",
        "Many minutes, once.",
        partial(do.compiled, more=do.TUNING),
    ),
    _compiler(
        "compile-regional",
        "Inductor compiles the UNet's blocks, once for all alike, and the decoder.",
        "A minute or two for each shape.",
        partial(do.compiled, regional=True),
    ),
    Recipe(
        "cudnn-tuned", "cuDNN's convolutions are tried out, and the fastest taken.", True, "Seconds for each shape.",
        do.tuned, sets="cuDNN", why_not=partial(do.no_cuda, "cuDNN needs"),
    ),
    Recipe(
        "cuda-graphs", "The UNet's launches are one CUDA graph.", True, "Seconds, and memory, for each shape.",
        do.graphs, sets="launches", why_not=partial(do.no_cuda, "CUDA graphs need"),
    ),
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in _ALL}
"""By name, in the order in which they are applied: another VAE first; what compiles and what records it last."""

COMBINATIONS = {
    "fastest-exact": "bf16+channels-last+fused-qkv+compile-regional+cudnn-tuned+cuda-graphs"
}
"""Names for several: the fastest that keeps bf16's image, and the fastest that may change it."""
COMBINATIONS["fastest"] = COMBINATIONS["fastest-exact"] + "+fp8"
