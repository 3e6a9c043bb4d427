"""What each recipe does to the networks of a pipeline, and why it can't be done somewhere.

Knows torch's, diffusers' and torchao's switches. Ignorant of names, of what goes with what (recipes.py), and of
requests. A `no_...` says in words what is missing and what to do, or None where nothing is.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchlib.serving.model.models import ModelError, ask_hub


@dataclass
class Networks:
    """The UNet and the VAE that a wrapper computes with. A recipe changes or replaces them."""

    unet: Any
    vae: Any


def channels_last(networks: Networks) -> None:
    """Also between a transformer and what follows: diffusers' lays its answer out by channels again, which is undone
    by the next convolution."""
    for network in (networks.unet, networks.vae):
        network.to(memory_format=torch.channels_last)
    for module in networks.unet.modules():
        if isinstance(module, Transformer2DModel) and module.use_linear_projection:
            module.__class__ = _ChannelsLastTransformer


class _ChannelsLastTransformer(Transformer2DModel):  # type: ignore[misc] # diffusers is not typed
    """A transformer whose output is channels-last. A class, since a method hung on an instance is a reference cycle."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        height: int,
        width: int,
        **_: int,
    ) -> torch.Tensor:
        """Returns (n, channels, height, width): a row of tokens, pixel by pixel, is channels-last already."""
        tokens: torch.Tensor = self.proj_out(hidden_states)
        return tokens.view(len(tokens), height, width, -1).permute(0, 3, 1, 2) + residual


def fused_qkv(networks: Networks) -> None:
    """Q, K and V, also the stock's, become rows of the joined matrix, which so takes no memory of its own."""
    for network in (networks.unet, networks.vae):
        if not hasattr(network, "fuse_qkv_projections"):  # a tiny VAE has no attention
            continue
        network.fuse_qkv_projections()
        for one in network.modules():
            if getattr(one, "fused_projections", False):
                cross = one.is_cross_attention
                joined, parts = (one.to_kv, "kv") if cross else (one.to_qkv, "qkv")
                for name, whole in joined.named_parameters():
                    owners = [getattr(getattr(one, f"to_{part}"), name) for part in parts]
                    for owner, rows in zip(owners, whole.data.chunk(len(owners)), strict=True):
                        owner.data = rows


def hub_vae(kind: Any, hub_id: str, networks: Networks) -> None:
    try:
        folder = _cached(hub_id, local=True)
    except LocalEntryNotFoundError:
        folder = _cached(hub_id, local=False)
    networks.vae = kind.from_pretrained(folder, torch_dtype=networks.vae.dtype).to(
        networks.vae.device
    )


def _cached(hub_id: str, *, local: bool) -> str:
    """The folder of a VAE in the hub's cache, downloaded unless it is to be `local`."""
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    return snapshot_download(hub_id, allow_patterns=files, local_files_only=local)


def vae_bf16(networks: Networks) -> None:
    networks.vae = copy.deepcopy(networks.vae).bfloat16()


def vae_tiling(networks: Networks) -> None:
    """Tiles of half the model's own side: diffusers' default is the whole side, which tiles nothing at that size."""
    vae = networks.vae
    per_latent = vae.tile_sample_min_size // vae.tile_latent_min_size
    vae.enable_tiling()
    vae.tile_latent_min_size = networks.unet.config.sample_size // 2
    vae.tile_sample_min_size = vae.tile_latent_min_size * per_latent


def vae_slicing(networks: Networks) -> None:
    networks.vae.enable_slicing()


def attention(backend: SDPBackend, networks: Networks) -> None:
    """SDPA is told around the UNet alone: diffusers' own switch does not reach SDXL's processors, which call SDPA
    themselves. With one backend allowed, torch raises where it can't be used, and never takes another."""
    forward = networks.unet.forward

    @functools.wraps(forward)
    def within(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(backend):
            return forward(*args, **kwargs)

    networks.unet.forward = within


def quantise(config: Callable[[Any], Any], networks: Networks) -> None:
    """The linears of the transformer blocks, which do most of the work; inductor's flags stay ours (_FLAGS)."""
    import torchao.quantization as ao

    def worth_it(module: torch.nn.Module, name: str) -> bool:
        large = (
            isinstance(module, torch.nn.Linear)
            and min(module.in_features, module.out_features) >= 64
        )
        return large and "transformer_blocks" in name

    ao.quantize_(networks.unet, config(ao), filter_fn=worth_it)


def int8(ao: Any) -> Any:
    return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


def fp8(ao: Any) -> Any:
    """A scale for each row: it is found in the pass that makes the row, where one for all needs a pass of its own. An
    empty negative prompt is rows of zeros, whose scale would be 0, and 0 / 0 the image: hence the lower bound."""
    return ao.Float8DynamicActivationFloat8WeightConfig(
        granularity=ao.PerRow(), activation_value_lb=1e-6, set_inductor_config=False
    )


# Those of Hugging Face's diffusion-fast (github.com/huggingface/diffusion-fast); int8 products are not left in int32.
_FLAGS = {"conv_1x1_as_mm": True, "epilogue_fusion": False, "force_fuse_int_mm_with_mul": True}
TUNING = {"coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True}


_SHAPES = 1024  # most graphs of one function: layers' shapes times batches times image sizes; torch gives up after 8
_BLOCKS = (
    Transformer2DModel,
    ResnetBlock2D,
    Downsample2D,
    Upsample2D,
)  # nearly all of the work, and few kinds of them


def compiled(
    networks: Networks, more: dict[str, bool] | None = None, *, regional: bool = False
) -> None:
    """Anew for each shape: with shapes left open, inductor took over four minutes for the UNet on an H200. So that the
    decoder has one batch for all, it gets the images one by one, which at full size costs nothing."""
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, limit, max(_SHAPES, getattr(torch._dynamo.config, limit)))
    # diffusers asks for torch's version within a forward, and remembers the answer; it is the same each time.
    warnings.filterwarnings(
        "ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning
    )
    blocks = [module for module in networks.unet.modules() if isinstance(module, _BLOCKS)]
    for norm in networks.vae.decoder.modules():
        if isinstance(norm, torch.nn.GroupNorm):
            norm.__class__ = _ChannelwiseGroupNorm
    for module in [*(blocks if regional else [networks.unet]), networks.vae.decoder]:
        module.compile(dynamic=False, options=_FLAGS | (more or {}))
    networks.vae.enable_slicing()


class _ChannelwiseGroupNorm(torch.nn.GroupNorm):
    """A class, since a forward hung on an instance is a reference cycle."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch's own
        return _group_norm(self, input)


def _group_norm(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """GroupNorm of (n, channels, ...), its statistics taken of each channel and then joined (Chan, Golub and LeVeque,
    Algorithms for computing the sample variance, 1983). In channels-last a group's few channels lie scattered, and
    inductor reads them one by one; all channels of a pixel lie together: of an image of its own, as the decoder has,
    an H100 made it in 0.3 of the time, of the UNet's 32 rows in 1.0 to 1.2."""
    wide, groups = x.float(), (x.shape[0], norm.num_groups, -1)
    variances, means = (
        of.view(groups) for of in torch.var_mean(wide, tuple(range(2, x.dim())), correction=0)
    )
    mean = means.mean(2, keepdim=True)
    variance = variances.mean(2, keepdim=True) + (means - mean).square().mean(2, keepdim=True)

    def of_channels(values: torch.Tensor) -> torch.Tensor:
        return values.expand_as(means).reshape(x.shape[:2] + (1,) * (x.dim() - 2))

    made = (wide - of_channels(mean)) * of_channels((variance + norm.eps).rsqrt())
    if norm.weight is not None:
        made = made * of_channels(norm.weight.view(groups[1:])) + of_channels(
            norm.bias.view(groups[1:])
        )
    return made.to(x.dtype)


class _Tuned(torch.nn.Module):
    """A network within which cuDNN tries its kernels once for each shape. The switch is the process's, so it is set for
    as long as a call lasts."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            return self.network(*args, **kwargs)
        finally:
            torch.backends.cudnn.benchmark = before


class _Graphed(torch.nn.Module):
    """A UNet whose launches are recorded once for each shape as a CUDA graph, and then replayed by one launch
    (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs, 2021). The next call overwrites its answer."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self._pool: Any = None  # one graph runs at a time, so all may use the same memory
        self._recorded: dict[Any, tuple[Any, list[torch.Tensor], torch.Tensor]] = {}

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
        return_dict: bool,  # noqa: ARG002 - as the UNet's own
    ) -> tuple[torch.Tensor]:
        given = [latents, timesteps, encoder_hidden_states, *added_cond_kwargs.values()]
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(
                [tensor.clone() for tensor in given], list(added_cond_kwargs)
            )
        graph, places, made = self._recorded[shapes]
        for place, tensor in zip(places, given, strict=True):
            place.copy_(tensor)
        graph.replay()
        return (made,)

    def _record(
        self, places: list[torch.Tensor], names: list[str]
    ) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
        def call() -> torch.Tensor:
            latents, timesteps, text, *added = places
            conditions = dict(zip(names, added, strict=True))
            options = {
                "encoder_hidden_states": text,
                "added_cond_kwargs": conditions,
                "return_dict": False,
            }
            noise: torch.Tensor = self.network(latents, timesteps, **options)[0]
            return noise

        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call] # what is made ready at a first call can't be recorded
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            made = call()
        self._pool = graph.pool()
        torch._dynamo.utils.counters["benchlib"]["recorded"] += 1
        return graph, places, made


def tuned(networks: Networks) -> None:
    networks.unet, networks.vae.decoder = _Tuned(networks.unet), _Tuned(networks.vae.decoder)


def graphs(networks: Networks) -> None:
    networks.unet = _Graphed(networks.unet)


def graphs_made() -> int:
    """Graphs that torch has compiled in this process so far, and CUDA graphs that were recorded."""
    if "torch._dynamo.utils" not in sys.modules:  # whose import takes seconds
        return 0
    counters = torch._dynamo.utils.counters
    return int(counters["stats"]["unique_graphs"] + counters["benchlib"]["recorded"])


# -- and when they can't ----------------------------------------------------------------------------------------------


def no_bf16(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU has no bfloat16; leave it out for float16"
    return None


def no_vae_bf16(device: torch.device, dtype: str) -> str | None:
    return (
        "the VAE is in bfloat16 already; leave it out"
        if dtype == "bfloat16"
        else no_bf16(device, dtype)
    )


def no_fusing(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if not hasattr(UNet2DConditionModel, "fuse_qkv_projections"):
        return "this diffusers can't fuse projections; install diffusers 0.42"
    return None


def no_compiler(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """Whether inductor can compile is tried on one sum: it needs a C++ compiler, on CUDA also Triton."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        words = str(error).strip().splitlines()[0]
        return f"torch.compile does not work here ({words}); install a C++ compiler such as g++, or leave it out"
    return None


def no_cuda(what: str, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    return None if device.type == "cuda" else f"{what} a CUDA GPU; leave it out"


def no_hub_vae(hub_id: str, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    try:
        _cached(hub_id, local=True)
    except LocalEntryNotFoundError:
        try:
            ask_hub(hub_id)
        except ModelError as error:
            return str(error).removeprefix("model: ")
    return None


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all operators that run within."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def no_attention(
    backend: SDPBackend, operator: str, device: torch.device, dtype: str
) -> str | None:
    """Whether SDPA has this backend is tried with heads of SDXL's size, and what ran is looked at."""
    heads = torch.zeros(1, 1, 8, 64, device=device, dtype=getattr(torch, dtype))
    try:
        with sdpa_kernel(backend), _Operators() as ran:
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    except RuntimeError:
        return f"torch has no such attention for {dtype} on {device.type}; leave it out"
    return (
        None
        if any(operator in name for name in ran.names)
        else f"torch ran {ran.names} in its place; leave it out"
    )


def no_torchao(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed; pip install torchao, or leave it out"
    return None


def no_fp8(device: torch.device, dtype: str) -> str | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return (
            "fp8 needs a CUDA GPU of compute capability 8.9 or newer, such as an H100; leave it out"
        )
    if dtype != "bfloat16":
        return "its products come out in bfloat16; add 'bf16'"
    return no_torchao(device, dtype)
