"""Tries settings: each recipe alone, for its speed and likeness, then each setting behind a server.

Knows recipes, sweeps, pictures, and how a budget of minutes is shared. Ignorant of which setting is
best (judge.py).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.workload import Workload
from benchlib.questions.settings.judge import BASELINE, NO_TIME
from benchlib.questions.settings.learned_metrics import find_learned_metrics
from benchlib.questions.settings.pictures import (
    QUICK_PROMPTS,
    Album,
    own_prompts,
    pictures_needed,
    take_pictures,
)
from benchlib.study.picture_quality import SAME, picture_columns
from benchlib.study.store import Run
from benchlib.sweeps import LOADED_SHARE, sweep

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from benchlib.serving.model.pipeline import SDXLPipeline

QUICK_RECIPES = ("baseline", "channels-last", "bf16", "vae-tiling", "vae-slicing")
FULL_RECIPES = (
    "fused-qkv",
    "vae-bf16",
    "compile-regional",
    "bf16+cuda-graphs",
    "fastest-exact",
    "fastest",
)
"""Recipes that need a GPU, or minutes of compiling before the first image."""

ALONE_SHARE = 0.4
"""After this share of the budget, no further recipe is tried alone. Servers get the rest."""

LEAST_IMAGES = 10
"""A run behind a server has at least the time in which the baseline makes this many images."""

GPU_MEMORY = "cuda_reserved_peak_gib"
PROCESS_MEMORY = "rss_peak_gib"


@dataclass(frozen=True)
class Case:
    """One setting under one load: a recipe, a way to batch, and a number of users."""

    recipe: str
    batching: str
    users: int


@dataclass(frozen=True)
class ServingPlan:
    """Which cases are served, for how many seconds each is measured, and how many times.

    No further run may begin after `limit_s` seconds. None means no limit: a single run that does
    not fit is made all the same.
    """

    durations_s: dict[Case, float]
    repeat: int
    limit_s: float | None = None


def usable_recipes(recipes: Iterable[str], device: str = "auto") -> list[str]:
    """Returns those of `recipes` that work on `device`, and prints why the others don't.

    Raises ValueError for a recipe that does not exist.
    """
    from benchlib.serving.model.loading import resolve
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


def settings_to_try(profile: str, device: str = "auto") -> list[tuple[str, str]]:
    """Returns the (recipe, batching) pairs of a profile, "quick" or "full".

    The baseline is served in all three ways, and each other recipe with continuous batching. It
    prints what is left out.
    """
    recipes = usable_recipes(QUICK_RECIPES, device)
    if profile == "full":
        recipes += usable_recipes(FULL_RECIPES, device)
    else:
        print(f"left to the profile full: {', '.join(FULL_RECIPES)}")
    settings = [(BASELINE, "serial"), (BASELINE, "dynamic")]
    settings += [(recipe, "continuous") for recipe in recipes]
    print(f"{len(recipes)} recipes and {len(settings)} settings are tried")
    return settings


def try_settings(
    model: str,
    settings: Sequence[tuple[str, str]],
    *,
    users: Sequence[int] = (3,),
    num_inference_steps: int | None = None,
    steps_share: float | None = None,
    duration_s: float | None = None,
    budget_min: float | None = None,
    repeat: int = 1,
    images: int = 5,
    prompts: Sequence[str] | None = None,
    study: str = "settings",
    results: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> tuple[pd.DataFrame, tuple[Run, ...]]:
    """Measures each (recipe, batching) of `settings` with each number of `users`.

    Returns a frame with one row for each setting and number of users, and the runs. Each call
    measures anew.

    First each recipe works alone. It makes one image that is not counted, then `images` images that
    are timed. Each has another one of `prompts`, and the seeds 1, 2, ... More of the prompts follow
    as the budget allows: all of them for a recipe that changes the algorithm, else PAIRS_NEEDED.
    None stands for the first QUICK_PROMPTS prompts of our own.

    - `start_s`: seconds of loading and of the first image.
    - `image_s`: mean seconds of one image, with its interval from 5 images on.
    - `psnr_db`, `ssim`, `flip`: mean likeness to the baseline's images of the same prompts and
      seeds, each with its `_interval`. `pictures` is the verdict on them, and `pictures_reason`
      says why. `study.picture_quality` has these and the other columns of pictures.
    - `exact`: whether the recipe keeps algorithm, weights and steps, and rounds no coarser than
      bf16.

    Then a sweep measures each setting `repeat` times behind a server. Each user asks for the next
    image as soon as the last one came.

    - `runs`: how many valid runs there are. `latencies_s` has a list of seconds for each of them.
    - `images_per_s`: mean over the runs. Its interval is of 5 runs or more, or the only run's own.
    - `memory_gib`: the lowest peak of the runs. A peak may include memory that an earlier setting
      left in the process.
    - `memory_of`: which memory that is, reserved on the GPU or the process's RSS.
    - `error`: why the setting was not measured, or None.

    Images have `num_inference_steps` steps, or else `steps_share` of the model's own number, or
    else that number.

    A run takes `duration_s`, or its part of `budget_min` minutes. Without both it takes as long as
    the baseline needs for 80 images, within these limits:

    - no less than 5 s or 10 images, whichever is longer
    - no more than 8 s or 10 images, whichever is longer

    A budget that is too small for everything leaves settings out and prints which ones. The
    baseline and one run of the first setting are always measured.
    """
    import pandas as pd

    began_s = time.monotonic()
    budget_s = math.inf if budget_min is None else 60 * budget_min
    cases = [Case(*setting, people) for setting in settings for people in users]
    recipes = dict.fromkeys([BASELINE, *(case.recipe for case in cases)])
    if steps_share is not None:
        num_inference_steps = max(1, int(steps_share * _own_steps(model, device)))

    # 1) Each recipe alone, without a server.
    alone_s = ALONE_SHARE * budget_s
    alone = _try_alone(
        model,
        list(recipes),
        end_s=began_s + alone_s,
        images=images,
        device=device,
        steps=num_inference_steps,
        prompts=prompts or own_prompts()[:QUICK_PROMPTS],
        pictures_s=alone_s / len(recipes),
    )

    # 2) The cases that the rest of the budget has room for.
    left_s = budget_s - (time.monotonic() - began_s)
    working = [case for case in cases if alone[case.recipe]["error"] is None]
    plan = plan_serving(working, alone, time_s=left_s, repeat=repeat, duration_s=duration_s)

    # 3) Each setting behind a server.
    points = []
    for case, case_s in plan.durations_s.items():
        point = {
            "arrivals": ClosedLoop(case.users),
            "workload": Workload(num_inference_steps=num_inference_steps),
            "load": {"model": model, "recipe": case.recipe, "device": device},
            "serve": {"batching": case.batching},
            "duration_s": case_s,
            "warmup_s": _warmup_s(case, alone),
        }
        points.append(point)
    runs = _measure_points(points, plan, study, results)
    return pd.DataFrame(_rows(cases, alone, runs), dtype=object), runs


def _measure_points(
    points: Sequence[Mapping[str, Any]],
    plan: ServingPlan,
    study: str,
    results: str | os.PathLike[str] | None,
) -> tuple[Run, ...]:
    """Returns the runs of a plan.

    The first run is made in any case: without a run there is nothing to show.
    """
    if not points:
        return ()
    limit_min = None if plan.limit_s is None else plan.limit_s / 60
    options: dict[str, Any] = {"study": study, "resume": False, "results": results}
    made = sweep(points, repeat=plan.repeat, budget_min=limit_min, **options)
    if not made.runs:
        made = sweep(points[:1], **options)
    return made.runs


def _rows(
    cases: Sequence[Case],
    alone: Mapping[str, dict[str, Any]],
    runs: Sequence[Run],
) -> list[dict[str, Any]]:
    """Returns a row for each case: what its recipe does alone, and what the case's runs show."""
    rows = []
    for case in cases:
        own_runs = [run for run in runs if _case_of(run) == case]
        row = {
            "setting": f"{case.recipe}, {case.batching}",
            **vars(case),
            **alone[case.recipe],
            **_serving_figures(own_runs),
        }
        if alone[case.recipe]["error"] is not None:
            row["error"] = alone[case.recipe]["error"]
        rows.append(row)
    return rows


def plan_serving(
    cases: Sequence[Case],
    alone: dict[str, dict[str, Any]],
    *,
    time_s: float,
    repeat: int,
    duration_s: float | None = None,
) -> ServingPlan:
    """Returns which of `cases` have room in `time_s` seconds, each for how long and how many times.

    `alone` has each recipe's `start_s` and `image_s`. Earlier cases have precedence. Fewer
    repetitions are preferred to fewer cases. The first case is planned in any case, as briefly as
    possible. Without a limit each case is measured `repeat` times for `duration_s`, or for a length
    that follows from the baseline's image time.
    """
    image_s = alone[BASELINE]["image_s"]
    usual_s = max(LEAST_IMAGES * image_s, min(max(80 * image_s, 5.0), 8.0))
    if math.isinf(time_s) or not cases:
        return ServingPlan(dict.fromkeys(cases, duration_s or usual_s), repeat)

    # 1) Take the cases that fit. A recipe is loaded once in each round, for all of its cases.
    least_s = duration_s or max(1.0, LEAST_IMAGES * image_s)
    loaded_s = LOADED_SHARE * time_s
    kept: list[Case] = []
    recipes: set[str] = set()
    round_s = 0.0
    for case in cases:
        start_s = 0.0 if case.recipe in recipes else alone[case.recipe]["start_s"]
        case_s = start_s + _warmup_s(case, alone) + least_s
        if round_s + case_s <= loaded_s or not kept:
            kept.append(case)
            recipes.add(case.recipe)
            round_s += case_s
    rounds = max(1, min(repeat, int(loaded_s / round_s)))

    # 2) Say what is left out.
    left_out = [case for case in cases if case not in kept]
    if left_out:
        names = dict.fromkeys(f"{case.recipe}, {case.batching}" for case in left_out)
        print(f"the budget has no room for all loads of: {'; '.join(names)}", flush=True)
    if rounds < repeat:
        print(f"the budget has room for {rounds} run(s) of each load, not {repeat}", flush=True)

    # 3) Share what is left among the runs.
    spare_s = max(0.0, loaded_s - rounds * round_s)
    more_s = 0.0 if duration_s else spare_s / (rounds * len(kept))
    limit_s = time_s if round_s <= loaded_s else None
    return ServingPlan(dict.fromkeys(kept, least_s + more_s), rounds, limit_s)


def _warmup_s(case: Case, alone: dict[str, dict[str, Any]]) -> float:
    """Returns the seconds in which each user gets one image."""
    return max(1.0, case.users * float(alone[case.recipe]["image_s"]))


def _case_of(run: Run) -> Case:
    point = run.record["point"]
    return Case(point["load"]["recipe"], point["serve"]["batching"], point["arrivals"]["users"])


def _try_alone(
    model: str,
    recipes: list[str],
    *,
    end_s: float,
    images: int,
    device: str,
    steps: int | None,
    prompts: Sequence[str],
    pictures_s: float,
) -> dict[str, dict[str, Any]]:
    """Returns what each recipe does without a server.

    The baseline comes first and is always tried. Another recipe is tried only if the time until
    `end_s` is enough for it, should its start and `images` images take as long as the baseline's.
    The pictures of a recipe take `pictures_s` seconds at most, or as long as `images` images.
    """
    learned = find_learned_metrics()
    for words in learned.left_out:
        print(words, flush=True)
    baseline_s = 0.0
    baseline: Album | None = None
    found: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        began_s = time.monotonic()
        if baseline is not None and began_s + baseline_s > end_s:
            print(f"{recipe}: not tried, the budget has no room for it", flush=True)
            found[recipe] = _nothing_alone(recipe, NO_TIME)
            continue

        # 1) The images of the recipe, and its pairs with the baseline.
        print(f"{recipe}: {images} images", flush=True)
        nothing = _nothing_alone(recipe, None)
        needed = pictures_needed(prompts, exact=nothing["exact"] and baseline is not None)
        try:
            start_s, album = _one_alone(
                model,
                recipe,
                device,
                steps,
                prompts[:needed],
                timed=images,
                limit_s=pictures_s,
                baseline=baseline,
                learned=learned,
            )
        except Exception as error:
            # Without the baseline there is nothing to compare with.
            if baseline is None:
                raise
            print(f"{recipe}: failed, {error}", flush=True)
            found[recipe] = _nothing_alone(recipe, f"{type(error).__name__}: {error}")
            continue

        # 2) What they show.
        found[recipe] = nothing | _alone_figures(start_s, album)
        if baseline is None:
            baseline = album
            baseline_s = start_s + math.fsum(album.times_s)
            found[recipe] |= {"pictures": SAME, "pictures_reason": "it is the baseline"}
            continue
        verdict = found[recipe]["pictures"]
        print(f"{recipe}: pictures {verdict}, {found[recipe]['pictures_reason']}", flush=True)
    return found


def _one_alone(
    model: str,
    recipe: str,
    device: str,
    steps: int | None,
    prompts: Sequence[str],
    **options: Any,
) -> tuple[float, Album]:
    """Returns the seconds until a recipe's first image, and its pictures.

    `options` go to `take_pictures`. The model is freed before the next one is loaded, because
    memory may be too small for two.
    """
    from benchlib.serving.model.loading import load_pipeline

    began_s = time.monotonic()
    with closing(load_pipeline(model, recipe=recipe, device=device)) as pipe:
        _image(pipe, prompts[0], 0, steps)
        start_s = time.monotonic() - began_s

        def make(prompt: str, seed: int) -> tuple[Image, float]:
            result = _image(pipe, prompt, seed, steps)
            return result.images[0], result.timings.total_s

        return start_s, take_pictures(make, prompts, **options)


def _alone_figures(start_s: float, album: Album) -> dict[str, Any]:
    """Returns the figures of a recipe that made its pictures."""
    from benchlib.study.intervals import runs_interval

    return picture_columns(album.pairs) | {
        "start_s": start_s,
        "image_s": _mean(album.times_s),
        "image_s_interval": runs_interval(album.times_s),
    }


def _nothing_alone(recipe: str, error: str | None) -> dict[str, Any]:
    """Returns the figures of a recipe that was not measured yet."""
    from benchlib.serving.model.recipes import parse_recipes

    exact = all(part.exact for part in parse_recipes(recipe))
    return {
        "exact": exact,
        **dict.fromkeys(("start_s", "image_s", "image_s_interval")),
        **picture_columns(None),
        "error": error,
    }


def _own_steps(model: str, device: str) -> int:
    """Returns the number of steps that the model's own images have."""
    from benchlib.serving.model.loading import load_pipeline

    with closing(load_pipeline(model, device=device)) as pipe:
        return int(pipe.spec["showcase"]["num_inference_steps"])


def _image(pipe: SDXLPipeline, prompt: str, seed: int, steps: int | None) -> Any:
    """Returns one image of the model's own size, with `steps` steps or the model's own number."""
    from benchlib.serving.schemas import GenerateRequest

    showcase = dict(pipe.spec["showcase"])
    if steps is not None:
        showcase["num_inference_steps"] = steps
    return pipe.generate(GenerateRequest(prompt=prompt, seed=seed, **showcase))


def _serving_figures(runs: list[Run]) -> dict[str, Any]:
    """Returns the figures of one case, from its runs behind a server."""
    from benchlib.study.intervals import runs_interval
    from benchlib.study.latency import latencies

    # 1) Speed, of the valid runs.
    summaries = [run.summary() for run in runs]
    valid = [summary for summary in summaries if summary["valid"]]
    rates = _known(valid, "throughput_images_per_s")
    interval = runs_interval(rates)
    if len(valid) == 1:
        interval = valid[0]["throughput_images_per_s_interval"]

    latencies_s = []
    for run, summary in zip(runs, summaries, strict=True):
        if summary["valid"]:
            latencies_s.append(latencies(run.requests).tolist())

    # 2) Memory: the GPU's own, or the process's if no run knows the GPU's.
    memory_of = "GPU, reserved"
    peaks_gib = _known(valid, GPU_MEMORY)
    if not peaks_gib:
        memory_of = "process RSS"
        peaks_gib = _known(valid, PROCESS_MEMORY)

    # 3) The reason if there is no valid run.
    error = None
    if not runs:
        error = NO_TIME
    elif not valid:
        error = summaries[0]["invalid_reason"]
    return {
        "runs": len(valid),
        "images_per_s": _mean(rates),
        "images_per_s_interval": interval,
        "latencies_s": latencies_s,
        "memory_gib": min(peaks_gib, default=None),
        "memory_of": memory_of if peaks_gib else None,
        "energy_per_image_j": _mean(_known(valid, "energy_per_image_j")),
        "error": error,
    }


def _known(summaries: list[pd.Series], name: str) -> list[float]:
    """Returns a figure of all runs that have it."""
    return [summary[name] for summary in summaries if summary[name] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
