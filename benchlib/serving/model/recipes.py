"""Recipes: named optimisations of a pipeline, joined as in "channels-last+vae-tiling".

Knows the name of each optimisation, its cost, and which recipes exclude each other. Ignorant of
requests, of how an optimisation works (optimisations.py), and of whether it pays
(benchlib/questions/settings measures that).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline

from benchlib.serving.model import optimisations
from benchlib.serving.model.model_errors import UnfitModel
from benchlib.serving.model.optimisations import Networks


def _never(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """The `why_not` of a recipe that works everywhere."""
    return None


@dataclass(frozen=True)
class Recipe:
    """One optimisation.

    `exact`: same algorithm, weights and steps, and no format coarser than bfloat16. Measured for
    SDXL, its image is as near to float32's image as plain bfloat16's is, within 1 dB of PSNR
    (`python -m benchmarks.gpu --table`).
    `changes`: what it does, in a sentence.
    `start`: its cost before the first image.
    `apply`: changes the networks; None if the dtype alone changes.
    `dtype`: the dtype that it computes in; None for any.
    `sets`: the thing that it sets; two recipes that set one thing exclude each other.
    `why_not`: given a device and dtype, returns why it can't be used there and the remedy, or None.
    `unasked`: a combination added it, so a model that it does not fit goes without it.
    """

    name: str
    changes: str
    exact: bool
    start: str
    apply: Callable[[Networks], None] | None = None
    dtype: str | None = None
    sets: str | None = None
    why_not: Callable[[torch.device, str], str | None] = _never
    unasked: bool = False

    def check(self, device: torch.device, dtype: str) -> None:
        """Raises ValueError, with the recipe and the remedy, if the recipe can't be used."""
        if self.dtype not in (None, dtype):
            raise ValueError(
                f"recipe: {self.name!r} computes in {self.dtype}, not in {dtype}; "
                "leave out the recipe or the dtype"
            )
        reason = self.why_not(device, dtype)
        if reason is not None:
            raise ValueError(f"recipe: {self.name!r} can't be used: {reason}")


def parse_recipes(text: str) -> tuple[Recipe, ...]:
    """The recipes of a text such as "channels-last+vae-tiling", in the order of application.

    A name of COMBINATIONS stands for all of its recipes. Raises ValueError for an unknown name, for
    a name given twice, and for two recipes that set the same thing.
    """
    # 1) Write out the combinations
    names: list[str] = []
    for part in text.split("+"):
        name = part.strip()
        names += COMBINATIONS.get(name, name).split("+")

    # 2) Check each name
    for name in names:
        if name not in RECIPES:
            names_to_use = ", ".join([*RECIPES, *COMBINATIONS])
            raise ValueError(
                f"recipe: {name!r} is not known; use {names_to_use}, or some joined with '+'"
            )
        if names.count(name) > 1:
            raise ValueError(f"recipe: {name!r} is there twice; name it once")

    # 3) Check that they go together
    recipes = tuple(recipe for name, recipe in RECIPES.items() if name in names)
    for recipe in recipes:
        rivals = [other.name for other in recipes if other.sets == recipe.sets]
        if recipe.sets is not None and len(rivals) > 1:
            raise ValueError(f"recipe: {' and '.join(rivals)} each set the {recipe.sets}; keep one")
    return recipes


def apply_recipes(
    pipe: StableDiffusionXLPipeline, recipes: tuple[Recipe, ...], *, apart: bool = False
) -> Networks:
    """The networks of a stock pipeline with `recipes` applied, in the order of RECIPES.

    If a recipe changes a network, or `apart` asks for it, both networks are separate modules over
    the stock's tensors. So the stock pipeline runs nothing that a recipe switches on. Two recipes
    change how the stock's tensors are stored, but not their values: "channels-last" changes the
    layout of the weights, and "fused-qkv" makes them parts of joined matrices.

    Raises ValueError, with the remedy, for a recipe that does not fit the model. One that is
    `unasked` is left out instead, and named in `left_out`.
    """
    if not apart and not any(recipe.apply for recipe in recipes):
        return Networks(pipe.unet, pipe.vae)
    networks = Networks(same_tensors(pipe.unet), same_tensors(pipe.vae))
    for recipe in recipes:
        if recipe.apply is None:
            continue
        try:
            recipe.apply(networks)
        except UnfitModel:
            if not recipe.unasked:
                raise
            networks.left_out.append(recipe.name)
    return networks


def same_tensors(network: torch.nn.Module) -> torch.nn.Module:
    """A copy of `network` that shares its tensors."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


_FP16_FIX = "madebyollin/sdxl-vae-fp16-fix"
_TAESDXL = "madebyollin/taesdxl"

_ALL = (
    Recipe(
        name="baseline",
        changes="Nothing: diffusers as it comes.",
        exact=True,
        start="Nothing.",
    ),
    Recipe(
        name="fp32",
        changes="Computes in float32.",
        exact=True,
        start="Twice the memory of 16 bits.",
        dtype="float32",
        sets="dtype",
    ),
    Recipe(
        name="bf16",
        changes="Computes in bfloat16.",
        exact=True,
        start="Nothing.",
        dtype="bfloat16",
        sets="dtype",
        why_not=optimisations.no_bf16,
    ),
    Recipe(
        name="vae-bf16",
        changes="Decodes in bfloat16.",
        exact=True,
        start="A second VAE.",
        apply=optimisations.vae_bf16,
        sets="VAE",
        why_not=optimisations.no_vae_bf16,
    ),
    Recipe(
        name="vae-fp16-fix",
        changes="Decodes by a VAE that works in float16.",
        exact=False,
        start="A download, once.",
        apply=partial(optimisations.hub_vae, AutoencoderKL, _FP16_FIX),
        sets="VAE",
        why_not=partial(optimisations.no_hub_vae, _FP16_FIX),
    ),
    Recipe(
        name="tiny-vae",
        changes="Decodes by a small VAE (TAESDXL).",
        exact=False,
        start="A download, once.",
        apply=partial(optimisations.hub_vae, AutoencoderTiny, _TAESDXL),
        sets="VAE",
        why_not=partial(optimisations.no_hub_vae, _TAESDXL),
    ),
    Recipe(
        name="channels-last",
        changes="Convolutions read pixel by pixel.",
        exact=True,
        start="A moment.",
        apply=optimisations.channels_last,
    ),
    Recipe(
        name="fused-qkv",
        changes="Q, K and V in one product.",
        exact=True,
        start="A moment.",
        apply=optimisations.fused_qkv,
        why_not=optimisations.no_fusing,
    ),
    Recipe(
        name="vae-tiling",
        changes="Decodes overlapping tiles and blends them.",
        exact=False,
        start="Nothing.",
        apply=optimisations.vae_tiling,
    ),
    Recipe(
        name="vae-slicing",
        changes="Decodes a batch image by image.",
        exact=True,
        start="Nothing.",
        apply=optimisations.vae_slicing,
    ),
    Recipe(
        name="sdpa-cudnn",
        changes="Attention by SDPA's CUDNN_ATTENTION.",
        exact=True,
        start="Nothing.",
        apply=optimisations.cudnn_attention,
        why_not=optimisations.no_cudnn_attention,
    ),
    Recipe(
        name="int8",
        changes="The UNet's linears multiply in int8.",
        exact=False,
        start="Seconds; slow unless compiled.",
        apply=partial(optimisations.quantise, optimisations.int8),
        sets="linears",
        why_not=optimisations.no_torchao,
    ),
    Recipe(
        name="fp8",
        changes="The UNet's linears multiply in fp8.",
        exact=False,
        start="Seconds; slow unless compiled.",
        apply=partial(optimisations.quantise, optimisations.fp8),
        sets="linears",
        why_not=optimisations.no_fp8,
    ),
    Recipe(
        name="fp8-geglu",
        changes="One kernel computes the feed-forwards' GELU and gate, and rounds them to fp8.",
        exact=False,
        start="A second.",
        apply=optimisations.fp8_geglu,
        sets="kernels between products",
        why_not=optimisations.no_fp8_geglu,
    ),
    Recipe(
        name="fp8-rows",
        changes="Kernels of ours add, norm, gate and round all that lies between products in fp8.",
        exact=False,
        start="A second.",
        apply=optimisations.fp8_rows,
        sets="kernels between products",
        why_not=optimisations.no_fp8_geglu,
    ),
    Recipe(
        name="geglu-product",
        changes="The feed-forwards' first product computes GELU and gate by itself, in 16 bits.",
        exact=True,
        start="Seconds.",
        apply=optimisations.geglu_product_kernel,
        sets="linears",
        why_not=optimisations.no_geglu_product,
    ),
    Recipe(
        name="norm-rows",
        changes="A kernel adds residuals and norms rows of the UNet in one pass, in 16 bits.",
        exact=True,
        start="Seconds.",
        apply=optimisations.norm_rows_kernel,
        sets="kernels between products",
        why_not=optimisations.no_norm_rows,
    ),
    Recipe(
        name="summed-products",
        changes="With norm-rows: the UNet's products that end with a residual add to it in place.",
        exact=True,
        start="Nothing.",
        apply=optimisations.summed_products,
        why_not=optimisations.no_norm_rows,
    ),
    Recipe(
        name="text-attention",
        changes="A kernel computes the UNet's attention to the text, in 16 bits.",
        exact=True,
        start="Seconds.",
        apply=optimisations.text_attention_kernel,
        why_not=optimisations.no_norm_rows,
    ),
    Recipe(
        name="decoder-products",
        changes="The VAE's attention by plain products: its one head is too wide for flash kernels.",
        exact=True,
        start="Nothing.",
        apply=optimisations.decoder_products,
        why_not=optimisations.no_decoder_products,
    ),
    Recipe(
        name="fp8-convolutions",
        changes="The 3x3 convolutions of the UNet's residual blocks multiply in fp8.",
        exact=False,
        start="A second; slow unless compiled and in channels-last.",
        apply=optimisations.fp8_convolutions,
        sets="convolutions",
        why_not=optimisations.no_fp8_convolutions,
    ),
    Recipe(
        name="phased-upsampling",
        changes="Upsamplers compute on the small image: 16 products a pixel where there were 36.",
        exact=True,
        start="Nothing; each call sums weights anew, into at most 52 MB in 16 bits.",
        apply=optimisations.phased_upsampling,
    ),
    Recipe(
        name="compile",
        changes="Inductor compiles UNet and decoder.",
        exact=True,
        start="Minutes, once.",
        apply=optimisations.compiled,
        sets="compiler",
        why_not=optimisations.no_compiler,
    ),
    Recipe(
        name="compile-regional",
        changes="Inductor compiles the decoder and the UNet's blocks, once for all like blocks.",
        exact=True,
        start="A minute or two for each shape.",
        apply=partial(optimisations.compiled, regions=optimisations.TRANSFORMERS),
        sets="compiler",
        why_not=optimisations.no_compiler,
    ),
    Recipe(
        name="compile-blocks",
        changes="As compile-regional, in smaller parts: each block of a transformer by itself.",
        exact=True,
        start="A minute or two for each shape; less in a second start.",
        apply=partial(optimisations.compiled, regions=optimisations.BLOCKS),
        sets="compiler",
        why_not=optimisations.no_compiler,
    ),
    Recipe(
        name="cudnn-tuned",
        changes="cuDNN tries out its convolutions and takes the fastest.",
        exact=True,
        start="Seconds for each shape. Each process may choose others, so a seed's bytes may differ.",
        apply=optimisations.tuned,
        sets="cuDNN",
        why_not=partial(optimisations.no_cuda, "cuDNN needs"),
    ),
    Recipe(
        name="text-once",
        changes="Keys and values of the text are computed once for a batch, not in each step.",
        exact=True,
        start="13 MiB for each row of the UNet.",
        apply=optimisations.text_once,
    ),
    Recipe(
        name="text-graphs",
        changes="The text encoders' launches are CUDA graphs.",
        exact=True,
        start="A moment for each number of prompts.",
        apply=optimisations.text_graphs,
        why_not=partial(optimisations.no_cuda, "CUDA graphs need"),
    ),
    Recipe(
        name="cuda-graphs",
        changes="The UNet's launches are one CUDA graph.",
        exact=True,
        start="Seconds, and memory, for each shape.",
        apply=optimisations.graphs,
        sets="launches",
        why_not=partial(optimisations.no_cuda, "CUDA graphs need"),
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
"""By name, in the order of application: another VAE first, compiling and recording last."""

_FASTEST_EXACT = "bf16+channels-last+fused-qkv+compile-regional+text-graphs+cuda-graphs"
COMBINATIONS = {
    "fastest-exact": _FASTEST_EXACT,
    "fastest": f"{_FASTEST_EXACT}+fp8",
}
"""Joined recipes: the fastest that keeps bf16's image, and the fastest that may change it."""

_BOTH_HAVE = ("decoder-products", "phased-upsampling", "text-attention", "text-once")
EXTRAS = {
    "fastest-exact": ("geglu-product", "norm-rows", "summed-products", *_BOTH_HAVE),
    "fastest": ("fp8-rows", "fp8-convolutions", *_BOTH_HAVE),
}
"""What a combination has besides on a machine that can do all of it, as they were measured together."""


def with_extras(
    text: str, recipes: tuple[Recipe, ...], device: torch.device, dtype: str
) -> tuple[Recipe, ...]:
    """The recipes of `text`, with the extras of its combination if all of them can be used.

    Without them where the device or dtype lacks what one needs, or another recipe excludes one. An
    extra that `text` names, too, excludes none. The others are `unasked`.
    """
    chosen = {recipe.name: recipe for recipe in recipes}
    for part in text.split("+"):
        names = EXTRAS.get(part.strip(), ())
        extras = [RECIPES[name] for name in names]
        taken = {recipe.sets for recipe in recipes if recipe.name not in names} - {None}
        are_free = all(extra.sets not in taken for extra in extras)
        if are_free and all(extra.why_not(device, dtype) is None for extra in extras):
            unasked = {extra.name: replace(extra, unasked=True) for extra in extras}
            chosen = unasked | chosen
    return tuple(chosen[name] for name in RECIPES if name in chosen)
