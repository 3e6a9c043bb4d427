"""Tries settings: each recipe's speed alone and likeness to the baseline, and what it does behind a server.

Knows recipes, sweeps and likeness. Ignorant of which setting is best (study/settings.py).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.workload import Workload
from benchlib.run import so_far
from benchlib.study.store import Run, results_dir
from benchlib.sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.serving.model.pipeline import SDXLPipeline

BASELINE = "baseline"


def usable_recipes(recipes: Iterable[str], device: str = "auto") -> list[str]:
    """Those of `recipes` that work here; why the others don't is printed. Raises ValueError for an unknown one."""
    from benchlib.serving.model.pipeline import resolve
    from benchlib.serving.model.recipes import parse_recipes

    kept = []
    for recipe in recipes:
        parse_recipes(recipe)
        try:
            resolve(recipe, device=device)
        except ValueError as error:
            print(f"left out: {error}")
        else:
            kept.append(recipe)
    return kept


def try_settings(
    model: str,
    settings: Sequence[tuple[str, str]],
    *,
    users: Sequence[int] = (3,),
    num_inference_steps: int | None = None,
    duration_s: float | None = None,
    budget_min: float | None = None,
    repeat: int = 1,
    images: int = 5,
    study: str = "settings",
    results: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> tuple[pd.DataFrame, tuple[Run, ...]]:
    """Measure each (recipe, batching) of `settings` with each number of `users`, anew at each call; a frame with a row
    for each, and the runs.

    First each recipe alone: it makes `images` images of seeds 1, 2, ... after one that is not counted. `image_s` is the
    mean time of one with its interval (from 5 images on), `start_s` loading and the first image, `psnr_db` and `ssim`
    the mean likeness to the baseline's images of the same seeds. Then a sweep (see `sweep`): `users` people who ask
    again at once, for `duration_s` or their share of `budget_min` (by default as long as 80 images take alone, but 5 to
    8 s, or 10 images), `repeat` times. `images_per_s` is the mean, its interval that of 5 runs or more, or the only
    run's own. `memory_gib` is the least of the runs' peaks, as what an earlier setting left in the process is none of
    its own; `memory_of` says which memory: reserved on the GPU, or the process's RSS. `latencies_s` are those of each
    run; `error` is why a setting could not be measured.
    """
    import pandas as pd

    before = len(so_far(results_dir(results) / study).runs)
    steps = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    alone = _alone(
        model,
        list(dict.fromkeys([BASELINE, *(recipe for recipe, _ in settings)])),
        images,
        device,
        steps,
    )
    if duration_s is None and budget_min is None:
        image_s = alone[BASELINE]["image_s"]
        duration_s = max(10 * image_s, min(max(80 * image_s, 5.0), 8.0))
    cases = [(recipe, batching, people) for recipe, batching in settings for people in users]
    points = [
        {
            "arrivals": ClosedLoop(people),
            "workload": Workload(num_inference_steps=num_inference_steps),
            "load": {"model": model, "recipe": recipe, "device": device},
            "serve": {"batching": batching},
            "duration_s": duration_s,
            "warmup_s": max(1.0, people * alone[recipe]["image_s"]),
        }
        for recipe, batching, people in cases
    ]
    made = sweep(
        points, study=study, repeat=repeat, budget_min=budget_min, resume=False, results=results
    )
    runs = made.runs[before:]
    of: dict[Any, list[Run]] = {case: [] for case in cases}
    for run in runs:
        point = run.record["point"]
        of[point["load"]["recipe"], point["serve"]["batching"], point["arrivals"]["users"]].append(
            run
        )
    rows = [
        {
            "setting": f"{recipe}, {batching}",
            "recipe": recipe,
            "batching": batching,
            "users": people,
        }
        | alone[recipe]
        | _served(of[recipe, batching, people])
        for recipe, batching, people in cases
    ]
    return pd.DataFrame(rows, dtype=object), runs


def _alone(
    model: str, recipes: list[str], images: int, device: str, steps: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """What each recipe does without a server. One model at a time is in memory: two may not fit."""
    import numpy as np

    from benchlib.serving.model.pipeline import load_pipeline
    from benchlib.serving.model.recipes import parse_recipes
    from benchlib.study.intervals import runs_interval
    from benchlib.study.likeness import psnr_db, ssim

    found: dict[str, dict[str, Any]] = {}
    reference: list[Any] = []
    for recipe in recipes:
        print(f"{recipe}: {images} images", flush=True)
        began_s = time.monotonic()
        pipe = load_pipeline(model, recipe=recipe, device=device)
        _image(pipe, 0, steps)
        start_s = time.monotonic() - began_s
        results = [_image(pipe, seed, steps) for seed in range(1, images + 1)]
        pixels = [np.asarray(result.images[0]) for result in results]
        reference = reference or pixels
        taken_s = [result.timings.total_s for result in results]
        pairs = list(zip(reference, pixels, strict=True))
        found[recipe] = {
            "exact": all(one.exact for one in parse_recipes(recipe)),
            "start_s": start_s,
            "image_s": sum(taken_s) / images,
            "image_s_interval": runs_interval(taken_s),
            "psnr_db": _mean([psnr_db(*pair) for pair in pairs]),
            "ssim": _mean([ssim(*pair) for pair in pairs]),
        }
        del pipe
    return found


def _image(pipe: SDXLPipeline, seed: int, steps: dict[str, int]) -> Any:
    from benchlib.serving.schemas import GenerateRequest

    return pipe.generate(
        GenerateRequest(prompt="a lighthouse at dusk", seed=seed, **pipe.spec["showcase"] | steps)
    )


def _served(runs: list[Run]) -> dict[str, Any]:
    """The figures of one setting's runs."""
    from benchlib.study.intervals import runs_interval
    from benchlib.study.summary import latencies

    summaries = [run.summary() for run in runs]
    valid = [summary for summary in summaries if summary["valid"]]
    memory = next(
        (name for name in ("cuda_reserved_peak_gib", "rss_peak_gib") if valid and valid[0][name]),
        None,
    )
    rates = [summary["throughput_images_per_s"] for summary in valid]
    energies = [
        summary["energy_per_image_j"]
        for summary in valid
        if summary["energy_per_image_j"] is not None
    ]
    interval = runs_interval(rates) if len(rates) != 1 and rates else None
    return {
        "runs": len(valid),
        "images_per_s": _mean(rates),
        "images_per_s_interval": valid[0]["throughput_images_per_s_interval"]
        if len(rates) == 1
        else interval,
        "latencies_s": [
            latencies(run.requests).tolist()
            for run, s in zip(runs, summaries, strict=True)
            if s["valid"]
        ],
        "memory_gib": min(summary[memory] for summary in valid) if memory else None,
        "memory_of": {"cuda_reserved_peak_gib": "GPU, reserved", "rss_peak_gib": "process RSS"}.get(
            memory or ""
        ),
        "energy_per_image_j": _mean(energies),
        "error": None
        if valid
        else summaries[0]["invalid_reason"]
        if summaries
        else "not measured: no time left for it",
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
