"""Models: an SDXL pipeline with random weights, or loaded from the hub, a folder or a file.

Knows which of these a name means, and the hub. Ignorant of recipes, requests, engines and HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from benchlib.serving.model.checkpoint_kinds import require_kind
from benchlib.serving.model.hub_files import hub_file, is_hub_file
from benchlib.serving.model.memory import own_memory
from benchlib.serving.model.model_errors import ModelError, require_memory
from benchlib.serving.model.model_folders import (
    NETWORKS,
    Plan,
    by_preference,
    load_folder,
    network_config,
    plan_folder,
    variants_of,
)
from benchlib.serving.model.network_checks import require_fitting_networks
from benchlib.serving.model.network_sources import NetworkSource, find_network
from benchlib.serving.model.predictions import scheduler_of_unet
from benchlib.serving.model.random_models import (
    SDXL,
    SDXL_PARAMS,
    TINY,
    assemble,
    no_progress_bars,
    tiny_folder,
)
from benchlib.serving.model.single_files import (
    SDXL_HUB_ID,
    configuration_of,
    load_single_file,
    require_whole_unet,
    require_whole_vae,
)
from benchlib.serving.model.unet_layouts import laid_out
from benchlib.serving.model.unets import UNET, load_unet
from benchlib.serving.model.vaes import VAE, load_vae
from benchlib.serving.model.weights_files import read_header

__all__ = [
    "SDXL",
    "SDXL_PARAMS",
    "TINY",
    "LoadedModel",
    "ModelError",
    "ask_hub",
    "choose_model",
    "load_diffusers",
    "load_model",
    "tiny_folder",
]

HUB_TIMEOUT_S = 5.0
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_OTHER_WEIGHTS = (*_PICKLES, ".gguf", ".onnx", ".engine", ".sft")


@dataclass
class LoadedModel:
    """A stock pipeline, and `facts` that its name does not tell, for the pipeline's spec.

    `variant`: the variant of the weights, as in "fp16"; None is the plain one.
    `checkpoint`: what a single file is; None for others.
    `predicts`: what a file predicts if not noise, and how that is known.
    `unet`, `vae`: what replaced the model's own network; None if nothing did.
    """

    pipe: StableDiffusionXLPipeline
    facts: dict[str, str | None]


@dataclass(frozen=True)
class _Target:
    """Where weights go, and the networks that take the place of the model's own, by their names."""

    device: torch.device
    dtype: torch.dtype
    replaced: Mapping[str, NetworkSource]

    def require_memory(self, params: int) -> None:
        more = sum(source.params for source in self.replaced.values())
        require_memory(params + more, self.device, self.dtype)

    def components(self, config_of: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
        """The networks to pass to diffusers. `config_of(name)` is the configuration of the model's."""
        loaded: dict[str, Any] = {}
        if "unet" in self.replaced:
            loaded["unet"] = load_unet(self.replaced["unet"], config_of("unet"), self.dtype)
        if "vae" in self.replaced:
            loaded["vae"] = load_vae(self.replaced["vae"], config_of("vae"), self.dtype)
        return loaded


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
    """The stock pipeline of `load_model`."""
    return load_model(model, device=device, dtype=dtype, seed=seed).pipe


def load_model(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    unet: str | None = None,
    vae: str | None = None,
) -> LoadedModel:
    """Return a stock pipeline on `device` in `dtype`, loaded or with random weights.

    `model` is `"tiny"`, `"sdxl"`, `"sdxl-random"`, a hub id, a diffusers folder or a single
    `.safetensors` file, which may be on the hub (`owner/name/file.safetensors`). `seed` is the seed
    of the two random models' weights. `unet` and `vae` take the place of the model's own (see
    unets.py and vaes.py). Raises `ModelError`, which names the remedy, if the model can't be loaded
    or does not fit. Memory is checked before anything large is read.
    """
    replaced: dict[str, NetworkSource] = {}
    for part, name in ((UNET, unet), (VAE, vae)):
        if name is not None:
            replaced[part.field] = find_network(part, name, dtype, ask_hub)
    loaded = _load(model, _Target(device, dtype, replaced), seed)
    unknown: dict[str, str | None] = dict.fromkeys(("variant", "checkpoint", "predicts"))
    loaded.facts = unknown | loaded.facts | {"unet": unet, "vae": vae}
    source = replaced.get("unet")
    if source is not None:
        pipe = loaded.pipe
        marks = (source.name, source.header, source.folder)
        pipe.scheduler, predicts = scheduler_of_unet(*marks, pipe.scheduler)
        loaded.facts["predicts"] = predicts
    require_fitting_networks(loaded.pipe, model)
    for network in loaded.pipe.components.values():
        if isinstance(network, torch.nn.Module):
            own_memory(network)
    if device.type != "cpu":
        # A `to("cpu")` makes diffusers warn that float16 can't run there, although it can.
        loaded.pipe.to(device)
    return loaded


def _load(model: str, target: _Target, seed: int) -> LoadedModel:
    if model == "tiny":
        with no_progress_bars():
            return _from_folder(tiny_folder(seed), target)
    if model == "sdxl-random":
        require_memory(SDXL_PARAMS, target.device, target.dtype)
        pipe = assemble(SDXL, target.device, target.dtype, seed)
        others = target.components(SDXL.__getitem__)
        return LoadedModel(StableDiffusionXLPipeline(**pipe.components | others), {})
    if "://" in model:
        raise ModelError(
            f"model: {model!r} is an address; give the path of a downloaded file, "
            "or for a file on the hub owner/name/file.safetensors"
        )
    path = Path(model).expanduser()
    if path.is_dir():
        return _from_folder(path, target)
    if is_hub_file(model):
        return _from_single_file(hub_file(model, ask_hub, field="model"), target)
    if path.is_file() or path.suffix in (".safetensors", *_OTHER_WEIGHTS):
        return _from_single_file(path, target)
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
    return _from_hub(hub_id, target)


def _from_folder(folder: Path, target: _Target) -> LoadedModel:
    """Load a diffusers folder. Raises `ModelError` if it is not one, or does not fit."""
    return _from_plan(plan_folder(folder, target.dtype, without=list(target.replaced)), target)


def _from_plan(plan: Plan, target: _Target) -> LoadedModel:
    target.require_memory(plan.params)

    def config_of(name: str) -> Mapping[str, Any]:
        has_own = (plan.folder / name).is_dir()
        return network_config(plan.folder, name) if has_own else SDXL[name]

    components = target.components(config_of)
    pipe = load_folder(plan, target.dtype, components)
    return LoadedModel(pipe, {"variant": plan.variant})


def _from_single_file(path: Path, target: _Target) -> LoadedModel:
    # 1) Say what the file is
    if not path.is_file():
        raise ModelError(f"model: there is no file {path}")
    if path.suffix in _PICKLES:
        raise ModelError(
            f"model: {path} is a pickle, which can run code when it is read; if you trust it, "
            "load it in diffusers by from_single_file, call save_pretrained, and give the folder"
        )
    if path.name == "model_index.json":
        raise ModelError(f"model: {path} is a list of a model's parts; give its folder")
    if path.suffix.lower() == ".safetensors" != path.suffix:
        raise ModelError(f"model: {path} must end in .safetensors, in small letters; rename it")
    if path.suffix != ".safetensors":
        raise ModelError(
            f"model: {path} is no .safetensors file, and files of the kind "
            f"{path.suffix or path.name!r} are not read; give the model's .safetensors file"
        )
    header = read_header(path)
    has_vae = "vae" in target.replaced
    kind = require_kind(header, "model", field="model", has_vae=has_vae)

    # 2) Load it
    with configuration_of(kind, header, ask_hub) as configuration:
        config = network_config(configuration, "unet")
        own_config = laid_out(header, config)
        if "unet" not in target.replaced:
            require_whole_unet(header, own_config)
        if not has_vae:
            require_whole_vae(header, configuration)
        require_memory(header.params(), target.device, target.dtype)
        components = target.components(partial(network_config, configuration))
        if "unet" not in target.replaced:
            own = NetworkSource(UNET, str(path), header, plan=None)
            components["unet"] = load_unet(own, config, target.dtype)
        pipe, predicts = load_single_file(header, configuration, target.dtype, components)
    return LoadedModel(pipe, {"checkpoint": kind.words, "predicts": predicts})


def _from_hub(hub_id: str, target: _Target) -> LoadedModel:
    """Load from the local cache, or from the hub if the model is not cached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    without = list(target.replaced)

    def fetch(*, variant: str | None, local: bool) -> Path:
        return Path(
            StableDiffusionXLPipeline.download(
                hub_id,
                variant=variant,
                use_safetensors=True,
                local_files_only=local,
                **dict.fromkeys(without),
            )
        )

    # 1) From the cache, if it has all weights, in whatever variant
    try:
        plan = plan_folder(fetch(variant=None, local=True), target.dtype, without=without)
    except (LocalEntryNotFoundError, ModelError, OSError, ValueError):
        plan = None
    if plan is not None:
        return _from_plan(plan, target)

    # 2) From the hub
    require_memory(SDXL_PARAMS, target.device, target.dtype)
    files = ask_hub(hub_id)
    if "model_index.json" not in files:
        raise ModelError(f"model: {hub_id} on the hub {_not_a_pipeline(hub_id, files)}")
    leading = next(name for name in NETWORKS if name not in without)
    variant = _variant_on_hub(files, leading, target.dtype)
    folder = fetch(variant=variant, local=False)
    for name in without:  # a network from a file takes over this configuration
        hf_hub_download(hub_id, f"{name}/config.json")
    return _from_folder(folder, target)


def _not_a_pipeline(hub_id: str, files: set[str]) -> str:
    """Why a hub model without model_index.json is not loaded, and what to give in its place."""
    if "config.json" in files and "diffusion_pytorch_model.safetensors" in files:
        return f"is one network alone; if it is a UNet, name a whole model and give unet={hub_id!r}"
    single = sorted(name for name in files if name.endswith(".safetensors"))
    if single:
        return (
            f"is not a diffusers pipeline, but has {single[0]}; download that file "
            f"(hf download {hub_id} {single[0]}) and give its path"
        )
    return "is not a diffusers pipeline; give an SDXL model in diffusers' layout"


def _variant_on_hub(files: set[str], network: str, dtype: torch.dtype) -> str | None:
    """The variant to download, by the weights of one network."""
    inside = f"{network}/"
    names = [name.removeprefix(inside) for name in files if name.startswith(inside)]
    variants = variants_of(names)
    return next(iter(by_preference(variants, dtype)), None)


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
