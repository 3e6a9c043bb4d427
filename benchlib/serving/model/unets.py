"""UNets: a UNet by itself, from a file, a folder or the hub, to replace a model's own.

Knows the ways in which few-step UNets (Lightning, Turbo, LCM) are published. Ignorant of the model
around the UNet, but for the configuration that a file without one takes over.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from benchlib.serving.model.checkpoint_kinds import UNET_PREFIX, require_kind
from benchlib.serving.model.hub_files import hub_file, is_hub_file, is_hub_name
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.model_folders import LOAD_ERRORS, Plan, plan_network, without_files
from benchlib.serving.model.weights_files import Header, read_header

_UNET_WORDS = {
    "input_blocks", "middle_block", "output_blocks", "out", "time_embed", "label_emb",
    "conv_in", "conv_out", "conv_norm_out", "down_blocks", "mid_block", "up_blocks",
    "time_embedding", "add_embedding",
}  # fmt: skip
"""What the names of a UNet's weights begin with: the original ones, then those of diffusers."""
_LCM_KEY = "time_embedding.cond_proj.weight"


@dataclass(frozen=True)
class UNetSource:
    """Where a UNet comes from: a file's header, or a planned folder."""

    name: str
    header: Header | None
    plan: Plan | None

    @property
    def folder(self) -> Path | None:
        """The folder with its configuration; None for a file."""
        return None if self.plan is None else self.plan.folder

    @property
    def params(self) -> int:
        """The number of its parameters."""
        if self.plan is not None:
            return self.plan.params
        assert self.header is not None
        return _count(self.header)


def find_unet(source: str, dtype: torch.dtype, ask_hub: Callable[[str], set[str]]) -> UNetSource:
    """Find a UNet and check that it is one. Only headers are read.

    `source` is a .safetensors file, a folder with a config.json, or on the hub `owner/name` or
    `owner/name/file.safetensors`. `ask_hub` raises `ModelError` if the hub can't be reached.
    """
    path = Path(source).expanduser()
    is_file_name = path.suffix == ".safetensors"
    if is_hub_file(source):
        path = hub_file(source, ask_hub, field="unet")
    elif is_hub_name(source) and not is_file_name and source.count("/") == 1:
        path = _hub_folder(source, dtype, ask_hub)
    if path.is_dir():
        return UNetSource(source, header=None, plan=_plan(path, dtype))
    if not path.is_file():
        raise ModelError(
            f"unet: there is no {source!r}; give a .safetensors file, a folder with a config.json, "
            "or on the hub owner/name or owner/name/file.safetensors"
        )
    if not is_file_name:
        raise ModelError(f"unet: {path} is no .safetensors file; convert it, or give another")
    header = read_header(path)
    require_kind(header, "unet", field="unet")
    return UNetSource(source, header=header, plan=None)


def load_unet(
    source: UNetSource, model_config: Mapping[str, Any], dtype: torch.dtype
) -> UNet2DConditionModel:
    """Load a UNet on the CPU. A file without configuration takes `model_config`, its model's.

    Raises `ModelError` if it can't be loaded, or if its layers are not those of the configuration.
    """
    try:
        if source.plan is not None:
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
        laid_out = network.from_config(config)
    return sum(parameter.numel() for parameter in laid_out.parameters())


def _load_file(header: Header, config: dict[str, Any], dtype: torch.dtype) -> UNet2DConditionModel:
    # 1) An LCM's guidance is an input of the UNet, and only the weights say so
    config.pop("time_cond_proj_dim", None)
    if _LCM_KEY in header.shapes:
        config["time_cond_proj_dim"] = header.shapes[_LCM_KEY][1]

    # 2) diffusers would pass over weights that it has no place for
    own = _count(header)
    usual = count_params_of(UNet2DConditionModel, config)
    if own != usual:
        raise ModelError(
            f"unet: {header.path} has {own:,} parameters, and this model's UNet {usual:,}; "
            "give a UNet that was made for this model, or a folder with its config.json"
        )

    # 3) Load. diffusers knows original keys by their prefix, which some files lack, and its own
    # keys only where nothing lies beside them
    loaded = load_file(header.path)
    prefix = UNET_PREFIX if "input_blocks.0.0.weight" in header.shapes else ""
    weights = {prefix + key: loaded[key] for key in _keys(header)}
    with tempfile.TemporaryDirectory(prefix="benchlib-") as made:
        place = Path(made) / "unet/config.json"
        place.parent.mkdir()
        place.write_text(json.dumps(config))
        return UNet2DConditionModel.from_single_file(
            weights, config=made, subfolder="unet", dtype=dtype, local_files_only=True
        )


def _keys(header: Header) -> list[str]:
    """The names of the UNet's weights in a file. Others may lie beside them, as in many merges."""
    prefixed = [key for key in header.shapes if key.startswith(UNET_PREFIX)]
    return prefixed or [key for key in header.shapes if key.partition(".")[0] in _UNET_WORDS]


def _count(header: Header) -> int:
    return sum(math.prod(header.shapes[key]) for key in _keys(header))


def _plan(folder: Path, dtype: torch.dtype) -> Plan:
    """Which files of a folder are its UNet, which may be that of a whole model's folder."""
    if (folder / "unet/config.json").is_file():
        folder /= "unet"
    config = folder / "config.json"
    try:
        kind = json.loads(config.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"unet: {folder} is no UNet's folder: its config.json can't be read ({error}); "
            "give the folder that has one"
        ) from error
    if kind != "UNet2DConditionModel":
        raise ModelError(f"unet: {folder} holds a {kind}; give the UNet of an SDXL model")
    return plan_network(folder, dtype)


def _hub_folder(hub_id: str, dtype: torch.dtype, ask_hub: Callable[[str], set[str]]) -> Path:
    """The folder of a hub model with a UNet's weights, cached or downloaded."""
    # 1) From the cache, if all of it is there
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
        _plan(folder, dtype)
        return folder
    except (LocalEntryNotFoundError, ModelError):
        names = ask_hub(hub_id)

    # 2) From the hub: the files beside the UNet's configuration, in one variant
    inside = "unet/" if "unet/config.json" in names else ""
    if f"{inside}config.json" not in names:
        files = sorted(name for name in names if name.endswith(".safetensors"))
        raise ModelError(
            f"unet: {hub_id} has no config.json of a UNet; name one of its files, such as "
            f"{hub_id}/{files[0] if files else 'file.safetensors'}"
        )
    beside = [name for name in names if name.rpartition("/")[0] == inside.rstrip("/")]
    in_fp16 = {name for name in beside if "fp16" in name}
    plain = set(beside) - in_fp16
    has_plain = any(name.endswith(".safetensors") for name in plain)
    takes_fp16 = in_fp16 and (dtype == torch.float16 or not has_plain)
    chosen = in_fp16 | {f"{inside}config.json"} if takes_fp16 else plain
    wanted = [name for name in chosen if name.endswith((".safetensors", ".json"))]
    return Path(snapshot_download(hub_id, allow_patterns=wanted))
