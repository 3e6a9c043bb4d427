"""Makes images one at a time, without a server, and measures their time, memory and arithmetic.

Knows how to drive the pipeline on the torch thread, and keeps what it measures as runs. Ignorant of
what the figures mean (judge.py).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchlib import telemetry
from benchlib.budget import Budget, Part
from benchlib.load.arrivals import ClosedLoop
from benchlib.load.bounds import check_number
from benchlib.other_work import OtherWork
from benchlib.printing import print_line
from benchlib.questions.anatomy.calls import timed_calls
from benchlib.questions.anatomy.judge import MEMORIES, arithmetic_share, size_name, stage_means
from benchlib.questions.anatomy.rounds import (
    ARITHMETIC_WORTH,
    LEAK_IMAGES,
    LEAK_WORTH,
    WARM_IMAGES,
    ImageCase,
    image_groups,
    in_rounds,
    is_warm,
)
from benchlib.rows import STAGES
from benchlib.run import writing
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.torch_thread import long_torch_call, on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.busy import TAKEN, suspect_reason
from benchlib.study.store import Run, RunFolder
from benchlib.study.wording import counted

STUDY = "time_and_memory"
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {
        "sizes": [64, 128, 256],
        "steps": [2, 4, 8],
        "repeat": 5,
        "budget_min": 1,
    },
    "full": {
        "sizes": [512, 768, 1024],
        "steps": [10, 20, 30, 50],
        "repeat": 10,
        "budget_min": 8,
    },
}
"""The arguments of dissect() in each profile."""
LEAK_SIDE = 64
LEAK_STEPS = 2
LEAK_IMAGE = "small image"
ARITHMETIC = "arithmetic"
ARITHMETIC_IMAGES = 20
ARITHMETIC_S = 5.0
"""The arithmetic takes about so many images of one step, and these seconds for matrix products."""
WARM_SHARE = 0.15
WARM_S = 60.0
"""Warming up takes at most this share of what is left, and at most these seconds for a size."""
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
    budget: Budget | None = None,
    watch_images: int = 0,
    seed: int = 0,
    results: str | os.PathLike[str] | None = None,
) -> Run:
    """Makes an image of each size with each number of steps, `repeat` times, and returns the run.

    `sizes` are the sides of square images, in pixels. Each size is first warmed up until its steps
    get no faster; these images have the phase "warmup" and count nowhere. Every second round is
    made backwards, so that drift affects all images alike. A size that does not fit in memory is
    left out.

    The images take `budget_min` minutes at most, or what is left of `budget`. Then `watch_images`
    images of watch_memory() and a call of arithmetic() have their time in the budget, too. The plan
    is printed: it may have fewer rounds, or leave numbers of steps or sizes out. An interrupt ends
    the images of a `budget`, and the run has those that were made.

    A row of `requests` is an image, with the seconds and the peak memory of each stage. `telemetry`
    has the memory after each image. Raises ValueError for a bad argument, or if none of the sizes
    fits.
    """
    check_number("repeat", repeat, 1, whole=True)
    if not (sizes and steps):
        raise ValueError("sizes and steps need at least one value each")
    clock = budget or Budget(budget_min, results=results)

    # 1) Take the sizes that fit.
    tried = {size: _try_size(pipe, size) for size in sizes}
    costs = {size: cost for size, cost in tried.items() if cost is not None}
    if not costs:
        names = ", ".join(map(str, sizes))
        raise ValueError(f"sizes: none of {names} fits in this machine's memory; take smaller ones")
    requests = {case: _request(*case, seed) for case in product(costs, steps)}
    # The first encode with a number of steps prepares its schedule. An image's time must not
    # include that.
    on_torch_thread(pipe.encode, list(requests.values()))

    most = WARM_IMAGES * len(costs) + repeat * len(requests)
    with _recording(pipe, list(requests.values()), most, "dissect", results, budget) as images:
        # 2) Warm each size up.
        for size, cost in costs.items():
            most_s = min(WARM_S, WARM_SHARE * clock.left_s / len(costs))
            costs[size] = _warm_up(images, requests[size, min(steps)], cost, most_s)

        # 3) Plan the rounds, and what follows them.
        cases = [ImageCase(size, count, costs[size].image_s(count)) for size, count in requests]
        groups = image_groups(cases)
        later = []
        if budget is not None:
            later = _later_parts(pipe, budget, watch_images, costs)
        plan = clock.plan([*(group.part(repeat) for group in groups), *later])
        print_line(plan)

        # 4) Make the images.
        reserve_s = sum(plan[part.name].part.needed_s for part in later if part.name in plan)
        rounds = in_rounds(groups, plan)
        least = max(min(group.least_rounds, repeat) for group in groups)
        images.total = images.made + sum(map(len, rounds))
        for number, one_round in enumerate(rounds):
            _make_round(images, one_round, requests, clock, reserve_s, number < least)
    return images.run


def _make_round(
    images: _Images,
    cases: Sequence[ImageCase],
    requests: Mapping[tuple[int, int], GenerateRequest],
    clock: Budget,
    reserve_s: float,
    is_needed: bool,
) -> None:
    """Makes the images of a round for which there is time.

    `reserve_s` is kept for what follows the rounds. A round that a figure needs may take the
    budget's tolerance.
    """
    for case in cases:
        free_s = clock.cut_s if is_needed else clock.left_s - reserve_s
        if images.counted and case.seconds > free_s:
            return
        images.make(requests[case.size, case.steps])


def watch_memory(
    pipe: SDXLPipeline,
    *,
    images: int = 300,
    size: int = LEAK_SIDE,
    steps: int = LEAK_STEPS,
    budget: Budget | None = None,
    results: str | os.PathLike[str] | None = None,
) -> Run:
    """Makes `images` that differ in their seed alone, and returns the run.

    Its `telemetry` has the memory after each image. A `budget` may allow fewer images, or none
    where it can't carry the least that show a leak. An interrupt then ends the images, and the run
    has those that were made.
    """
    check_number("images", images, 1, whole=True)
    planned = images
    if budget is not None:
        part = _leak_part(budget, images)
        planned = images if _has_time(budget, part) else 0
    requests = [_request(size, steps, seed) for seed in range(images)]
    with _recording(pipe, requests, images, "watch", results, budget) as made:
        made.total = planned
        for number, request in enumerate(requests[:planned]):
            if budget is not None:
                free_s = budget.left_s if number >= LEAK_IMAGES else budget.cut_s
                if not free_s:
                    print_line(f"the budget is spent after {counted(number, 'image')}")
                    break
            made.make(request)
    return made.run


def arithmetic(
    pipe: SDXLPipeline,
    run: Run,
    *,
    size: int | None = None,
    repeat: int = 7,
    budget: Budget | None = None,
) -> pd.DataFrame:
    """Returns how near a UNet step and a VAE decode come to this device's fastest matrix product.

    The columns are those of judge.arithmetic_share. The image is a guided one of `size`, by default
    the showcase's. Every call goes to arithmetic.parquet beside the rows of `run`. Without time
    left in a `budget`, and after an interrupt, there are no rows.

    The floating point operations of matrix products, convolutions and attention are counted: 2 for
    each multiply and add. The matrix products have the same dtype and threads. In float32 on a GPU
    they may use TF32, if cuDNN's convolutions do.

    Where other processes took too much meanwhile, `disturbed` says so, and no share has an interval.
    """
    side = size or pipe.spec["showcase"]["width"]
    request = _request(side, repeat + 2, seed=0)
    rows: list[Row] = []
    what = f"{pipe.spec['model']}: timing products and the model's calls"
    other_work = OtherWork()
    other_work.read()
    if budget is None:
        rows = long_torch_call(what, timed_calls, pipe, request, repeat)
    elif _has_time(budget, _arithmetic_part(budget, pipe, *_largest_image(run))):
        with budget.measuring(ARITHMETIC), budget.timed(ARITHMETIC):
            rows = long_torch_call(what, timed_calls, pipe, request, repeat)
    calls = pd.DataFrame(rows, columns=["part", "dtype", "flop", "time_s"])
    taken = other_work.read()._asdict()
    calls = calls.assign(**taken)
    calls.to_parquet(run.path / "arithmetic.parquet")
    return arithmetic_share(calls, disturbed=suspect_reason(run.record, taken))


def _largest_image(run: Run) -> tuple[int, float]:
    """The side of a run's largest images, and what one of a single step takes; (1, 0.0) for none."""
    means_s = stage_means(run.requests)
    if not len(means_s):
        return 1, 0.0
    size, _, steps = means_s.index[-1]
    stages_s = means_s.iloc[-1]
    beside_s = stages_s["encode"] + stages_s["decode"]
    return size, float(beside_s + stages_s["denoise"] / steps)


def _arithmetic_part(budget: Budget, pipe: SDXLPipeline, size: int, image_s: float) -> Part:
    """The arithmetic, guessed from an image of one step where it was never measured here."""
    side = pipe.spec["showcase"]["width"]
    own_image_s = image_s * (side / size) ** 2
    guess_s = ARITHMETIC_S + ARITHMETIC_IMAGES * own_image_s
    return Part(ARITHMETIC, budget.cost(ARITHMETIC, guess_s), worth=ARITHMETIC_WORTH)


def _has_time(budget: Budget, part: Part) -> bool:
    """Whether a part fits into what is left of a budget; if not, that is printed."""
    plan = budget.plan([part], keep_one=False)
    for line in plan.left_out_lines():
        print_line(line)
    return part.name in plan


def _later_parts(
    pipe: SDXLPipeline,
    budget: Budget,
    watch_images: int,
    costs: Mapping[int, _SizeCost],
) -> list[Part]:
    """The parts of the notebook that follow the images of all sizes."""
    largest = max(costs)
    parts = [_arithmetic_part(budget, pipe, largest, costs[largest].image_s(1))]
    if watch_images:
        # The first image of a size is slower, and other work may delay any.
        small_s = [pipe.predict_s(LEAK_SIDE, LEAK_SIDE, LEAK_STEPS) for _ in range(3)]
        budget.record(LEAK_IMAGE, min(small_s))
        parts.append(_leak_part(budget, watch_images))
    return parts


def _leak_part(budget: Budget, images: int) -> Part:
    image_s = budget.cost(LEAK_IMAGE, 0.1)
    return Part(
        "memory after small images",
        seconds=images * image_s,
        least_s=min(images, LEAK_IMAGES) * image_s,
        worth=LEAK_WORTH,
        image_s=image_s,
    )


def _request(size: int, steps: int, seed: int) -> GenerateRequest:
    return GenerateRequest(
        prompt=_PROMPT,
        width=size,
        height=size,
        num_inference_steps=steps,
        seed=seed,
    )


@dataclass(frozen=True)
class _SizeCost:
    """What an image of one size takes: `fixed_s` whatever its steps, and `step_s` for each step."""

    fixed_s: float
    step_s: float

    def image_s(self, steps: int) -> float:
        return self.fixed_s + steps * self.step_s


def _try_size(pipe: SDXLPipeline, size: int) -> _SizeCost | None:
    """What an image of this size takes, by a short one; None where it does not fit in memory."""
    try:
        if pipe.fits(size, size):
            timings = pipe.generate(_request(size, 2, seed=0)).timings
            fixed_s = timings.encode_s + timings.decode_s
            return _SizeCost(fixed_s, timings.step_s[-1])
    except torch.OutOfMemoryError:
        pass
    print_line(f"{size_name(size, size)} does not fit in memory: left out")
    return None


def _warm_up(
    images: _Images, request: GenerateRequest, cost: _SizeCost, most_s: float
) -> _SizeCost:
    """Makes images of one size until their steps get no faster; returns what the last one took.

    It takes at most WARM_IMAGES images and about `most_s` seconds. Where one image takes longer
    than that, none is made, and `cost` is returned.
    """
    end_s = time.monotonic() + most_s
    steps = request.num_inference_steps
    step_s: list[float] = []
    while not is_warm(step_s):
        if len(step_s) == WARM_IMAGES or time.monotonic() + cost.image_s(steps) > end_s:
            side = size_name(request.width, request.height)
            made = counted(len(step_s), "image")
            print_line(f"{side}: warmed by {made}, may still get faster")
            break
        row = images.make(request, "warmup")
        step_s.append(row["denoise_s"] / steps)
        cost = _SizeCost(row["total_s"] - row["denoise_s"], step_s[-1])
    return cost


class _Images:
    """A run that grows image by image: its rows, and after each the memory and others' CPU."""

    def __init__(self, pipe: SDXLPipeline, folder: RunFolder, most: int) -> None:
        self.total = most
        self.made = 0
        self.counted = 0
        self.counted_from_s = 0.0
        self.run: Run  # when all images are made
        self._pipe = pipe
        self._folder = folder
        # The array has its full length from the start: a growing list would look like a leak.
        self.samples = np.full((most, 1 + len(MEMORIES) + len(TAKEN)), np.nan)
        self._other_work = OtherWork()
        self._other_work.read()
        self.began_s = time.monotonic()
        self._line_due_s = self.began_s + _LINE_EVERY_S

    def make(self, request: GenerateRequest, phase: str = "measure") -> Row:
        """Makes an image, and writes and returns its row.

        Every ten seconds it prints how many images are made.
        """
        what = f"{self._pipe.spec['model']}: making an image"
        image = long_torch_call(what, _image, self._pipe, request, self.began_s)
        row: Row = {"index": self.made, "phase": phase} | image
        with self._folder.rows_path.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")
        now_s = time.monotonic()
        sample = (now_s - self.began_s, *_memory_now_gib(self._pipe), *self._other_work.read())
        self.samples[self.made] = [math.nan if value is None else value for value in sample]
        self.made += 1
        if phase == "measure":
            self.counted += 1
            if self.counted == 1:
                self.counted_from_s = row["sent_s"]
        if now_s > self._line_due_s:
            self._line_due_s = now_s + _LINE_EVERY_S
            elapsed_s = now_s - self.began_s
            print_line(f"{elapsed_s:.0f} s: {self.made} of {counted(self.total, 'image')}")
        return row


@contextmanager
def _recording(
    pipe: SDXLPipeline,
    requests: list[GenerateRequest],
    most: int,
    label: str,
    results: str | os.PathLike[str] | None,
    budget: Budget | None,
) -> Iterator[_Images]:
    """Yields a new run for at most `most` images such as `requests`, and keeps it at the end.

    After an error, the rows of the images made before it are kept. An interrupt ends the block; it
    is raised where there is no `budget`.
    """
    with writing(results, STUDY, None) as writer:
        spec = _spec(requests, label)
        folder = writer.create(spec, pipe.spec, networks=pipe.spec["networks"])
        images = _Images(pipe, folder, most)
        status = "finished"
        error: str | None = None
        try:
            with nullcontext() if budget is None else budget.measuring(label):
                yield images
            if budget is not None and budget.interrupted:
                status = "interrupted"
        except BaseException as raised:
            status = "failed"
            if isinstance(raised, KeyboardInterrupt):
                status = "interrupted"
            error = repr(raised)
            raise
        finally:
            wall_s = time.monotonic() - images.began_s
            outcome = {
                "window_start_s": images.counted_from_s,
                "window_end_s": wall_s,
                "wall_s": wall_s,
            }
            images.run = writer.keep(folder, status, outcome, _telemetry(images.samples), error)


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


def _telemetry(samples: Any) -> pd.DataFrame:
    """Returns the samples that were taken, as a run's telemetry."""
    columns = ["time_s", *(f"{name}_gib" for name in MEMORIES), *TAKEN]
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
        "launch_s": work.launch_s if pipe.device.type == "cuda" else None,
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
