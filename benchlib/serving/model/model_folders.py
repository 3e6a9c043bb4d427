"""Folders: a model in diffusers' layout, and which of its weights files are loaded.

Knows model_index.json, variants such as "fp16", shards and their indexes. Ignorant of hubs and of
single files.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import is_invisible_watermark_available

from benchlib.serving.model.checkpoint_kinds import IN_16_BITS, find_kind, quantised_words
from benchlib.serving.model.filled_networks import is_packed, load_network
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.weights_files import count_params, read_header

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_PARTS = (
    *NETWORKS, "tokenizer", "tokenizer_2", "scheduler", "image_encoder", "feature_extractor",
)  # fmt: skip
LOAD_ERRORS = (
    AttributeError, ImportError, KeyError, NameError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What the libraries raise at a folder or a file that they can't load."""

# model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00004.safetensors, and the older
# model-00001-of-00004.fp16.safetensors
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?"
    r"(?P<shard>-\d{5}-of-\d{5})?(?:\.(?P<older>[\w-]+))?\.safetensors"
)
_INDEX = re.compile(
    r"(?:diffusion_pytorch_model|model)\.safetensors\."
    r"(?:index(?:\.(?P<variant>[\w-]+))?|(?P<older>[\w-]+)\.index)\.json"
)
_PURPOSES = {
    "StableDiffusionXLInpaintPipeline": "fills in a masked part of a picture",
    "StableDiffusionXLInstructPix2PixPipeline": "edits a picture",
    "StableDiffusionXLImg2ImgPipeline": "changes a picture, as SDXL's refiner does",
    "StableDiffusionXLControlNetPipeline": "follows a picture by a ControlNet",
    "StableDiffusionPipeline": "is Stable Diffusion 1 or 2",
}


@dataclass
class Stored:
    """The weights of one network in one variant. A stale index names shards that are missing."""

    files: list[Path] = field(default_factory=list)
    stale_indexes: list[Path] = field(default_factory=list)
    missing_shards: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What of a folder is loaded: which variant, in which files, and which indexes are stale.

    `files` has the files of each network by its name.
    """

    folder: Path
    variant: str | None
    files: dict[str, list[Path]]
    stale_indexes: list[Path]

    @property
    def params(self) -> int:
        """The number of parameters in all files."""
        return sum(count_params(files) for files in self.files.values())


def plan_folder(folder: Path, dtype: torch.dtype, *, without: Sequence[str] = ()) -> Plan:
    """Choose the weights of an SDXL pipeline's folder, for all networks but `without`.

    float16 takes the variant "fp16" where the UNet has it, as diffusers' own examples do. Every
    other type takes the plain weights where all networks have them, else a variant. A network
    without the variant takes its plain weights, as in diffusers. Raises `ModelError` if the folder
    is no such pipeline, or lacks weights.
    """
    index = _read_index(folder)
    if index.get("add_watermarker") and not is_invisible_watermark_available():
        raise ModelError(
            f"model: {folder / 'model_index.json'} asks for a watermark; "
            "run `pip install invisible-watermark`, or set add_watermarker to false there"
        )
    _require_parts(folder, index, without)
    present = _present_parts(index)
    needed = [name for name in NETWORKS if name in present and name not in without]
    configurations = [folder / name / "config.json" for name in needed]
    for path in [*configurations, folder / "scheduler/scheduler_config.json"]:
        if not path.is_file():
            raise ModelError(f"model: there is no file {path}; download it again")
    return _plan(folder, {name: folder / name for name in needed}, dtype)


def _require_parts(folder: Path, index: Mapping[str, Any], without: Sequence[str]) -> None:
    """Raises `ModelError` unless the parts in model_index.json are there, and are libraries' own."""
    file = folder / "model_index.json"
    present = _present_parts(index)
    for name in ("unet", "vae", "scheduler"):
        if name not in present and name not in without:
            remedy = "give a whole model" if name == "scheduler" else f"give one as {name}="
            raise ModelError(f"model: {file} names no {name}; {remedy}")
    for name in _PARTS:
        if name in index and index[name] is None:
            raise ModelError(f"model: {file} has null for {name}; write [null, null]")
        if name not in present or name in without:
            continue
        library, kind = index[name]
        if not (folder / name).is_dir():
            raise ModelError(
                f"model: {file} names the {kind} of the folder {name}, which is not there; "
                "download it, or write [null, null] if the model does without"
            )
        if library not in ("diffusers", "transformers"):
            raise ModelError(
                f"model: {file} names for {name} the {kind} of its own code {library!r}, which is "
                "not run; where it is as in SDXL, name diffusers' or transformers' class"
            )
    for name in ("tokenizer", "tokenizer_2"):
        lack = vocabulary_lack(folder / name) if name in present else None
        if lack is not None:
            raise ModelError(f"model: {folder / name} {lack}; download it again")


def _present_parts(index: Mapping[str, Any]) -> set[str]:
    """The parts that a model_index.json names: neither null nor [null, null]."""
    lists = {name: part for name, part in index.items() if isinstance(part, list) and part}
    return {name for name, part in lists.items() if part[0] is not None}


def vocabulary_lack(folder: Path) -> str | None:
    """What a tokenizer's folder lacks and transformers goes on without, in words; else None.

    It would make an empty vocabulary. Without merges.txt it would spell each text letter by letter.
    """
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        path = folder / name
        if path.is_file() and path.read_bytes()[:100].startswith(b"version https://git-lfs"):
            return f"holds a Git LFS pointer as its {name}: run `git lfs pull` there"
    if (folder / "tokenizer.json").is_file():
        return None
    if not (folder / "vocab.json").is_file():
        return "holds neither tokenizer.json nor vocab.json"
    if not (folder / "merges.txt").is_file():
        return "holds vocab.json without merges.txt, so texts would be spelt letter by letter"
    return None


def plan_network(folder: Path, dtype: torch.dtype) -> Plan:
    """Choose the weights of a network's own folder. Raises `ModelError` if it lacks weights."""
    return _plan(folder, {folder.name: folder}, dtype)


def _plan(folder: Path, networks: Mapping[str, Path], dtype: torch.dtype) -> Plan:
    stored = {name: find_weights(path) for name, path in networks.items()}
    usable = {name: _usable(path, stored[name]) for name, path in networks.items()}
    variant = _choose_variant(folder, usable, dtype)
    files = {}
    stale_indexes = []
    for name in networks:
        used = variant if variant in usable[name] else None
        files[name] = stored[name][used].files
        stale_indexes += stored[name][used].stale_indexes
    for name, path in networks.items():
        _require_plain_numbers(path, files[name])
    return Plan(folder, variant, files, stale_indexes)


def _require_plain_numbers(folder: Path, files: Iterable[Path]) -> None:
    """Raises `ModelError` if weights are packed, and no configuration says how to unpack them.

    diffusers would take them as they are, without their scales.
    """
    if is_packed(folder):
        return
    for file in files:
        words = quantised_words(read_header(file))
        if words is not None:
            raise ModelError(f"model: {file} holds {words}; {IN_16_BITS}")


def load_folder(plan: Plan, dtype: torch.dtype, components: Mapping[str, Any]) -> Any:
    """Load a planned folder as a stock pipeline on the CPU, with `components` in place of its own.

    Raises `ModelError` if diffusers can't load it.
    """
    index = _read_index(plan.folder)
    made = dict(components)
    with without_files(plan.folder, plan.stale_indexes) as folder:
        try:
            for name, files in plan.files.items():
                library, kind = index[name]
                own = getattr(import_module(library), kind)
                network = load_network(own, plan.folder / name, files, dtype)
                if network is not None:
                    made[name] = network
            return StableDiffusionXLPipeline.from_pretrained(
                folder, dtype=dtype, variant=plan.variant, local_files_only=True, **made
            )
        except LOAD_ERRORS as error:
            if isinstance(error, ModelError):
                raise
            words = f"{error}".replace(str(folder), str(plan.folder))
            packed = [name for name in plan.files if is_packed(plan.folder / name)]
            if packed:
                words += f". Its {packed[0]} is quantised: {IN_16_BITS}"
            raise ModelError(f"model: {plan.folder} can't be loaded: {words}") from error


def network_config(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a network. Raises `ModelError` if the folder has none."""
    path = folder / name / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {path} can't be read ({error}); save the model again") from error
    return config


# -- what the folder is ----------------------------------------------------------------------------


def _read_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json. Raises `ModelError` unless it is of an SDXL pipeline."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(
            f"model: {folder} is not a diffusers pipeline: it has no model_index.json; "
            f"{_better_path(folder)}"
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        kind = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model: {path} can't be read ({error}); save the pipeline again"
        ) from error
    if not isinstance(kind, str):  # diffusers writes [file, class] for a pipeline with own code
        raise ModelError(
            f"model: {folder} holds a pipeline of its own code, {kind!r}; where its networks are "
            f"SDXL's, set _class_name to 'StableDiffusionXLPipeline' in {path.name}"
        )
    if kind != "StableDiffusionXLPipeline":
        purpose = f", which {_PURPOSES[kind]}" if kind in _PURPOSES else ""
        raise ModelError(
            f"model: {folder} holds a {kind}{purpose}, not a StableDiffusionXLPipeline; "
            "give an SDXL text-to-image model"
        )
    return index


def _better_path(folder: Path) -> str:
    """What to give in place of a folder that has no model_index.json."""
    for deeper in [*folder.glob("*/model_index.json"), *folder.glob("*/*/model_index.json")]:
        return f"give the folder {deeper.parent}"
    config = folder / "config.json"
    if config.is_file() and "UNet2DConditionModel" in config.read_text(errors="replace"):
        return "it is a UNet alone: name a whole model and give this folder as unet="
    if (folder / "adapter_config.json").is_file():
        return "it is an adapter: name a whole model and give this folder in loras={'name': folder}"
    for file in sorted(folder.glob("*.safetensors")):
        return f"it has {file.name}, which is {find_kind(read_header(file)).words}: give that file"
    return "give the folder that has one"


# -- which weights ---------------------------------------------------------------------------------


def find_weights(folder: Path) -> dict[str | None, Stored]:
    """The weights in a network's folder, by variant; None is the plain one.

    Where both a whole file and an index lie, diffusers takes the index. So an index counts as stale
    if it names a missing shard and the whole file is there.
    """
    # 1) Sort the files by variant
    whole: dict[str | None, Path] = {}
    indexes: dict[str | None, Path] = {}
    for file in sorted(folder.glob("*")):
        if match := _WEIGHTS.fullmatch(file.name):
            if match["shard"] is None and match["stem"] == _stem(folder):
                whole[match["variant"]] = file
        elif match := _INDEX.fullmatch(file.name):
            indexes[match["variant"] or match["older"]] = file

    # 2) Read which shards each index names
    stored: dict[str | None, Stored] = defaultdict(Stored)
    for variant, index in indexes.items():
        shards = _shards(index)
        missing = [name for name in shards if not (folder / name).is_file()]
        if not missing:
            stored[variant].files = [folder / name for name in shards]
        elif variant in whole:
            stored[variant].stale_indexes = [index]
        else:
            stored[variant].missing_shards = missing
    for variant, file in whole.items():
        if not stored[variant].files:
            stored[variant].files = [file]
    return dict(stored)


def _stem(folder: Path) -> str:
    """How the names of a network's weights files begin: transformers' networks have another one."""
    return "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model: {index} can't be read ({error}); download it again") from error


def variants_of(names: Iterable[str]) -> set[str | None]:
    """The variants of the weights files with these names; None is the plain one."""
    matches = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
    return {match["variant"] or match["older"] for match in matches}


def by_preference(variants: Iterable[str | None], dtype: torch.dtype) -> list[str | None]:
    """The variants in the order in which a type prefers them.

    float16 takes "fp16" first, and every other type the plain weights. Then come the type's own
    variant, and "fp16".
    """
    in_16_bits = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    own = in_16_bits.get(dtype)
    first = "fp16" if dtype == torch.float16 else None
    ranks = [first, None, own, "fp16"]

    def rank(variant: str | None) -> tuple[int, str]:
        place = ranks.index(variant) if variant in ranks else len(ranks)
        return place, variant or ""

    return sorted(variants, key=rank)


def _choose_variant(
    folder: Path, usable: Mapping[str, Collection[str | None]], dtype: torch.dtype
) -> str | None:
    """The variant to load, of the variants that each network has.

    Raises `ModelError` if no variant is there for every network, in it or in plain weights.
    """
    leading = next(iter(usable.values()))  # the UNet's, unless another UNet takes its place
    every = {variant for of_network in usable.values() for variant in of_network}
    for variant in [*by_preference(leading, dtype), *by_preference(every, dtype)]:
        if all(variant in of_network or None in of_network for of_network in usable.values()):
            return variant
    found = "; ".join(f"{name} has {', '.join(map(str, usable[name]))}" for name in usable)
    raise ModelError(
        f"model: the networks in {folder} share no variant ({found}); save the model again"
    )


def _usable(folder: Path, of_network: Mapping[str | None, Stored]) -> list[str | None]:
    """The variants of a network whose files are all there. Raises `ModelError` if none is."""
    usable = [variant for variant, one in of_network.items() if one.files]
    if usable:
        return usable
    for one in of_network.values():
        if one.missing_shards:
            raise ModelError(
                f"model: {folder} lacks {one.missing_shards[0]}, which its index names; "
                "download it again"
            )
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")])
    if pickles:
        raise ModelError(
            f"model: {folder} has only {pickles[0].name}, a pickle, which can run code when it is "
            "read; if you trust it, load the model in diffusers, call save_pretrained, and give "
            "the new folder"
        )
    others = sorted(folder.glob("*.safetensors"))
    if others:
        raise ModelError(
            f"model: {folder} holds {others[0].name}, and diffusers reads only "
            f"{_stem(folder)}.safetensors and its variants; rename the file"
        )
    raise ModelError(
        f"model: {folder} holds no .safetensors weights; download them, or save the model again"
    )


@contextmanager
def without_files(folder: Path, files: Sequence[Path]) -> Iterator[Path]:
    """The folder itself, or within the block a folder of links to all but `files`."""
    if not files:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="benchlib-") as made:
        for source in folder.rglob("*"):
            if source.is_file() and source not in files:
                link = Path(made) / source.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source.resolve())
        yield Path(made)
