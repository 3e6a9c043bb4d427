"""Made-up runs: a record and frames as a load run would leave them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchlib.rows import ROW_DTYPES
from benchlib.study.store import Run
from benchlib.telemetry import COLUMNS


def make_record(**changes: Any) -> dict[str, Any]:
    target = {
        "url": "http://127.0.0.1:41234",
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "recipe": "baseline",
        "batching": "serial",
        "torch_threads": 2,
        "model_params": 3_400_000,
        "weights_gib": 0.013,
        "memory_before_load_gib": 0.61,
        "showcase": None,
    } | changes.pop("target", {})
    spec = {
        "target": target,
        "arrivals": {"kind": "closed_loop", "users": 4, "think_time_s": 0.0},
        "workload": {},
        "duration_s": 20.0,
        "requests": None,
        "max_s": None,
        "warmup_s": 3.0,
        "timeout_s": 600.0,
        "seed": 0,
        "label": None,
    } | changes.pop("spec", {})
    machine = {
        "cpu": "AMD EPYC 9B14",
        "cores": 2,
        "memory_gib": 23.4,
        "gpu": None,
        "gpu_memory_gib": None,
    }
    outcome = {
        "window_start_s": 3.0,
        "window_end_s": 23.0,
        "wall_s": 24.1,
        "generator_cpu_cores": 0.07,
    }
    return {
        "format_version": 1,
        "study": "quickstart",
        "run": "20261123-164512-closed-4",
        "status": "finished",
        "error": None,
        "started_at": "2026-11-23T16:45:12.123456+00:00",
        "spec": spec,
        "machine": machine | {"os": "Linux 6.1"},
        "packages": {"python": "3.11.7", "torch": "2.13.0+cpu", "diffusers": "0.37.1"},
        "git": {"commit": None, "dirty": None},
        "outcome": outcome,
    } | changes


def make_row(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A request scheduled at 4 s that took 1 s: 0.5 in the queue, 0.4 at work, 0.1 on the way."""
    row = dict.fromkeys(ROW_DTYPES) | {
        "index": index,
        "request_id": f"r{index}",
        "phase": "measure",
        "scheduled_s": 4.0,
        "sent_s": 4.0,
        "done_s": 5.0,
        "latency_s": 1.0,
        "http_status": 200,
        "prompt": "a lighthouse at dusk",
        "num_inference_steps": 8,
        "guidance_scale": 7.5,
        "width": 128,
        "height": 128,
        "seed": index,
        "queue_s": 0.5,
        "wait_s": 0.0,
        "encode_s": 0.05,
        "denoise_s": 0.25,
        "decode_s": 0.1,
        "image_s": 0.0,
        "total_s": 0.9,
        "batch_size": 1.0,
        "service_s": 0.4,
        "server_peak_gib": 0.7,
    }
    return row | changes


def make_requests(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            name: pd.Series([row[name] for row in rows], dtype=dtype)
            for name, dtype in ROW_DTYPES.items()
        }
    )


def simulate(
    n: int, *, service_s: float = 0.11, failed: float = 0.0, censored: int = 0
) -> list[dict[str, Any]]:
    """Rows of four users in a closed loop on one server, warm-up included.

    The share `failed` fails, and the last `censored` requests are cut off.
    """
    random = np.random.default_rng(1)
    free_s, users_s, rows = 0.0, [0.0] * 4, []
    for index in range(n):
        scheduled_s = min(users_s)
        service = service_s * (1 + 0.4 * random.gamma(0.7))
        start_s = max(free_s, scheduled_s)
        free_s = start_s + service
        done_s = free_s + random.exponential(0.002)
        row = make_row(
            index,
            phase="warmup" if scheduled_s < 3 else "measure",
            scheduled_s=scheduled_s,
            done_s=done_s,
            latency_s=done_s - scheduled_s,
            queue_s=start_s - scheduled_s,
            encode_s=0.1 * service,
            denoise_s=0.7 * service,
            decode_s=0.2 * service,
            total_s=free_s - scheduled_s,
        )
        nothing = dict.fromkeys(["queue_s", "encode_s", "denoise_s", "decode_s", "total_s"])
        if random.random() < failed:
            row |= nothing | {"error": "503: the queue is full", "http_status": 503}
        if index >= n - censored:
            row |= nothing | {
                "done_s": None,
                "latency_s": None,
                "http_status": None,
                "error": "censored: cut",
            }
        users_s[users_s.index(scheduled_s)] = done_s
        rows.append(row)
    return rows


def make_telemetry(n: int = 120, *, gpu: bool = False) -> pd.DataFrame:
    random = np.random.default_rng(2)
    frame = pd.DataFrame({"time_s": np.arange(n) * 0.2}, columns=list(COLUMNS), dtype="float64")
    frame["rss_gib"] = 0.9 + 0.1 * (1 - np.exp(-frame["time_s"] / 4)) + random.normal(0, 0.004, n)
    frame["server_cpu_cores"] = 1.6
    frame["others_cpu_cores"] = 0.05
    frame["steal_cores"] = 0.0
    if gpu:
        frame["cuda_allocated_gib"] = 6.9 + 3.1 * (random.random(n) > 0.6)
        frame["cuda_reserved_gib"] = 11.2
        frame["gpu_utilisation"] = 0.6 + 0.4 * random.random(n)
        frame["gpu_power_w"] = 200 + 400 * frame["gpu_utilisation"]
        frame["gpu_sm_clock_mhz"] = 1980.0
        frame["gpu_temperature_c"] = 45 + frame["time_s"]
    return frame


def make_run(latency_s: Any, *, gap_s: float = 0.1, **changes: Any) -> tuple[Any, ...]:
    """A run with a request every `gap_s` from 3 s on; the window holds all of them."""
    rows = [
        make_row(
            i, scheduled_s=3 + gap_s * i, done_s=3 + gap_s * i + took, latency_s=took, total_s=took
        )
        for i, took in enumerate(latency_s)
    ]
    outcome = {"window_start_s": 3.0, "window_end_s": 3 + gap_s * len(rows)} | changes.pop(
        "outcome", {}
    )
    return (
        make_record(outcome=outcome, **changes),
        make_requests(rows[::-1]),  # in any order
        make_telemetry(3),
    )


BUSY = (
    "The machine was busy: other processes took 1.31 of 2 cores (limit: 0.5). "
    "Times may be too long."
)
"""What is said of a single run from make_busy."""


def make_busy(run: Run) -> Run:
    """The same run beside other processes that took 1.31 cores of two."""
    telemetry = make_telemetry(3)
    telemetry["time_s"] += run.record["outcome"]["window_start_s"]
    telemetry["others_cpu_cores"] = 1.31
    return replace(run, telemetry=telemetry)


NETWORKS = {
    "unet": {"params": 3_000_000, "gib": 0.5, "dtype": "float32"},
    "vae": {"params": 400_000, "gib": 0.25, "dtype": "float32"},
}


def make_images(
    images: int = 5,
    sizes: tuple[int, ...] = (64, 128),
    launch_shares: tuple[float, ...] = (np.nan, np.nan),
) -> pd.DataFrame:
    """Images of 2, 4 and 8 steps: 0.2 s, and 0.1 s a step for each 64 pixels of the side.

    `launch_shares` are the shares of a step in which Python starts its work, by size.
    """
    found = []
    shares = dict(zip(sizes, launch_shares, strict=False))
    for side in sizes:
        for steps in (2, 4, 8):
            for number in range(images):
                denoise_s = 0.1 * side / 64 * steps + 0.001 * (number % 3 - 1)
                parts = {"encode_s": 0.05, "denoise_s": denoise_s, "decode_s": 0.15}
                peaks = {
                    "encode_peak_gib": 1.0,
                    "denoise_peak_gib": 1.1,
                    "decode_peak_gib": 1.0 + 0.1 * side / 64,
                }
                request = {"width": side, "height": side, "num_inference_steps": steps}
                total_s = sum(parts.values())
                found.append(
                    request
                    | parts
                    | peaks
                    | {"total_s": total_s, "phase": "measure", "error": None}
                    | {"launch_s": (shares[side] + 0.001 * (number % 3 - 1)) * denoise_s}
                )
    return pd.DataFrame(found)


def make_samples(rss_gib: Any) -> pd.DataFrame:
    frame = pd.DataFrame(index=range(len(rss_gib)), columns=list(COLUMNS), dtype="float64")
    return frame.assign(time_s=np.arange(len(rss_gib), dtype=float), rss_gib=rss_gib)


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    return SimpleNamespace(
        record=make_record,
        row=make_row,
        requests=make_requests,
        run=make_run,
        simulate=simulate,
        telemetry=make_telemetry,
        networks=NETWORKS,
        images=make_images,
        samples=make_samples,
        busy=make_busy,
        busy_sentence=BUSY,
        setting=make_setting,
    )


def make_setting(recipe: str, images_per_s: float | None, **changes: Any) -> dict[str, Any]:
    """A setting with serial batching whose capacity is foretold within 10 %.

    With `confirmed`, its runs show it within 3 %.
    """
    foretold = interval = None
    if images_per_s is not None:
        share = 0.03 if changes.get("confirmed") else 0.1
        interval = ((1 - share) * images_per_s, (1 + share) * images_per_s)
        foretold = (0.95 * images_per_s, 1.15 * images_per_s)
    is_confirmed = bool(changes.get("confirmed"))
    return {
        "setting": f"{recipe}, {changes.get('batching', 'serial')}",
        "recipe": recipe,
        "batching": "serial",
        "exact": True,
        "optimisations": 0 if recipe == "baseline" else 1 + recipe.count("+"),
        "start_s": 12.0,
        "compile_s": 0.0,
        "image_s": 0.2,
        "image_s_interval": (0.19, 0.21),
        "psnr_db": 90.0,
        "ssim": 1.0,
        "ssim_interval": (1.0, 1.0),
        "flip": 0.001,
        "flip_interval": (0.001, 0.002),
        "pictures": "indistinguishable",
        "pictures_reason": "3 of 16 pairs identical, the others within the limits",
        "picture_pairs": 16,
        "identical_pairs": 3,
        "pairs": None,
        "memory_gib": 2.0,
        "memory_of": "process RSS",
        "promise": "p95 < 2 s",
        "foretold_images_per_s": None if images_per_s is None else 1.05 * images_per_s,
        "foretold_images_per_s_interval": foretold,
        "images_per_s_of_3_users": 6.0,
        "capacity_images_per_s": images_per_s,
        "capacity_images_per_s_interval": interval,
        "confirmed": False,
        "runs": 2 if is_confirmed else 0,
        "confirming_images": 60 if is_confirmed else 0,
        "confirming_rate": 4.75 if is_confirmed else None,
        "energy_per_image_j": None,
        "note": None,
        "broken_promise": None,
        "error": None,
    } | changes


@pytest.fixture(scope="session")
def setting() -> SimpleNamespace:
    columns = list(make_setting("baseline", 1.0))
    return SimpleNamespace(
        row=make_setting,
        frame=lambda *rows: pd.DataFrame(list(rows), columns=columns, dtype=object),
    )
