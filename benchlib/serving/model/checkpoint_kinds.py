"""Checkpoint kinds: what a single file of weights is, by the names and shapes in its header.

Knows the key layouts in which people publish Stable Diffusion XL and what resembles it. Reads no
weights. Ignorant of how a checkpoint is loaded (single_files.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.loaders.single_file_utils import infer_diffusers_model_type

from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.weights_files import Header

UNET_PREFIX = "model.diffusion_model."
# What the names of a UNet's weights begin with: the original ones, then those of diffusers.
UNET_WORDS = frozenset([
    "input_blocks", "middle_block", "output_blocks", "out", "time_embed", "label_emb",
    "conv_in", "conv_out", "conv_norm_out", "down_blocks", "mid_block", "up_blocks",
    "time_embedding", "add_embedding",
])  # fmt: skip
MARKS = (
    "v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min",
)  # fmt: skip
"""Tensors beside a file's weights that say what the model predicts (predictions.py)."""
LATENT_CHANNELS = 4
FIRST_ENCODER = "conditioner.embedders.0.transformer."
SECOND_ENCODER = "conditioner.embedders.1.model."
OLDER_ENCODER = "cond_stage_model."
SDXL_LABELS = 2816  # 1280 of a pooled text, and 256 of each of six sizes
VAE_PREFIXES = ("first_stage_model.", "vae.")
_ADAPTER = re.compile(r"lora_|\.lora\.|\.hada_|\.lokr_|dora_scale|\.oft_|\.boft_")
_QUANTISED = re.compile(
    r"scaled_fp8|scale_weight|weight_scale|comfy_quant|absmax|quant_state|\.qweight"
)
_VAE_KEY = re.compile(r"(encoder|decoder)\.(conv_in|mid|up|down|layers|\d)")
_VAE_WORDS = {"first_stage_model", "vae"}
_TEXT_WORDS = {
    "conditioner", "cond_stage_model", "text_encoders", "text_model", "text_projection",
    "logit_scale", "token_embedding", "positional_embedding", "transformer", "ln_final",
    "shared", "encoder",
}  # fmt: skip
IN_16_BITS = "give the file in 16 bits, and let recipe='int8' or 'fp8' quantise it"
_FLOAT_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class CheckpointKind:
    """What a file is.

    `words`: what it is, as in "a LoRA".
    `holds`: what of it can be loaded: a whole model, a UNet, a VAE, or nothing.
    `remedy`: what to do with it where a whole model is asked for.
    `lacks_vae`: with a VAE of the user's own, it is a whole model.
    """

    words: str
    remedy: str = ""
    holds: Literal["model", "unet", "vae", "nothing"] = "nothing"
    lacks_vae: bool = False


_TAKE_SDXL = "give an SDXL text-to-image model"
_SDXL = CheckpointKind("an SDXL checkpoint", holds="model")
PLAYGROUND = CheckpointKind("a Playground v2.5 checkpoint", holds="model")
_UNET = CheckpointKind(
    "the UNet of an SDXL alone",
    "name a whole model and give this file as unet=, as in load_pipeline('sdxl', unet=file)",
    holds="unet",
)
_ADAPTER_KIND = CheckpointKind(
    "a LoRA or another adapter", "name a whole model and give this file in loras={'name': file}"
)
_VAE = CheckpointKind("a VAE alone", "name a whole model and give this file as vae=", holds="vae")
_TEXT_ENCODER = CheckpointKind("a text encoder alone", "give a whole model that has it")
_EMBEDDING = CheckpointKind("a textual inversion", "give a whole model; embeddings are not served")
_CONTROLNET = CheckpointKind("a ControlNet", f"{_TAKE_SDXL}; ControlNets are not served")
_IP_ADAPTER = CheckpointKind("an IP-Adapter", f"{_TAKE_SDXL}; IP-Adapters are not served")
_REFINER = CheckpointKind("an SDXL refiner", f"{_TAKE_SDXL}; a refiner only finishes its images")
_SD1 = CheckpointKind("a Stable Diffusion 1 checkpoint", _TAKE_SDXL)
_SD2 = CheckpointKind("a Stable Diffusion 2 checkpoint", _TAKE_SDXL)
_RENAMED_ENCODERS = CheckpointKind(
    f"an SDXL checkpoint whose text encoders are named {OLDER_ENCODER}, as Stable Diffusion 1's",
    f"rename them to {FIRST_ENCODER} and {SECOND_ENCODER}, as SDXL's are named",
    holds="unet",
)
_MIXED_NAMES = CheckpointKind(
    f"an SDXL checkpoint whose UNet has diffusers' names behind {UNET_PREFIX}",
    f"save its UNet without {UNET_PREFIX} and give that file as unet=",
)
_NO_UNET = CheckpointKind("a VAE and text encoders without a UNet", "give a whole model")
_VIDEO = CheckpointKind("a Stable Video Diffusion checkpoint", _TAKE_SDXL)
_OLDER_UNET = CheckpointKind("the UNet of another model than SDXL", _TAKE_SDXL)
_SAVE_WHOLE = (
    "load it in diffusers by from_single_file with the missing part, "
    "call save_pretrained, and give the folder"
)
_WITHOUT_VAE = CheckpointKind(
    "an SDXL checkpoint without its VAE",
    "give one as vae=, such as vae='madebyollin/sdxl-vae-fp16-fix'",
    holds="unet",
    lacks_vae=True,
)


def find_kind(header: Header) -> CheckpointKind:
    """What the file is. The first mark that is found decides."""
    # 1) A whole model, where keys of other tools may lie beside the parts, as in many merges
    keys = header.shapes
    if not keys:
        return CheckpointKind("empty", _TAKE_SDXL)
    unet = _unet_shapes(header)
    if unet and _has_both_encoders(header):
        return _kind_of_unet(header, unet)

    # 2) Parts that resemble a whole model by some of their keys
    first_words = {key.partition(".")[0] for key in keys}
    if any(_ADAPTER.search(key) for key in keys):
        return _ADAPTER_KIND
    if first_words & {"image_proj", "ip_adapter"}:
        return _IP_ADAPTER
    if first_words & {"control_model", "input_hint_block", "controlnet_cond_embedding"}:
        return _CONTROLNET
    if any(key.startswith("controlnet_") for key in keys):
        return _CONTROLNET
    if keys.keys() <= {"clip_l", "clip_g", "emb_params"}:
        return _EMBEDDING

    # 3) Other models and UNets, in original keys or in those of diffusers
    if unet:
        return _kind_of_unet(header, unet)

    # 4) Other parts and other models
    if first_words <= _VAE_WORDS or any(_VAE_KEY.match(key) for key in keys):
        return _VAE
    if first_words <= _TEXT_WORDS:
        return _TEXT_ENCODER
    if first_words <= _VAE_WORDS | _TEXT_WORDS:
        return _NO_UNET
    return _other_model(header)


def require_kind(
    header: Header, needed: Literal["model", "unet", "vae"], *, field: str, has_vae: bool = False
) -> CheckpointKind:
    """What the file is. Raises `ModelError`, in the words of `field`, if `needed` isn't in it.

    With `has_vae` a model may lack its own VAE.
    """
    kind = find_kind(header)
    path = header.path
    is_completed = needed == "model" and has_vae and kind.lacks_vae
    if kind.holds not in ("model", needed) and not is_completed:
        remedies = {
            "model": kind.remedy,
            "unet": "give the UNet of an SDXL model",
            "vae": "give the VAE of an SDXL model",
        }
        raise ModelError(f"{field}: {path} is {kind.words}; {remedies[needed]}")
    quantised = quantised_words(header)
    if quantised is not None:
        raise ModelError(f"{field}: {path} holds {quantised}; {IN_16_BITS}")
    return kind


def quantised_words(header: Header) -> str | None:
    """How the weights are packed, if they are no plain numbers; else None."""
    if any(_QUANTISED.search(key) for key in header.shapes):
        return "quantised weights with scales of their own"
    for key, dtype in header.dtypes.items():
        if dtype not in _FLOAT_TYPES and key.endswith(".weight") and len(header.shapes[key]) > 1:
            return f"quantised weights ({dtype})"
    return None


def _has_both_encoders(header: Header) -> bool:
    """Whether SDXL's text encoders are there, and no adapter within them or within the UNet."""
    keys = header.shapes
    firsts = any(key.startswith(FIRST_ENCODER) for key in keys)
    seconds = any(key.startswith(SECOND_ENCODER) for key in keys)
    parts = (UNET_PREFIX, FIRST_ENCODER, SECOND_ENCODER, *VAE_PREFIXES)
    adapted = any(_ADAPTER.search(key) for key in keys if key.startswith(parts))
    return firsts and seconds and not adapted


def _unet_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """The UNet's tensors without their prefix; empty if the file has no UNet."""
    prefixed = {
        key.removeprefix(UNET_PREFIX): shape
        for key, shape in header.shapes.items()
        if key.startswith(UNET_PREFIX)
    }
    unet = prefixed or header.shapes
    is_original = "input_blocks.0.0.weight" in unet
    is_diffusers = "conv_in.weight" in unet and "time_embedding.linear_1.weight" in unet
    return unet if is_original or is_diffusers else {}


def _kind_of_unet(header: Header, unet: dict[str, tuple[int, ...]]) -> CheckpointKind:
    """What a file with a UNet is: by its UNet's inputs, then by the parts beside the UNet."""
    # 1) What the UNet reads: other images than noise, and whether sizes and pooled texts
    keys = header.shapes
    entry = unet.get("input_blocks.0.0.weight") or unet["conv_in.weight"]
    in_channels = entry[1]
    reads_sizes = "label_emb.0.0.weight" in unet or "add_embedding.linear_1.weight" in unet
    if not _has_both_encoders(header) and any(key.startswith(OLDER_ENCODER) for key in keys):
        return _kind_with_older_names(header, unet)
    if not reads_sizes:
        return _OLDER_UNET
    if any(".time_stack." in key for key in unet):
        return _VIDEO
    if f"{UNET_PREFIX}conv_in.weight" in keys:
        return _MIXED_NAMES
    if in_channels != LATENT_CHANNELS:
        purposes = {9: "for inpainting", 8: "that edits pictures (instruct-pix2pix)"}
        purpose = purposes.get(in_channels, "of another kind")
        words = f"an SDXL checkpoint {purpose}: its UNet has {in_channels} input channels"
        return CheckpointKind(words, _TAKE_SDXL)
    if any(key.startswith("conditioner.embedders.0.model.") for key in keys):
        return _REFINER

    # 2) What is beside it
    missing = []
    if not any(key.startswith(FIRST_ENCODER) for key in keys):
        missing.append("first text encoder")
    if not any(key.startswith(SECOND_ENCODER) for key in keys):
        missing.append("second text encoder")
    if not any(key.startswith(VAE_PREFIXES) for key in keys):
        missing.append("VAE")
    if len(missing) == 3:
        return _UNET
    if missing == ["VAE"]:
        return _WITHOUT_VAE
    if missing:
        words = f"an SDXL checkpoint without its {' and '.join(missing)}"
        return CheckpointKind(words, _SAVE_WHOLE, holds="unet")
    if "edm_mean" in keys:
        return PLAYGROUND
    return _SDXL


def _kind_with_older_names(header: Header, unet: dict[str, tuple[int, ...]]) -> CheckpointKind:
    """What a file is whose text encoder has the names of Stable Diffusion 1 and 2.

    SDXL's UNet reads the pooled text of one encoder and six sizes, the unCLIP of Stable Diffusion 2
    less.
    """
    labels = unet.get("label_emb.0.0.weight") or unet.get("add_embedding.linear_1.weight")
    if labels is not None and labels[-1] == SDXL_LABELS:
        return _RENAMED_ENCODERS
    if any(key.startswith(f"{OLDER_ENCODER}model.") for key in header.shapes):
        return _SD2
    return _SD1


def _other_model(header: Header) -> CheckpointKind:
    """What diffusers takes the file for."""
    # diffusers asks for names and shapes alone, and these tensors have no memory.
    shapes = header.shapes.items()
    stand_ins = {key: torch.empty(shape, device="meta") for key, shape in shapes}
    try:
        name = infer_diffusers_model_type(stand_ins)
    except (ValueError, RuntimeError, IndexError, NameError, KeyError):
        name = "v1"
    if name == "v1":  # what diffusers says of all that it doesn't know
        some = " and ".join(repr(key) for key in list(header.shapes)[:2])
        words = f"no checkpoint that we know; it begins with {some}"
        return CheckpointKind(words, _TAKE_SDXL)
    return CheckpointKind(f"another model ({name})", _TAKE_SDXL)
