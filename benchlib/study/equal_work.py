"""The time that each image spent in the model, with images of equal work side by side.

Knows a run's rows. Ignorant of runs as a whole, and of how two sides are compared (shift.py).
"""

from __future__ import annotations

import pandas as pd

from benchlib.rows import STAGES
from benchlib.study.intervals import Floats
from benchlib.study.latency import in_window, is_ok

ByWork = dict[str, Floats]
"""Seconds in the model, by kind of work: an array of each kind's images, in the order of time."""


def seconds_by_work(requests: pd.DataFrame) -> ByWork:
    """Returns the seconds in the model of each image in the window, by kind of work.

    The time is the server's own (`service_s`), or else the sum of its stages; a wait is no part of
    it. It is {} where the server sends neither. Images are of equal work if they have the same
    steps, sides and guidance, and shared their steps with as many others on average. Images that
    one batch made together took the same calls, so they count once.
    """
    # 1) The time of each image.
    counted = in_window(requests)
    made = counted[is_ok(counted)]
    stages = [f"{stage}_s" for stage in STAGES]
    sum_s = made[stages].sum(
        axis="columns",
        min_count=len(stages),
    )
    service_s = made["service_s"].fillna(sum_s)

    # 2) Images of equal work.
    batch_size = made["batch_size"].round(2)
    work = pd.DataFrame(
        {
            "steps": made["num_inference_steps"],
            "width": made["width"],
            "height": made["height"],
            # A missing scale is the server's default, which is above 1.
            "guided": ~(made["guidance_scale"] <= 1),
            "batch": batch_size,
        }
    )
    kind = pd.Series("", index=made.index)
    for name, values in work.items():
        kind += f"{name} " + values.astype("string").fillna("default") + " "

    # 3) One of each batch.
    calls = pd.DataFrame({"kind": kind, "service_s": service_s})
    is_another_of_its_batch = (batch_size > 1) & calls.duplicated()
    is_counted = (service_s > 0) & ~is_another_of_its_batch
    counted_calls = calls[is_counted]
    found = {}
    for name, of_kind in counted_calls.groupby("kind", sort=False):
        found[str(name).rstrip()] = of_kind["service_s"].to_numpy(dtype=float)
    return found
