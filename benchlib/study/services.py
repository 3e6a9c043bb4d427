"""The services of a run's images: what each one took of the model, and what it took besides.

Pure functions on a run's frame of requests. Ignorant of policies, of simulations, and of whether
the services can be trusted (misfit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchlib.rows import STAGES
from benchlib.study.latency import is_ok

Floats = npt.NDArray[np.float64]

MOST_UNTIMED = 0.05
"""Up to this share of images, missing times are those of the other images of their kind."""
OVERDUE = 2.0
"""A request that has no answer after so many times the longest other one may get none."""

_STAGES = [f"{stage}_s" for stage in STAGES]
_TIMED = ["queue_s", "total_s", *_STAGES]
_USUAL = [*_STAGES, "work_s", "outside_s", "batch_size"]
_MOMENTS = ["scheduled_s", "sent_s", "done_s", "latency_s"]
_ASKED = ["num_inference_steps", "guidance_scale", "width", "height"]


def services(requests: pd.DataFrame) -> pd.DataFrame:
    """One row for each image, in the order in which the requests were sent; times in seconds.

    - `work_s`: encoding, all steps and decoding. NaN where the server sent no `Server-Timing`.
    - `outside_s`: from the request's way to the server and the answer's way back.
    - `rows`: rows in the UNet's batch; 2 with guidance, else 1, as in most models.
    - `found`: how many earlier requests had not been answered when this one was sent.

    The other columns are the run's. Requests without an image are left out.
    """
    # 1) Whom each request found, also of those that got no image
    was_sent = requests["sent_s"].notna()
    sent = requests[was_sent].sort_values("sent_s", kind="stable")
    sent_s = as_floats(sent["sent_s"])
    left_s = as_floats(sent["done_s"].fillna(np.inf))
    found = pd.Series(found_on_arrival(sent_s, left_s), index=sent.index)

    # 2) The images
    has_image = is_ok(sent)
    kept = ["phase", *_MOMENTS, *_TIMED, "batch_size", *_ASKED]
    images = sent.loc[has_image, kept]
    images["scheduler"] = sent.get("scheduler", pd.NA)
    images["found"] = found[has_image]

    # 3) What each one took, and what it asked for
    whole_s = images["done_s"] - images["sent_s"]
    stages_s = images[_STAGES]
    images["work_s"] = stages_s.sum(axis="columns", skipna=False)
    images["outside_s"] = whole_s - images["total_s"]
    is_unguided = images["guidance_scale"] <= 1  # a missing scale is the server's default, above 1
    images["rows"] = np.where(is_unguided, 1, 2)
    return images


def without_times(images: pd.DataFrame) -> int:
    """How many images of `services` lack a time of the server's own."""
    return int(images[_TIMED].isna().any(axis=1).sum())


def with_filled_times(images: pd.DataFrame) -> pd.DataFrame:
    """The same images, where few that lack the server's times have those of their kind.

    An answer may have lost its header on the way, and its image took the server's time all the
    same. It gets the median times of the images that asked for as much. Where more than
    MOST_UNTIMED lack them, or no image of a kind has them, nothing is filled.
    """
    # 1) Which images lack them
    is_missing = images[_TIMED].isna().any(axis=1)
    missing = is_missing.mean()
    if missing == 0 or missing > MOST_UNTIMED:
        return images

    # 2) What an image of the same kind takes
    usual = images.copy()
    kind = [*_ASKED, "scheduler", "rows"]
    kinds = images.groupby(kind, dropna=False)
    for name in _USUAL:
        usual[name] = kinds[name].transform("median")

    # 3) The rest of the latency is a wait
    whole_s = images["done_s"] - images["sent_s"]
    usual["total_s"] = whole_s - usual["outside_s"]
    wait_s = usual["total_s"] - usual["work_s"]
    usual["queue_s"] = wait_s.clip(lower=0.0)
    return images.where(~is_missing, usual)


def are_timed(images: pd.DataFrame) -> bool:
    """Whether every image of `services` has the server's own times."""
    if not len(images):
        return False
    is_known = images[_TIMED].notna()
    return bool(is_known.all(axis=None))


def found_on_arrival(arrived_s: Floats, done_s: Floats) -> npt.NDArray[np.int64]:
    """How many requests were with the server when each one came, itself excluded.

    `arrived_s` must rise.
    """
    came_earlier = np.arange(len(arrived_s))
    ends_s = np.sort(done_s)
    had_left = np.searchsorted(ends_s, arrived_s, side="right")
    return came_earlier - had_left


def one_lane_services(images: pd.DataFrame) -> pd.Series:
    """The seconds that one lane took for each image, where only latencies are known.

    A request that found the server empty was served in its whole latency. For the others the time
    is unknown (NaN): how long they waited is known only if the server has one lane.
    """
    whole_s = images["done_s"] - images["sent_s"]
    return whole_s.where(images["found"] == 0)


@dataclass(frozen=True)
class Losses:
    """How many of the `sent` requests got no image, by what became of them.

    `failed` ended without an image. The others had not ended when the run did. Of these, `overdue`
    had waited for more than OVERDUE times as long as any image took; `cut` came too late in the run.
    """

    sent: int
    failed: int
    overdue: int
    cut: int

    @property
    def lost_share(self) -> float:
        """The share of requests that took an unknown time of the server, from 0 to 1.

        Those that were cut are not among them: they came after the images that count.
        """
        return (self.failed + self.overdue) / self.sent if self.sent else 0.0


def losses(requests: pd.DataFrame, end_s: float | None = None) -> Losses:
    """What became of a run's requests without an image; the run ended at `end_s`, if it is known."""
    sent = requests[requests["sent_s"].notna()]
    has_image = is_ok(sent)
    has_ended = sent["done_s"].notna()

    # The run lasted at least as long as anything in it
    moments_s = [*sent["sent_s"], *sent["done_s"].dropna(), end_s or 0.0]
    waited_s = max(moments_s) - sent["sent_s"][~has_ended]
    whole_s = sent["done_s"] - sent["sent_s"]
    longest_s = whole_s[has_image].max()
    overdue = int((waited_s > OVERDUE * longest_s).sum())
    return Losses(
        sent=len(sent),
        failed=int((has_ended & ~has_image).sum()),
        overdue=overdue,
        cut=len(waited_s) - overdue,
    )


def as_floats(column: Any) -> Floats:
    """A column as an array of floats."""
    values: Floats = np.asarray(column, dtype=float)
    return values
