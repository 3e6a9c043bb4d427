"""Filled networks: a network laid out by its configuration, and filled with the weights of files.

The loaders of diffusers, transformers and accelerate set torch's default dtype and patch torch's
modules for all threads while they load. Here a network is laid out on the device "meta", which this
thread alone sees, and weights are put into their places. So a load and other threads' loads leave
each other alone.

Knows how the two libraries name and keep weights. Ignorant of which files are a network's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers import ModelMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from benchlib.serving.model.checkpoint_kinds import UNET_WORDS
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.weights_files import count_params, read_header, read_tensors


def load_network(
    kind: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype
) -> torch.nn.Module | None:
    """The network in a folder, of class `kind`, from its weights `files`; on the CPU.

    None if only the libraries' own loaders can make it: it is quantised, or of a class that keeps
    other numbers than weights. Raises `ModelError` for missing weights, and what the libraries
    raise for a configuration or a shape that does not fit.
    """
    is_clip = issubclass(kind, CLIPTextModel | CLIPTextModelWithProjection)
    if is_packed(folder) or not (is_clip or issubclass(kind, ModelMixin)):
        return None
    if issubclass(kind, ModelMixin):
        network = lay_out(kind.from_config, kind.load_config(folder))
    else:
        network = lay_out_encoder(kind, folder)
    if network is None:
        return None
    strange = []
    for file in files:
        strange += put_in(network, read_tensors(file, read_header(file).shapes), dtype)
    _require_all_weights(network, files, folder, strange)
    return network


def is_packed(folder: Path) -> bool:
    """Whether a network's configuration says how its weights are quantised."""
    config = folder / "config.json"
    return config.is_file() and "quantization_config" in config.read_text(errors="replace")


def lay_out(build: Any, config: Any) -> torch.nn.Module | None:
    """A network without weights; None if it keeps numbers that its files do not have."""
    with torch.device("meta"):
        network: torch.nn.Module = build(config)
    stored = network.state_dict()
    for name, buffer in list(network.named_buffers()):
        if name in stored:
            continue
        if name.rpartition(".")[2] != "position_ids":
            return None
        positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
        set_module_tensor_to_device(network, name, "cpu", value=positions, clear_cache=False)
    return network.eval()


def lay_out_encoder(kind: Any, folder: Path) -> torch.nn.Module | None:
    """As `lay_out`, a text encoder of CLIP by the configuration in its folder."""
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    config.dtype = None  # else transformers sets torch's default dtype for the layers within
    return lay_out(kind, config)


def put_in(
    network: torch.nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> list[str]:
    """Put weights into their places, and return the names of those that have none.

    Raises ValueError for a weight of another shape.
    """
    renamed = dict(weights)
    if isinstance(network, ModelMixin):
        network._fix_state_dict_keys_on_load(renamed)
    places = {_plain_name(key): key for key in network.state_dict()}
    strange = []
    for key, tensor in renamed.items():
        place = places.get(_plain_name(key))
        if place is None:
            strange.append(key)
        else:
            set_module_tensor_to_device(
                network, place, "cpu", value=tensor, dtype=dtype, clear_cache=False
            )
    return strange


def fill(network: Any, weights: Mapping[str, Tensor], dtype: torch.dtype, path: Path) -> Any:
    """Put all weights of a network in a single file into it, and return it.

    Raises ValueError, which names the file, if some are missing.
    """
    put_in(network, weights, dtype)
    missing = missing_weights(network)
    if missing:
        raise ValueError(f"{path} lacks the weights {missing[0]!r} of a {type(network).__name__}")
    return network


def missing_weights(network: torch.nn.Module) -> list[str]:
    """The names of weights that nothing was put into."""
    return [key for key, tensor in network.state_dict().items() if tensor.is_meta]


def _plain_name(key: str) -> str:
    """The name of a weight without a word that versions of transformers write or leave out."""
    return key.removeprefix("text_model.")


def _require_all_weights(
    network: torch.nn.Module, files: Iterable[Path], folder: Path, strange: Sequence[str]
) -> None:
    # 1) Weights that are missing, or named otherwise
    missing = missing_weights(network)
    found = count_params(files)
    needed = sum(parameter.numel() for parameter in network.parameters())
    if missing and found < needed:
        raise ModelError(
            f"model: {folder} has {found:,} of the {needed:,} weights of its configuration; "
            "download it again, or give the configuration that belongs to it"
        )
    if missing:
        others = f"but some named {min(strange)!r}" if strange else "and too many others"
        raise ModelError(
            f"model: {folder} has no weights named {missing[0]!r}, {others}; "
            "rename them, or save the model again"
        )

    # 2) Layers that the configuration lacks. Weights of other tools may lie beside a network's own
    layers = [key for key in strange if key.partition(".")[0] in UNET_WORDS]
    if layers and isinstance(network, UNet2DConditionModel):
        raise ModelError(
            f"model: {folder} has weights named {layers[0]!r}, for which its config.json has no "
            "layer; give the configuration that belongs to them"
        )
