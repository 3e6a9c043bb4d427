"""What images that were made one at a time say: cost per step, parts of memory, growth, and the arithmetic's share.

Pure functions on a run's record and frames. Ignorant of how the images were made (anatomy.py). Unknown is None or NaN.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchlib.rows import STAGES
from benchlib.study import intervals

MATMUL = "matrix product"
MEMORIES = {
    "rss": "the process (RSS)",
    "cuda_allocated": "GPU: handed out by torch",
    "cuda_reserved": "GPU: reserved by torch",
    "gpu_used": "GPU: in use by all programs",
}
"""What is sampled after each image, in GiB; each counts what the one before it does, but for the process."""
LEAK_KIB = 2.0
"""Growth per image that matters: 2 GiB in a million images. Of a thousand simulated series of 300 images each, without
a leak, none was called growing: a level (with noise of 20 KiB, as all have), three jumps of some 512 KiB, a random walk
of 20 KiB an image, and caches of 8 MiB that fill to 63 % in 30 images, or in 60 (at 1 KiB nearly all of these
were). Of as many with 5 KiB an image added 100, 52, 49, 100 and 100 % were; with 10 KiB all, but 89 % of the jumps."""
_KIB_PER_GIB = 2**20


def measured(requests: pd.DataFrame) -> pd.DataFrame:
    """The images that count."""
    return requests[(requests["phase"] == "measure") & requests["error"].isna()]


def size_name(width: int, height: int) -> str:
    return f"{width}x{height}"


def cost_lines(requests: pd.DataFrame) -> pd.DataFrame:
    """A row per size: `fixed_s` and `per_step_s` of the line through time against steps, each with its 95 %
    `_interval`, or None (see intervals.line); sizes with one number of steps have none."""
    rows = []
    for (width, height), images in measured(requests).groupby(["width", "height"]):
        found = intervals.line(images["num_inference_steps"], images["total_s"])
        if found is not None:
            names = ("fixed_s", "fixed_s_interval", "per_step_s", "per_step_s_interval")
            figures = dict(zip(names, found, strict=True))
            rows.append({"width": width, "height": height, "images": len(images), **figures})
    return pd.DataFrame(rows)


def memory_parts(
    record: dict[str, Any], requests: pd.DataFrame, telemetry: pd.DataFrame
) -> pd.DataFrame:
    """A row per part that is known: its `kind` ("network", "activations" or "held"), `part`, `gib`, and a network's
    `params`.

    Activations are what a stage's peak rises above what the same memory held between images, where that is most: the
    median of the images of one size and number of steps. They are not known where it does not rise, as in a process
    that still holds what it needed before. Memory that is held (MEMORIES) is that of the last sample.
    """
    rows: list[dict[str, Any]] = [
        {"kind": "network", "part": name, "gib": network["gib"], "params": network["params"]}
        for name, network in record["networks"].items()
    ]
    on_gpu = telemetry["cuda_allocated_gib"].notna().any()
    idle_gib = telemetry["cuda_allocated_gib" if on_gpu else "rss_gib"].median()
    alike = measured(requests).groupby(["width", "height", "num_inference_steps"])
    for stage in STAGES:
        rise_gib = alike[f"{stage}_peak_gib"].median().max() - idle_gib
        rows.append(
            {"kind": "activations", "part": stage, "gib": rise_gib if rise_gib > 0 else None}
        )
    for name in MEMORIES:
        known = telemetry[f"{name}_gib"].dropna()
        rows.append({"kind": "held", "part": name, "gib": known.iloc[-1] if len(known) else None})
    frame = pd.DataFrame(rows, columns=["kind", "part", "gib", "params"]).astype(
        {"gib": float, "params": "Int64"}
    )
    return frame[frame["gib"].notna()].reset_index(drop=True)


def peak_stage(requests: pd.DataFrame) -> tuple[str | None, float, str] | None:
    """The stage with the highest peak, its mean in GiB, and the size at which it is; None where no peak is known.

    The stage is None where its 95 % interval does not lie above all others', or fewer than 5 images carry none.
    """
    peaks_gib = measured(requests)[
        ["width", "height", *(f"{stage}_peak_gib" for stage in STAGES)]
    ].dropna()
    if not len(peaks_gib):
        return None
    sizes: dict[Any, pd.DataFrame] = dict(list(peaks_gib.groupby(["width", "height"])))
    (width, height), there = max(sizes.items(), key=lambda pair: pair[1].mean().iloc[2:].max())
    found = {
        stage: intervals.runs_interval(there[f"{stage}_peak_gib"].tolist()) for stage in STAGES
    }
    best = max(STAGES, key=lambda stage: float(there[f"{stage}_peak_gib"].mean()))
    apart = all(
        interval is not None and (found[best] or (0, 0))[0] > interval[1]
        for stage, interval in found.items()
        if stage != best
    )
    return (
        best if apart else None,
        float(there[f"{best}_peak_gib"].mean()),
        size_name(width, height),
    )


def memory_growth(telemetry: pd.DataFrame) -> pd.DataFrame:
    """A row per memory that was sampled after at least 40 images: `kib_per_image`, its 95 % `interval`, and a
    `verdict`: a leak only where the whole interval lies above LEAK_KIB, and none only where it lies below (see
    intervals.growth)."""
    rows = []
    for name in list(MEMORIES)[:3]:  # what others use on the GPU is no leak of ours
        found = intervals.growth(telemetry[f"{name}_gib"].dropna() * _KIB_PER_GIB)
        if found is not None and found[1] is not None:
            (low, high), mean = found[1], found[0]
            verdict = (
                "leaks"
                if low > LEAK_KIB
                else "does not leak"
                if high < LEAK_KIB
                else "is not shown to leak"
            )
            words = f"{verdict} ({low:.3g} to {high:.3g} KiB/image)"
            rows.append(
                {"memory": name, "kib_per_image": mean, "interval": (low, high), "verdict": words}
            )
    return pd.DataFrame(rows, columns=["memory", "kib_per_image", "interval", "verdict"])


def arithmetic_share(calls: pd.DataFrame) -> pd.DataFrame:
    """A row per part of `calls` (`part`, `dtype`, `flop`, `time_s`): `tflop`, the median `time_s`, the mean
    `tflop_per_s`, and its `share` of `limit_tflop_per_s` with the 95 % `share_interval`. The limit is the fastest
    matrix product of the same dtype, taken as exact."""
    timed = calls.assign(tflop_per_s=calls["flop"] / calls["time_s"] / 1e12)
    limits = timed[timed["part"] == MATMUL].groupby("dtype")["tflop_per_s"].max()
    rows = []
    for (part, dtype), group in timed[timed["part"] != MATMUL].groupby(
        ["part", "dtype"], sort=False
    ):
        limit, interval = (
            float(limits[str(dtype)]),
            intervals.runs_interval(group["tflop_per_s"].tolist()),
        )
        rate = float(group["tflop_per_s"].mean())
        rows.append(
            {
                "part": part,
                "dtype": dtype,
                "tflop": group["flop"].iloc[0] / 1e12,
                "time_s": group["time_s"].median(),
                "tflop_per_s": rate,
                "limit_tflop_per_s": limit,
                "share": rate / limit,
                "share_interval": None
                if interval is None
                else (interval[0] / limit, interval[1] / limit),
            }
        )
    return pd.DataFrame(rows)
