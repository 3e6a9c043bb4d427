"""UNets: a UNet by itself, from a file or a folder, to replace a model's own.

Knows the ways in which few-step UNets (Lightning, Turbo, LCM) and smaller ones are published.
Ignorant of the model around the UNet, but for the configuration that a file without one takes over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from benchlib.serving.model.checkpoint_kinds import UNET_PREFIX, UNET_WORDS
from benchlib.serving.model.filled_networks import fill, lay_out, load_network
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.model_folders import LOAD_ERRORS, without_files
from benchlib.serving.model.network_sources import NetworkPart, NetworkSource
from benchlib.serving.model.unet_layouts import laid_out
from benchlib.serving.model.weights_files import Header, read_tensors

UNET = NetworkPart("unet", "UNet", ["UNet2DConditionModel"], (UNET_PREFIX,), UNET_WORDS)
_LCM_KEY = "time_embedding.cond_proj.weight"


def load_unet(
    source: NetworkSource, model_config: Mapping[str, Any], dtype: torch.dtype
) -> UNet2DConditionModel:
    """Load a UNet on the CPU. A file without configuration takes `model_config`, its model's.

    Raises `ModelError` if it can't be loaded, or if its layers are not those of the configuration.
    """
    try:
        if source.plan is not None:
            [files] = source.plan.files.values()
            made = load_network(UNet2DConditionModel, source.plan.folder, files, dtype)
            if made is not None:
                return made
            with without_files(source.plan.folder, source.plan.stale_indexes) as folder:
                return UNet2DConditionModel.from_pretrained(
                    folder, dtype=dtype, variant=source.plan.variant, local_files_only=True
                )
        assert source.header is not None
        return _load_file(source.header, dict(model_config), dtype)
    except LOAD_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"unet: {source.name} can't be loaded as this model's UNet: {first_line}; "
            "give a UNet that was made for this model"
        ) from error


def count_params_of(network: Any, config: Mapping[str, Any]) -> int:
    """The parameters of a network of class `network` with this configuration. Allocates none."""
    with torch.device("meta"):
        made = network.from_config(config)
    return sum(parameter.numel() for parameter in made.parameters())


def _load_file(header: Header, config: dict[str, Any], dtype: torch.dtype) -> UNet2DConditionModel:
    # 1) An LCM's guidance is an input of the UNet, and only the weights say so
    config.pop("time_cond_proj_dim", None)
    if _LCM_KEY in header.shapes:
        config["time_cond_proj_dim"] = header.shapes[_LCM_KEY][1]

    # 2) diffusers would pass over weights that it has no place for
    config = laid_out(header, config)
    own = UNET.count(header)
    usual = count_params_of(UNet2DConditionModel, config)
    if own != usual:
        raise ModelError(
            f"unet: {header.path} has {own:,} parameters, and this model's UNet {usual:,}; "
            "give a UNet that was made for this model, or a folder with its config.json"
        )

    # 3) Load. diffusers knows original keys by their prefix, which some files lack
    weights = read_tensors(header.path, UNET.keys(header))
    if any(key.endswith("input_blocks.0.0.weight") for key in weights):
        prefixed = {UNET_PREFIX + key.removeprefix(UNET_PREFIX): weights[key] for key in weights}
        weights = convert_ldm_unet_checkpoint(prefixed, config)
    made = lay_out(UNet2DConditionModel.from_config, config)
    return fill(made, weights, dtype, header.path)
