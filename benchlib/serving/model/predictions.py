"""Predictions: which scheduler a checkpoint or a UNet asks for by its marks.

Knows the marks that training and merging tools leave in a file: ComfyUI's tensors `v_pred`, `ztsnr`
and `edm_vpred.*`, and `modelspec.prediction_type` (Stability-AI/ModelSpec) in the metadata.
Ignorant of networks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Any

from diffusers import EDMEulerScheduler
from safetensors import safe_open

from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.weights_files import Header

_METADATA = ("modelspec.prediction_type", "modelspec.predict_key")
_IMAGE_ITSELF = re.compile(r"(?<![a-zA-Z0-9])x0(?![a-zA-Z0-9])")
_LEVELS = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
_V_WORDS = ("v", "v_prediction", "v-prediction", "velocity")


def scheduler_by_marks(header: Header, scheduler: Any) -> tuple[Any, str | None]:
    """The scheduler that the file's marks ask for, and in words why; else `scheduler` and None.

    diffusers knows none of these marks and takes each such file for one that predicts noise.
    """
    # 1) A continuous range of noise levels, as CosXL has
    if "edm_vpred.sigma_max" in header.shapes:
        highest, lowest = _sigmas(header)
        own = EDMEulerScheduler(
            sigma_max=highest,
            sigma_min=lowest,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
        )
        return own, f"v over noise levels {lowest:g} to {highest:g}, by its key edm_vpred.sigma_max"

    # 2) SDXL's noise levels, with v in place of noise
    options: dict[str, Any] = {"prediction_type": "v_prediction"}
    if "ztsnr" in header.shapes and "v_pred" in header.shapes:
        # Pure noise is the first level, and only trailing steps begin there: Lin et al., "Common
        # Diffusion Noise Schedules and Sample Steps are Flawed", 2024, sections 3.1 and 3.3.
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        words = "v from pure noise on (zero terminal SNR), by its keys v_pred and ztsnr"
    elif "v_pred" in header.shapes:
        words = "v, by its key v_pred"
    else:
        marks = [name for name in _METADATA if header.metadata.get(name, "").lower() in _V_WORDS]
        if not marks:
            return scheduler, None
        words = f"v, by {marks[0]} in its metadata"
    return type(scheduler).from_config(scheduler.config, **options), words


def scheduler_of_unet(
    name: str, header: Header | None, folder: Path | None, scheduler: Any
) -> tuple[Any, str | None]:
    """The scheduler that a UNet asks for by its file's marks or name, and in words why.

    A UNet in the `folder` of a whole model predicts what the scheduler beside it says.

    SDXL Lightning's UNet for one step predicts the image itself, and only its name says so:
    `sdxl_lightning_1step_unet_x0.safetensors`.
    """
    if header is not None:
        marked, words = scheduler_by_marks(header, scheduler)
        if words is not None:
            return marked, words
    if folder is not None:
        beside = folder.parent / "scheduler/scheduler_config.json"
        if folder.name == "unet" and beside.is_file():
            return _predicting_as(beside, scheduler)
    if _IMAGE_ITSELF.search(PurePath(name).name) is None:
        return scheduler, None
    options = {"prediction_type": "sample", "timestep_spacing": "trailing"}
    own = type(scheduler).from_config(scheduler.config, **options)
    return own, "the image itself, by x0 in the name of its UNet"


def _predicting_as(path: Path, scheduler: Any) -> tuple[Any, str | None]:
    """The scheduler, with the prediction of the configuration in `path`, and in words why."""
    try:
        config = json.loads(path.read_text())
        predicts = config.get("prediction_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"unet: {path} can't be read ({error}); save the model again") from error
    own = scheduler.config.get("prediction_type")
    if predicts not in ("epsilon", "v_prediction", "sample") or predicts == own:
        return scheduler, None
    options = {name: config[name] for name in _LEVELS if name in config}
    changed = type(scheduler).from_config(scheduler.config, **options)
    return changed, f"{predicts}, by the scheduler beside its UNet"


def _sigmas(header: Header) -> tuple[float, float]:
    """The highest and the lowest noise level of a file with the mark edm_vpred."""
    with safe_open(header.path, framework="pt") as tensors:
        highest = tensors.get_tensor("edm_vpred.sigma_max").item()
        lowest = 0.002  # EDM's own: Karras et al., 2022, table 1
        if "edm_vpred.sigma_min" in header.shapes:
            lowest = tensors.get_tensor("edm_vpred.sigma_min").item()
    return highest, lowest
