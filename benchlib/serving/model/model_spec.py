"""What a loaded model is: its parameters and weights, and the image that it is made for.

Knows diffusers' pipelines and the rules of few-step models. Ignorant of how images are made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from diffusers import StableDiffusionXLPipeline
from torch.nn import Module

from benchlib.serving.model.few_steps import FewSteps, few_steps_of
from benchlib.serving.model.memory import describe_network, held_gib
from benchlib.serving.schemas import MAX_SIDE, MIN_SIDE

STOCK_MULTIPLE = 8
SDXL_LATENTS = 128
TINY_STEPS = 8
USUAL_STEPS = 20
_NAMES = ("model", "unet")
"""What of a spec may bear the mark of a few-step model; a later one counts before an earlier."""


def describe_model(
    pipe: StableDiffusionXLPipeline,
    spec: Mapping[str, Any],
    in_use: Mapping[str, Module],
    stock_vae: Module,
) -> dict[str, Any]:
    """The spec of a loaded model: parameters, weights in GiB, its own size, steps and guidance.

    `spec` has what was asked for when it was loaded. `in_use` holds the UNet and the VAE that
    compute, which recipes may have replaced; `stock_vae` is the one of the weights' own dtype.
    """
    encoders = {
        name: getattr(pipe, name)
        for name in ("text_encoder", "text_encoder_2")
        if getattr(pipe, name) is not None
    }
    networks = {"unet": in_use["unet"], **encoders, "vae": in_use["vae"]}
    stock = [pipe.unet, *encoders.values(), stock_vae]
    stock_parameters = [p for network in stock for p in network.parameters()]
    own_parameters = [p for network in in_use.values() for p in network.parameters()]
    names = [spec[name] for name in _NAMES if spec.get(name)]
    few_steps = few_steps_of(names, pipe.scheduler, pipe.unet)
    return {
        "networks": {name: describe_network(network) for name, network in networks.items()},
        "model_params": sum(p.numel() for p in stock_parameters),
        "weights_gib": held_gib(stock_parameters + own_parameters),
        "size_multiple": size_multiple(pipe),
        "guided_rows": guided_rows(pipe.unet),
        "scheduler_class": type(pipe.scheduler).__name__,
        "skips_prk_steps": bool(pipe.scheduler.config.get("skip_prk_steps", False)),
        "showcase": _usual_image(pipe, spec["model"], few_steps),
        "few_steps": None if few_steps is None else asdict(few_steps),
    }


def guided_rows(unet: Any) -> int:
    """The rows that a guided image takes in the UNet's batch: 1 if the UNet reads the scale, as LCM's."""
    return 2 if unet.config.time_cond_proj_dim is None else 1


def size_multiple(pipe: StableDiffusionXLPipeline) -> int:
    """The pixels of which each side of an image is a multiple: a latent's, and the stock call's 8.

    The stock call rounds other sides down to whole latents, without a word.
    """
    return math.lcm(STOCK_MULTIPLE, pipe.vae_scale_factor)


def _usual_side(pipe: StableDiffusionXLPipeline) -> int:
    """The side, in pixels, of the square image that the model is made for, within our bounds."""
    latents: Any = pipe.unet.config.sample_size
    if not isinstance(latents, int):  # unknown, or not square
        latents = SDXL_LATENTS
    side = int(min(max(latents * pipe.vae_scale_factor, MIN_SIDE), MAX_SIDE))
    return side - side % size_multiple(pipe)


def _usual_image(
    pipe: StableDiffusionXLPipeline, model: str, few_steps: FewSteps | None
) -> dict[str, Any]:
    """The fields of a request for the image that the model is made for."""
    side = _usual_side(pipe)
    steps = TINY_STEPS if model == "tiny" else USUAL_STEPS
    usual = {"width": side, "height": side, "num_inference_steps": steps}
    if few_steps is not None:
        usual |= few_steps.showcase
    return usual
