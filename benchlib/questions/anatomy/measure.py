"""Makes images one at a time, without a server, and measures their time, memory and arithmetic.

Knows how to drive the pipeline on the torch thread, and keeps what it measures as runs. Ignorant of
what the figures mean (judge.py).
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
from benchlib.study.store import Run, RunFolder

STUDY = "time_and_memory"
PRODUCTS: tuple[int, ...] = (512, 1024, 2048)
"""Sides of the square matrices whose product is the limit of the arithmetic."""
LARGE_PRODUCTS = (4096, 8192)
"""More sides on a GPU, which smaller products don't fill. On a CPU they would take too long."""
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {
        "sizes": [64, 128, 256],
        "steps": [2, 4, 8],
        "repeat": 5,
        "budget_min": 0.4,
    },
    "full": {
        "sizes": [512, 768, 1024],
        "steps": [10, 20, 30, 50],
        "repeat": 10,
        "budget_min": 30,
    },
}
"""The arguments of dissect() in each profile."""
_PROMPT = "a lighthouse at dusk, oil painting"
_LINE_EVERY_S = 10.0
Row = dict[str, Any]


def dissect_options(
    profile: str,
    *,
    sizes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    budget_min: float | None = None,
) -> dict[str, Any]:
    """Returns dissect's `sizes`, `steps`, `repeat` and `budget_min`.

    An argument that is None has the profile's value.
    """
    given = {"sizes": sizes, "steps": steps, "budget_min": budget_min}
    own = {name: value for name, value in given.items() if value is not None}
    return PROFILES[profile] | own


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
    """Makes an image of each size with each number of steps, `repeat` times, and returns the run.

    `sizes` are the sides of square images, in pixels. Every second round is made backwards, so that
    drift affects all images alike. Each size is tried first, uncounted. A size that does not fit in
    memory is left out. The plan is printed. `budget_min` minutes may allow fewer rounds, but at
    least one.

    A row of `requests` is an image, with the seconds and the peak memory of each stage. `telemetry`
    has the memory after each image. Raises ValueError for a bad argument, or if none of the sizes
    fits.
    """
    check_number("repeat", repeat, 1, whole=True)
    if not (sizes and steps):
        raise ValueError("sizes and steps need at least one value each")

    # 1) Take the sizes that fit.
    fitting = [size for size in sizes if _fits(pipe, size)]
    if not fitting:
        tried = ", ".join(map(str, sizes))
        raise ValueError(f"sizes: none of {tried} fits in this machine's memory; take smaller ones")

    # 2) Plan as many rounds as the budget allows.
    cases = product(fitting, steps)
    requests = [_request(size, count, seed) for size, count in cases]
    # The first encode with a number of steps prepares its schedule. An image's time must not
    # include that.
    on_torch_thread(pipe.encode, requests)
    round_s = sum(_predict_s(pipe, request) for request in requests)
    rounds = repeat
    if budget_min is not None:
        affordable = int(60 * budget_min / round_s)
        rounds = max(1, min(repeat, affordable))
    minutes = rounds * round_s / 60
    print(f"{len(requests)} points, {rounds} times each: {minutes:.1f} minutes", flush=True)

    # 3) Make the images, every second round backwards.
    order = []
    for number in range(rounds):
        order += requests if number % 2 == 0 else requests[::-1]
    return _measure(pipe, order, "dissect", results)


def watch_memory(
    pipe: SDXLPipeline,
    *,
    images: int = 300,
    size: int = 64,
    steps: int = 2,
    results: str | os.PathLike[str] | None = None,
) -> Run:
    """Makes `images` that differ in their seed alone, and returns the run.

    Its `telemetry` has the memory after each image.
    """
    check_number("images", images, 1, whole=True)
    requests = [_request(size, steps, seed) for seed in range(images)]
    return _measure(pipe, requests, "watch", results)


def arithmetic(
    pipe: SDXLPipeline,
    run: Run,
    *,
    size: int | None = None,
    repeat: int = 7,
) -> pd.DataFrame:
    """Returns how near a UNet step and a VAE decode come to this device's fastest matrix product.

    The columns are those of judge.arithmetic_share. The image is a guided one of `size`, by default
    the showcase's. Every call goes to arithmetic.parquet beside the rows of `run`.

    The floating point operations of matrix products, convolutions and attention are counted: 2 for
    each multiply and add. The matrix products have the same dtype and threads. In float32 on a GPU
    they may use TF32, if cuDNN's convolutions do.
    """
    side = size or pipe.spec["showcase"]["width"]
    request = _request(side, repeat + 2, seed=0)
    calls = pd.DataFrame(on_torch_thread(_calls, pipe, request, repeat))
    calls.to_parquet(run.path / "arithmetic.parquet")
    return arithmetic_share(calls)


def _request(size: int, steps: int, seed: int) -> GenerateRequest:
    return GenerateRequest(
        prompt=_PROMPT,
        width=size,
        height=size,
        num_inference_steps=steps,
        seed=seed,
    )


def _predict_s(pipe: SDXLPipeline, request: GenerateRequest) -> float:
    return pipe.predict_s(request.width, request.height, request.num_inference_steps)


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
    """Makes the images one after another, and returns the run.

    After an error, the rows of the images made before it are kept.
    """
    with writing(results, STUDY, None) as writer:
        # 1) Make room for the samples before the first image.
        spec = _spec(requests, label)
        folder = writer.create(spec, pipe.spec, networks=pipe.spec["networks"])
        # The array has its full length from the start: a growing list would look like a leak.
        columns = 1 + len(MEMORIES)
        samples = np.full((len(requests), columns), np.nan)

        # 2) Make the images, and keep the run even after an error.
        status = "finished"
        error: str | None = None
        began_s = time.monotonic()
        try:
            _make_images(pipe, requests, folder, samples, began_s)
        except BaseException as raised:
            status = "failed"
            if isinstance(raised, KeyboardInterrupt):
                status = "interrupted"
            error = repr(raised)
            raise
        finally:
            wall_s = time.monotonic() - began_s
            outcome = {
                "window_start_s": 0.0,
                "window_end_s": wall_s,
                "wall_s": wall_s,
            }
            run = writer.keep(folder, status, outcome, _telemetry(samples), error)
    return run


def _spec(requests: list[GenerateRequest], label: str) -> dict[str, Any]:
    """Returns what a run's record says of the load.

    One image at a time is a closed loop of one user.
    """
    sides = sorted({request.width for request in requests})
    steps = sorted({request.num_inference_steps for request in requests})
    return {
        "arrivals": ClosedLoop(users=1).to_dict(),
        "workload": {
            "prompts": [_PROMPT],
            "width": sides,
            "height": sides,
            "num_inference_steps": steps,
        },
        "label": label,
        "warmup_s": 0.0,
    }


def _make_images(
    pipe: SDXLPipeline,
    requests: list[GenerateRequest],
    folder: RunFolder,
    samples: Any,
    began_s: float,
) -> None:
    """Writes a row for each image, and fills its line of `samples`.

    Every ten seconds it prints how many images are made.
    """
    line_due_s = began_s + _LINE_EVERY_S
    for number, request in enumerate(requests):
        image = on_torch_thread(_image, pipe, request, began_s)
        row = {"index": number, "phase": "measure"} | image
        with folder.rows_path.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")
        now_s = time.monotonic()
        samples[number] = now_s - began_s, *_memory_now_gib(pipe)
        if now_s > line_due_s:
            line_due_s = now_s + _LINE_EVERY_S
            progress = f"{number + 1} of {len(requests)} images"
            print(f"{now_s - began_s:.0f} s: {progress}", flush=True)


def _telemetry(samples: Any) -> pd.DataFrame:
    """Returns the samples that were taken, as a run's telemetry."""
    columns = ["time_s", *(f"{name}_gib" for name in MEMORIES)]
    frame = pd.DataFrame(samples, columns=columns)
    taken = frame[frame["time_s"].notna()]
    return taken.reindex(columns=list(telemetry.COLUMNS))


def _image(pipe: SDXLPipeline, request: GenerateRequest, began_s: float) -> Row:
    """Makes one image and returns its row.

    The device decides which memory the peaks are of (see PeakMemory.headline_gib).
    """
    # 1) The three stages, each with its own peak.
    started_s = time.monotonic()
    peaks_gib: dict[str, float | None] = {}
    pipe.reset_peak_memory()
    works = pipe.encode([request])
    peaks_gib["encode"] = pipe.peak_memory().headline_gib

    pipe.reset_peak_memory()
    while not works[0].finished:
        pipe.step(works)
    peaks_gib["denoise"] = pipe.peak_memory().headline_gib

    pipe.reset_peak_memory()
    pipe.decode(works)
    peaks_gib["decode"] = pipe.peak_memory().headline_gib
    done_s = time.monotonic()

    # 2) The row.
    work = works[0]
    sent_s = started_s - began_s
    took_s = done_s - started_s
    known_gib = [gib for gib in peaks_gib.values() if gib is not None]
    return {
        **request.model_dump(),
        "scheduled_s": sent_s,
        "sent_s": sent_s,
        "done_s": done_s - began_s,
        "latency_s": took_s,
        "total_s": took_s,
        "service_s": work.service_s,
        "batch_size": 1.0,
        "server_peak_gib": max(known_gib, default=None),
        **{f"{stage}_s": getattr(work, f"{stage}_s") for stage in STAGES},
        **{f"{stage}_peak_gib": peaks_gib[stage] for stage in STAGES},
    }


def _memory_now_gib(pipe: SDXLPipeline) -> tuple[float, ...]:
    """Returns MEMORIES as they are now; NaN for an unknown one."""
    used_gib = None
    if pipe.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(pipe.device)
        used_gib = (total - free) / telemetry.GIB
    held_gib = (telemetry.process_memory_gib(), *telemetry.cuda_memory_gib(), used_gib)
    known_gib = [math.nan if gib is None else gib for gib in held_gib]
    return tuple(known_gib)


def _calls(
    pipe: SDXLPipeline,
    request: GenerateRequest,
    repeat: int,
) -> list[Row]:
    """Returns a row for each timed call of a UNet step, a VAE decode and the matrix products."""
    step_flop, decode_flop = _count_flop(pipe, request)
    dtypes = {name: network["dtype"] for name, network in pipe.spec["networks"].items()}
    step = {"part": "UNet step", "dtype": dtypes["unet"], "flop": step_flop}
    decode = {"part": "VAE decode", "dtype": dtypes["vae"], "flop": decode_flop}

    works = pipe.encode([request])
    pipe.step(works)  # the first step is slower
    rows: list[Row] = []
    for _ in range(repeat):
        rows.append(step | {"time_s": pipe.step(works)})
        pipe.decode(works)
        rows.append(decode | {"time_s": works[0].decode_s})
    return rows + _all_products(pipe.device, {dtypes["unet"], dtypes["vae"]}, repeat)


def _count_flop(pipe: SDXLPipeline, request: GenerateRequest) -> tuple[int, int]:
    """Returns the floating point operations of one step and of one decode."""
    # The counter sees no operator of a network that was compiled or recorded.
    counted = _stock(pipe) if pipe.compiled else pipe
    works = counted.encode([request])
    counted.step(works)
    # The counter misses fused kernels of attention on some devices. SDPBackend.MATH has none.
    step = FlopCounterMode(display=False)
    decode = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        with step:
            counted.step(works)
        with decode:
            counted.decode(works)
    return step.get_total_flops(), decode.get_total_flops()


def _stock(pipe: SDXLPipeline) -> SDXLPipeline:
    """Returns a pipeline without recipes, over the same weights.

    The VAE is a copy, because its dtype may be changed.
    """
    stock = copy.copy(pipe.diffusers)
    stock.vae = copy.deepcopy(stock.vae)
    return SDXLPipeline(stock, spec=pipe.spec)


def _all_products(
    device: torch.device,
    dtypes: set[str],
    repeat: int,
) -> list[Row]:
    """Returns a row for each timed matrix product, with TF32 where cuDNN's convolutions use it."""
    sides = PRODUCTS
    if device.type != "cpu":
        sides += LARGE_PRODUCTS
    before = torch.get_float32_matmul_precision()
    rows = []
    try:
        if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            torch.set_float32_matmul_precision("high")
        for dtype, side in product(sorted(dtypes), sides):
            rows += _products(device, dtype, side, repeat)
    finally:
        torch.set_float32_matmul_precision(before)
    return rows


@torch.inference_mode()
def _products(
    device: torch.device,
    dtype: str,
    n: int,
    repeat: int,
) -> list[Row]:
    """Returns a row for each of `repeat` products of two n x n matrices.

    The first product does not count and has no row.
    """
    factor = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    row = {"part": MATMUL, "dtype": dtype, "flop": 2 * n**3}
    rows = []
    for _ in range(repeat + 1):
        _synchronise(device)
        began_s = time.perf_counter()
        _ = factor @ factor
        _synchronise(device)
        rows.append(row | {"time_s": time.perf_counter() - began_s})
    return rows[1:]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
