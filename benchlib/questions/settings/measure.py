"""Tries settings: each recipe alone and behind servers, then the best two under load, in turns.

Knows recipes, budgets, and what a frame of settings holds. Ignorant of how a recipe is tried
(measure_alone.py) and confirmed (measure_loaded.py), and of which setting is best (judge.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from benchlib.budget import Budget, Part, PlannedPart
from benchlib.load.workload import Workload
from benchlib.printing import print_line
from benchlib.questions.settings.judge import (
    BASELINE,
    FINALISTS,
    NO_FINALIST,
    NO_RUN,
    NO_TIME,
    SIMPLICITY,
    STOPPED,
    STOPPED_BEFORE_RUNS,
    finalists,
)
from benchlib.questions.settings.learned_metrics import find_learned_metrics
from benchlib.questions.settings.measure_alone import Asked, Served, Tried, try_recipe
from benchlib.questions.settings.measure_loaded import (
    CALIBRATE_S,
    LEAST_CONFIRMING,
    NEAR,
    RECOMPILE_S,
    START_S,
    USUAL_IMAGES,
    Confirmed,
    Finalist,
    confirm,
)
from benchlib.questions.settings.pictures import QUICK_PROMPTS, Album, own_prompts, pictures_needed
from benchlib.questions.settings.variants import Variant, parse_variant
from benchlib.run import writing
from benchlib.study.picture_quality import PAIRS_NEEDED, SAME, picture_columns
from benchlib.study.slo import Slo, promise_for
from benchlib.study.store import Run
from benchlib.study.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.questions.settings.learned_metrics import LearnedMetrics
    from benchlib.run import Writer

QUICK_RECIPES = (BASELINE, "bf16", "channels-last", "vae-slicing", "vae-tiling")
FULL_RECIPES = (
    BASELINE,
    "bf16+cuda-graphs",
    "fastest-exact",
    "fastest",
    *QUICK_RECIPES[1:],
    "vae-bf16",
    "fused-qkv",
    "compile-regional",
)
"""The recipes of each profile. The most telling come first: a budget leaves out the last ones."""

LEAST_IMAGES = PAIRS_NEEDED
"""A recipe makes at least so many images alone, so that there is a verdict on its pictures."""
BASELINE_SHARE = 1 / 30
"""The share of a budget that the baseline's images may take."""
CONFIRM_SHARE = 0.2
"""The share of a budget that is kept for the confirming runs, if they can use it."""
WARM_IMAGES = 2
COMPILE_S = 60.0
"""What compiling a recipe takes, until that is known: 30 to 75 s on one H100."""
SECOND_START = 0.5
"""Another recipe starts in this share of the first one's time, which loads libraries as well."""
SERVER_S = 8.0
FORECAST_S = 2.0
"""What a server's start and a forecast take, until that is known."""
PAIR_S = 3.0
"""What one core takes to compare two pictures of a megapixel."""

Setting = tuple[str, str]
"""A variant, such as "bf16" or "bf16 in 4 steps" (variants.py), and a way to batch."""


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
            print_line(f"left out: {error}")
        else:
            kept.append(recipe)
    return kept


def settings_to_try(
    profile: str, device: str = "auto", *, fewer_steps: Iterable[int] = ()
) -> list[Setting]:
    """Returns the (recipe, batching) pairs of a profile, "quick" or "full".

    The baseline is served in all three ways. Then comes the baseline in each number of
    `fewer_steps`. Each other recipe has continuous batching, but one that compiles is served
    serially: each further size of a batch would be compiled for a minute. The most telling pairs
    come first. It prints what is left out.
    """
    recipes = usable_recipes(FULL_RECIPES if profile == "full" else QUICK_RECIPES, device)
    if profile != "full":
        others = [recipe for recipe in FULL_RECIPES if recipe not in QUICK_RECIPES]
        print_line(f"left to the profile full: {', '.join(others)}")
    in_fewer = [str(Variant(BASELINE, steps)) for steps in fewer_steps]
    settings = [(BASELINE, batching) for batching in SIMPLICITY]
    settings += [(variant, _usual_batching(variant)) for variant in in_fewer]
    settings += [(recipe, _usual_batching(recipe)) for recipe in recipes if recipe != BASELINE]
    print_line(
        f"{counted(len(recipes), 'recipe')} and {counted(len(settings), 'setting')} are tried"
    )
    return settings


def _usual_batching(recipe: str) -> str:
    return "serial" if _compiles(recipe) else "continuous"


def _compiles(recipe: str) -> bool:
    from benchlib.serving.model.recipes import parse_recipes

    parts = parse_recipes(parse_variant(recipe).recipe)
    return any(part.sets == "compiler" for part in parts)


def _is_exact(recipe: str) -> bool:
    """Whether it keeps algorithm, weights and steps, and rounds no coarser than bf16."""
    from benchlib.serving.model.recipes import parse_recipes

    variant = parse_variant(recipe)
    return variant.steps is None and all(part.exact for part in parse_recipes(variant.recipe))


def try_settings(
    model: str,
    settings: Sequence[Setting],
    *,
    users: Sequence[int] = (3,),
    num_inference_steps: int | None = None,
    steps_share: float | None = None,
    duration_s: float | None = None,
    budget: Budget | None = None,
    budget_min: float | None = None,
    repeat: int = 2,
    images: int = 10,
    prompts: Sequence[str] | None = None,
    slo: str | None = None,
    exact_only: bool = False,
    memory_limit_gib: float | None = None,
    study: str = "settings",
    results: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> tuple[pd.DataFrame, tuple[Run, ...]]:
    """Measures each (recipe, batching) of `settings`, and confirms the best two under load.

    Returns a frame with one row for each setting, and the runs. Each call measures anew.

    1. Each recipe works alone. After a warm-up it makes `images` images that are timed. Each has
       another one of `prompts`, and the seeds 1, 2, ... More of the prompts follow as the budget
       allows: all of them for a recipe that changes the algorithm, else PAIRS_NEEDED. None stands
       for the first QUICK_PROMPTS prompts of our own.
    2. A server starts for each setting, and its warm-up measures step times. With the images alone
       they foretell the capacity within the promise `slo`. Without one, 95 % of the images must
       take less than 4 times the baseline's image alone.
    3. The best two settings are loaded in turns, `repeat` times, each with 0.8 of its foretold
       capacity, or less if it can't keep up. Settings that `exact_only` or `memory_limit_gib` rule
       out are not among them.

    The columns of the frame; unknown is None:

    - `exact`: whether the recipe keeps algorithm, weights and steps, and rounds no coarser than
      bf16. `optimisations` is their number.
    - `start_s`: seconds from nothing to a server that is ready. `compile_s` of them went into
      compiling and recording graphs. `started` says whether that was "cold", or "warm" because
      earlier processes had compiled for it; None if the recipe compiles nothing.
    - `image_s`: mean seconds of one image alone, with its interval from 5 images on.
    - `psnr_db`, `ssim`, `flip`: mean likeness to the baseline's images of the same prompts and
      seeds, each with its `_interval`. `pictures` is the verdict on them, and `pictures_reason`
      says why. `study.picture_quality` has these and the other columns of pictures.
    - `memory_gib`: the peak while the images were made alone and the server warmed up.
      `memory_of` says which memory: reserved on the GPU, or the whole process's RSS. RSS may hold
      memory that earlier settings left.
    - `promise`: the promise that the capacities keep.
    - `foretold_images_per_s`: the capacity before any load, with its interval.
    - `images_per_s_of_3_users`: the images/s that are foretold for so many users in a closed loop;
      a column for each of `users`.
    - `capacity_images_per_s`: the calibrated capacity if it is `confirmed`, else the foretold one,
      with its interval.
    - `runs`, `confirming_images`, `confirming_rate`: how many runs and images confirm it, at which
      rate in images/s. `note` says how well they fit, or why it is not confirmed.
    - `error`: why the setting was not measured, or None.

    Images have `num_inference_steps` steps, or else `steps_share` of the model's own number, or
    else that number. A confirming run takes `duration_s`, or as long as 30 images at least.

    `budget_min` minutes, or a `budget`, count everything from this call on: loading, compiling and
    forecasts as well. The baseline is measured in any case. Then the plan is printed: a budget
    leaves out the last of `settings` first. Recipes that compile come after the others. The plan
    is made anew after each recipe, so that a slow start costs later settings, not the budget. After
    an interrupt, what was measured is returned. Raises KeyboardInterrupt if that is nothing.
    """
    from benchlib.serving.model.loading import resolve

    # 1) What is asked, and the budget of all of it.
    if slo is not None:
        Slo.parse(slo)
    if steps_share is not None and not 0 < steps_share <= 1:
        raise ValueError(
            f"steps_share must be a share above 0, at most 1, got {steps_share}: 25 % is 0.25"
        )
    recipes: dict[str, list[str]] = {BASELINE: []}
    for recipe, batching in settings:
        recipes.setdefault(recipe, []).append(batching)
    asked = Asked(
        model=model,
        device=device,
        steps=num_inference_steps,
        steps_share=steps_share,
        prompts=prompts or own_prompts()[:QUICK_PROMPTS],
        timed=images,
    )
    if budget is None:
        _, target, _ = resolve(BASELINE, device=device)
        case = ("settings", model, target.type, f"steps {num_inference_steps or steps_share}")
        budget = Budget(budget_min, results=results, case=case)
    learned = find_learned_metrics()
    print_line("\n".join(learned.left_out))

    # 2) Each recipe, then the best two under load.
    with writing(results, study, None) as writer:
        trials = _Trials(asked, budget, writer, learned, recipes, users=tuple(users), promise=slo)
        trials.try_baseline()
        trials.try_others(rounds=repeat)
        frame = trials.frame(settings)
        limit_gib = math.inf if memory_limit_gib is None else memory_limit_gib
        chosen = finalists(frame, limit_gib, exact_only)
        trials.confirm(chosen, rounds=repeat, duration_s=duration_s)
        frame = trials.frame(settings)
    minutes = budget.used_s / 60
    print_line(f"measured in {minutes:.1f} minutes")
    return frame, tuple(writer.runs)


@dataclass
class _Trials:
    """The recipes that are tried, each with its ways to batch, and what was found so far."""

    asked: Asked
    budget: Budget
    writer: Writer
    learned: LearnedMetrics
    recipes: dict[str, list[str]]
    users: tuple[int, ...]
    promise: str | None
    tried: dict[str, Tried] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    forecasts: dict[Setting, dict[str, Any]] = field(default_factory=dict)
    confirmed: dict[str, Confirmed] = field(default_factory=dict)

    # ---- trying

    def try_baseline(self) -> None:
        """Tries the baseline, whatever it takes: without it there is nothing to compare with.

        Raises what loading raises, and KeyboardInterrupt if it was interrupted.
        """
        limit_s = BASELINE_SHARE * self.budget.seconds
        with self.budget.measuring(BASELINE):
            self._try(BASELINE, self.asked.timed, images_s=limit_s)
        if BASELINE not in self.tried:
            raise KeyboardInterrupt("interrupted before the baseline was measured")

    def try_others(self, rounds: int) -> None:
        """Tries the other recipes that the budget has room for; those that compile come last.

        What was left out is planned again if the others took less than planned.
        """
        worth = {recipe: len(self.recipes) - place for place, recipe in enumerate(self.recipes)}
        waiting = [recipe for recipe in sorted(self.recipes, key=_compiles) if recipe != BASELINE]
        self._refuse_more_steps(waiting)
        waiting = [recipe for recipe in waiting if not self._is_done(recipe)]
        while waiting and not self.budget.interrupted:
            parts = [self._part(recipe, worth[recipe]) for recipe in waiting]
            reserve_s = self._confirming_s(rounds)
            plan = self.budget.plan(parts, reserve_s=reserve_s, keep_one=False)
            if not plan.parts:
                print_line("\n".join(plan.left_out_lines()))
                return
            for share in self.budget.in_turn(parts, reserve_s=reserve_s):
                self._try_share(share)
            waiting = [recipe for recipe in waiting if not self._is_done(recipe)]

    def _refuse_more_steps(self, recipes: Iterable[str]) -> None:
        """Leaves out a variant that has no fewer steps than the baseline."""
        usual = self.tried[BASELINE].steps
        for recipe in recipes:
            steps = parse_variant(recipe).steps
            if steps is not None and steps >= usual:
                why = f"the baseline itself has {counted(usual, 'step')}"
                if self.asked.steps is None and self.asked.steps_share is not None:
                    why += ", a share of the model's own; the profile full has all of them"
                print_line(f"left out: {recipe}, as {why}")
                self.errors[recipe] = f"not fewer steps: {why}"

    def _is_done(self, recipe: str) -> bool:
        return recipe in self.tried or recipe in self.errors

    def _try_share(self, share: PlannedPart) -> None:
        """Tries a recipe in its share of the budget; an error is kept for its row."""
        recipe = share.name
        with self.budget.measuring(recipe):
            try:
                self._try(recipe, self._images_of(share), images_s=self._images_s(share))
            except Exception as error:  # noqa: BLE001 - loading raises what it likes
                print_line(f"{recipe}: failed, {error}")
                self.errors[recipe] = f"{type(error).__name__}: {error}"

    def _try(self, recipe: str, timed: int, *, images_s: float) -> None:
        """Tries a recipe, and foretells what its servers can do."""
        budget = self.budget
        print_line(
            f"{recipe}: {counted(timed, 'image')}, then {', '.join(self.recipes[recipe])}",
        )
        is_exact = _is_exact(recipe) and recipe != BASELINE
        needed = pictures_needed(self.asked.prompts, exact=is_exact)
        tried = try_recipe(
            recipe,
            self.recipes[recipe],
            replace(self.asked, timed=timed, prompts=self.asked.prompts[:needed]),
            writer=self.writer,
            images_s=images_s,
            baseline=self._baseline_album,
            learned=self.learned,
        )
        self.tried[recipe] = tried
        budget.record(f"start of {recipe}", tried.load_s + tried.first_s)
        budget.record(f"image of {recipe}", _mean(tried.album.times_s))
        if self.promise is None:
            self.promise = promise_for(_mean(tried.album.times_s))
        for batching, served in tried.served.items():
            budget.record(f"server of {recipe}, {batching}", served.start_s)
            if served.error is None:
                with budget.timed("forecast"):
                    self.forecasts[recipe, batching] = self._forecast(tried, served)

    def _forecast(self, tried: Tried, served: Served) -> dict[str, Any]:
        """The columns that step times and images alone foretell."""
        from benchlib.queueing.estimates import foretell

        assert self.promise is not None
        workload = Workload(num_inference_steps=tried.steps)
        calibration = foretell(served.spec, tried.album.times_s, workload)
        capacity = calibration.capacity(self.promise)
        by_users = {}
        for users in self.users:
            images_per_s, _ = calibration.user_throughput(users)
            by_users[_users_column(users)] = images_per_s
        return {
            "foretold_images_per_s": capacity.rate,
            "foretold_images_per_s_interval": capacity.interval,
            **by_users,
            "note": capacity.note if capacity.rate is None else None,
        }

    # ---- the plan

    def _part(self, recipe: str, worth: int) -> Part:
        """What a recipe should take, by what is known of it, or else of the baseline."""
        budget = self.budget
        baseline = self.tried[BASELINE]
        image_s = budget.cost(f"image of {recipe}", _mean(baseline.album.times_s))
        compile_s = COMPILE_S if _compiles(recipe) else 0.0
        usual_s = SECOND_START * (baseline.load_s + baseline.first_s) + compile_s
        start_s = budget.cost(f"start of {recipe}", usual_s)
        pair_s = PAIR_S * self._megapixels / min(8, os.cpu_count() or 1)
        prompts = self.asked.prompts
        pictures = pictures_needed(prompts, exact=_is_exact(recipe))
        wanted = max(self.asked.timed, pictures)
        least = min(wanted, LEAST_IMAGES)
        overhead_s = start_s + self._servers_s(recipe) + WARM_IMAGES * image_s
        return Part(
            recipe,
            seconds=overhead_s + wanted * image_s + pictures * pair_s,
            least_s=overhead_s + least * (image_s + pair_s),
            worth=worth,
            overhead_s=overhead_s,
            image_s=image_s + pair_s,
        )

    def _servers_s(self, recipe: str) -> float:
        """What the servers of a recipe and their forecasts should take."""
        seconds = 0.0
        for batching in self.recipes[recipe]:
            like = self.tried[BASELINE].served.get(batching)
            usual_s = SERVER_S if like is None else like.start_s
            seconds += self.budget.cost(f"server of {recipe}, {batching}", usual_s)
            seconds += self.budget.cost("forecast", FORECAST_S)
        return seconds

    def _images_of(self, share: PlannedPart) -> int:
        """How many images a recipe is timed by in its share of the budget."""
        fitting = share.images
        if fitting is None:
            return self.asked.timed
        least = min(LEAST_IMAGES, self.asked.timed)
        return max(least, min(self.asked.timed, fitting))

    def _images_s(self, share: PlannedPart) -> float:
        """The seconds of a share in which images may be made and compared."""
        if math.isinf(self.budget.seconds):
            return math.inf
        return share.seconds - share.part.overhead_s

    def _confirming_s(self, rounds: int) -> float:
        """What is kept of the budget for the confirming runs, at least for one round of them."""
        baseline = self.tried[BASELINE]
        image_s = _mean(baseline.album.times_s)
        server_s = max((served.start_s for served in baseline.served.values()), default=SERVER_S)
        loads_s = FINALISTS * (SECOND_START * baseline.load_s + server_s)
        compiles = any(_compiles(recipe) for recipe in self.recipes)
        # A smaller budget has no room for a recipe that compiles.
        if compiles and self.budget.seconds > 5 * COMPILE_S:
            loads_s += RECOMPILE_S
        fixed_s = loads_s + self.budget.cost("calibrations", CALIBRATE_S)
        around_s = self.budget.cost("start of a run", START_S) + max(1.0, 2 * image_s)

        # The best two so far have one image each in `pair_s` seconds.
        known = [one["foretold_images_per_s"] or 0.0 for one in self.forecasts.values()]
        rates = [rate for rate in sorted(known)[-FINALISTS:] if rate > 0]
        pair_s: float = sum(1 / (NEAR * rate) for rate in rates)
        least_s = fixed_s + FINALISTS * around_s + LEAST_CONFIRMING * pair_s
        usual_s = fixed_s + rounds * (FINALISTS * around_s + USUAL_IMAGES * pair_s)
        return min(usual_s, max(least_s, CONFIRM_SHARE * self.budget.seconds))

    # ---- confirming

    def confirm(
        self, chosen: Sequence[dict[Any, Any]], *, rounds: int, duration_s: float | None
    ) -> None:
        """Confirms the chosen rows of the frame in what is left of the budget."""
        if not chosen or self.budget.interrupted:
            return
        these = []
        for row in chosen:
            steps = self.tried[row["recipe"]].steps
            these.append(Finalist(row, self._start_again_s(row), steps))
        assert self.promise is not None
        self.confirmed = confirm(
            these,
            rounds=rounds,
            duration_s=duration_s,
            asked=self.asked,
            promise=self.promise,
            budget=self.budget,
            writer=self.writer,
        )

    def _start_again_s(self, row: Mapping[Any, Any]) -> float:
        """What starting a setting again should take, in seconds; torch keeps what it compiled."""
        tried = self.tried[row["recipe"]]
        served = tried.served[row["batching"]]
        compile_s = min(row["compile_s"], RECOMPILE_S)
        return tried.load_s + served.start_s - served.compile_s + float(compile_s)

    # ---- the frame

    def frame(self, settings: Iterable[Setting]) -> pd.DataFrame:
        """A row for each setting."""
        import pandas as pd

        return pd.DataFrame([self._row(*setting) for setting in settings], dtype=object)

    def _row(self, recipe: str, batching: str) -> dict[str, Any]:
        """What is known of one setting."""
        row = _nothing_known(recipe, batching)
        row |= dict.fromkeys(map(_users_column, self.users))
        row["exact"] = _is_exact(recipe)
        row["promise"] = self.promise
        tried = self.tried.get(recipe)
        if tried is None:
            left_out = STOPPED if self.budget.interrupted else NO_TIME
            row["error"] = self.errors.get(recipe, left_out)
            return row

        # 1) The recipe alone.
        row |= _alone_figures(tried.album)
        if recipe == BASELINE:
            row |= {"pictures": SAME, "pictures_reason": "it is the baseline"}
        served = tried.served[batching]
        if served.error is not None:
            row["error"] = served.error
            return row

        # 2) The setting, before and under load.
        row |= {
            "start_s": tried.start_s(batching),
            "compile_s": tried.compiling_s(batching),
            "started": tried.started,
            "memory_gib": tried.peak_gib(batching),
            "memory_of": tried.memory_of,
        }
        row |= self.forecasts[recipe, batching]
        row["capacity_images_per_s"] = row["foretold_images_per_s"]
        row["capacity_images_per_s_interval"] = row["foretold_images_per_s_interval"]
        row |= _confirmed_figures(self.confirmed.get(row["setting"]), row["promise"])
        if self.budget.interrupted and row["note"] in (None, NO_RUN) and not row["confirmed"]:
            row["note"] = STOPPED_BEFORE_RUNS
        elif self.confirmed and row["setting"] not in self.confirmed:
            row["note"] = NO_FINALIST
        return row

    @property
    def _baseline_album(self) -> Album | None:
        baseline = self.tried.get(BASELINE)
        return None if baseline is None else baseline.album

    @property
    def _megapixels(self) -> float:
        width, height = self.tried[BASELINE].album.images[0].size
        return width * height / 2**20


def _users_column(users: int) -> str:
    return f"images_per_s_of_{users}_users"


def _nothing_known(recipe: str, batching: str) -> dict[str, Any]:
    """The row of a setting that was not measured."""
    from benchlib.serving.model.recipes import parse_recipes

    optimisations = parse_recipes(parse_variant(recipe).recipe)
    row: dict[str, Any] = {
        "setting": f"{recipe}, {batching}",
        "recipe": recipe,
        "batching": batching,
        "exact": None,
        "optimisations": sum(part.name != BASELINE for part in optimisations),
    }
    alone = ("start_s", "compile_s", "started", "image_s", "image_s_interval")
    row |= dict.fromkeys(alone) | picture_columns(None)
    served = (
        "memory_gib",
        "memory_of",
        "promise",
        "foretold_images_per_s",
        "foretold_images_per_s_interval",
        "capacity_images_per_s",
        "capacity_images_per_s_interval",
    )
    row |= dict.fromkeys(served)
    return row | {
        "confirmed": False,
        "runs": 0,
        "confirming_images": 0,
        "confirming_rate": None,
        "energy_per_image_j": None,
        "note": None,
        "broken_promise": None,
        "error": None,
    }


def _alone_figures(album: Album) -> dict[str, Any]:
    """The figures of the images that a recipe made alone."""
    from benchlib.study.intervals import runs_interval

    return picture_columns(album.pairs) | {
        "image_s": _mean(album.times_s),
        "image_s_interval": runs_interval(album.times_s),
    }


def _confirmed_figures(found: Confirmed | None, promise: str) -> dict[str, Any]:
    """The figures of a setting's confirming runs; none if there are no such runs."""
    if found is None:
        return {}
    energies_j = []
    for run in found.runs:
        energy_j = run.summary()["energy_per_image_j"]
        if energy_j is not None:
            energies_j.append(energy_j)
    figures = {
        "runs": len(found.runs),
        "energy_per_image_j": _mean(energies_j) if energies_j else None,
        "note": found.note,
        "broken_promise": found.broken_promise(promise),
    }
    capacity = found.capacity
    if capacity is None or capacity.rate is None:
        return figures
    return figures | {
        "capacity_images_per_s": capacity.rate,
        "capacity_images_per_s_interval": capacity.interval,
        "confirming_images": capacity.images,
        "confirming_rate": found.rate,
        "confirmed": True,
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
