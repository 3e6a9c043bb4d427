"""Whether it works here: how long the first notebook measures, and its answer in words.

Knows the summary of one run. Ignorant of how the run was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchlib.cell_view import ShownInCell
from benchlib.study.busy import busy_sentence_of
from benchlib.study.store import Run
from benchlib.study.wording import counted, number, per_second


def run_times(
    users: int,
    *,
    image_s: float,
    images: int,
    least_s: float = 15.0,
    duration_s: float | None = None,
) -> dict[str, float]:
    """Returns `duration_s` and `warmup_s` of a closed loop, as run_load and Point take them.

    It measures for as long as `images` images take one after another, `image_s` seconds each, but
    at least for `least_s`. A given `duration_s` has precedence. It warms up for one image of each
    user, but at least for 3 s.
    """
    return {
        "duration_s": duration_s or max(least_s, images * image_s),
        "warmup_s": max(3.0, users * image_s),
    }


INTERRUPTED_EARLY = (
    "Whether it works is not known: the run was interrupted before an image counted. "
    "Run the cells again from the load on."
)


@dataclass(frozen=True, repr=False)
class Quickstart(ShownInCell):
    """What the first run shows. `str()` has the answer in words.

    - `ok`: how many of the `requests` got an image.
    - `images_per_s`: the throughput.
    - `median_s`: the median latency. It is None if latency `drifted` or the images were too few.
    - `process_gib`, `gpu_gib`: the most memory of the process, and the most that torch reserved on
      the GPU.
    - `errors`: how often each kind of error happened.
    - `why_invalid`: the reason if the run is invalid, else None.
    - `busy`: what other work took beside the run, in a sentence, else None.
    - `interrupted`: whether somebody stopped the run. Its open requests are no failures.
    """

    model: str
    users: int
    requests: int
    ok: int
    images_per_s: float | None
    median_s: float | None
    drifted: bool
    process_gib: float | None
    gpu_gib: float | None
    errors: dict[str, int]
    why_invalid: str | None
    folder: Path
    interrupted: bool = False
    busy: str | None = None

    def __str__(self) -> str:
        if self.interrupted and self.ok:
            cut = f"The run was interrupted after {counted(self.ok, 'image')}."
            lines = [f"{self._speed()} {cut}", self._memory()]
        elif self.requests and self.ok == self.requests:
            lines = [self._speed(), self._memory()]
        elif self.interrupted and not self.errors:
            lines = [INTERRUPTED_EARLY]
        else:
            lines = [self._failure()]
        if self.busy is not None:
            lines.insert(1, self.busy)
        lines.append(f"Rows, record and figures are in {self.folder}")
        return "\n".join(lines)

    def _failure(self) -> str:
        got = f"{self.ok} of {counted(self.requests, 'request')} got an image"
        kinds = [f"{kind} {counted(times, 'time')}" for kind, times in self.errors.items()]
        reasons = ", ".join(kinds) or self.why_invalid or "the run was cut"
        return f"It does not work yet: {got} ({reasons})."

    def _speed(self) -> str:
        people = counted(self.users, "user")
        speed = f"It works here: {self.model} served {people}."
        if self.images_per_s is not None:
            rate = per_second(self.images_per_s)
            speed = f"It works here: {self.model} made {rate} for {people}."
        if self.median_s is not None:
            return f"{speed} Half of the images came within {number(self.median_s)} s."
        if self.drifted:
            return f"{speed} Latency still drifted, so there is no median: measure longer."
        return f"{speed} There were too few images for a median: measure longer."

    def _memory(self) -> str:
        if self.process_gib is None:
            return "Memory is not known."
        process = f"The process held at most {number(self.process_gib)} GiB"
        if self.gpu_gib is None:
            return f"{process}."
        return f"{process}, and torch reserved at most {number(self.gpu_gib)} GiB of the GPU."


def judge_quickstart(run: Run) -> Quickstart:
    """Returns the answer of notebook 01, from one run of a closed loop."""
    summary = run.summary()
    return Quickstart(
        model=run.spec["target"]["model"],
        users=run.spec["arrivals"]["users"],
        requests=summary["requests"],
        ok=summary["ok"],
        images_per_s=summary["throughput_images_per_s"],
        median_s=summary["latency_p50_s"],
        drifted=summary["state"] == "unstable",
        process_gib=summary["rss_peak_gib"],
        gpu_gib=summary["cuda_reserved_peak_gib"],
        errors=summary["errors"],
        why_invalid=summary["invalid_reason"],
        folder=run.path.parent,
        interrupted=run.record["status"] == "interrupted",
        busy=busy_sentence_of([run]),
    )
