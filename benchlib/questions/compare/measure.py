"""Measures three short studies, so that the comparison has something to compare.

Knows servers and loads. Ignorant of how studies are compared (judge.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.workload import Workload
from benchlib.run import run_load
from benchlib.study.folders import results_dir
from benchlib.study.store import Run, Study

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline

SLOW_SHARE = 0.25
"""The slow server waits for this share of an image's time, for other requests that never come."""

TINY_IMAGE = {"width": 64, "height": 64, "num_inference_steps": 4}
"""The image that the tiny model makes. It is small, so that a short run has many of them."""


def measure_examples(
    model: str,
    *,
    budget_min: float,
    repeat: int = 4,
    results: str | os.PathLike[str] | None = None,
) -> list[Study]:
    """Measures and returns three studies of `repeat` runs each.

    The second study repeats the first. The server of the third is slower on purpose. The runs take
    turns, so that drift affects all studies alike. They share `budget_min` minutes, but no run is
    shorter than three images. Each call measures anew.
    """
    from benchlib.serving.model.loading import load_pipeline
    from benchlib.serving.server import serve

    # 1) How long a run is.
    pipe = load_pipeline(model)
    image: Mapping[str, Any] = pipe.spec["showcase"]
    if model == "tiny":
        image = TINY_IMAGE
    image_s = _image_s(pipe, image)
    run_s = 60 * budget_min / (3 * repeat)
    options: dict[str, Any] = {
        "duration_s": max(0.8 * run_s, 3 * image_s),
        "warmup_s": max(0.2 * run_s, image_s),
        "results": results,
    }
    length_s = options["duration_s"] + options["warmup_s"]
    print(f"3 studies of {repeat} runs, {length_s:.3g} s each", flush=True)

    # 2) Three servers over one model.
    wait_ms = 1000 * SLOW_SHARE * image_s
    servers = {
        "compare-first": serve(pipe, name="compare-first"),
        "compare-again": serve(pipe, name="compare-again"),
        "compare-slower": serve(
            pipe, name="compare-slower", batching="dynamic", max_wait_ms=wait_ms
        ),
    }

    # 3) The runs, in turns. The first run in a process loads libraries, which count as its server's
    # memory. So one run goes before all others, and is not compared.
    turns = [("compare-warm-up", 0)]
    turns += [(name, seed) for seed in range(repeat) for name in servers]
    runs: dict[str, list[Run]] = {}
    try:
        for study, seed in turns:
            server = servers.get(study, servers["compare-slower"])
            load = ClosedLoop(users=1), Workload(**image)
            run = run_load(
                server,
                *load,
                study=study,
                seed=seed,
                **options,
            )
            assert isinstance(run, Run)
            runs.setdefault(study, []).append(run)
            print(f"{study}, run {seed + 1} of {repeat}", flush=True)
    finally:
        for server in servers.values():
            server.stop()
    folder = results_dir(results)
    return [Study(folder / name, tuple(runs[name])) for name in servers]


def _image_s(pipe: SDXLPipeline, image: Mapping[str, Any]) -> float:
    """Returns the shortest time of three images, in seconds."""
    from benchlib.serving.schemas import GenerateRequest

    request = GenerateRequest(prompt="a lighthouse at dusk", seed=1, **image)
    return min(pipe.generate(request).timings.total_s for _ in range(3))
