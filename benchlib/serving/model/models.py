"""Models: an SDXL pipeline with random weights, or loaded from the hub, a folder or a file.

Knows Hugging Face's loaders and caches. Ignorant of recipes, requests, engines and HTTP.
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
# The parameters of the published base model's UNet, two text encoders and VAE.
SDXL_PARAMS = 3_468_837_867
HUB_TIMEOUT_S = 5.0
# Part of the cache key: raise it whenever the architecture or the weights of `tiny` change.
TINY_VERSION = 1

# "sdxl" is the published configuration of stabilityai/stable-diffusion-xl-base-1.0, from its
# config.json files. Its eos_token_id of 2 makes transformers pool at the highest token id, which is
# end-of-text. "tiny" holds only the differences: fewer and narrower layers, and a vocabulary of
# bytes. Its sample_size of 16 means images of 128x128.
_ARCHITECTURES = json.loads(Path(__file__).with_name("architectures.json").read_text())
SDXL: dict[str, dict[str, Any]] = _ARCHITECTURES["sdxl"]
TINY = {part: config | _ARCHITECTURES["tiny"].get(part, {}) for part, config in SDXL.items()}


class ModelError(RuntimeError):
    """A model can't be loaded: the message says why and what to do about it."""


def choose_model(model: str, device: torch.device) -> tuple[str, str]:
    """The name of the model and the reason in words. "auto" is resolved for `device`."""
    if model != "auto":
        return model, "chosen by name"
    if device.type == "cuda":
        return "sdxl", "there is a CUDA GPU"
    return "tiny", "there is no CUDA GPU, and full-size SDXL takes minutes an image without one"


def load_diffusers(
    model: str, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> StableDiffusionXLPipeline:
    """Return a stock pipeline on `device` in `dtype`, loaded or with random weights.

    `model` is `"tiny"`, `"sdxl"`, `"sdxl-random"`, a hub id, a diffusers folder or a single
    `.safetensors` file. `seed` is the seed of the two random models' weights. Raises `ModelError`,
    which names the remedy, if the model can't be loaded or does not fit. Memory is checked before
    anything large is read.
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
            f"model: {model!r} is none of 'tiny', 'sdxl' and 'sdxl-random', "
            "and neither a folder here nor a hub id (owner/name)"
        )
    return _from_hub(hub_id, device, dtype)


# -- tiny ------------------------------------------------------------------------------------------


def tiny_folder(seed: int = 0) -> Path:
    """The folder of the tiny pipeline in `save_pretrained`'s layout (16 MB), built on first use.

    It lies under BENCHLIB_CACHE, else in the user's cache folder. Two processes may build it at
    once: each writes a folder of its own and renames it. The first to rename wins, and the other
    process uses that result.
    """
    chosen = os.environ.get("BENCHLIB_CACHE")
    cache = Path(chosen or platformdirs.user_cache_path("benchlib"))
    folder = cache / f"tiny-v{TINY_VERSION}-seed{seed}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
    try:
        _assemble(TINY, torch.device("cpu"), torch.float32, seed).save_pretrained(aside)
        # The rename fails if another process has finished the folder first. That folder serves as
        # well.
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
    """Hides the libraries' progress bars within the block.

    Real weights deserve bars; the tiny model's 16 MB do not.
    """
    libraries = [diffusers_logging, transformers_logging]
    showing = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in showing:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in showing:
            library.enable_progress_bar()


def _tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's tokenizer over single bytes, without merges: its 514 entries read any Unicode text.

    The alphabet is the one that CLIP took from GPT-2. It has a printable character for each byte.
    Printable Latin-1 stands for itself. The other bytes are moved to U+0100 and up. As in CLIP's
    vocabulary, "!" is entry 0 and end-of-text the highest entry.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [0x100 + i for i in range(256 - len(printable))]
    alphabet = [chr(code) for code in printable + moved]
    last_in_word = [f"{letter}</w>" for letter in alphabet]
    entries = [*alphabet, *last_in_word, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[],
        model_max_length=77,
        pad_token=pad_token,
    )


# -- random weights --------------------------------------------------------------------------------


def _assemble(
    config: dict[str, dict[str, Any]], device: torch.device, dtype: torch.dtype, seed: int
) -> StableDiffusionXLPipeline:
    """A whole pipeline with random weights, made on `device` in `dtype`."""
    builders: dict[str, Callable[[], torch.nn.Module]] = {
        "unet": lambda: UNet2DConditionModel(**config["unet"]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(**config["text_encoder_2"])
        ),
        "vae": lambda: AutoencoderKL(**config["vae"]),
    }
    networks = {
        name: _with_random_weights(build, f"{seed}:{name}", device, dtype)
        for name, build in builders.items()
    }
    return StableDiffusionXLPipeline(
        **networks,
        tokenizer=_tokenizer(pad_token="<|endoftext|>"),
        tokenizer_2=_tokenizer(pad_token="!"),
        scheduler=EulerDiscreteScheduler(**config["scheduler"]),
    )


def _with_random_weights(
    build: Callable[[], torch.nn.Module], key: str, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """Build a network and draw its weights in place, so that no second copy of them ever exists.

    Matrices are uniform with variance 1 / fan-in (LeCun et al., "Efficient BackProp", 1998, section
    4.6). That keeps activations finite at any depth. Gains are 1 and biases 0. The libraries' own
    initialisers are not used: they change between versions, and a seed would then mean other
    weights. All dtypes round the same float32 numbers.
    """
    # 1) Lay out the network without memory
    with init_empty_weights(include_buffers=False):
        network = build()

    # 2) Draw its weights
    generator = torch.Generator(device)
    digest = hashlib.sha256(key.encode()).digest()
    generator.manual_seed(int.from_bytes(digest[:7]))
    # Larger parts leave holes in a CPU's heap. Measured holes, as a share of the weights' bytes:
    #   parts of 4 MiB    13 %
    #   parts of 256 KiB  0.5 %
    drawn_at_once = 2**16 if device.type == "cpu" else 2**22
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


# -- weights from elsewhere ------------------------------------------------------------------------


def _from_folder(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> StableDiffusionXLPipeline:
    """Load a diffusers folder. Raises `ModelError` if it is not one, or does not fit."""
    # 1) Check that the folder holds an SDXL pipeline
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model: {folder} is not a diffusers pipeline: it has no model_index.json; "
            "give the folder that has one"
        )
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model: {index} can't be read ({error}); save the pipeline again"
        ) from error
    if kind != "StableDiffusionXLPipeline":
        raise ModelError(
            f"model: {folder} holds a {kind}, not a StableDiffusionXLPipeline; "
            "give an SDXL text-to-image model"
        )

    # 2) Choose the files and check that they fit
    in_16_bits = dtype == torch.float16 and any(folder.glob("unet/*.fp16.safetensors"))
    variant = "fp16" if in_16_bits else None
    files = [
        file for file in folder.glob("*/*.safetensors") if (".fp16." in file.name) == in_16_bits
    ]
    _require_memory(_count_params(files), device, dtype)

    # 3) Load
    try:
        pipe = StableDiffusionXLPipeline.from_pretrained(
            folder, dtype=dtype, variant=variant, local_files_only=True
        )
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"model: {folder} can't be loaded: {error}") from error
    return _placed(pipe, device)


def _from_hub(hub_id: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Load from the local cache, or from the hub if the model is not cached."""
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
            f"model: {hub_id} on the hub is not a diffusers pipeline; "
            "give an SDXL model in diffusers' layout"
        )
    has_fp16 = any(name.startswith("unet/") and ".fp16." in name for name in files)
    return _from_folder(
        fetch(variant=variants[0] if has_fp16 else None, local=False), device, dtype
    )


def ask_hub(hub_id: str) -> set[str]:
    """The names of a model's files on the hub.

    Raises `ModelError` without a long wait if the hub or the model can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # The base class belongs to the HTTP library that this version of the hub's client uses.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    remedy = (
        "use model='tiny' or 'sdxl-random', which need no download, "
        "or give the folder of a downloaded model"
    )
    try:
        info = HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise ModelError(
            f"model: the hub refuses {hub_id!r}: {str(error).splitlines()[0]}; "
            f"check the name and access, or {remedy}"
        ) from error
    except (OSError, http_error, OfflineModeIsEnabled, HFValidationError) as error:
        raise ModelError(
            f"model: {hub_id!r} is not cached and the hub can't be reached "
            f"({error or type(error).__name__}); {remedy}"
        ) from error
    return {sibling.rfilename for sibling in info.siblings or ()}


def _from_single_file(
    path: Path, device: torch.device, dtype: torch.dtype
) -> StableDiffusionXLPipeline:
    if not path.is_file():
        raise ModelError(f"model: there is no file {path}")
    _require_memory(_count_params([path]), device, dtype)
    # A single file holds weights only. Configuration and vocabulary are the base model's, a few MB.
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
    # Loaders put weights on the CPU. A further `to("cpu")` makes diffusers warn that float16 can't
    # run there, although it can.
    if device.type == "cpu":
        return pipe
    return pipe.to(device)


def _count_params(files: Iterable[Path]) -> int:
    """The number of parameters in safetensors files, read from the headers alone."""
    count = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    shape = tensors.get_slice(name).get_shape()
                    count += torch.Size(shape).numel()
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
    needed_gib = params * dtype.itemsize / GIB
    free_gib = _free_memory_gib(device)
    if needed_gib > free_gib:
        dtype_name = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"model: its weights need {needed_gib:.1f} GiB in {dtype_name} and {device} has "
            f"{free_gib:.1f} GiB free; free memory, take a smaller dtype (dtype='bfloat16'), "
            "or use model='tiny'"
        )
