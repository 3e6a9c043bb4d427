"""What images ask of a model's UNet: rows in its batch and calls, by the spec of their server.

Knows frames of images or requests, and samplers. Ignorant of what the work costs (calibration.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchlib.serving.scheduler_names import SCHEDULERS, count_unet_calls
from benchlib.study.services import services

if TYPE_CHECKING:
    from benchlib.study.store import Run


def with_unet_work(asked: pd.DataFrame, spec: Mapping[str, Any]) -> pd.DataFrame:
    """The same requests with two more columns: `rows` of the UNet's batch, and `calls` of the UNet.

    `spec` is the server's. A request without a number of steps makes one call, and one without a
    guidance scale is guided: that is the server's default. Columns of guidance and samplers may be
    missing. Servers of other people, and older specs, count as most models.
    """
    # 1) Rows: a UNet that reads the guidance scale needs no second one
    guided_rows = spec.get("guided_rows") or 2
    rows = pd.Series(guided_rows, index=asked.index, dtype=np.int64)
    if "guidance_scale" in asked:
        is_unguided = (asked["guidance_scale"] <= 1).fillna(False).astype(bool)
        rows = rows.mask(is_unguided, 1)

    # 2) Calls: some samplers take two for a step
    steps = asked["num_inference_steps"].fillna(1).astype(np.int64)
    chosen = pd.Series(spec.get("scheduler_class"), index=asked.index, dtype="string")
    if "scheduler" in asked:
        classes = {name: named.class_name for name, named in SCHEDULERS.items()}
        chosen = asked["scheduler"].astype("string").map(classes).fillna(chosen)
    calls = steps.copy()
    for class_name in chosen.dropna().unique():
        of_class = chosen == class_name
        calls[of_class] = steps[of_class].map(lambda n, name=class_name: count_unet_calls(n, name))
    return asked.assign(rows=rows, calls=calls)


def images_of(run: Run) -> pd.DataFrame:
    """The frame of `services` for a run, with the `rows` and `calls` that its server needs."""
    return with_unet_work(services(run.requests), run.spec.get("target") or {})
