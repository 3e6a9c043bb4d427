"""Measures three short studies, so that the comparison has something to compare.

Knows servers, loads and the budget. Ignorant of how studies are compared (judge.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchlib.budget import Budget, Part
from benchlib.load.arrivals import ClosedLoop
from benchlib.load.workload import Workload
from benchlib.printing import print_line
from benchlib.run import run_load
from benchlib.study.folders import results_dir
from benchlib.study.store import Run, Study

if TYPE_CHECKING:
    from benchlib.serving.model.pipeline import SDXLPipeline
    from benchlib.serving.server import Server

PADDED_ROWS = 8
TINY_PADDED_ROWS = 16
"""The slow server fills the UNet's batch up to this many rows. A guided image needs two.

Where Python is the limit and not the GPU, a few more rows cost nothing: on an H100 four rows took
as long as two. The tiny model on a CPU spends little of its time on rows, so it takes more of them.
"""

TINY_IMAGE = {"width": 64, "height": 64, "num_inference_steps": 4}
"""The image that the tiny model makes. It is small, so that a short run has many of them."""

LEAST_IMAGES = 5
"""The fewest images of a run, where the budget allows more than one turn."""

START = "start of a run"
"""The cost of a run beside its images: its load generator starts, and the last answer comes."""


def measure_examples(
    model: str,
    *,
    budget_min: float,
    repeat: int = 8,
    results: str | os.PathLike[str] | None = None,
) -> list[Study]:
    """Measures and returns three studies of at most `repeat` runs each.

    The second study repeats the first. The server of the third is slower on purpose: its UNet
    computes rows that no image needs, so the model itself takes longer. A turn is one run of each
    study, and each turn begins with another study, so that drift affects all studies alike. As many
    turns are made as fit into `budget_min` minutes, loading and starts included, and at least one.
    Each call measures anew.

    An interrupt (Ctrl-C) ends the measuring, and the whole turns so far are returned. Raises
    RuntimeError if there is none.
    """
    from benchlib.serving.model.loading import load_pipeline

    # 1) The model and its image.
    budget = Budget(budget_min, results=results, case=("compare", model))
    pipe = load_pipeline(model, **_loading(model))
    image: Mapping[str, Any] = pipe.spec["showcase"]
    if model == "tiny":
        image = TINY_IMAGE
    image_s = _image_s(pipe, image)

    # 2) Three servers over one model, and a run that is not compared. The first run in a process
    # loads libraries, which count as its server's memory.
    rows = TINY_PADDED_ROWS if model == "tiny" else PADDED_ROWS
    servers = _serve(pipe, image, rows)
    turns: list[dict[str, Run]] = []
    try:
        load = _Load(image, results, warmup_s=image_s)
        with budget.measuring("the warm-up"):
            began_s = time.monotonic()
            load.run(servers["compare-slower"], "compare-warm-up", seed=0, duration_s=2 * image_s)
            budget.record(START, max(0.0, time.monotonic() - began_s - 2 * image_s))
        start_s = budget.cost(START, 0.0)

        # 3) The runs, in turns.
        for share in budget.in_turn(_turns(budget, repeat, start_s, image_s)):
            duration_s = max(2 * image_s, share.seconds / len(servers) - start_s)
            with budget.measuring(share.name):
                turn = {}
                for name in _order(list(servers), len(turns)):
                    turn[name] = load.run(
                        servers[name],
                        name,
                        seed=len(turns),
                        duration_s=duration_s,
                    )
                turns.append(turn)
                print_line(f"{share.name} of three runs is done")
    finally:
        for server in servers.values():
            server.stop()
    if not turns:
        raise RuntimeError("interrupted before the first three runs: nothing can be compared")
    folder = results_dir(results)
    return [Study(folder / name, tuple(turn[name] for turn in turns)) for name in servers]


def _loading(model: str) -> dict[str, Any]:
    """Returns how the model is loaded, so that its images take as equal a time as can be.

    On a GPU, the tiny model would wait for Python, and computing more rows would take no longer.
    """
    if model == "tiny":
        return {"device": "cpu"}
    return {}


def _serve(pipe: SDXLPipeline, image: Mapping[str, Any], rows: int) -> dict[str, Server]:
    """Returns the servers of the three studies, by name; the slower one pads to `rows`."""
    from benchlib.serving.server import serve

    options: dict[str, Any] = {
        "batching": "serial",
        "sizes": [(image["width"], image["height"])],
    }
    return {
        "compare-first": serve(pipe, name="compare-first", **options),
        "compare-again": serve(pipe, name="compare-again", **options),
        "compare-slower": serve(
            pipe,
            name="compare-slower",
            batch_buckets=(rows,),
            **options,
        ),
    }


def _turns(budget: Budget, repeat: int, start_s: float, image_s: float) -> list[Part]:
    """Returns at most `repeat` turns, which together want all that is left of the budget."""
    least_s = 3 * (start_s + LEAST_IMAGES * image_s)
    wanted_s = max(least_s, budget.left_s / repeat)
    turns = []
    for number in range(repeat):
        turn = Part(
            f"turn {number + 1}",
            wanted_s,
            least_s=least_s,
            overhead_s=3 * start_s,
            image_s=image_s,
        )
        turns.append(turn)
    return turns


def _order(names: Sequence[str], turn: int) -> list[str]:
    """Returns the names, the first one later in each turn: no study always follows the same one."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


class _Load:
    """One user, who asks for one kind of `image` after a warm-up of `warmup_s` seconds."""

    def __init__(
        self,
        image: Mapping[str, Any],
        results: str | os.PathLike[str] | None,
        *,
        warmup_s: float,
    ) -> None:
        self._workload = Workload(**image)
        self._results = results
        self._warmup_s = warmup_s

    def run(self, server: Server, study: str, *, seed: int, duration_s: float) -> Run:
        run = run_load(
            server,
            ClosedLoop(users=1),
            self._workload,
            study=study,
            seed=seed,
            duration_s=duration_s,
            warmup_s=self._warmup_s,
            results=self._results,
        )
        assert isinstance(run, Run)
        return run


def _image_s(pipe: SDXLPipeline, image: Mapping[str, Any]) -> float:
    """Returns the shortest time of three images, in seconds."""
    from benchlib.serving.schemas import GenerateRequest

    request = GenerateRequest(prompt="a lighthouse at dusk", seed=1, **image)
    return min(pipe.generate(request).timings.total_s for _ in range(3))
