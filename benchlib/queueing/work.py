"""What requests ask for, as arrays: steps, rows of the UNet's batch, and sizes.

Knows frames of images and workloads. Ignorant of what the work costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchlib.load.workload import Workload

Integers = npt.NDArray[np.int64]
Size = tuple[int, int]

POPULATION = 2000
"""How many requests of a mixed workload stand for all that may come."""
_SIDES = ["width", "height"]
_NEEDED = {*_SIDES, "num_inference_steps"}


@dataclass(frozen=True)
class AskedWork:
    """What each request asks for: arrays of one length. `size` is the place in a list of sizes."""

    steps: Integers
    rows: Integers
    size: Integers

    def __len__(self) -> int:
        return len(self.steps)

    def take(self, which: Integers) -> AskedWork:
        """The work of the requests `which`, by their places."""
        return AskedWork(self.steps[which], self.rows[which], self.size[which])

    @property
    def is_equal(self) -> bool:
        """Whether all requests ask for the same."""
        columns = (self.steps, self.rows, self.size)
        return all(np.ptp(column) == 0 for column in columns)


def sizes_of(frames: Sequence[pd.DataFrame]) -> list[Size]:
    """Every size of the runs' images, in a fixed order."""
    found: set[Size] = set()
    for images in frames:
        sides = images[_SIDES].dropna().drop_duplicates()
        pairs = sides.itertuples(index=False)
        found |= {(int(width), int(height)) for width, height in pairs}
    return sorted(found) or [(0, 0)]


def work_of(images: pd.DataFrame, sizes: Sequence[Size]) -> AskedWork:
    """The work of each image of a frame with these columns; an unknown size counts as the first."""
    places = {size: place for place, size in enumerate(sizes)}
    sides = images[_SIDES].fillna(0).astype(int)
    pairs = sides.itertuples(index=False)
    size = [places.get((width, height), 0) for width, height in pairs]
    steps = images["num_inference_steps"].fillna(1)
    return AskedWork(
        steps=steps.to_numpy(dtype=np.int64),
        rows=images["rows"].to_numpy(dtype=np.int64),
        size=np.array(size, dtype=np.int64),
    )


def population(
    workload: Mapping[str, Any] | None, own: AskedWork, sizes: Sequence[Size]
) -> AskedWork:
    """The work that requests may ask for, each as likely.

    That is the workload's, or that of the runs' own requests where the workload is not known, or
    names no size, or a size that no image of the runs had.
    """
    if workload is None:
        return own
    if own.is_equal:
        first = np.zeros(1, dtype=np.int64)
        return own.take(first)

    # 1) Requests as the workload would send them
    source = Workload.from_dict(workload)
    fields = pd.DataFrame([source.request(index) for index in range(POPULATION)])
    if not set(fields.columns) >= _NEEDED:
        return own
    fields["rows"] = 2  # the server's default scale guides
    if "guidance_scale" in fields:
        is_unguided = fields["guidance_scale"] <= 1
        fields["rows"] = np.where(is_unguided, 1, 2)

    # 2) Their work, if its cost was measured
    if not set(sizes_of([fields])) <= set(sizes):
        return own
    return work_of(fields, sizes)
