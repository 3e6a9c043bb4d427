"""VAEs: a VAE by itself, from a file or a folder, to replace a model's own.

Knows that a VAE fits only latents of its own scale, and by which name people publish SDXL's VAE for
float16. Ignorant of the model around the VAE, but for the configuration that a file takes over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from benchlib.serving.model.checkpoint_kinds import VAE_PREFIXES
from benchlib.serving.model.filled_networks import fill, lay_out, load_network
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.model_folders import LOAD_ERRORS, network_config, without_files
from benchlib.serving.model.network_sources import NetworkPart, NetworkSource
from benchlib.serving.model.unets import count_params_of
from benchlib.serving.model.weights_files import Header, read_tensors

_CLASSES = ["AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny"]
_WORDS = frozenset(["encoder", "decoder", "quant_conv", "post_quant_conv"])
VAE = NetworkPart("vae", "VAE", _CLASSES, VAE_PREFIXES, _WORDS)
# What a VAE's configuration says of its latents, and diffusers' defaults.
_SCALES = {"scaling_factor": 0.18215, "latents_mean": None, "latents_std": None}
# madebyollin/sdxl-vae-fp16-fix and its copies: no number in it is too large for float16.
_FIXED = re.compile(r"fp16[-_. ]?fix", re.IGNORECASE)


def unscaled(latents: Tensor, config: Any) -> Tensor:
    """The latents (images, channels, height, width) as the encoder of `config`'s VAE gives them."""
    scale: float = config.scaling_factor
    if getattr(config, "latents_mean", None) is None or config.latents_std is None:
        return latents / scale
    mean = latents.new_tensor(config.latents_mean).view(1, -1, 1, 1)
    deviation = latents.new_tensor(config.latents_std).view(1, -1, 1, 1)
    return latents * deviation / scale + mean


def load_vae(source: NetworkSource, model_config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load a VAE on the CPU. A file without configuration takes `model_config`, its model's.

    A file with "fp16-fix" in its name decodes in float16: only its name says that it may. Raises
    `ModelError` if it can't be loaded, or if it was made for latents of another scale.
    """
    config = dict(model_config)
    if source.folder is not None:
        config = network_config(source.folder.parent, source.folder.name)
        _require_scale(source.name, config, model_config)
    elif _FIXED.search(source.name):
        config["force_upcast"] = False
    try:
        if source.plan is not None:
            kind = getattr(diffusers, config["_class_name"])
            [files] = source.plan.files.values()
            made = load_network(kind, source.plan.folder, files, dtype)
            if made is not None:
                return made
            with without_files(source.plan.folder, source.plan.stale_indexes) as folder:
                return kind.from_pretrained(
                    folder, dtype=dtype, variant=source.plan.variant, local_files_only=True
                )
        return _load_file(source, config, dtype)
    except LOAD_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"vae: {source.name} can't be loaded as this model's VAE: {first_line}; "
            "give a VAE that was made for this model"
        ) from error


def _require_scale(name: str, own: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raises `ModelError` if a VAE's latents are not on the scale of the model's.

    The VAE of Stable Diffusion 1 has the layers of SDXL's. Its images would have wrong colours, and
    nothing else would tell. A tiny autoencoder takes the latents as they are, so it has no scale.
    """
    kinds = [config.get("_class_name", "AutoencoderKL") for config in (own, usual)]
    if "AutoencoderTiny" in kinds:
        return
    for field, default in _SCALES.items():
        mine = own.get(field, default)
        theirs = usual.get(field, default)
        if mine != theirs:
            raise ModelError(
                f"vae: {name} has the {field} {mine}, and this model's own VAE {theirs}, so "
                "images would have wrong colours; give a VAE that was made for this model, or put "
                f"{theirs} into its config.json if it was"
            )


def _load_file(source: NetworkSource, config: dict[str, Any], dtype: torch.dtype) -> Any:
    # 1) A file has the names of one class alone
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ModelError(
            f"vae: this model's own VAE is a {kind}, for which a file does not say enough; "
            "give a folder with a config.json"
        )

    # 2) diffusers would pass over weights that it has no place for
    header = source.header
    assert header is not None
    own = VAE.count(header)
    usual = count_params_of(AutoencoderKL, config)
    if own != usual:
        raise ModelError(
            f"vae: {header.path} has {own:,} parameters, and this model's VAE {usual:,}; "
            "give a VAE that was made for this model, or a folder with its config.json"
        )

    # 3) Load it
    return vae_of(header, config, dtype)


def vae_of(header: Header, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The VAE with this configuration, with the weights of a file of its own or of a whole model.

    Raises ValueError if weights are missing.
    """
    weights = {}
    for key, weight in read_tensors(header.path, VAE.keys(header)).items():
        prefix = next((one for one in VAE_PREFIXES if key.startswith(one)), "")
        weights[key.removeprefix(prefix)] = weight
    if any(".mid.block_1." in key for key in weights):
        weights = convert_ldm_vae_checkpoint(weights, config)
    return fill(lay_out(AutoencoderKL.from_config, config), weights, dtype, header.path)
