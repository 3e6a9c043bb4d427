"""Judges images made one at a time: cost of a step, memory, share of the arithmetic, and leaks.

Knows the rows and the samples of such a run, and turns them into numbers and words. Ignorant of how
the images were made (measure.py) and of drawing. Unknown is None or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from benchlib.cell_view import ShownInCell
from benchlib.rows import STAGES
from benchlib.study import intervals
from benchlib.study.busy import busy_sentence_of
from benchlib.study.intervals import MIN_RUNS, Interval
from benchlib.study.store import Run
from benchlib.study.wording import counted, span, words

STAGE_NAMES = {
    "encode": "encoding the prompt",
    "denoise": "denoising",
    "decode": "decoding the image",
}
MATMUL = "matrix product"
MEMORIES = {
    "rss": "the process (RSS)",
    "cuda_allocated": "GPU: handed out by torch",
    "cuda_reserved": "GPU: reserved by torch",
    "gpu_used": "GPU: in use by all programs",
}
"""The memories that are sampled after each image, in GiB.

Each GPU memory includes the one above it.
"""
OWN_MEMORIES = ("rss", "cuda_allocated", "cuda_reserved")
"""The memories that this process alone fills, so that their growth is a leak of its own."""
PYTHON_SHARE = 0.9
"""Above this share of a step, Python's calls are the limit and not the GPU.

Python starts a step's kernels one by one, while the GPU already computes. If the GPU is the slower
one, it still has work when the last kernel is started. CUDA lets Python run about a thousand
kernels ahead, and a step of SDXL's UNet has several thousand. So the GPU then goes on for a tenth
of the step at least.
"""
LEAK_KIB = 2.0
"""Growth per image that matters: 2 GiB in a million images.

Each row is a kind of memory, simulated a thousand times with 300 images and noise of 20 KiB. Each
figure is the share of the simulations that is called a leak.

    memory without the leak                        no leak    5 KiB an image    10 KiB an image
    level                                          0          100 %             100 %
    three jumps of some 512 KiB                    0          52 %              89 %
    random walk of 20 KiB an image                 0          49 %              100 %
    cache of 8 MiB, 63 % full after 30 images      0          100 %             100 %
    cache of 8 MiB, 63 % full after 60 images      0          100 %             100 %

At a limit of 1 KiB nearly all of the slowest caches were called a leak.
"""
_KIB_PER_GIB = 2**20


def finished_images(requests: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of the finished images that count: no warm-up, no error."""
    counts = requests["phase"] == "measure"
    return requests[counts & requests["error"].isna()]


def size_name(width: int, height: int) -> str:
    return f"{width}x{height}"


def stage_means(requests: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean seconds of each of STAGES, a column each.

    There is a row for each (width, height, num_inference_steps).
    """
    cases = finished_images(requests).groupby(["width", "height", "num_inference_steps"])
    means_s = cases[[f"{stage}_s" for stage in STAGES]].mean()
    return means_s.set_axis(list(STAGES), axis="columns")


def cost_lines(requests: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each size, with the line through the images' time against their steps.

    `fixed_s` is what an image costs whatever its steps, and `per_step_s` what each step adds. Each
    has its 95 % `_interval` or None (see intervals.line). A size with a single number of steps has
    no row.
    """
    rows = []
    for (width, height), images in finished_images(requests).groupby(["width", "height"]):
        line = intervals.line(images["num_inference_steps"], images["total_s"])
        if line is None:
            continue
        fixed_s, fixed_s_interval, per_step_s, per_step_s_interval = line
        rows.append(
            {
                "width": width,
                "height": height,
                "images": len(images),
                "fixed_s": fixed_s,
                "fixed_s_interval": fixed_s_interval,
                "per_step_s": per_step_s,
                "per_step_s_interval": per_step_s_interval,
            }
        )
    return pd.DataFrame(rows)


def launch_shares(requests: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each size, with the share of a step that Python takes to start its work.

    `share` is the mean over the images, with its 95 % `interval` or None. The `limit` is "Python"
    if the whole interval lies above PYTHON_SHARE, "GPU" if it lies below, else "not shown". Images
    that were not made on CUDA have no such share, so their size has no row.
    """
    rows = []
    known = finished_images(requests).dropna(subset=["launch_s"])
    for (width, height), images in known.groupby(["width", "height"]):
        shares = images["launch_s"] / images["denoise_s"]
        interval = intervals.runs_interval(shares.tolist())
        limit = "not shown"
        if interval is not None and interval[0] > PYTHON_SHARE:
            limit = "Python"
        elif interval is not None and interval[1] < PYTHON_SHARE:
            limit = "GPU"
        rows.append(
            {
                "width": width,
                "height": height,
                "share": float(shares.mean()),
                "interval": interval,
                "limit": limit,
            }
        )
    return pd.DataFrame(rows, columns=["width", "height", "share", "interval", "limit"])


def limit_words(launch: Mapping[Any, Any]) -> str:
    """Returns a row of launch_shares in words: what limits the speed of a step, and what to do."""
    size = size_name(launch["width"], launch["height"])
    percent = None
    if launch["interval"] is not None:
        percent = [100 * end for end in launch["interval"]]
    takes = f"Starting a step's work takes {words(100 * launch['share'], percent, '%')} of the step"
    if launch["limit"] == "Python":
        return (
            f"At {size} Python is the limit, not the GPU. {takes}. "
            'The recipe "cuda-graphs" starts it in one call: 05_settings measures what that gains.'
        )
    if launch["limit"] == "GPU":
        return f"At {size} the GPU is the limit, not Python. {takes}."
    return f"Whether Python or the GPU is the limit at {size} is not shown. {takes}."


def memory_parts(
    record: dict[str, Any], requests: pd.DataFrame, telemetry: pd.DataFrame
) -> pd.DataFrame:
    """Returns a row for each known part of the memory, with its `kind`, `part` and `gib`.

    A network also has its `params`. The kinds are "network" (weights), "activations" (what a stage
    adds while it lasts, from so many `images`) and "held" (MEMORIES, by the last sample).
    """
    parts = [
        *_networks(record),
        *_activations(requests, telemetry),
        *_held(telemetry),
    ]
    frame = pd.DataFrame(parts, columns=["kind", "part", "gib", "params", "images"])
    frame = frame.astype({"gib": float, "params": "Int64", "images": "Int64"})
    return frame[frame["gib"].notna()].reset_index(drop=True)


def _networks(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"kind": "network", "part": name, "gib": network["gib"], "params": network["params"]}
        for name, network in record["networks"].items()
    ]


def _activations(requests: pd.DataFrame, telemetry: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns how far each stage's peak rises above the memory between images.

    A stage's peak is the median over the images of one size and number of steps. The highest of
    these medians counts. Where it does not rise above the memory between images, the rise is not
    known: the process may still hold what an earlier image needed.
    """
    on_gpu = telemetry["cuda_allocated_gib"].notna().any()
    idle_gib = telemetry["cuda_allocated_gib" if on_gpu else "rss_gib"].median()
    cases = finished_images(requests).groupby(["width", "height", "num_inference_steps"])
    rows = []
    for stage in STAGES:
        rise_gib = cases[f"{stage}_peak_gib"].median().max() - idle_gib
        known_gib = rise_gib if rise_gib > 0 else None
        images = int(cases.size().sum())
        rows.append({"kind": "activations", "part": stage, "gib": known_gib, "images": images})
    return rows


def _held(telemetry: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for name in MEMORIES:
        samples_gib = telemetry[f"{name}_gib"].dropna()
        last_gib = samples_gib.iloc[-1] if len(samples_gib) else None
        rows.append({"kind": "held", "part": name, "gib": last_gib})
    return rows


class Peak(NamedTuple):
    """The highest peak of memory: its stage, its mean in GiB, and the size of the image.

    `stage` is None if it is not shown which stage has the peak.
    """

    stage: str | None
    gib: float
    size: str


def peak_stage(requests: pd.DataFrame) -> Peak | None:
    """Returns the stage with the highest peak of memory, or None if no peak is known.

    The peak is taken at the size where it is highest. Its `stage` is None unless the 95 % interval
    of its mean lies above the intervals of all other stages. Fewer than 5 images have no interval.
    """
    columns = [f"{stage}_peak_gib" for stage in STAGES]
    known = finished_images(requests).dropna(subset=columns)
    if not len(known):
        return None

    # 1) The size and the stage with the highest mean.
    means_gib = known.groupby(["width", "height"])[columns].mean()
    largest: Any = means_gib.max(axis="columns").idxmax()
    width, height = largest
    at_size = known[(known["width"] == width) & (known["height"] == height)]
    mean_gib = {stage: float(at_size[f"{stage}_peak_gib"].mean()) for stage in STAGES}
    highest = max(STAGES, key=lambda stage: mean_gib[stage])

    # 2) Whether that stage stands out.
    peaks = {
        stage: intervals.runs_interval(at_size[f"{stage}_peak_gib"].tolist()) for stage in STAGES
    }
    others = [peaks[stage] for stage in STAGES if stage != highest]
    stands_out = all(_is_above(peaks[highest], other) for other in others)
    return Peak(highest if stands_out else None, mean_gib[highest], size_name(width, height))


def _is_above(interval: Interval, other: Interval) -> bool:
    """Returns whether one interval lies wholly above another; False if one is not known."""
    if interval is None or other is None:
        return False
    return interval[0] > other[1]


def memory_growth(telemetry: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each of OWN_MEMORIES, with how much it grows with each image.

    A memory with fewer than 40 samples has no row. `kib_per_image` has its 95 % `interval` (see
    intervals.growth). The `verdict` is "leaks" only if the whole interval lies above LEAK_KIB, and
    "does not leak" only if it lies wholly below.
    """
    rows = []
    for name in OWN_MEMORIES:
        growth = intervals.growth(telemetry[f"{name}_gib"].dropna() * _KIB_PER_GIB)
        if growth is None:
            continue
        kib_per_image, interval = growth
        if interval is None:
            continue
        ends = f"{span(interval)} KiB/image"
        verdict = f"{_leak(interval)} ({ends}, of which {LEAK_KIB:g} are allowed)"
        rows.append(
            {
                "memory": name,
                "kib_per_image": kib_per_image,
                "interval": interval,
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows, columns=["memory", "kib_per_image", "interval", "verdict"])


def _leak(kib_per_image: tuple[float, float]) -> str:
    low, high = kib_per_image
    if low > LEAK_KIB:
        return "leaks"
    if high < LEAK_KIB:
        return "does not leak"
    return "is not shown to leak"


def arithmetic_share(calls: pd.DataFrame, *, disturbed: str | None = None) -> pd.DataFrame:
    """Returns for each part of `calls` how near it comes to the machine's limit.

    `calls` has `part`, `dtype`, `flop` and `time_s`. The limit is the fastest matrix product of the
    same dtype, taken as exact. The columns are:

    - `tflop`: the arithmetic of one call.
    - `time_s`: the median of the calls.
    - `tflop_per_s`: the mean of the calls.
    - `share`: the part of `limit_tflop_per_s` that the mean reaches.
    - `share_interval`: its 95 % interval, or None.
    - `disturbed`: the reason, in words, where other work disturbed the calls. The interval would
      hold only the error of these calls, and none of what the other work took: it is None.
    """
    timed = calls.assign(tflop_per_s=calls["flop"] / calls["time_s"] / 1e12)
    is_product = timed["part"] == MATMUL
    limits = timed[is_product].groupby("dtype")["tflop_per_s"].max()
    rows = []
    for (part, dtype), group in timed[~is_product].groupby(["part", "dtype"], sort=False):
        limit = float(limits[str(dtype)])
        tflop_per_s = float(group["tflop_per_s"].mean())
        interval = None
        if disturbed is None:
            interval = intervals.runs_interval((group["tflop_per_s"] / limit).tolist())
        rows.append(
            {
                "part": part,
                "dtype": dtype,
                "tflop": group["flop"].iloc[0] / 1e12,
                "time_s": group["time_s"].median(),
                "tflop_per_s": tflop_per_s,
                "limit_tflop_per_s": limit,
                "share": tflop_per_s / limit,
                "share_interval": interval,
                "disturbed": disturbed,
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True, repr=False)
class Anatomy(ShownInCell):
    """Where the time and the memory of an image go. `str()` has the answer in words.

    - `means_s`: from stage_means.
    - `largest_images`: how many images were made of the last row of `means_s`.
    - `largest_s`: the mean seconds of these images; their stages leave out what lies between them.
    - `costs`: from cost_lines.
    - `launches`: from launch_shares.
    - `peak`: from peak_stage.
    - `shares`: from arithmetic_share.
    - `growth`: from memory_growth.
    - `folder`: where the runs are.
    - `busy`: what other work took beside the runs, in a sentence, or None.
    """

    means_s: pd.DataFrame
    largest_images: int
    largest_s: float
    costs: pd.DataFrame
    launches: pd.DataFrame
    peak: Peak | None
    shares: pd.DataFrame
    growth: pd.DataFrame
    folder: Path
    busy: str | None = None

    def __str__(self) -> str:
        lines = [
            self._time(),
            *filter(None, [self.busy]),
            *self._costs(),
            *(limit_words(launch) for launch in self.launches.to_dict("records")),
            self._peak(),
            *(_share_sentence(share) for share in self.shares.to_dict("records")),
            *self._leaks(),
            "Numbers in brackets are 95 % intervals.",
            f"Rows, records and figures are in {self.folder}",
        ]
        return "\n".join(lines)

    def _time(self) -> str:
        if not len(self.means_s):
            return "No image was made."
        largest = self.means_s.iloc[-1]
        width, height, steps = self.means_s.index[-1]
        stages_s = float(largest.sum())
        shares = [
            f"{STAGE_NAMES[stage]} {100 * largest[stage] / stages_s:.0f} %" for stage in STAGES
        ]
        image = f"The largest image, {size_name(width, height)} with {counted(steps, 'step')},"
        takes = f"{image} takes {words(self.largest_s, unit='s')}"
        if self.largest_images < MIN_RUNS:
            made = counted(self.largest_images, "image")
            not_shown = f"which stage takes the time is not shown, it takes {MIN_RUNS}"
            return f"{takes} ({made}); {not_shown}."
        return f"{takes}: {', '.join(shares)}."

    def _costs(self) -> list[str]:
        if not len(self.means_s):
            return []
        if not len(self.costs):
            return ["What a step costs: not shown, as it takes two numbers of steps."]
        costs = self.costs.to_dict("records")
        if all(not cost["per_step_s_interval"] for cost in costs):
            most = max(costs, key=lambda cost: cost["images"])
            return [f"What a step costs: {cost_words(most)}. A larger budget_min makes more."]
        return [
            f"Cost at {size_name(cost['width'], cost['height'])}: {cost_words(cost)}."
            for cost in costs
        ]

    def _peak(self) -> str:
        if self.peak is None:
            return "Peak memory: not known here."
        stage = self.peak.stage
        when = f"while {STAGE_NAMES[stage]}" if stage else "in which stage is not shown"
        return f"Peak memory: {words(self.peak.gib, unit='GiB')}, at {self.peak.size}, {when}."

    def _leaks(self) -> list[str]:
        if not len(self.growth):
            return ["Leak: not shown, as it takes at least 40 images."]
        return [
            f"Leak: {MEMORIES[row['memory']]} {row['verdict']}."
            for row in self.growth.to_dict("records")
        ]


def judge_images(run: Run, *, shares: pd.DataFrame, watched: Run) -> Anatomy:
    """Returns the answer of notebook 02.

    `run` is from dissect(), `shares` from arithmetic(), and `watched` from watch_memory().
    """
    means_s = stage_means(run.requests)
    images = finished_images(run.requests)
    times_s = images.groupby(["width", "height", "num_inference_steps"])["total_s"]
    counts = times_s.size()
    return Anatomy(
        means_s=means_s,
        largest_images=int(counts.iloc[-1]) if len(counts) else 0,
        largest_s=float(times_s.mean().iloc[-1]) if len(counts) else math.nan,
        costs=cost_lines(run.requests),
        launches=launch_shares(run.requests),
        peak=peak_stage(run.requests),
        shares=shares,
        growth=memory_growth(watched.telemetry),
        folder=run.path.parent,
        busy=busy_sentence_of([run, watched]),
    )


def cost_words(cost: dict[Any, Any]) -> str:
    """Returns a row of cost_lines in words.

    Example: "0.1 s a step (0.09 to 0.11), plus 0.2 s (0.19 to 0.21)". An interval that reaches down
    to 0 shows no cost, and fewer than MIN_RUNS images show none either.
    """
    if not cost["per_step_s_interval"]:
        return f"not shown by {counted(cost['images'], 'image')}, it takes {MIN_RUNS}"
    per_step = _shown(cost["per_step_s"], cost["per_step_s_interval"], "s a step")
    fixed = _shown(cost["fixed_s"], cost["fixed_s_interval"], "s")
    step_words = per_step or "the cost of a step is not shown"
    fixed_words = f"plus {fixed}" if fixed else "a fixed cost is not shown"
    return f"{step_words}, {fixed_words}"


def _shown(value: float, interval: tuple[float, float], unit: str) -> str | None:
    return words(value, interval, unit) if interval[0] > 0 else None


def _share_sentence(share: dict[Any, Any]) -> str:
    disturbed = share.get("disturbed")
    if disturbed:
        subject = f"{share['part']}: its share of this machine's fastest matrix product"
        return f"{subject} is not shown, as {disturbed} meanwhile."
    interval = share["share_interval"]
    percent = None if interval is None else [100 * end for end in interval]
    reached = words(100 * share["share"], percent, "%")
    return f"{share['part']}: {reached} of this machine's fastest matrix product."
