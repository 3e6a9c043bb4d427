"""What requests ask for, as arrays: steps, rows of the UNet's batch, and sizes.

Knows frames of images and workloads. Ignorant of what the work costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchlib.load.workload import Workload
from benchlib.queueing.unet_work import with_unet_work

Integers = npt.NDArray[np.int64]
Size = tuple[int, int]

POPULATION = 2000
"""How many requests of a mixed workload stand for all that may come."""
_SIDES = ["width", "height"]
_NEEDED = {*_SIDES, "num_inference_steps"}
_FIELDS = [*_SIDES, "num_inference_steps", "guidance_scale", "scheduler"]


@dataclass(frozen=True)
class AskedWork:
    """What each request asks for: arrays of one length.

    `steps` are calls of the UNet: some samplers take two for a step. `size` is the place in a list
    of sizes.
    """

    steps: Integers
    rows: Integers
    size: Integers

    def __len__(self) -> int:
        return len(self.steps)

    def take(self, which: Integers) -> AskedWork:
        """The work of the requests `which`, by their places."""
        return AskedWork(self.steps[which], self.rows[which], self.size[which])

    @property
    def calls(self) -> npt.NDArray[np.float64]:
        """How many calls of the model each request makes: its steps, the encoding, the decoding."""
        return self.steps.astype(float) + 2

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
    """The work of each image of a frame of `with_unet_work`; an unknown size counts as the first."""
    places = {size: place for place, size in enumerate(sizes)}
    sides = images[_SIDES].fillna(0).astype(int)
    pairs = sides.itertuples(index=False)
    size = [places.get((width, height), 0) for width, height in pairs]
    return AskedWork(
        steps=images["calls"].to_numpy(dtype=np.int64),
        rows=images["rows"].to_numpy(dtype=np.int64),
        size=np.array(size, dtype=np.int64),
    )


def population(
    workload: Mapping[str, Any] | None,
    own: AskedWork,
    sizes: Sequence[Size],
    spec: Mapping[str, Any],
) -> AskedWork:
    """The work that requests may ask of the server of `spec`, each as likely.

    That is the workload's, or that of the runs' own requests where the workload is not known, or
    names no size, or a size that no image of the runs had.
    """
    if workload is None:
        return own
    if own.is_equal:
        first = np.zeros(1, dtype=np.int64)
        return own.take(first)

    # 1) What the workload may ask for, and how often it does
    source = Workload.from_dict(workload)
    fields = _all_asked(source)
    if not set(fields.columns) >= _NEEDED:
        return own

    # 2) Their work, if its cost was measured
    if not set(sizes_of([fields])) <= set(sizes):
        return own
    return work_of(with_unet_work(fields, spec), sizes)


def _all_asked(source: Workload) -> pd.DataFrame:
    """POPULATION requests of a workload, each choice as often as it is likely.

    Random requests would do, but the mean work of so few is off by as much as a run's own error.
    """
    # 1) Each choice of each field, and its chance
    chances = {name: _chances(getattr(source, name)) for name in _FIELDS}
    given = {name: choices for name, choices in chances.items() if choices}
    rows = []
    of_rows = []
    for combination in product(*given.values()):
        values = [value for value, _ in combination]
        rows.append(dict(zip(given, values, strict=True)))
        of_rows.append(math.prod(chance for _, chance in combination))

    # 2) The combination at each of so many equal steps of the chance
    until = np.cumsum(of_rows)
    steps = (np.arange(POPULATION) + 0.5) / POPULATION
    which = np.minimum(np.searchsorted(until, steps), len(rows) - 1)
    return pd.DataFrame([rows[place] for place in which])


def _chances(value: Any) -> list[tuple[Any, float]]:
    """The choices of a workload's field, and the chance of each; none for a field left out."""
    if value is None:
        return []
    if isinstance(value, tuple):
        return [(choice, 1 / len(value)) for choice in value]
    if not isinstance(value, dict):
        return [(value, 1.0)]
    whole = math.fsum(value.values())
    return [(choice, weight / whole) for choice, weight in value.items()]
