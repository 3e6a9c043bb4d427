"""Random models: SDXL's full size and a tiny SDXL, with weights that a seed decides.

Knows both architectures and the tiny model's cache. Ignorant of hubs, files that others made,
requests and HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

# The parameters of the published base model's UNet, two text encoders and VAE.
SDXL_PARAMS = 3_468_837_867
# Part of the cache key: raise it whenever the configuration or the weights of `tiny` change.
TINY_VERSION = 2

# "sdxl" is the published configuration of stabilityai/stable-diffusion-xl-base-1.0, from its
# config.json files. Its eos_token_id of 2 makes transformers pool at the highest token id, which is
# end-of-text. "tiny" holds only the differences: fewer and narrower layers, and a vocabulary of
# bytes. Its sample_size of 16 means images of 128x128.
_ARCHITECTURES = json.loads(Path(__file__).with_name("architectures.json").read_text())
SDXL: dict[str, dict[str, Any]] = _ARCHITECTURES["sdxl"]
TINY = {part: config | _ARCHITECTURES["tiny"].get(part, {}) for part, config in SDXL.items()}


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
        assemble(TINY, torch.device("cpu"), torch.float32, seed).save_pretrained(aside)
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
def no_progress_bars() -> Iterator[None]:
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


def _bytes_tokenizer(pad_token: str) -> CLIPTokenizer:
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


def assemble(
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
        name: with_random_weights(build, f"{seed}:{name}", device, dtype)
        for name, build in builders.items()
    }
    return StableDiffusionXLPipeline(
        **networks,
        tokenizer=_bytes_tokenizer(pad_token="<|endoftext|>"),
        tokenizer_2=_bytes_tokenizer(pad_token="!"),
        scheduler=EulerDiscreteScheduler.from_config(config["scheduler"]),
    )


def with_random_weights(
    build: Callable[[], torch.nn.Module], key: str, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """Build a network and draw its weights in place, so that no second copy of them ever exists.

    Matrices are uniform with variance 1 / fan-in (LeCun et al., "Efficient BackProp", 1998, section
    4.6). That keeps activations finite at any depth. Gains are 1 and biases 0. The libraries' own
    initialisers are not used: they change between versions, and a seed would then mean other
    weights. All dtypes round the same float32 numbers.
    """
    # 1) Lay out the network without memory. accelerate's `init_empty_weights` would do so for
    # other threads' networks too
    with torch.device("meta"):
        network = build()

    # 2) Fill in what is no weight: the numbers of CLIP's positions
    for name, buffer in list(network.named_buffers()):
        if name.rpartition(".")[2] != "position_ids":
            raise NotImplementedError(f"{name} is a buffer without a known value")
        positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
        set_module_tensor_to_device(network, name, device, value=positions, clear_cache=False)

    # 3) Draw its weights
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
