"""The effect of each recipe on a pipeline's networks, and the reasons why one can't be used.

Knows torch's, diffusers' and torchao's switches. Ignorant of the recipes' names, of which recipes
go together (recipes.py), and of requests. A function named `no_...` returns what is missing and
what to do, or None.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchlib.serving.model.compiled_edges import join_in_resnets, norm_and_activate_at_once
from benchlib.serving.model.compiler_reports import leave_out_reports
from benchlib.serving.model.convolutions_fp8 import use_in_resnets
from benchlib.serving.model.decoder_attention import multiply_in_attention, product
from benchlib.serving.model.kept_artefacts import ARTEFACTS
from benchlib.serving.model.memory import own_memory
from benchlib.serving.model.models import ModelError, ask_hub
from benchlib.serving.model.recorded import RecordedUNet, Recorder
from benchlib.serving.model.text_once import read_texts_once


@dataclass
class Networks:
    """The UNet and the VAE that a pipeline computes with. A recipe changes or replaces them."""

    unet: Any
    vae: Any
    records_texts: bool = False  # whether the text encoders are to be CUDA graphs
    recorder: Recorder = field(default_factory=Recorder)  # of all CUDA graphs
    left_out: list[str] = field(default_factory=list)  # recipes that do not fit the model


# -- layouts, projections and attention ------------------------------------------------------------


def channels_last(networks: Networks) -> None:
    """Lay out weights and activations in channels-last.

    diffusers' transformer returns channels-first output, which the next convolution would convert
    back.
    """
    for network in (networks.unet, networks.vae):
        network.to(memory_format=torch.channels_last)
    for module in networks.unet.modules():
        if isinstance(module, Transformer2DModel) and module.use_linear_projection:
            module.__class__ = _ChannelsLastTransformer


class _ChannelsLastTransformer(Transformer2DModel):  # type: ignore[misc] # diffusers is not typed
    """A transformer whose output is channels-last.

    It is a class, because a method set on an instance would be a reference cycle.
    """

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        height: int,
        width: int,
        **_: int,
    ) -> Tensor:
        """Returns (n, channels, height, width). Tokens in pixel order are channels-last already."""
        tokens: Tensor = self.proj_out(hidden_states)
        image = tokens.view(len(tokens), height, width, -1)
        return image.permute(0, 3, 1, 2) + residual


def fused_qkv(networks: Networks) -> None:
    """Compute Q, K and V in one product.

    The single matrices become rows of the joined matrix, so memory stays the same.
    """
    for network in (networks.unet, networks.vae):
        if not hasattr(network, "fuse_qkv_projections"):  # a tiny VAE has no attention
            continue
        network.fuse_qkv_projections()
        for module in network.modules():
            if getattr(module, "fused_projections", False):
                _share_rows(module)


def _share_rows(attention: Any) -> None:
    """Make the weights of the single projections views of the joined projection's rows."""
    if attention.is_cross_attention:
        joined = attention.to_kv
        parts = [attention.to_k, attention.to_v]
    else:
        joined = attention.to_qkv
        parts = [attention.to_q, attention.to_k, attention.to_v]
    for name, whole in joined.named_parameters():
        pieces = whole.data.chunk(len(parts))
        for part, piece in zip(parts, pieces, strict=True):
            getattr(part, name).data = piece


class _CudnnAttention(torch.nn.Module):
    """A UNet whose attention is cuDNN's.

    diffusers' own switch does not reach SDXL's processors, which call SDPA themselves. torch raises
    an error if cuDNN's attention can't be used.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return self.network(*args, **kwargs)


def cudnn_attention(networks: Networks) -> None:
    """Compute the UNet's attention with cuDNN."""
    networks.unet = _CudnnAttention(networks.unet)


# -- VAEs ------------------------------------------------------------------------------------------


def hub_vae(kind: Any, hub_id: str, networks: Networks) -> None:
    """Take a VAE of class `kind` from the hub's cache, or download it."""
    try:
        folder = _cached(hub_id, local=True)
    except LocalEntryNotFoundError:
        folder = _cached(hub_id, local=False)
    former = networks.vae
    vae = kind.from_pretrained(folder, torch_dtype=former.dtype)
    levels = len(former.config.block_out_channels)
    if len(vae.config.block_out_channels) != levels:
        raise ValueError(
            f"recipe: {hub_id} has another scale than this model's VAE of {levels} levels; "
            "leave it out"
        )
    own_memory(vae)
    networks.vae = vae.to(former.device)


def _cached(hub_id: str, *, local: bool) -> str:
    """The folder of a VAE in the hub's cache.

    Downloads it unless `local`; with `local`, raises LocalEntryNotFoundError if it is missing.
    """
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    return snapshot_download(hub_id, allow_patterns=files, local_files_only=local)


def vae_bf16(networks: Networks) -> None:
    """Decode with a copy of the VAE in bfloat16."""
    networks.vae = copy.deepcopy(networks.vae).bfloat16()


def vae_tiling(networks: Networks) -> None:
    """Decode in tiles of half the model's own side.

    diffusers' default tile has the whole side, which would tile nothing.
    """
    vae = networks.vae
    pixels_per_latent = vae.tile_sample_min_size // vae.tile_latent_min_size
    vae.enable_tiling()
    vae.tile_latent_min_size = networks.unet.config.sample_size // 2
    vae.tile_sample_min_size = vae.tile_latent_min_size * pixels_per_latent


def vae_slicing(networks: Networks) -> None:
    """Decode a batch image by image."""
    networks.vae.enable_slicing()


def decoder_products(networks: Networks) -> None:
    """Compute the attention of a VAE's middle by plain products; a tiny VAE has none."""
    multiply_in_attention(networks.vae)


# -- quantisation ----------------------------------------------------------------------------------


def quantise(config: Callable[[Any], Any], networks: Networks) -> None:
    """Quantise the linear layers of the transformer blocks, which do most of the work.

    `config` gets torchao's module and returns its configuration. inductor's flags stay as _FLAGS
    sets them.
    """
    import torchao.quantization as ao

    def is_large(module: torch.nn.Module, name: str) -> bool:
        if not isinstance(module, torch.nn.Linear) or "transformer_blocks" not in name:
            return False
        return min(module.in_features, module.out_features) >= 64

    ao.quantize_(networks.unet, config(ao), filter_fn=is_large)


def int8(ao: Any) -> Any:
    """torchao's configuration of int8 weights and activations."""
    return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


def fp8(ao: Any) -> Any:
    """torchao's configuration of fp8 with a scale for each row.

    The pass that writes a row finds its scale. One scale for all rows would need a further pass.
    Without a negative prompt, its rows are zeros. Without the lower bound their scale would be 0,
    and the image 0 / 0.
    """
    return ao.Float8DynamicActivationFloat8WeightConfig(
        granularity=ao.PerRow(),
        activation_value_lb=1e-6,
        set_inductor_config=False,
    )


def fp8_geglu(networks: Networks) -> None:
    """Let one kernel compute the feed-forwards' GELU and gate, and round them to fp8."""
    from benchlib.serving.model.geglu_fp8 import use_in  # needs Triton

    use_in(networks.unet)


def fp8_rows(networks: Networks) -> None:
    """Let our kernels add, norm, gate and round what lies between products in fp8."""
    from benchlib.serving.model.rows_fp8 import use_in_blocks  # needs Triton

    use_in_blocks(networks.unet)


def geglu_product_kernel(networks: Networks) -> None:
    """Let the feed-forwards' first product compute GELU and gate."""
    from benchlib.serving.model.gated_products import gate_in_products

    gate_in_products(networks.unet)


def norm_rows_kernel(networks: Networks) -> None:
    """Let a kernel add and norm the rows of the UNet's transformer blocks."""
    from benchlib.serving.model.normed_blocks import norm_in_one_pass

    norm_in_one_pass(networks.unet)


def summed_products(networks: Networks) -> None:
    """Let the products that end with a residual add to it, in the blocks of norm_rows_kernel."""
    from benchlib.serving.model.summed_products import sum_in_products

    sum_in_products(networks.unet)


def text_attention_kernel(networks: Networks) -> None:
    """Let a kernel compute the UNet's attention to the text."""
    from benchlib.serving.model.text_attention import attend_to_text_by_kernel

    attend_to_text_by_kernel(networks.unet)


def fp8_convolutions(networks: Networks) -> None:
    """Let our kernel compute the convolutions of the UNet's residual blocks in fp8."""
    use_in_resnets(networks.unet)


def phased_upsampling(networks: Networks) -> None:
    """Let the upsamplers of the UNet and the VAE compute on the small image.

    The VAE's last one stays, since memory peaks behind it. By inductor's code for an H200 its four
    phases would live beside two copies of its answer: 1,536 MiB where there were 1,280.
    """
    from benchlib.serving.model.phased_upsampling import upsample_in_phases

    of_vae = [module for module in networks.vae.modules() if isinstance(module, Upsample2D)]
    upsample_in_phases(networks.unet, *of_vae[:-1])


# -- compiling -------------------------------------------------------------------------------------

# The flags of Hugging Face's diffusion-fast (github.com/huggingface/diffusion-fast). The last one
# keeps int8 products from being stored in int32.
_FLAGS = {
    "conv_1x1_as_mm": True,
    "epilogue_fusion": False,
    "force_fuse_int_mm_with_mul": True,
}
# The most graphs of one function: its layers' shapes times batches times image sizes. torch's own
# limit is 8.
_SHAPES = 1024
# These few kinds of modules do nearly all of the work.
TRANSFORMERS = (
    Transformer2DModel,
    ResnetBlock2D,
    Downsample2D,
    Upsample2D,
)
# A transformer of SDXL has up to ten like blocks. torch traces one of them, and not ten.
BLOCKS = (
    BasicTransformerBlock,
    ResnetBlock2D,
    Downsample2D,
    Upsample2D,
)


def _options() -> dict[str, Any]:
    """inductor's options: _FLAGS and, where this torch can (2.10 or newer), sums in a fixed order.

    Otherwise each process times several kernels for a sum over a row, and keeps the quickest. These
    kernels add in different orders. So two processes on one card made different bytes from one seed.
    """
    from torch._inductor import config  # takes seconds, and only compiling needs it

    options: dict[str, Any] = dict(_FLAGS)
    if hasattr(config, "deterministic"):
        options["deterministic"] = True
    return options


def compiled(networks: Networks, *, regions: tuple[type, ...] | None = None) -> None:
    """Compile the UNet, or only its modules of the kinds `regions`, and the VAE's decoder.

    With `regions`, what diffusers computes between them moves into them, but for small tensors and
    the first and last convolution.

    Compiles each shape by itself: with dynamic shapes, inductor took over four minutes for the UNet
    on an H200. The decoder gets one image at a time, so it needs one shape. At full size that costs
    no time.
    """
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        allowed = max(_SHAPES, getattr(torch._dynamo.config, limit))
        setattr(torch._dynamo.config, limit, allowed)
    leave_out_reports()
    # Within a forward, diffusers reads torch's version and caches it. The version never changes, so
    # the warning is of no use.
    words = "Dynamo detected a call to a `functools.lru_cache`"
    warnings.filterwarnings("ignore", words, UserWarning)
    decoder = networks.vae.decoder
    for module in decoder.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.__class__ = _ChannelwiseGroupNorm
    modules = [networks.unet]
    if regions is not None:
        join_in_resnets(networks.unet)
        modules = [module for module in networks.unet.modules() if isinstance(module, regions)]
        modules += norm_and_activate_at_once(networks.unet, _ChannelwiseGroupNorm)
    for module in [*modules, decoder]:
        module.compile(dynamic=False, options=_options())
    if regions is BLOCKS:
        for module in networks.unet.modules():
            if isinstance(module, Transformer2DModel):
                kind: Any = type(module)
                module.__class__ = _with_compiled_ends(kind)
    networks.vae.enable_slicing()


@cache
def _with_compiled_ends(kind: Any) -> type:
    """A class of transformers like `kind` that compiles what comes before and after its blocks."""
    ends = ("_operate_on_continuous_inputs", "_get_output_for_continuous_inputs")
    compiled_ends = {
        name: torch.compile(getattr(kind, name), dynamic=False, options=_options()) for name in ends
    }
    return type(kind.__name__, (kind,), compiled_ends)


class _ChannelwiseGroupNorm(torch.nn.GroupNorm):
    """A group norm by `_group_norm`. A forward set on an instance would be a reference cycle."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch's own
        return _group_norm(self, input)


def _group_norm(norm: torch.nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm of (n, channels, ...): each channel's statistics are taken first and then joined.

    The rule that joins them is Chan, Golub and LeVeque's (Algorithms for computing the sample
    variance, 1983). In channels-last, a group's few channels lie scattered, and inductor reads them
    one by one. All channels of a pixel lie together, so this order reads them at once.

    Time on an H100, as a share of inductor's own group norm:

        the decoder's single image    0.3
        the UNet's 32 rows            1.0 to 1.2

    The UNet's last norm has 10 channels a group, near the decoder's 4 to 16. So the decoder and that
    norm alone use this function.
    """
    wide = x.float()
    grouped = (x.shape[0], norm.num_groups, -1)
    spatial = tuple(range(2, x.dim()))
    variances, means = torch.var_mean(wide, spatial, correction=0)
    variances = variances.view(grouped)
    means = means.view(grouped)
    mean = means.mean(2, keepdim=True)
    between = (means - mean).square().mean(2, keepdim=True)
    variance = variances.mean(2, keepdim=True) + between

    def per_channel(values: Tensor) -> Tensor:
        shape = x.shape[:2] + (1,) * len(spatial)
        return values.expand_as(means).reshape(shape)

    answer = (wide - per_channel(mean)) * per_channel((variance + norm.eps).rsqrt())
    if norm.weight is not None:
        weight = per_channel(norm.weight.view(grouped[1:]))
        bias = per_channel(norm.bias.view(grouped[1:]))
        answer = answer * weight + bias
    return answer.to(x.dtype)


# -- launches --------------------------------------------------------------------------------------


class _Tuned(torch.nn.Module):
    """A network in which cuDNN tries its kernels once for each shape.

    The switch belongs to the whole process, so it is set only while the network is called.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return self.network(*args, **kwargs)
        finally:
            torch.backends.cudnn.benchmark = before


def tuned(networks: Networks) -> None:
    """Let cuDNN try its kernels for the UNet and the decoder."""
    networks.unet = _Tuned(networks.unet)
    networks.vae.decoder = _Tuned(networks.vae.decoder)


def graphs(networks: Networks) -> None:
    """Replay the UNet's launches as CUDA graphs."""
    networks.unet = RecordedUNet(networks.unet, networks.recorder)


def text_graphs(networks: Networks) -> None:
    """Replay the text encoders' launches as CUDA graphs; the pipeline has the encoders."""
    networks.records_texts = True


def text_once(networks: Networks) -> None:
    """Compute what depends on the texts alone once for a batch."""
    networks.unet = read_texts_once(networks.unet)


def graphs_made() -> int:
    """The number of graphs that this process has compiled or, as CUDA graphs, recorded."""
    if "torch._dynamo.utils" not in sys.modules:  # its import takes seconds
        return 0
    counters = torch._dynamo.utils.counters
    compilations = counters["stats"]["unique_graphs"]
    recordings = counters["benchlib"]["recorded"]
    return int(compilations + recordings)


# -- why a recipe can't be used --------------------------------------------------------------------


def no_bf16(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU has no bfloat16; leave it out for float16"
    return None


def no_vae_bf16(device: torch.device, dtype: str) -> str | None:
    if dtype == "bfloat16":
        return "the VAE is in bfloat16 already; leave it out"
    return no_bf16(device, dtype)


def no_fusing(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if not hasattr(UNet2DConditionModel, "fuse_qkv_projections"):
        return "this diffusers can't fuse projections; install diffusers 0.42"
    return None


def no_compiler(device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """Tries to compile one negation: inductor needs a C++ compiler, and Triton on CUDA.

    What earlier processes have compiled is unpacked first, since torch then settles on a folder.
    """
    ARTEFACTS.restore(device)
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        words = str(error).strip().splitlines()[0]
        return (
            f"torch.compile does not work here ({words}); "
            "install a C++ compiler such as g++, or leave it out"
        )
    ARTEFACTS.keep(device, of="trial")
    return None


def no_cuda(what: str, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    if device.type != "cuda":
        return f"{what} a CUDA GPU; leave it out"
    return None


def no_cudnn_attention(device: torch.device, dtype: str) -> str | None:
    """Tries cuDNN's attention with heads of SDXL's size."""
    missing = no_cuda("cuDNN's attention needs", device, dtype)
    if missing is not None:
        return missing
    heads = torch.zeros(1, 1, 8, 64, device=device, dtype=getattr(torch, dtype))
    try:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    except RuntimeError:
        return f"cuDNN has no attention in {dtype} on this GPU; leave it out"
    return None


def no_hub_vae(hub_id: str, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    try:
        _cached(hub_id, local=True)
    except LocalEntryNotFoundError:
        try:
            ask_hub(hub_id)
        except ModelError as error:
            reason = str(error).removeprefix("model: ").partition("; ")[0]
            return f"{reason}; load it once while the hub can be reached, or leave it out"
    return None


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


def _no_hopper(device: torch.device) -> str | None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        return None
    return "its kernel needs a CUDA GPU of compute capability 9.0, such as an H100; leave it out"


def _no_16_bits(dtype: str) -> str | None:
    if dtype not in ("bfloat16", "float16"):
        return "it computes in 16 bits; add 'bf16'"
    return None


def _no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton, or leave it out"
    return None


def _no_descriptors() -> str | None:
    if _no_triton() is None and importlib.util.find_spec("triton.tools.tensor_descriptor") is None:
        return "this Triton has no tensor descriptors; install Triton 3.6, or leave it out"
    return _no_triton()


def no_fp8_geglu(device: torch.device, dtype: str) -> str | None:
    return no_fp8(device, dtype) or _no_triton()


def no_geglu_product(device: torch.device, dtype: str) -> str | None:
    """The kernel's tiles are made for a Hopper's shared memory and its fetches."""
    return _no_hopper(device) or _no_16_bits(dtype) or _no_descriptors()


def no_norm_rows(device: torch.device, dtype: str) -> str | None:
    return no_cuda("its kernel needs", device, dtype) or _no_16_bits(dtype) or _no_triton()


def no_decoder_products(device: torch.device, dtype: str) -> str | None:
    """Tries a product of 16 bits with an answer in float32."""
    missing = no_cuda("its products need", device, dtype) or _no_16_bits(dtype)
    if missing is None:
        halves = torch.zeros(8, 8, device=device, dtype=getattr(torch, dtype))
        try:
            product(halves, halves)
        except (RuntimeError, TypeError):
            return "this torch has no products of 16 bits in float32; install torch 2.8 or newer"
    return missing


def no_fp8_convolutions(device: torch.device, dtype: str) -> str | None:
    """The kernel's tiles take the shared memory that Hopper has, and its tensor descriptors."""
    missing = _no_hopper(device)
    if missing is None and dtype != "bfloat16":
        missing = "its convolutions come out in bfloat16; add 'bf16'"
    return missing or _no_descriptors()
