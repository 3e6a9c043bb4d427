"""Where an SDXL pipeline comes from: a tiny one made in code, full size with random weights, the hub, a folder, a file.

Knows Hugging Face's loaders and caches. Ignorant of requests, engines and HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from benchlib.machine import available_memory_gib
from benchlib.telemetry import GIB

SDXL_HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_PARAMS = 3_468_837_867  # of the published base model: UNet, two text encoders and VAE
HUB_TIMEOUT_S = 5.0
# Part of the cache key: raise it with every change to what `tiny` is made of.
TINY_VERSION = 1

# "sdxl" is the published configuration of stabilityai/stable-diffusion-xl-base-1.0, as its config.json files state it
# (an eos_token_id of 2 makes transformers pool at the highest token id, which is end-of-text). "tiny" is what differs:
# narrow and shallow, over the byte vocabulary; its sample_size of 16 makes 128x128 the pipeline's own size.
_ARCHITECTURES = json.loads(Path(__file__).with_name("architectures.json").read_text())
SDXL: dict[str, dict[str, Any]] = _ARCHITECTURES["sdxl"]
TINY = {part: config | _ARCHITECTURES["tiny"].get(part, {}) for part, config in SDXL.items()}


class ModelError(RuntimeError):
    """A model can't be had: the message says why and what to do about it."""


def choose_model(model: str, device: torch.device) -> tuple[str, str]:
    """Resolve `"auto"` to a model's name for `device`; the second value says why, for a person."""
    if model != "auto":
        return model, "asked for by name"
    if device.type == "cuda":
        return "sdxl", "there is a CUDA GPU"
    return "tiny", "there is no CUDA GPU, and full-size SDXL takes minutes an image without one"


def load_diffusers(
    model: str, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> StableDiffusionXLPipeline:
    """Load or make a stock pipeline on `device` in `dtype`.

    `model` is `"tiny"`, `"sdxl"`, `"sdxl-random"`, a hub id, a diffusers folder or a single `.safetensors` file.
    `seed` draws the weights of the two random models. Raises `ModelError`, which names the remedy, before anything
    large is read where the model can't be had or does not fit.
    """
    if model == "tiny":
        with _no_progress_bars():
            return _from_folder(tiny_folder(seed), device, dtype)
    if model == "sdxl-random":
        _require_memory(SDXL_PARAMS, device, dtype)
        return _assemble(SDXL, device, dtype, seed)
    path = Path(model).expanduser()
    if path.suffix == ".safetensors":
        return _from_single_file(path, device, dtype)
    if path.is_dir():
        return _from_folder(path, device, dtype)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(
            f"model: there is no folder {model!r}; give a diffusers folder, a hub id, or 'tiny'"
        )
    hub_id = SDXL_HUB_ID if model == "sdxl" else model
    if "/" not in hub_id:
        raise ModelError(
            f"model: {model!r} is none of 'tiny', 'sdxl', 'sdxl-random', no folder here and no hub id (owner/name)"
        )
    return _from_hub(hub_id, device, dtype)


# -- tiny -------------------------------------------------------------------------------------------------------------


def tiny_folder(seed: int = 0) -> Path:
    """Folder of the tiny pipeline in `save_pretrained`'s layout (16 MB), built on first use.

    Lies under BENCHLIB_CACHE, else the user's cache folder. It is written aside and renamed, so that two processes
    may build at once: the first to rename wins and the other takes its result.
    """
    cache = Path(os.environ.get("BENCHLIB_CACHE") or platformdirs.user_cache_path("benchlib"))
    folder = cache / f"tiny-v{TINY_VERSION}-seed{seed}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
    try:
        _assemble(TINY, torch.device("cpu"), torch.float32, seed).save_pretrained(aside)
        # A rename onto a folder that has come to be meanwhile fails, and then that one is as good.
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Five bars for 16 MB are noise; on real weights they are news."""
    shown = (
        diffusers_logging.is_progress_bar_enabled(),
        transformers_logging.is_progress_bar_enabled(),
    )
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown[0]:
            diffusers_logging.enable_progress_bar()
        if shown[1]:
            transformers_logging.enable_progress_bar()


def _tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's tokenizer over single bytes, with no merges: it reads any Unicode text with 514 entries.

    The alphabet is GPT-2's printable stand-ins for the 256 bytes, which CLIP shares: printable Latin-1 stands for
    itself, the rest is moved up to U+0100 and on. "!" is entry 0 and end-of-text the highest, as in CLIP's vocabulary.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [0x100 + i for i in range(256 - len(printable))]
    alphabet = [chr(code) for code in printable + moved]
    entries = [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {entry: i for i, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77, pad_token=pad_token)


# -- random weights ---------------------------------------------------------------------------------------------------


def _assemble(
    config: dict[str, dict[str, Any]], device: torch.device, dtype: torch.dtype, seed: int
) -> StableDiffusionXLPipeline:
    """A whole pipeline of random weights, made on `device` in `dtype`."""
    networks: dict[str, Callable[[], torch.nn.Module]] = {
        "unet": lambda: UNet2DConditionModel(**config["unet"]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(**config["text_encoder_2"])
        ),
        "vae": lambda: AutoencoderKL(**config["vae"]),
    }
    return StableDiffusionXLPipeline(
        **{
            name: _with_random_weights(build, f"{seed}:{name}", device, dtype)
            for name, build in networks.items()
        },
        tokenizer=_tokenizer(pad_token="<|endoftext|>"),
        tokenizer_2=_tokenizer(pad_token="!"),
        scheduler=EulerDiscreteScheduler(**config["scheduler"]),
    )


def _with_random_weights(
    build: Callable[[], torch.nn.Module], key: str, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """Build a network whose weights are drawn at their final place, so that no second copy of them ever exists.

    Matrices are uniform with variance 1 / fan-in (LeCun et al., "Efficient BackProp", 1998, section 4.6), which keeps
    activations finite at any depth; gains are 1 and biases 0. The libraries' own initialisers are passed over: theirs
    change between versions, and with them what a seed means. Every `dtype` rounds the same numbers, drawn in float32.
    """
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]))
    # Larger parts leave holes in the heap: 13 % of the weights' bytes with 4 MiB, 0.5 % with 256 KiB.
    drawn_at_once = 2**16 if device.type == "cpu" else 2**22
    with init_empty_weights(include_buffers=False):
        network = build()
    for name, parameter in list(network.named_parameters()):
        value = torch.empty(parameter.shape, device=device, dtype=dtype)
        if value.ndim > 1:
            bound = (3 / value[0].numel()) ** 0.5
            for part in torch.split(value.view(-1), drawn_at_once):
                drawn = torch.empty(part.shape, device=device, dtype=torch.float32)
                part.copy_(drawn.uniform_(-bound, bound, generator=generator))
        else:
            value.fill_(1.0 if name.endswith("weight") else 0.0)
        set_module_tensor_to_device(
            network, name, device, value=value, dtype=dtype, clear_cache=False
        )
    return network.to(device).eval().requires_grad_(False)


# -- weights from elsewhere -------------------------------------------------------------------------------------------


def _from_folder(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> StableDiffusionXLPipeline:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model: {folder} is no diffusers pipeline: it has no model_index.json; give the folder that has one"
        )
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model: {index} can't be read ({error}); save the pipeline again"
        ) from error
    if kind != "StableDiffusionXLPipeline":
        raise ModelError(
            f"model: {folder} holds a {kind}, not a StableDiffusionXLPipeline; give an SDXL text-to-image model"
        )
    variant = (
        "fp16" if dtype == torch.float16 and any(folder.glob("unet/*.fp16.safetensors")) else None
    )
    weights = folder.glob("*/*.fp16.safetensors" if variant else "*/*.safetensors")
    _require_memory(
        _count_params(f for f in weights if variant or ".fp16." not in f.name), device, dtype
    )
    try:
        pipe = StableDiffusionXLPipeline.from_pretrained(
            folder, dtype=dtype, variant=variant, local_files_only=True
        )
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"model: {folder} can't be loaded: {error}") from error
    return _placed(pipe, device)


def _from_hub(hub_id: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Load from the local cache where the model is there, else ask the hub first, briefly."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(*, variant: str | None, local: bool) -> Path:
        return Path(
            StableDiffusionXLPipeline.download(
                hub_id, variant=variant, use_safetensors=True, local_files_only=local
            )
        )

    variants: list[str | None] = ["fp16", None] if dtype == torch.float16 else [None]
    for variant in variants:
        try:
            return _from_folder(fetch(variant=variant, local=True), device, dtype)
        except (LocalEntryNotFoundError, OSError, ValueError):
            continue
    _require_memory(SDXL_PARAMS, device, dtype)
    files = ask_hub(hub_id)
    if "model_index.json" not in files:
        raise ModelError(
            f"model: {hub_id} on the hub is no diffusers pipeline; give an SDXL model in diffusers' layout"
        )
    has_fp16 = any(name.startswith("unet/") and ".fp16." in name for name in files)
    return _from_folder(
        fetch(variant=variants[0] if has_fp16 else None, local=False), device, dtype
    )


def ask_hub(hub_id: str) -> set[str]:
    """File names of a model on the hub. Raises `ModelError` at once where the hub or the model can't be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # Of httpx or its successor, whichever this version of the hub's client speaks through.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    remedy = "use model='tiny' or 'sdxl-random', which need no download, or give the folder of a downloaded model"
    try:
        info = HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise ModelError(
            f"model: the hub refuses {hub_id!r}: {str(error).splitlines()[0]}; check the name and access, or {remedy}"
        ) from error
    except (OSError, http_error, OfflineModeIsEnabled, HFValidationError) as error:
        raise ModelError(
            f"model: {hub_id!r} is not cached and the hub can't be asked ({error or type(error).__name__}); {remedy}"
        ) from error
    return {sibling.rfilename for sibling in info.siblings or ()}


def _from_single_file(
    path: Path, device: torch.device, dtype: torch.dtype
) -> StableDiffusionXLPipeline:
    if not path.is_file():
        raise ModelError(f"model: there is no file {path}")
    _require_memory(_count_params([path]), device, dtype)
    # A single file holds weights only: configuration and vocabulary are the base model's (a few MB).
    try:
        pipe = StableDiffusionXLPipeline.from_single_file(
            path, config=SDXL_HUB_ID, dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError):
        ask_hub(SDXL_HUB_ID)
        try:
            pipe = StableDiffusionXLPipeline.from_single_file(path, config=SDXL_HUB_ID, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"model: {path} can't be read as an SDXL checkpoint: {error}"
            ) from error
    return _placed(pipe, device)


def _placed(pipe: StableDiffusionXLPipeline, device: torch.device) -> StableDiffusionXLPipeline:
    # Loaders put weights on the CPU. Asking for it again makes diffusers warn that float16 can't run there; it can.
    return pipe if device.type == "cpu" else pipe.to(device)


def _count_params(files: Iterable[Path]) -> int:
    """Numbers stored in safetensors files, from their headers alone."""
    count = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                count += sum(
                    torch.Size(tensors.get_slice(name).get_shape()).numel()
                    for name in tensors.keys()  # noqa: SIM118 - it is no dict
                )
        except SafetensorError as error:
            raise ModelError(
                f"model: {file} is no safetensors file ({error}); download it again"
            ) from error
    return count


def _free_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return free_bytes / GIB
    return available_memory_gib()


def _require_memory(params: int, device: torch.device, dtype: torch.dtype) -> None:
    needed_gib, free_gib = params * dtype.itemsize / 2**30, _free_memory_gib(device)
    if needed_gib > free_gib:
        raise ModelError(
            f"model: its weights need {needed_gib:.1f} GiB in {str(dtype).removeprefix('torch.')} and {device} has "
            f"{free_gib:.1f} GiB free; free memory, take a smaller dtype (dtype='bfloat16'), or use model='tiny'"
        )
