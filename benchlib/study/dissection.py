"""What images that were made one at a time say: cost per step, parts of memory, growth, and the arithmetic's share.

Pure functions on a run's record and frames. Ignorant of how the images were made (anatomy.py). Unknown is None or NaN.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchlib.study import estimates

STAGES = ("encode", "denoise", "decode")
MATMUL = "matrix product"
_KIB_PER_GIB = 2**20


def measured(requests: pd.DataFrame) -> pd.DataFrame:
    """The images that count."""
    return requests[(requests["phase"] == "measure") & requests["error"].isna()]


def size_name(width: int, height: int) -> str:
    return f"{width}x{height}"


def cost_lines(requests: pd.DataFrame) -> pd.DataFrame:
    """A row per size: `fixed_s` and `per_step_s` of the line through time against steps, each with its 95 %
    `_interval`, or None (see estimates.line); sizes with one number of steps have none."""
    rows = []
    for (width, height), images in measured(requests).groupby(["width", "height"]):
        found = estimates.line(images["num_inference_steps"], images["total_s"])
        if found is not None:
            names = ("fixed_s", "fixed_s_interval", "per_step_s", "per_step_s_interval")
            figures = dict(zip(names, found, strict=True))
            rows.append({"width": width, "height": height, "images": len(images), **figures})
    return pd.DataFrame(rows)


def memory_parts(record: dict[str, Any], requests: pd.DataFrame, telemetry: pd.DataFrame) -> pd.DataFrame:
    """A row per part that is known: `part`, `gib`, and `params` of a network.

    Activations are a stage's highest peak of all sizes, less what the same memory held between images. What the process
    holds, what torch's allocator has handed out and reserved, and what the device has in use (by whomever) are those of
    the last sample: each counts the one before as well, so they are no parts of a sum.
    """
    rows: list[dict[str, Any]] = [
        {"part": name, "gib": network["gib"], "params": network["params"]}
        for name, network in record["networks"].items()
    ]
    on_gpu = telemetry["cuda_allocated_gib"].notna().any()
    idle_gib = telemetry["cuda_allocated_gib" if on_gpu else "rss_gib"].median()
    rows += [
        {"part": f"activations, {stage}", "gib": requests[f"{stage}_peak_gib"].max() - idle_gib} for stage in STAGES
    ]
    for name in ("rss", "cuda_allocated", "cuda_reserved", "gpu_used"):
        known = telemetry[f"{name}_gib"].dropna()
        rows.append({"part": name, "gib": known.iloc[-1] if len(known) else None})
    frame = pd.DataFrame(rows, columns=["part", "gib", "params"]).astype({"gib": float, "params": "Int64"})
    return frame[frame["gib"].notna()].reset_index(drop=True)


def memory_growth(telemetry: pd.DataFrame) -> pd.DataFrame:
    """A row per memory that was sampled after each image: `kib_per_image`, its 95 % `interval`, and a `verdict`, which
    speaks of growth only where the whole interval lies above 0 (see estimates.growth)."""
    rows = []
    for name in ("rss", "cuda_allocated", "cuda_reserved"):
        found = estimates.growth(telemetry[f"{name}_gib"].dropna() * _KIB_PER_GIB)
        if found is not None and found[1] is not None:
            (low, high), mean = found[1], found[0]
            words = f"{mean:.3g} KiB/image ({low:.3g} to {high:.3g})"
            verdict = f"grows by {words}" if low > 0 else f"no growth shown: {words}"
            rows.append({"memory": name, "kib_per_image": mean, "interval": (low, high), "verdict": verdict})
    return pd.DataFrame(rows, columns=["memory", "kib_per_image", "interval", "verdict"])


def arithmetic_share(calls: pd.DataFrame) -> pd.DataFrame:
    """A row per part of `calls` (`part`, `dtype`, `flop`, `time_s`): `tflop`, the median `time_s`, the mean
    `tflop_per_s`, and its `share` of `limit_tflop_per_s` with the 95 % `share_interval`. The limit is the fastest
    matrix product of the same dtype, taken as exact."""
    timed = calls.assign(tflop_per_s=calls["flop"] / calls["time_s"] / 1e12)
    limits = timed[timed["part"] == MATMUL].groupby("dtype")["tflop_per_s"].max()
    rows = []
    for (part, dtype), group in timed[timed["part"] != MATMUL].groupby(["part", "dtype"], sort=False):
        limit, interval = float(limits[str(dtype)]), estimates.runs_interval(group["tflop_per_s"].tolist())
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
                "share_interval": None if interval is None else (interval[0] / limit, interval[1] / limit),
            }
        )
    return pd.DataFrame(rows)
