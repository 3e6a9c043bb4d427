"""What a notebook's cell shows of a pipeline and of the images that it made.

Knows a pipeline's spec and timings. Ignorant of HTML (cell_view.py) and of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchlib.cell_view import CellView

if TYPE_CHECKING:
    from benchlib.serving.model.results import Timings


def view_of_pipeline(spec: Mapping[str, Any]) -> CellView:
    """The model, its device and weights; then its number format, recipe and usual image."""
    usual = spec["showcase"]
    answer = f"{spec['model']} on {spec['device']}, {spec['weights_gib']:.3g} GiB of weights"
    size = f"{usual['width']}x{usual['height']} pixels"
    steps = usual["num_inference_steps"]
    took = "1 step" if steps == 1 else f"{steps} steps"
    rows = [
        ("number format", spec["dtype"]),
        ("recipe", spec["recipe"]),
        ("weights", f"{spec['model_params']:,}"),
        ("usual image", f"{size}, {took}"),
        *_file_rows(spec),
        *_adapter_rows(spec),
        *_few_steps_rows(spec),
        ("more", "pipe.generate(request), bl.serve(pipe), pipe.spec, pipe.diffusers"),
    ]
    return CellView(answer, rows)


def _file_rows(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was found in the model's files, where that is not as usual."""
    told = {"file": "checkpoint", "predicts": "predicts", "UNet": "unet", "variant": "variant"}
    return [(name, spec[key]) for name, key in told.items() if spec.get(key) is not None]


def _adapter_rows(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The LoRA adapters that a request may name, and those in the weights."""
    rows = []
    if spec.get("loras"):
        rows.append(("adapters by request", ", ".join(spec["loras"])))
    if spec.get("fused_loras"):
        fused = [f"{name}:{scale:g}" for name, scale in spec["fused_loras"].items()]
        rows.append(("adapters in the weights", ", ".join(fused)))
    return rows


def _few_steps_rows(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Why a model's usual image has few steps, and what is wrong with its scheduler."""
    few_steps = spec.get("few_steps")
    if few_steps is None:
        return []
    rows = [("few steps", few_steps["reason"])]
    if few_steps["advice"] is not None:
        rows.append(("scheduler", few_steps["advice"]))
    return rows


def view_of_images(count: int, timings: Timings) -> CellView:
    """How many images were made, in what time, and the time of each stage."""
    images = "1 image" if count == 1 else f"{count} images"
    rows = [
        ("encode", f"{timings.encode_s:.3g} s"),
        ("denoise", f"{timings.denoise_s:.3g} s"),
        ("decode", f"{timings.decode_s:.3g} s"),
        ("more", "bl.plots.picture(result.images[0], alt=...)"),
    ]
    return CellView(f"{images} in {timings.total_s:.3g} s", rows)
