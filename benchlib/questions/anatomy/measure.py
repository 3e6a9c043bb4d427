"""Takes images apart, made one at a time without a server: time and peak memory of each stage, arithmetic, growth.

Knows how to drive the pipeline on the torch thread, and keeps what it measures as runs. Ignorant of what the figures
mean (study/dissection.py).
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchlib import telemetry
from benchlib.load.arrivals import ClosedLoop
from benchlib.load.bounds import check_number
from benchlib.questions.anatomy.judge import MATMUL, MEMORIES, arithmetic_share, size_name
from benchlib.rows import STAGES
from benchlib.run import writing
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.store import Run

STUDY = "time_and_memory"
_PROMPT = "a lighthouse at dusk, oil painting"
_LINE_EVERY_S = 10.0


def dissect(
    pipe: SDXLPipeline,
    *,
    sizes: Sequence[int],
    steps: Sequence[int],
    repeat: int = 5,
    budget_min: float | None = None,
    seed: int = 0,
    results: str | os.PathLike[str] | None = None,
) -> Run:
    """Make an image of each of `sizes` (pixels of a square's side) at each of `steps`, `repeat` times, and keep a run.

    Every second round is made backwards, so that drift hits all alike. Each size is tried first, which is not counted;
    one that does not fit in memory is left out. The plan is printed; `budget_min` minutes allow fewer rounds, one at
    least. A row of `requests` is an image, with the seconds and the peak memory of each stage; `telemetry` has the
    memory after each. Raises ValueError for a bad argument.
    """
    check_number("repeat", repeat, 1, whole=True)
    if not (sizes and steps):
        raise ValueError("sizes and steps need at least one value each")
    fitting = [size for size in sizes if _fits(pipe, size)]
    requests = [_request(size, count, seed) for size, count in product(fitting, steps)]
    on_torch_thread(pipe.encode, requests)  # lays out each number of steps, which is done once
    round_s = sum(
        pipe.predict_s(asked.width, asked.height, asked.num_inference_steps) for asked in requests
    )
    rounds = repeat if budget_min is None else max(1, min(repeat, int(60 * budget_min / round_s)))
    print(
        f"{len(requests)} points, {rounds} times each: {rounds * round_s / 60:.1f} minutes",
        flush=True,
    )
    order = [
        asked for number in range(rounds) for asked in (requests[::-1] if number % 2 else requests)
    ]
    return _measure(pipe, order, "dissect", results)


def watch_memory(
    pipe: SDXLPipeline,
    *,
    images: int = 300,
    size: int = 64,
    steps: int = 2,
    results: str | os.PathLike[str] | None = None,
) -> Run:
    """Make `images` alike but for their seed, and keep a run whose `telemetry` has the memory after each of them."""
    check_number("images", images, 1, whole=True)
    return _measure(
        pipe, [_request(size, steps, number) for number in range(images)], "watch", results
    )


def arithmetic(
    pipe: SDXLPipeline, run: Run, *, size: int | None = None, repeat: int = 7
) -> pd.DataFrame:
    """What share of the fastest matrix product on this device a UNet step and a VAE decode reach (arithmetic_share).

    Of one guided image of `size` (the showcase's by default); every call goes to arithmetic.parquet beside the rows of
    `run`. Counted are the floating point operations of matrix products, convolutions and attention: 2 for each multiply
    and add. Matrix products are of the same dtype and threads, squares of several sizes; in float32 on a GPU they may
    use TF32 where cuDNN's convolutions do.
    """
    side = size or pipe.spec["showcase"]["width"]
    calls = pd.DataFrame(on_torch_thread(_calls, pipe, _request(side, repeat + 2, 0), repeat))
    calls.to_parquet(run.path / "arithmetic.parquet")
    return arithmetic_share(calls)


def _request(size: int, steps: int, seed: int) -> GenerateRequest:
    return GenerateRequest(
        prompt=_PROMPT, width=size, height=size, num_inference_steps=steps, seed=seed
    )


def _fits(pipe: SDXLPipeline, size: int) -> bool:
    try:
        if pipe.fits(size, size):
            pipe.predict_s(size, size, 1)
            return True
    except torch.OutOfMemoryError:
        pass
    print(f"{size_name(size, size)} does not fit in memory: left out")
    return False


def _measure(
    pipe: SDXLPipeline,
    requests: list[GenerateRequest],
    label: str,
    results: str | os.PathLike[str] | None,
) -> Run:
    fields = {
        name: sorted({getattr(asked, name) for asked in requests})
        for name in ("width", "num_inference_steps")
    }
    workload = {"prompts": [_PROMPT], "height": fields["width"], **fields}
    spec = {
        "arrivals": ClosedLoop(users=1).to_dict(),
        "workload": workload,
        "label": label,
        "warmup_s": 0.0,
    }
    with writing(results, STUDY, None) as writer:
        folder = writer.create(spec, pipe.spec, networks=pipe.spec["networks"])
        began_s = due_s = time.monotonic()
        # All room at once: a list that gets longer would be a leak of our own.
        samples = np.full((len(requests), 1 + len(MEMORIES)), np.nan)
        end: tuple[str, str | None] = ("finished", None)
        try:
            for number, asked in enumerate(requests):
                row = {"index": number, "phase": "measure"} | on_torch_thread(
                    _image, pipe, asked, began_s
                )
                with folder.rows_path.open("a", encoding="utf-8") as rows:
                    rows.write(json.dumps(row) + "\n")
                samples[number] = time.monotonic() - began_s, *_memory_now_gib(pipe)
                if time.monotonic() > due_s + _LINE_EVERY_S:
                    due_s = time.monotonic()
                    print(
                        f"{due_s - began_s:.0f} s: {number + 1} of {len(requests)} images",
                        flush=True,
                    )
        except BaseException as error:
            end = ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", repr(error))
            raise
        finally:
            wall_s = time.monotonic() - began_s
            outcome = {"window_start_s": 0.0, "window_end_s": wall_s, "wall_s": wall_s}
            known = pd.DataFrame(samples, columns=["time_s", *(f"{name}_gib" for name in MEMORIES)])
            frame = known[known["time_s"].notna()].reindex(columns=list(telemetry.COLUMNS))
            run = writer.keep(folder, end[0], outcome, frame, end[1])
    return run


def _image(pipe: SDXLPipeline, asked: GenerateRequest, began_s: float) -> dict[str, Any]:
    """The row of one image; its peaks are of the memory that the device's kind tells (PeakMemory.headline_gib)."""
    started_s = time.monotonic()
    peaks_gib = []
    pipe.reset_peak_memory()
    works = pipe.encode([asked])
    peaks_gib.append(pipe.peak_memory().headline_gib)
    pipe.reset_peak_memory()
    while not works[0].finished:
        pipe.step(works)
    peaks_gib.append(pipe.peak_memory().headline_gib)
    pipe.reset_peak_memory()
    pipe.decode(works)
    peaks_gib.append(pipe.peak_memory().headline_gib)
    work, done_s = works[0], time.monotonic()
    at_s = started_s - began_s
    return {
        **asked.model_dump(),
        "scheduled_s": at_s,
        "sent_s": at_s,
        "done_s": done_s - began_s,
        "latency_s": done_s - started_s,
        "total_s": done_s - started_s,
        "service_s": work.service_s,
        "batch_size": 1.0,
        "server_peak_gib": max((peak for peak in peaks_gib if peak is not None), default=None),
        **{f"{stage}_s": getattr(work, f"{stage}_s") for stage in STAGES},
        **{f"{stage}_peak_gib": peak for stage, peak in zip(STAGES, peaks_gib, strict=True)},
    }


def _memory_now_gib(pipe: SDXLPipeline) -> tuple[float, ...]:
    """MEMORIES as they are now; NaN for what is not known."""
    used_gib = None
    if pipe.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(pipe.device)
        used_gib = (total - free) / telemetry.GIB
    held_gib = telemetry.process_memory_gib(), *telemetry.cuda_memory_gib(), used_gib
    return tuple(math.nan if gib is None else gib for gib in held_gib)


def _calls(pipe: SDXLPipeline, asked: GenerateRequest, repeat: int) -> list[dict[str, Any]]:
    """A row per timed call of a UNet step, a VAE decode and matrix products."""
    # Attention's fused kernels are not counted on every device; written out, it is matrix products.
    counted = (
        _stock(pipe) if pipe.compiled else pipe
    )  # of what was compiled or recorded, no operator is seen
    works = counted.encode([asked])
    counted.step(works)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as step:
        counted.step(works)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as decode:
        counted.decode(works)
    works = pipe.encode([asked])
    pipe.step(works)
    dtypes = {name: network["dtype"] for name, network in pipe.spec["networks"].items()}
    rows: list[dict[str, Any]] = []
    for _ in range(repeat):
        unet = {"part": "UNet step", "dtype": dtypes["unet"], "flop": step.get_total_flops()}
        rows.append(unet | {"time_s": pipe.step(works)})
        pipe.decode(works)
        vae = {"part": "VAE decode", "dtype": dtypes["vae"], "flop": decode.get_total_flops()}
        rows.append(vae | {"time_s": works[0].decode_s})
    before = torch.get_float32_matmul_precision()
    try:
        if pipe.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            torch.set_float32_matmul_precision("high")
        for dtype in sorted({dtypes["unet"], dtypes["vae"]}):
            rows += [
                row for n in (512, 1024, 2048) for row in _products(pipe.device, dtype, n, repeat)
            ]
            if pipe.device.type != "cpu":
                rows += [
                    row for n in (4096, 8192) for row in _products(pipe.device, dtype, n, repeat)
                ]
    finally:
        torch.set_float32_matmul_precision(before)
    return rows


def _stock(pipe: SDXLPipeline) -> SDXLPipeline:
    """Without recipes, over the same weights; the VAE is a copy, which may be cast."""
    stock = copy.copy(pipe.diffusers)
    stock.vae = copy.deepcopy(stock.vae)
    return SDXLPipeline(stock, spec=pipe.spec)


@torch.inference_mode()
def _products(device: torch.device, dtype: str, n: int, repeat: int) -> list[dict[str, Any]]:
    factor = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    times_s = []
    for _ in range(repeat + 1):
        _synchronise(device)
        began_s = time.perf_counter()
        _ = factor @ factor
        _synchronise(device)
        times_s.append(time.perf_counter() - began_s)
    return [
        {"part": MATMUL, "dtype": dtype, "flop": 2 * n**3, "time_s": time_s}
        for time_s in times_s[1:]
    ]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
