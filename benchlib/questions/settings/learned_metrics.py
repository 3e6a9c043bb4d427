"""LPIPS and the CLIP score of images, by networks whose weights are on this machine already.

Knows where torch and the hub keep what was downloaded, and downloads nothing. Ignorant of settings
and verdicts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

P = ParamSpec("P")

CLIP = "openai/clip-vit-base-patch16"


class WeightsMissing(Exception):
    """Why a metric can't be had, and how to get it."""


@dataclass(frozen=True)
class LearnedMetrics:
    """What compares two images, or an image with its prompt; None where weights are missing.

    - `lpips`: takes two images, and is 0 where they are equal. Source: Zhang, Isola, Efros,
      Shechtman & Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
      CVPR (2018).
    - `clip_score`: takes an image and its prompt, and is 100 at most. Source: Hessel, Holtzman,
      Forbes, Le Bras & Choi, "CLIPScore", EMNLP (2021), without their factor of 2.5 but times 100.
    - `left_out`: for each missing one a sentence that says how to get it.

    Images are arrays (height, width, 3) of uint8.
    """

    lpips: Callable[[Pixels, Pixels], float] | None
    clip_score: Callable[[Pixels, str], float] | None
    left_out: tuple[str, ...]


def find_learned_metrics() -> LearnedMetrics:
    """The metrics whose weights are in the caches of torch and the hub. Both compute on the CPU."""
    from benchlib.serving.model.torch_thread import on_torch_thread

    left_out = []
    lpips = None
    clip_score = None
    try:
        lpips = _on_that_thread(on_torch_thread(_load_lpips))
    except WeightsMissing as reason:
        left_out.append(f"LPIPS is left out, as {reason}")
    try:
        clip_score = _on_that_thread(on_torch_thread(_load_clip))
    except WeightsMissing as reason:
        left_out.append(f"the CLIP score is left out, as {reason}")
    return LearnedMetrics(lpips, clip_score, tuple(left_out))


def _on_that_thread(metric: Callable[P, float]) -> Callable[P, float]:
    """`metric`, computed on the one thread that computes with torch."""
    from benchlib.serving.model.torch_thread import on_torch_thread

    def compute(*args: P.args, **kwargs: P.kwargs) -> float:
        return on_torch_thread(metric, *args, **kwargs)

    return compute


def _load_lpips() -> Callable[[Pixels, Pixels], float]:
    """LPIPS over AlexNet, by torchmetrics. Raises WeightsMissing."""
    for package in ("torchmetrics", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise WeightsMissing(
                f"{package} is not installed: pip install torchmetrics torchvision"
            )
    import torch

    try:
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError) as error:  # built for another torch
        raise WeightsMissing(
            f"torchvision does not fit this torch ({error}): install the two together"
        ) from error

    file_name = Path(AlexNet_Weights.DEFAULT.url).name
    weights = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not weights.is_file():
        download = "import torchvision; torchvision.models.alexnet(weights='DEFAULT')"
        raise WeightsMissing(f'{file_name} is not in torch\'s cache: python -c "{download}"')

    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)

    def lpips(reference: Pixels, image: Pixels) -> float:
        with torch.inference_mode():
            distance = metric(_batch(reference), _batch(image))
        return float(distance)

    return lpips


def _batch(image: Pixels) -> Any:
    """A float tensor (1, 3, height, width) in [0, 1]."""
    import torch

    levels = torch.tensor(image).permute(2, 0, 1)
    return levels[None].float() / 255


def _load_clip() -> Callable[[Pixels, str], float]:
    """The CLIP score by transformers. Raises WeightsMissing."""
    import torch
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    missing = WeightsMissing(f"{CLIP} is not in the hub's cache: hf download {CLIP}")
    try:
        folder = snapshot_download(CLIP, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise missing from error
    try:
        model = CLIPModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
    except OSError as error:  # a file of the snapshot is not there
        raise missing from error

    def clip_score(image: Pixels, prompt: str) -> float:
        tokens = tokenizer(prompt, truncation=True, return_tensors="pt")
        pixels = processor(images=image, return_tensors="pt")
        with torch.inference_mode():
            found = model(**tokens, **pixels)
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * float(cosine)

    return clip_score
