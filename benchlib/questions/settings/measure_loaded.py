"""Confirms the capacities of the most promising settings, by open-loop runs in turns.

Knows how to plan such runs in the time that is left, and to make them: A, B, A, B. Ignorant of how
the settings were chosen (judge.py), and of how a capacity follows from runs (queueing/estimates.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchlib.load.arrivals import OpenLoop
from benchlib.load.runner import GeneratorError
from benchlib.load.workload import Workload
from benchlib.machine import available_memory_gib
from benchlib.printing import print_line
from benchlib.questions.settings.judge import NO_RUN
from benchlib.questions.settings.variants import parse_variant
from benchlib.queueing.breaches import LEAST_IMAGES
from benchlib.queueing.estimates import calibrate
from benchlib.run import Point
from benchlib.study.latency import latencies
from benchlib.study.slo import Slo
from benchlib.study.wording import counted, per_second
from benchlib.telemetry import GIB, cuda_in_use

if TYPE_CHECKING:
    from benchlib.budget import Budget
    from benchlib.questions.settings.measure_alone import Asked
    from benchlib.queueing.estimates import Calibration, PredictedCapacity
    from benchlib.run import Writer
    from benchlib.serving.server import Server
    from benchlib.study.store import Run

NEAR = 0.8
"""A run loads a setting with this share of its foretold capacity: it is to be calibrated there."""
MOST_LATE = 0.5
"""If more than this share of a run's images break the promise, the forecast was far too high."""
USUAL_IMAGES = 30
MOST_IMAGES = 60
"""How many images a run has, and has at most if time is left."""
LEAST_CONFIRMING = LEAST_IMAGES + 2
"""Each setting has at least so many images in all its runs: one may fail."""
USUAL_S = 6.0
"""A run has more than USUAL_IMAGES images if they would take less than these seconds."""
START_S = 4.0
"""What a run takes besides its images, until that is known: the child's start, the last answers."""
RECOMPILE_S = 15.0
"""What compiling takes a second time, until that is known: torch keeps what it compiled."""
CALIBRATE_S = 10.0
"""What the two calibrations take, until that is known."""


@dataclass(frozen=True)
class Finalist:
    """A setting to confirm: its row of the frame, and what starting it again should take.

    Each of its images has `steps` steps.
    """

    row: Mapping[str, Any]
    start_s: float
    steps: int

    @property
    def name(self) -> str:
        return str(self.row["setting"])

    @property
    def recipe(self) -> str:
        return str(self.row["recipe"])

    @property
    def batching(self) -> str:
        return str(self.row["batching"])

    @property
    def rate(self) -> float:
        """The load of its runs, in images/s."""
        return NEAR * float(self.row["foretold_images_per_s"])


@dataclass(frozen=True)
class ConfirmPlan:
    """By how many images, in how many rounds, each finalist is loaded.

    Each run begins with `warmup_s` seconds that are not counted. It takes `around_s` seconds besides
    its images, the warm-up among them.
    """

    images: int
    rounds: int
    warmup_s: float
    around_s: float

    def run_s(self, rate: float) -> float:
        """The seconds of a run at `rate` images/s."""
        return self.around_s + self.images / rate


@dataclass
class Confirmed:
    """The runs of a finalist, the next of which is at `rate` images/s, and what they show.

    `missed` are the runs that broke the promise, and their rates, below the foretold capacity.
    """

    rate: float
    runs: list[Run] = field(default_factory=list)
    calibration: Calibration | None = None
    capacity: PredictedCapacity | None = None
    note: str | None = None
    missed: list[tuple[float, Run]] = field(default_factory=list)

    def broken_promise(self, promise: str) -> str | None:
        """How runs broke the promise at a rate that was foretold to keep it; None if none did.

        A calibration by the runs that gives a capacity says more than that.
        """
        is_known = self.capacity is not None and self.capacity.rate is not None
        if is_known or not self.missed:
            return None
        latency_s = pd.concat([latencies(run.requests) for _, run in self.missed])
        late = int((~(latency_s <= Slo.parse(promise).latency_s)).sum())
        lowest = min(rate for rate, _ in self.missed)
        too_late = f"{late} of {counted(len(latency_s), 'image')} came too late"
        return f"{too_late} at {per_second(lowest)}, which was foretold to keep {promise}"


def plan_confirmation(
    finalists: Sequence[Finalist],
    budget: Budget,
    *,
    rounds: int,
    duration_s: float | None = None,
    starts_s: float = 0.0,
) -> ConfirmPlan | None:
    """The runs that fit into what is left of the budget; None where too few images would.

    `starts_s` seconds go by before the first run. Fewer rounds are preferred to fewer images than a
    calibration needs. A run has USUAL_IMAGES images, or as many as take USUAL_S or `duration_s`
    seconds, and no more than fit.
    """
    # 1) What does not depend on the number of images
    rates = [finalist.rate for finalist in finalists]
    image_s = max(finalist.row["image_s"] for finalist in finalists)
    warmup_s = max(1.0, 2 * image_s)
    around_s = warmup_s + budget.cost("start of a run", START_S)
    free_s = budget.left_s - starts_s - budget.cost("calibrations", CALIBRATE_S)

    # 2) As many rounds, and as many images, as fit
    most = MOST_IMAGES
    wanted = min(most, max(USUAL_IMAGES, math.ceil(USUAL_S * max(rates))))
    if duration_s is not None:
        wanted = most = max(1, math.ceil(duration_s * min(rates)))
    for fitting_rounds in range(rounds, 0, -1):
        images = wanted
        if math.isfinite(free_s):
            loaded_s = free_s / fitting_rounds - len(finalists) * around_s
            seconds_an_image = sum(1 / rate for rate in rates)
            images = min(most, math.floor(loaded_s / seconds_an_image))
        least = min(most, math.ceil(LEAST_CONFIRMING / fitting_rounds))
        if images >= least:
            return ConfirmPlan(images, fitting_rounds, warmup_s, around_s)
    return None


def confirm(
    finalists: Sequence[Finalist],
    *,
    rounds: int,
    duration_s: float | None,
    asked: Asked,
    promise: str,
    budget: Budget,
    writer: Writer,
) -> dict[str, Confirmed]:
    """Loads the finalists in turns, and returns what that shows of each, by its name.

    All finalists are in memory at once, so that their runs can take turns. Where memory is too
    small for that, one comes after the other, in words. There are no runs where the budget has no
    room for them. An interrupt keeps the runs made so far.
    """
    names = " and ".join(finalist.name for finalist in finalists)
    before_s = 0.0
    for finalist in finalists:
        before_s += budget.cost(f"second start of {finalist.name}", finalist.start_s)
    options: dict[str, Any] = {"rounds": rounds, "duration_s": duration_s}
    plan = plan_confirmation(finalists, budget, starts_s=before_s, **options)
    if plan is None:
        print_line(f"{names}: not confirmed, the budget has no room for it")
        return {}
    print_line(f"{names}: confirmed by runs in turns")

    # 1) The runs; once the servers are up, it is known how many images fit.
    confirmed = {finalist.name: Confirmed(finalist.rate) for finalist in finalists}
    groups = _groups(finalists)
    with budget.measuring("the confirming runs"):
        for together in groups:
            with _serving(together, asked, budget) as servers:
                if len(groups) == 1:
                    plan = plan_confirmation(finalists, budget, **options) or plan
                for finalist, server, turn in _turns(together, servers, plan.rounds):
                    found = confirmed[finalist.name]
                    if plan.run_s(found.rate) > budget.cut_s:
                        print_line("no time is left for the other confirming runs")
                        break
                    point = _point(plan, found.rate, server, finalist.steps, turn, budget)
                    _announce(finalist, found.rate, plan, turn)
                    _measure(found, point, server, plan, promise, budget, writer)

    # 2) What they show.
    with budget.timed("calibrations"):
        for name, found in confirmed.items():
            _calibrate(name, found, promise)
    return confirmed


def _groups(finalists: Sequence[Finalist]) -> list[Sequence[Finalist]]:
    """The finalists that are in memory together: all of them where they fit."""
    by_recipe: dict[str, float] = {}
    for finalist in finalists:
        recipe = parse_variant(finalist.recipe).recipe
        peak_gib = finalist.row["memory_gib"] or 0.0
        by_recipe[recipe] = max(peak_gib, by_recipe.get(recipe, 0.0))
    free_gib = available_memory_gib()
    cuda = cuda_in_use()
    if cuda is not None:
        cuda.empty_cache()
        free_bytes, _ = cuda.mem_get_info()
        free_gib = free_bytes / GIB
    if len(by_recipe) == 1 or sum(by_recipe.values()) < 0.9 * free_gib:
        return [finalists]
    print_line("memory is too small for both settings: one is confirmed after the other")
    return [[finalist] for finalist in finalists]


@contextmanager
def _serving(finalists: Sequence[Finalist], asked: Asked, budget: Budget) -> Iterator[list[Server]]:
    """A server for each finalist. Finalists of one recipe share its pipeline, whatever their steps."""
    from benchlib.serving.model.loading import load_pipeline
    from benchlib.serving.server import serve

    with ExitStack() as stack:
        pipes: dict[str, Any] = {}
        servers = []
        for place, finalist in enumerate(finalists):
            recipe = parse_variant(finalist.recipe).recipe
            with budget.timed(f"second start of {finalist.name}"):
                if recipe not in pipes:
                    pipe = load_pipeline(asked.model, recipe=recipe, device=asked.device)
                    pipes[recipe] = stack.enter_context(closing(pipe))
                server = serve(
                    pipes[recipe],
                    batching=finalist.batching,  # type: ignore[arg-type]
                    name=f"settings-{place}",
                )
            servers.append(stack.enter_context(server))
        yield servers


def _turns(
    finalists: Sequence[Finalist], servers: Sequence[Server], rounds: int
) -> Iterator[tuple[Finalist, Server, int]]:
    """Each finalist with its server and the number of the round: A, B, A, B."""
    for turn in range(rounds):
        for finalist, server in zip(finalists, servers, strict=True):
            yield finalist, server, turn


def _point(
    plan: ConfirmPlan,
    rate: float,
    server: Server,
    steps: int,
    turn: int,
    budget: Budget,
) -> Point:
    """A run of round `turn` at `rate` images/s. All finalists of a round have the same seed."""
    latest_s = budget.cut_s
    return Point(
        OpenLoop(rate),
        Workload(num_inference_steps=steps),
        server,
        requests=plan.images,
        duration_s=1.5 * plan.images / rate,
        warmup_s=plan.warmup_s,
        max_s=latest_s if math.isfinite(latest_s) else None,
        seed=turn,
    )


def _announce(finalist: Finalist, rate: float, plan: ConfirmPlan, turn: int) -> None:
    images = counted(plan.images, "image")
    which = f"round {turn + 1} of {plan.rounds}"
    print_line(f"{finalist.name}: {images} at {per_second(rate)}, {which}")


def _measure(
    found: Confirmed,
    point: Point,
    server: Server,
    plan: ConfirmPlan,
    promise: str,
    budget: Budget,
    writer: Writer,
) -> None:
    """Makes one run, and remembers what it took besides its images.

    A run that the server can't keep up with is not counted, and the next one has half its rate.
    """
    began_s = budget.used_s
    try:
        run = writer.measure(point, server)
    except GeneratorError as failure:
        print_line(f"passed over: {failure}")
        return
    goal = Slo.parse(promise)
    if goal.judge(latencies(run.requests)) == "missed":
        found.missed.append((found.rate, run))
    late = float((run.requests["latency_s"] > goal.latency_s).mean())
    if late > MOST_LATE and plan.run_s(found.rate / 2) < budget.left_s:
        found.rate /= 2
        print_line(f"it can't keep up: the next run is at {per_second(found.rate)}")
        return
    found.runs.append(run)
    last_s = float(run.requests["scheduled_s"].max())
    budget.record("start of a run", max(0.0, budget.used_s - began_s - last_s))


def _calibrate(name: str, found: Confirmed, promise: str) -> None:
    """Calibrates a finalist by its runs, or notes why it can't be."""
    if not found.runs:
        found.note = NO_RUN
        return
    try:
        found.calibration = calibrate(found.runs)
    except ValueError as error:
        found.note = str(error)
        return
    found.capacity = found.calibration.capacity(promise)
    found.note = found.capacity.note
    print_line(f"{name}: {found.capacity}")
