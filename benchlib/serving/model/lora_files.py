"""LoRA files: where they are, what they hold, and whether they fit a model.

Knows the formats that diffusers reads (kohya's, its own and peft's) and those that it can't read.
Ignorant of layers and of switching between adapters (adapters.py). A file that stock diffusers
would read only in part is refused: it would silently make other images than its author's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError, safe_open

from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.models import ask_hub

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
"""The networks of a pipeline that an adapter may change."""
USUAL_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
RANDOM = "random"
RANDOM_RANK = 16

_PLAIN = "convert it to a plain LoRA"
_MERGE = "merge it into a checkpoint with the tool that made it, and give that as the model"
_OTHER_KINDS = {
    "model.diffusion_model.": ("a whole checkpoint", "give it as the model"),
    "diffusion_model.": ("a LoRA in ComfyUI's format, or for another family", _PLAIN),
    "hada_": ("a LoHa of LyCORIS", _MERGE),
    "lokr_": ("a LoKr of LyCORIS", _MERGE),
    "oft_": ("an OFT of LyCORIS", _MERGE),
    "on_input": ("an IA3 of LyCORIS", _MERGE),
    ".diff": ("whole differences of weights, not only a LoRA", _MERGE),
    "dora_scale": ("a DoRA in kohya's format, whose magnitudes diffusers drops", _MERGE),
    "lora_mid.": ("a LoCon with a middle matrix (Tucker)", _MERGE),
    "bundle_emb": ("a LoRA with embeddings of new tokens", _PLAIN),
    "lora_controlnet": ("a control LoRA", "give a plain LoRA"),
    "transformer.": ("a LoRA for a transformer, such as Flux or SD3", "give one for SDXL"),
    "lora_transformer_": ("a LoRA for a transformer, such as Flux or SD3", "give one for SDXL"),
    "_double_blocks_": ("a LoRA for Flux", "give one for SDXL"),
    "_single_blocks_": ("a LoRA for Flux", "give one for SDXL"),
    "_joint_blocks_": ("a LoRA for SD3", "give one for SDXL"),
    "base_model.model.": (
        "a LoRA in peft's own format, which does not say for which network it is",
        "save it by diffusers' save_lora_weights",
    ),
}
"""By a part of a tensor's name: what a file is, and what to do with it."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of peft's `init_lora_weights` that also change the base's weights."""


@dataclass(frozen=True)
class LoraWeights:
    """The weights of one adapter, in diffusers' names, with what stock loaders need beside them."""

    name: str
    source: str
    tensors: Mapping[str, torch.Tensor]
    alphas: Mapping[str, float] | None = None
    metadata: Mapping[str, Any] | None = None

    def of(self, network: str) -> bool:
        """Whether it changes this one of NETWORKS."""
        return any(key.startswith(f"{network}.") for key in self.tensors)


def find_file(name: str, source: str) -> Path | None:
    """The local file of the adapter `name`, or None for random weights.

    `source` is a .safetensors file, a folder with one such file, a hub id ("owner/name", or
    "owner/name/file.safetensors"), or "random". Raises `ModelError` that names the remedy.
    """
    if source == RANDOM or source.startswith(f"{RANDOM}-"):
        return None
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        names = [file.name for file in path.glob("*.safetensors")]
        return path / _choose(name, source, names)
    parts = source.split("/")
    is_hub_id = len(parts) == 2 or (len(parts) == 3 and source.endswith(".safetensors"))
    if source.startswith((".", "/", "~")) or not is_hub_id:
        raise ModelError(
            f"loras: {name}: there is no file or folder {source!r}; give a .safetensors file, "
            f"a hub id (owner/name), or 'random' to try it out"
        )
    return _fetch(name, parts)


def _choose(name: str, source: str, files: list[str]) -> str:
    """The one LoRA among the names of `files`."""
    if USUAL_FILE in files:
        return USUAL_FILE
    if len(files) != 1:
        found = ", ".join(sorted(files)) or "none"
        raise ModelError(
            f"loras: {name}: {source} must hold one .safetensors file, or {USUAL_FILE}; "
            f"it has {found}: name the file"
        )
    return files[0]


def _fetch(name: str, parts: list[str]) -> Path:
    """A file from the hub's cache, or downloaded."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    hub_id = "/".join(parts[:2])
    file = parts[2] if len(parts) == 3 else USUAL_FILE
    cached = try_to_load_from_cache(hub_id, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        present = ask_hub(hub_id)
    except ModelError as error:
        words = str(error).removeprefix("model: ").partition("; ")[0]
        raise ModelError(
            f"loras: {name}: {words}; give the path of a downloaded file, or check the name"
        ) from error
    if len(parts) == 2:
        at_top = [one for one in present if one.endswith(".safetensors") and "/" not in one]
        file = _choose(name, hub_id, at_top)
    elif file not in present:
        raise ModelError(f"loras: {name}: {hub_id} on the hub has no {file}; check its name")
    return Path(hf_hub_download(hub_id, file))


def check_file(name: str, path: Path) -> None:
    """Raise `ModelError` if a file's header alone shows that it is no LoRA that stock can read."""
    try:
        with safe_open(path, framework="pt") as tensors:
            keys = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"loras: {name}: {path} is no safetensors file ({error}); download it again, "
            "or convert it to safetensors"
        ) from error
    for part, (kind, remedy) in _OTHER_KINDS.items():
        found = [key for key in keys if part in key]
        if found:
            raise ModelError(
                f"loras: {name}: {path} is {kind} (it has {found[0]}), "
                f"which is not supported here; {remedy}"
            )
    if not any("lora" in key for key in keys):
        first = keys[0] if keys else "no tensor"
        raise ModelError(
            f"loras: {name}: {path} is no LoRA (it begins with {first}); give a LoRA's file, "
            "or give this one as the model"
        )


def read_weights(name: str, source: str, path: Path | None, pipe: Any) -> LoraWeights:
    """The weights of an adapter, checked against the networks of `pipe`, a stock pipeline.

    Without a `path` they are random. Raises `ModelError` that names the file, the mismatch and the
    remedy.
    """
    if path is None:
        return _random_weights(name, source, pipe)
    try:
        tensors, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
            str(path), unet_config=pipe.unet.config, return_lora_metadata=True
        )
        _check_fit(LoraWeights(name, str(path), tensors), pipe)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"loras: {name}: {path} can't be read as a LoRA for this model ({words[0]}); "
            "give one for SDXL, in kohya's, diffusers' or peft's format"
        ) from error
    for key, tensor in tensors.items():
        if not tensor.float().isfinite().all():  # 8 bits have no such function
            raise ModelError(
                f"loras: {name}: {path} has weights that are NaN or infinite ({key}); "
                "download the file again, or train it anew"
            )
    weights = LoraWeights(name, str(path), tensors, alphas, metadata)
    _check_start(weights)
    return weights


def _check_start(weights: LoraWeights) -> None:
    """Raise `ModelError` if the adapter belongs to base weights that its training changed first.

    peft's methods of such a start (its LoraConfig, `init_lora_weights`) write into the base's
    weights while a file is loaded. diffusers can't load such a file, and ends in a RuntimeError.
    """
    for key, value in (weights.metadata or {}).items():
        if key.endswith("init_lora_weights") and str(value).startswith(_CHANGES_BASE):
            raise ModelError(
                f"loras: {weights.name}: {weights.source} was trained from {value!r}, which "
                "changes the base's weights, too; convert it to a plain LoRA by peft's "
                "path_initial_model_for_weight_conversion"
            )


def _check_fit(weights: LoraWeights, pipe: Any) -> None:
    """Raise `ModelError` unless each tensor has its place in the model, and the place's shape."""
    strange = [key for key in weights.tensors if key.partition(".")[0] not in NETWORKS]
    if strange:
        raise ModelError(
            f"loras: {weights.name}: {weights.source} does not say to which network {strange[0]} "
            "belongs; save it by diffusers' save_lora_weights, whose names begin with 'unet.'"
        )
    for network in NETWORKS:
        if not weights.of(network):
            continue
        module = getattr(pipe, network)
        if module is None:
            raise ModelError(
                f"loras: {weights.name}: {weights.source} changes {network}, "
                "which this model lacks; give a LoRA of the UNet alone"
            )
        tensors = _peft_names(weights.tensors, network, module)
        _check_network(weights, network, module, tensors)


def _peft_names(tensors: Mapping[str, Any], network: str, module: Any) -> dict[str, Any]:
    """The tensors of one network by peft's names, as diffusers' loaders convert them."""
    prefix = f"{network}."
    own = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            own[key.removeprefix(prefix)] = tensor
    if network == "unet":
        if "lora_A" not in next(iter(own)):
            own = convert_unet_state_dict_to_peft(own)
        return own
    own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
    if not hasattr(module, "text_model"):
        own = {key.removeprefix("text_model."): tensor for key, tensor in own.items()}
    return own


def _check_network(
    weights: LoraWeights, network: str, module: Any, tensors: Mapping[str, Any]
) -> None:
    layers = dict(module.named_modules())
    ranks: dict[str, set[int]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".lora_")
        layer = layers.get(name)
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            raise ModelError(
                f"loras: {weights.name}: {weights.source} changes {network}.{name}, "
                "which this model lacks: it was made for another base model; "
                "give a LoRA for this one"
            )
        out, into = layer.weight.shape[:2]
        matrix = part.partition(".")[0]
        if matrix == "A":
            wanted, found = into, tensor.shape[1]
            ranks.setdefault(name, set()).add(tensor.shape[0])
        elif matrix == "B" and tensor.ndim > 1:
            wanted, found = out, tensor.shape[0]
            ranks.setdefault(name, set()).add(tensor.shape[1])
        else:
            continue
        if wanted != found:
            raise ModelError(
                f"loras: {weights.name}: {weights.source} has {found} features at "
                f"{network}.{name}, and this model {wanted}: it was made for another base model, "
                "such as SD 1.5; give a LoRA for this one"
            )
    for name, sizes in ranks.items():
        if len(sizes) != 1:
            raise ModelError(
                f"loras: {weights.name}: {weights.source} has two matrices of the ranks "
                f"{' and '.join(map(str, sorted(sizes)))} at {network}.{name}; "
                "the file is damaged: download it again"
            )


def _random_weights(name: str, source: str, pipe: Any) -> LoraWeights:
    """Random weights for the attention of `pipe`: the time of a LoRA, without a download.

    They change the image visibly. "random-64" has rank 64. The seed is the adapter's name.
    """
    rank = RANDOM_RANK
    if source != RANDOM:
        number = source.removeprefix(f"{RANDOM}-")
        if not number.isdecimal() or not 1 <= int(number) <= 512:
            raise ModelError(
                f"loras: {name}: {source!r} has no rank from 1 to 512; write random-64"
            )
        rank = int(number)
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    tensors = {}
    for module_name, layer in pipe.unet.named_modules():
        if not module_name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            continue
        out, into = layer.weight.shape
        down = torch.randn(rank, into, generator=generator, dtype=torch.float32)
        up = torch.randn(out, rank, generator=generator, dtype=torch.float32)
        tensors[f"unet.{module_name}.lora_A.weight"] = down / into**0.5
        tensors[f"unet.{module_name}.lora_B.weight"] = up * 0.3 / rank**0.5
    return LoraWeights(name, source, tensors)
