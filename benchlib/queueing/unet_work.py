"""What images ask of a model's UNet: rows in its batch and calls, by the spec of their server.

Knows frames of images or requests, and samplers. Ignorant of what the work costs (calibration.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchlib.serving.scheduler_names import SCHEDULERS, count_unet_calls
from benchlib.study.services import as_floats, services

if TYPE_CHECKING:
    from benchlib.study.store import Run

Integers = npt.NDArray[np.int64]


def with_unet_work(asked: pd.DataFrame, spec: Mapping[str, Any]) -> pd.DataFrame:
    """The same requests with two more columns: `rows` of the UNet's batch, and `calls` of the UNet.

    `spec` is the server's. A request without a number of steps makes one call, and one without a
    guidance scale is guided: that is the server's default. Columns of guidance and samplers may be
    missing. Servers of other people, and older specs, count as most models.
    """
    rows = _rows(asked, spec.get("guided_rows") or 2)
    calls = _calls(asked, spec)
    return asked.assign(rows=rows, calls=calls)


def _rows(asked: pd.DataFrame, guided_rows: int) -> Integers:
    """Rows: a UNet that reads the guidance scale needs no second one."""
    rows = np.full(len(asked), guided_rows)
    if "guidance_scale" not in asked:
        return rows
    scale = as_floats(asked["guidance_scale"])
    is_unguided = scale <= 1  # not so where it is missing
    rows[is_unguided] = 1
    return rows


def _calls(asked: pd.DataFrame, spec: Mapping[str, Any]) -> Integers:
    """Calls: some samplers take two for a step."""
    # 1) The sampler of each request
    names = pd.Series(pd.NA, index=asked.index)
    if "scheduler" in asked:
        names = asked["scheduler"]
    steps = asked["num_inference_steps"].fillna(1)

    # 2) Its calls; older specs do not say whether PNDM takes its first steps
    skips_prk_steps = spec.get("skips_prk_steps") is not False
    calls = []
    for name, count in zip(names, steps, strict=True):
        class_name = spec.get("scheduler_class")
        if name in SCHEDULERS:
            class_name = SCHEDULERS[name].class_name
        of_request = count_unet_calls(int(count), class_name, skips_prk_steps=skips_prk_steps)
        calls.append(of_request)
    return np.array(calls, dtype=np.int64)


def images_of(run: Run) -> pd.DataFrame:
    """The frame of `services` for a run, with the `rows` and `calls` that its server needs."""
    target = run.spec.get("target") or {}
    images = services(run.requests)
    return with_unet_work(images, target)
