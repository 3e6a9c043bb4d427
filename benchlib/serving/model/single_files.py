"""Single files: a whole SDXL model in one .safetensors file, which holds weights alone.

Knows where the configuration and the vocabulary of such a model come from: the hub's cache, the
hub, or what this package and other cached models have. Ignorant of requests and engines.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from benchlib.serving.model.checkpoint_kinds import (
    FIRST_ENCODER,
    PLAYGROUND,
    SECOND_ENCODER,
    UNET_PREFIX,
    VAE_PREFIXES,
    CheckpointKind,
)
from benchlib.serving.model.filled_networks import fill, lay_out_encoder
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.model_folders import LOAD_ERRORS, network_config, vocabulary_lack
from benchlib.serving.model.predictions import scheduler_by_marks
from benchlib.serving.model.random_models import SDXL
from benchlib.serving.model.unets import count_params_of
from benchlib.serving.model.vaes import vae_of
from benchlib.serving.model.weights_files import Header, read_tensors

SDXL_HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"
PLAYGROUND_HUB_ID = "playgroundai/playground-v2.5-1024px-aesthetic"
_CONFIGURATION = ["*.json", "*.txt"]

# What Playground v2.5 changes in SDXL's configuration, from its own config.json files. The latents'
# mean and deviation are also in its single file.
_PLAYGROUND_VAE = {
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    "scaling_factor": 0.5,
}
_PLAYGROUND_NOISE = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}


def load_single_file(
    header: Header, configuration: Path, dtype: Any, components: Mapping[str, Any]
) -> tuple[StableDiffusionXLPipeline, str | None]:
    """A stock pipeline on the CPU from a file, and in words what it predicts if not noise.

    Raises `ModelError` if diffusers can't load it, or if the file lacks weights.
    """
    path = header.path
    made = dict(components)
    try:
        if "vae" not in made:
            made["vae"] = vae_of(header, network_config(configuration, "vae"), dtype)
        made |= _text_encoders(header, configuration, dtype)
        pipe = StableDiffusionXLPipeline.from_single_file(
            path, config=str(configuration), dtype=dtype, local_files_only=True, **made
        )
    except LOAD_ERRORS as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"model: {path} can't be read as an SDXL checkpoint: {first_line}; download it again"
        ) from error
    pipe.scheduler, prediction = scheduler_by_marks(header, pipe.scheduler)
    return pipe, prediction


def _text_encoders(header: Header, configuration: Path, dtype: Any) -> dict[str, Any]:
    """Both text encoders of a whole model's file. Raises ValueError if weights are missing."""
    encoders = {}
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    prefixes = {"text_encoder": FIRST_ENCODER, "text_encoder_2": SECOND_ENCODER}
    for name, kind in kinds.items():
        prefix = prefixes[name]
        own = read_tensors(header.path, [key for key in header.shapes if key.startswith(prefix)])
        encoder = lay_out_encoder(kind, configuration / name)
        if name == "text_encoder":
            weights = {key.removeprefix(prefix): weight for key, weight in own.items()}
        else:
            weights = convert_open_clip_checkpoint(encoder, own, prefix=prefix)
        encoders[name] = fill(encoder, weights, dtype, header.path)
    return encoders


def require_whole_unet(header: Header, config: Mapping[str, Any]) -> None:
    """Raises `ModelError` if the UNet has other weights than its configuration says.

    diffusers would pass over the weights that it has no place for.
    """
    own = header.params(UNET_PREFIX)
    usual = count_params_of(UNet2DConditionModel, config)
    if own != usual:
        raise ModelError(
            f"model: {header.path} is an SDXL checkpoint whose UNet has {own:,} parameters in place "
            f"of {usual:,}: another kind, or a damaged file. Give the model's folder or hub id, "
            "or load the file in diffusers by from_single_file(file, config=hub id of its kind), "
            "call save_pretrained, and give that folder"
        )


def require_whole_vae(header: Header, configuration: Path) -> None:
    """Raises `ModelError` if the VAE lacks weights that its configuration names."""
    own = max(header.params(prefix) for prefix in VAE_PREFIXES)
    usual = count_params_of(AutoencoderKL, network_config(configuration, "vae"))
    if own < usual:
        raise ModelError(
            f"model: {header.path} is an SDXL checkpoint whose VAE has {own:,} parameters in place "
            f"of {usual:,}, so a part is missing; download it again, or give the model's folder"
        )


@contextmanager
def configuration_of(
    kind: CheckpointKind, header: Header, ask_hub: Callable[[str], set[str]]
) -> Iterator[Path]:
    """Within the block a folder with the configuration and the vocabulary of a `kind` of file.

    `ask_hub` raises `ModelError` if the hub can't be reached.
    """
    # 1) From the hub's cache, or from the hub: a few MB
    is_playground = kind is PLAYGROUND
    hub_id = PLAYGROUND_HUB_ID if is_playground else SDXL_HUB_ID
    cached = _cached_configuration(hub_id)
    unreachable = None
    if cached is None:
        try:
            ask_hub(hub_id)
            cached = Path(snapshot_download(hub_id, allow_patterns=_CONFIGURATION))
        except ModelError as error:
            unreachable = error
    if cached is not None:
        yield cached
        return

    # 2) From this package, with the vocabulary of any model with CLIP's
    vocabulary = _find_vocabulary(header.path.parent)
    if vocabulary is None:
        raise ModelError(
            f"model: {header.path} is {kind.words}, which holds neither configuration nor "
            f"vocabulary. Those of {hub_id} are not in the hub's cache ({constants.HF_HUB_CACHE}), "
            "and no other model there has CLIP's vocabulary. Connect once, run `hf download "
            f'{SDXL_HUB_ID} --include "*.json" "*.txt"` (a few MB), or put the folder tokenizer '
            "of any Stable Diffusion model beside the file"
        ) from unreachable
    with tempfile.TemporaryDirectory(prefix="benchlib-") as made:
        _write_configuration(Path(made), vocabulary, is_playground=is_playground)
        yield Path(made)


def _cached_configuration(hub_id: str) -> Path | None:
    """The hub's cached configuration of a model, if all of it is there."""
    try:
        folder = Path(
            snapshot_download(hub_id, allow_patterns=_CONFIGURATION, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    networks = ("unet", "vae", "text_encoder", "text_encoder_2")
    needed = [f"{network}/config.json" for network in networks]
    needed += ["model_index.json", "scheduler/scheduler_config.json"]
    needed += ["tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer_config.json"]
    whole = all((folder / name).is_file() for name in needed)
    texts = all(vocabulary_lack(folder / name) is None for name in ("tokenizer", "tokenizer_2"))
    return folder if whole and texts else None


def _find_vocabulary(beside: Path) -> Path | None:
    """A folder with a tokenizer of CLIP's vocabulary: beside the file, or in the hub's cache."""
    cache = Path(constants.HF_HUB_CACHE)
    places = [beside / "tokenizer", *cache.glob("models--*/snapshots/*/tokenizer")]
    places += cache.glob("models--*clip*/snapshots/*")
    for folder in places:
        if vocabulary_lack(folder) is not None:
            continue
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except LOAD_ERRORS:
            continue
        if len(tokenizer) == SDXL["text_encoder"]["vocab_size"]:
            return folder
    return None


def _write_configuration(folder: Path, vocabulary: Path, *, is_playground: bool) -> None:
    """Write the base model's configuration as its repository has it, without weights."""
    # 1) diffusers' parts, which fill in the defaults of their own configuration
    vae = SDXL["vae"] | (_PLAYGROUND_VAE if is_playground else {})
    scheduler: Any = EulerDiscreteScheduler.from_config(SDXL["scheduler"])
    if is_playground:
        scheduler = EDMDPMSolverMultistepScheduler(**_PLAYGROUND_NOISE)
    with torch.device("meta"):
        UNet2DConditionModel(**SDXL["unet"]).save_config(folder / "unet")
        AutoencoderKL(**vae).save_config(folder / "vae")
    scheduler.save_config(folder / "scheduler")

    # 2) transformers' parts, and the list of all
    for name in ("text_encoder", "text_encoder_2"):
        CLIPTextConfig(**SDXL[name]).save_pretrained(folder / name)
    classes = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index | classes))

    # 3) The tokenizers: one vocabulary, and two ways to fill up
    for name, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer.from_pretrained(
            vocabulary, pad_token=padding, model_max_length=77, local_files_only=True
        )
        tokenizer.save_pretrained(folder / name)
