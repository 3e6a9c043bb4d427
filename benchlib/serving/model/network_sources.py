"""Network sources: where a UNet or a VAE comes from that takes the place of a model's own.

Knows the ways to publish one network by itself: a .safetensors file, a folder, a place on the hub.
Ignorant of what the network computes, and of how it is loaded (unets.py, vaes.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from benchlib.serving.model.checkpoint_kinds import require_kind
from benchlib.serving.model.hub_files import hub_file, is_hub_file, is_hub_name
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.model_folders import Plan, plan_network
from benchlib.serving.model.weights_files import Header, read_header

AskHub = Callable[[str], set[str]]
"""The names of a hub model's files. It raises `ModelError` if the hub can't be reached."""


@dataclass(frozen=True)
class NetworkPart:
    """A network of a pipeline that another may replace.

    `field`: the argument that names the other one, and the network's folder within a model's.
    `noun`: what people call it.
    `classes`: the classes of diffusers that it may have.
    `prefixes`, `words`: in a whole model's file the names of its weights begin with one of
    `prefixes`, and in a file of its own with one of `words` and a dot.
    """

    field: Literal["unet", "vae"]
    noun: str
    classes: Sequence[str]
    prefixes: tuple[str, ...]
    words: frozenset[str]

    def keys(self, header: Header) -> list[str]:
        """The names of its weights in a file. Others may lie beside them, as in many merges."""
        for prefix in self.prefixes:
            prefixed = [key for key in header.shapes if key.startswith(prefix)]
            if prefixed:
                return prefixed
        return [key for key in header.shapes if key.partition(".")[0] in self.words]

    def count(self, header: Header) -> int:
        """The number of its parameters in a file."""
        return sum(math.prod(header.shapes[key]) for key in self.keys(header))


@dataclass(frozen=True)
class NetworkSource:
    """Where a network comes from: a file's header, or a planned folder."""

    part: NetworkPart
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
        return self.part.count(self.header)


def find_network(
    part: NetworkPart, source: str, dtype: torch.dtype, ask_hub: AskHub
) -> NetworkSource:
    """Find a network and check that it is one. Only headers are read.

    `source` is a .safetensors file, a folder with a config.json, or on the hub `owner/name` or
    `owner/name/file.safetensors`.
    """
    field = part.field
    path = Path(source).expanduser()
    is_file_name = path.suffix == ".safetensors"
    if is_hub_file(source):
        path = hub_file(source, ask_hub, field=field)
    elif is_hub_name(source) and not is_file_name and source.count("/") == 1:
        path = _hub_folder(part, source, dtype, ask_hub)
    if path.is_dir():
        return NetworkSource(part, source, header=None, plan=_plan(part, path, dtype))
    if not path.is_file():
        raise ModelError(
            f"{field}: there is no {source!r}; give a .safetensors file, a folder with a "
            "config.json, or on the hub owner/name or owner/name/file.safetensors"
        )
    if not is_file_name:
        raise ModelError(f"{field}: {path} is no .safetensors file; convert it, or give another")
    header = read_header(path)
    require_kind(header, field, field=field)
    return NetworkSource(part, source, header=header, plan=None)


def _plan(part: NetworkPart, folder: Path, dtype: torch.dtype) -> Plan:
    """Which files of a folder are the network, which may be that of a whole model's folder."""
    if (folder / part.field / "config.json").is_file():
        folder /= part.field
    config = folder / "config.json"
    try:
        kind = json.loads(config.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{part.field}: {folder} is no {part.noun}'s folder: its config.json can't be read "
            f"({error}); give the folder that has one"
        ) from error
    if kind not in part.classes:
        raise ModelError(
            f"{part.field}: {folder} holds a {kind}; give the {part.noun} of an SDXL model"
        )
    return plan_network(folder, dtype)


def _hub_folder(part: NetworkPart, hub_id: str, dtype: torch.dtype, ask_hub: AskHub) -> Path:
    """The folder of a hub model with the network's weights, cached or downloaded."""
    # 1) From the cache, if all of it is there
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
        _plan(part, folder, dtype)
        return folder
    except (LocalEntryNotFoundError, ModelError):
        names = ask_hub(hub_id)

    # 2) From the hub: the files beside the network's configuration, in one variant
    inside = f"{part.field}/" if f"{part.field}/config.json" in names else ""
    if f"{inside}config.json" not in names:
        files = sorted(name for name in names if name.endswith(".safetensors"))
        raise ModelError(
            f"{part.field}: {hub_id} has no config.json of a {part.noun}; name one of its files, "
            f"such as {hub_id}/{files[0] if files else 'file.safetensors'}"
        )
    beside = [name for name in names if name.rpartition("/")[0] == inside.rstrip("/")]
    in_fp16 = {name for name in beside if "fp16" in name}
    plain = set(beside) - in_fp16
    has_plain = any(name.endswith(".safetensors") for name in plain)
    takes_fp16 = in_fp16 and (dtype == torch.float16 or not has_plain)
    chosen = in_fp16 | {f"{inside}config.json"} if takes_fp16 else plain
    wanted = [name for name in chosen if name.endswith((".safetensors", ".json"))]
    return Path(snapshot_download(hub_id, allow_patterns=wanted))
