"""Named optimisations of a pipeline, each a frozen value, to be joined: "channels-last+vae-tiling".

Knows torch's and diffusers' switches and when they can't be used. Ignorant of requests, and of whether an optimisation
pays: that is measured (benchlib/settings.py).
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode


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
    most. `start` says what it costs before the first image. `dtype` is the one it computes in, None for any. Of those
    that set the same thing, told by `sets`, a text names one.
    `why_not` tells from device and dtype why it can't be used there and what to do, or None where it can.
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
            raise ValueError(f"recipe: {self.name!r} computes in {self.dtype}, not in {dtype}; leave one of them out")
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


def _attention(backend: SDPBackend, networks: Networks) -> None:
    """SDPA is told around the UNet alone: diffusers' own switch does not reach SDXL's processors, which call SDPA
    themselves. With one backend allowed, torch raises where it can't be used, and never takes another."""
    forward = networks.unet.forward

    @functools.wraps(forward)
    def within(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(backend):
            return forward(*args, **kwargs)

    networks.unet.forward = within


def _quantise(config: Callable[[Any], Any], networks: Networks) -> None:
    """The linears of the transformer blocks, which do most of the work; inductor's flags stay ours (_FLAGS)."""
    import torchao.quantization as ao

    def worth_it(module: torch.nn.Module, name: str) -> bool:
        large = isinstance(module, torch.nn.Linear) and min(module.in_features, module.out_features) >= 64
        return large and "transformer_blocks" in name

    ao.quantize_(networks.unet, config(ao), filter_fn=worth_it)


def _int8(ao: Any) -> Any:
    return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


def _fp8(ao: Any) -> Any:
    """A scale for each row: it is found in the pass that makes the row, where one for all needs a pass of its own."""
    return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), set_inductor_config=False)


# Those of Hugging Face's diffusion-fast (github.com/huggingface/diffusion-fast); int8 products are not left in int32.
_FLAGS = {"conv_1x1_as_mm": True, "epilogue_fusion": False, "force_fuse_int_mm_with_mul": True}
_TUNING = {"coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True}


_SHAPES = 64  # most shapes (batches times image sizes) that a network is compiled for; torch gives up after 8


def _compile(networks: Networks, more: dict[str, bool] | None = None, *, regional: bool = False) -> None:
    """Anew for each shape: with shapes left open, inductor took over four minutes for the UNet on an H200. So that the
    decoder has one batch for all, it gets the images one by one, which at full size costs nothing."""
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    unet = networks.unet.compile_repeated_blocks if regional else networks.unet.compile
    unet(dynamic=False, options=_FLAGS | (more or {}))
    networks.vae.decoder.compile(dynamic=False, options=_FLAGS)
    networks.vae.enable_slicing()


def _compile_graphs(networks: Networks) -> None:
    """A graph is captured for each shape, too."""
    _compile(networks, {"triton.cudagraphs": True})


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


def _no_graphs(device: torch.device, dtype: str) -> str | None:
    return _no_compiler(device, dtype) if device.type == "cuda" else "CUDA graphs need a CUDA GPU; use 'compile'"


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all operators that run within."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def _no_attention(backend: SDPBackend, operator: str, device: torch.device, dtype: str) -> str | None:
    """Whether SDPA has this backend is tried with heads of SDXL's size, and what ran is looked at."""
    heads = torch.zeros(1, 1, 8, 64, device=device, dtype=getattr(torch, dtype))
    try:
        with sdpa_kernel(backend), _Operators() as ran:
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    except RuntimeError:
        return f"torch has no such attention for {dtype} on {device.type}; leave it out"
    return None if any(operator in name for name in ran.names) else f"torch ran {ran.names} in its place; leave it out"


def _no_torchao(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed; pip install torchao, or leave it out"
    return None


def _no_fp8(device: torch.device, dtype: str) -> str | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return "fp8 needs a CUDA GPU of compute capability 8.9 or newer, such as an H100; leave it out"
    if dtype != "bfloat16":
        return "its products come out in bfloat16; add 'bf16'"
    return _no_torchao(device, dtype)


def _sdpa(name: str, backend: SDPBackend, operator: str) -> Recipe:
    apply, why_not = functools.partial(_attention, backend), functools.partial(_no_attention, backend, operator)
    words = f"Attention by SDPA's {backend.name}."
    return Recipe(name, words, True, "Nothing.", apply, sets="attention backend", why_not=why_not)


def _compiler(name: str, changes: str, start: str, apply: Callable[[Networks], None]) -> Recipe:
    why_not = _no_graphs if apply is _compile_graphs else _no_compiler
    return Recipe(name, changes, True, start, apply, sets="compiler", why_not=why_not)


def _quantiser(name: str, config: Callable[[Any], Any], why_not: Callable[[torch.device, str], str | None]) -> Recipe:
    apply = functools.partial(_quantise, config)
    words = f"The UNet's linears multiply in {name}."
    return Recipe(name, words, False, "Seconds; slow unless compiled.", apply, sets="linears", why_not=why_not)


_ALL = (
    Recipe("baseline", "Nothing: diffusers as it comes.", True, "Nothing."),
    Recipe("fp32", "Computes in float32.", False, "Twice the memory of 16 bits.", dtype="float32", sets="dtype"),
    Recipe("bf16", "Computes in bfloat16.", False, "Nothing.", dtype="bfloat16", sets="dtype", why_not=_no_bf16),
    Recipe("channels-last", "Convolutions read pixel by pixel.", True, "A moment.", _channels_last),
    Recipe("fused-qkv", "Q, K and V in one product.", True, "A second copy of them.", _fused_qkv, why_not=_no_fusing),
    Recipe("vae-bf16", "Decodes in bfloat16.", False, "A second VAE.", _vae_bf16, why_not=_no_vae_bf16),
    Recipe("vae-tiling", "Decodes overlapping tiles and blends them.", False, "Nothing.", _vae_tiling),
    Recipe("vae-slicing", "Decodes a batch image by image.", True, "Nothing.", _vae_slicing),
    _sdpa("sdpa-flash", SDPBackend.FLASH_ATTENTION, "flash_attention"),
    _sdpa("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION, "cudnn_attention"),
    _sdpa("sdpa-efficient", SDPBackend.EFFICIENT_ATTENTION, "efficient_attention"),
    _quantiser("int8", _int8, _no_torchao),
    _quantiser("fp8", _fp8, _no_fp8),
    _compiler("compile", "Inductor compiles UNet and decoder.", "Minutes, once.", _compile),
    _compiler(
        "compile-tuned",
        "As compile, and each kernel's launch is tried out.",
        "Many minutes, once.",
        functools.partial(_compile, more=_TUNING),
    ),
    _compiler("compile-graphs", "As compile, the UNet's launches one CUDA graph.", "Minutes, once.", _compile_graphs),
    _compiler(
        "compile-regional",
        "Inductor compiles the transformer blocks, once for all alike, and the decoder.",
        "Half a minute for each shape.",
        functools.partial(_compile, regional=True),
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
"""By name, in the order in which they are applied: what compiles comes last."""

COMBINATIONS = {"fastest-exact": "bf16+channels-last+fused-qkv+compile-graphs"}
"""Names for several: what should be fastest and keeps bf16's image, and what may change it. Not measured yet."""
COMBINATIONS["fastest"] = COMBINATIONS["fastest-exact"] + "+fp8"
