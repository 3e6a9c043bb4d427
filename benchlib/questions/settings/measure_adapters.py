"""What a LoRA adapter costs: images without one, with one fused, by request, and switching.

Knows pipelines. Ignorant of settings and budgets (measure.py), and of the answer's words (judge.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.serving.model.pipeline import SDXLPipeline

IMAGES = {"quick": 5, "full": 10}
STEPS_SHARE = {"quick": 1 / 8, "full": 1.0}
WARM_IMAGES = 2
COLUMNS = ("way", "lora", "image_s", "image_s_interval", "images", "images_per_s")


def price_adapters(
    model: str,
    loras: Mapping[str, str],
    *,
    profile: str = "quick",
    folder: Path | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Returns a frame of what images take, a row for each way of using the adapters.

    An image is made alone each time, of the model's own size; with the profile "quick" it has an
    eighth of the usual steps. The ways, in this order:

    - "without": the model without any adapter.
    - "fused": the first adapter in the weights.
    - "by request": each adapter, in a model that has all of them.
    - "switching": in that model each image has another adapter than the image before it, or none.

    The columns are COLUMNS: `image_s` is the mean of `images` images, with an interval by Student's
    t from 5 images on. The frame is empty without adapters. With a `folder` it is kept there as
    adapters.csv. Raises what `load_pipeline` raises, so a file that can't be used is named.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    names = list(loras)
    if names:
        # 1) One model after the other, because memory may be too small for two
        first = {names[0]: loras[names[0]]}
        with closing(_load(model, device)) as pipe:
            rows.append(_row("without", None, _times(pipe, [None], profile)))
        with closing(_load(model, device, loras=first, fuse=names[0])) as pipe:
            rows.append(_row("fused", names[0], _times(pipe, [None], profile)))

        # 2) All adapters by request
        with closing(_load(model, device, loras=loras)) as pipe:
            alone = [_row("by request", name, _times(pipe, [name], profile)) for name in names]
            rows += alone
            rows.append(_row("switching", None, _times(pipe, [*names, None], profile)))
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    if folder is not None and names:
        frame.to_csv(folder / "adapters.csv", index=False)
    return frame


def _load(model: str, device: str, **adapters: Any) -> SDXLPipeline:
    from benchlib.serving.model.loading import load_pipeline

    return load_pipeline(model, device=device, **adapters)


def _times(pipe: SDXLPipeline, loras: Sequence[str | None], profile: str) -> list[float]:
    """Seconds of each image, with the adapters in turn. The first ones warm up and don't count."""
    from benchlib.serving.schemas import GenerateRequest

    usual = pipe.spec["showcase"]
    steps = max(1, int(STEPS_SHARE[profile] * usual["num_inference_steps"]))
    times_s = []
    turns = itertools.cycle(loras)
    for seed in range(WARM_IMAGES + IMAGES[profile]):
        request = GenerateRequest(
            prompt="a lighthouse at dusk",
            seed=seed,
            lora=next(turns),
            **usual | {"num_inference_steps": steps},
        )
        times_s.append(pipe.generate(request).timings.total_s)
    return times_s[WARM_IMAGES:]


def _row(way: str, lora: str | None, times_s: Sequence[float]) -> dict[str, Any]:
    from benchlib.study.intervals import runs_interval

    image_s = math.fsum(times_s) / len(times_s)
    return {
        "way": way,
        "lora": lora,
        "image_s": image_s,
        "image_s_interval": runs_interval(times_s),
        "images": len(times_s),
        "images_per_s": 1 / image_s,
    }
