"""Measures what one card does under load and how soon it is ready, and one real fleet at its peak.

    card = measure_card("tiny", profile="quick", budget=Budget(2))
    peak = confirm_at_peak(card, outlook, replicas=1)

Knows servers, loads, budgets and calibrations. Ignorant of days and of fleets that are simulated
(fleets.py), and of how the answer is worded (judge.py).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchlib.budget import RUN_COST, Budget, Part
from benchlib.cell_view import CellView, ShownInCell
from benchlib.costs import Costs, machine_name
from benchlib.load.arrivals import MOST_IN_FLIGHT, OpenLoop
from benchlib.load.bounds import check_number
from benchlib.load.workload import Workload
from benchlib.printing import print_line
from benchlib.questions.scale.pace import sample_requests, simulation_part, time_request_s
from benchlib.questions.scale.peak import PeakRun, judge_peak
from benchlib.queueing.day import DAY_S
from benchlib.run import Point, writing
from benchlib.study.folders import results_dir, run_folders
from benchlib.study.slo import Slo, promise_for
from benchlib.study.store import Run, load_run
from benchlib.study.wording import counted, number

if TYPE_CHECKING:
    from benchlib.questions.scale.outcomes import DayOutlook
    from benchlib.queueing.day import Day
    from benchlib.queueing.estimates import Calibration
    from benchlib.serving.model.pipeline import SDXLPipeline
    from benchlib.serving.server import Server

STUDY = "scale"
EARLIER_STUDY, EARLIER_CASE = "load", "03"
"""Where notebook 03 keeps its runs, and what its costs are called."""
CALIBRATE, CONFIRM = "calibrate one card", "confirm at the peak"
CALIBRATE_AT = 0.75
"""The rate of the calibrating run, as a share of the throughput that is foretold for one card."""
IMAGES = {CALIBRATE: (60, 24), CONFIRM: (40, 20)}
"""How many images a run wants, and the fewest that say anything."""
WORTH = {CALIBRATE: 10.0, CONFIRM: 5.0}
WARMUP_IMAGES = 3
ALONE = 3
"""So many images are made alone, without a server, after one that warms the model up."""
RUN_S = 4.0
"""What a run costs besides its arrivals, until this machine has shown it."""
DRAIN, DRAIN_S = 2.0, 10.0
"""A run is cut once it has taken DRAIN times as long as planned, and DRAIN_S more."""
LOWEST_RATE = 0.01


@dataclass(repr=False)
class MeasuredCard(ShownInCell):
    """One card (a GPU, or this machine without one): its calibration, and how soon it is ready.

    `startup_s` are the seconds from nothing to ready: the model is loaded, and the server measures
    its steps and warms up. `source` says where the calibrating run was made. `server` is up where
    it was made here; `record` is that run's. `request_s` are the seconds that a request takes to be
    simulated for one fleet; 0 where nothing is measured after the simulation.
    """

    calibration: Calibration
    slo: str
    startup_s: float
    record: dict[str, Any]
    source: str
    steps: int
    folder: Path
    budget: Budget
    server: Server | None = field(default=None, repr=False)
    pipe: SDXLPipeline | None = field(default=None, repr=False)
    request_s: float = 0.0

    def __str__(self) -> str:
        most = number(self.calibration.most_images_per_s)
        ready = f"One card is ready after {number(self.startup_s)} s"
        return (
            f"{self.calibration}\n{ready}, and makes at most {most} images/s of "
            f"{counted(self.steps, 'step')}, by {self.source}. The promise: {self.slo}."
        )

    def _view(self) -> CellView:
        rows = [
            ("the promise", self.slo),
            ("an image alone", f"{number(self.calibration.service_s)} s"),
            ("images/s at most", number(self.calibration.most_images_per_s)),
            ("ready after", f"{number(self.startup_s)} s"),
            ("measured", self.source),
        ]
        return CellView(str(self.calibration), rows)

    @property
    def most_images_per_s(self) -> float:
        """The highest throughput of the card, whatever the latency."""
        return self.calibration.most_images_per_s

    @property
    def is_tiny(self) -> bool:
        return bool(self.record["spec"]["target"]["model"] == "tiny")

    @property
    def server_words(self) -> str:
        """The model and its settings."""
        target = self.record["spec"]["target"]
        return f"{target['model']}; {target['recipe']}, {target['batching']}"

    @property
    def gpu(self) -> str | None:
        """What its GPU is called in short ("H100"); None without one."""
        name = self.record["machine"]["gpu"]
        return None if not name else str(name).removeprefix("NVIDIA ").split()[0]

    def simulating_s(self, day: Day, profile: str) -> float:
        """The seconds that simulating days may take: what is left, less what the real run gets.

        The real run is foretold for a card more than could keep up, so that it is not too short.
        """
        left_s = self.budget.left_s
        if self.server is None or math.isinf(left_s):
            return left_s
        cards = math.ceil(day.peak_rate / self.most_images_per_s) + 1
        parts = [
            simulation_part(profile, day.mean_rate * DAY_S, self.request_s),
            _part(CONFIRM, day.peak_rate / cards, self.budget),
        ]
        plan = self.budget.plan(parts, keep_one=False)
        return left_s - (plan[CONFIRM].seconds if CONFIRM in plan else 0.0)

    def stop(self) -> None:
        """Stops the server, if there is one."""
        if self.server is not None:
            self.server.stop()


def measure_card(
    model: str,
    *,
    budget: Budget,
    recipe: str = "baseline",
    batching: str = "continuous",
    slo: str | None = None,
    results: str | os.PathLike[str] | None = None,
    replicas: int = 1,
    profile: str = "quick",
) -> MeasuredCard:
    """What one card does: by a run of notebook 03 if there is one, else by a run that is made now.

    A run of 03 counts if it had the same model, recipe, batching and machine, and all of the
    model's steps, and if it is known how long that server took to start. Where several real
    `replicas` are to confirm the answer, the card is always measured now. Without `slo` the promise is
    that 95 % of the images come within 4 times the time of an image that has the card to itself.
    The plan has the time of the days that `profile` will have simulated, as this machine shows it.
    """
    if slo is not None:
        Slo.parse(slo)
    if replicas == 1:
        earlier = _earlier_card(model, recipe, batching, slo, results, budget)
        if earlier is not None:
            return earlier
    return _card_measured_now(model, recipe, batching, slo, results, budget, profile)


# ---- by an earlier study


def _earlier_card(
    model: str,
    recipe: str,
    batching: str,
    slo: str | None,
    results: str | os.PathLike[str] | None,
    budget: Budget,
) -> MeasuredCard | None:
    """The card as notebook 03 measured it, by the newest of its runs that carries an estimate."""
    from benchlib.queueing.estimates import calibrate

    # 1) How long its model and server took to start
    costs = Costs(results, [EARLIER_CASE, model, recipe, batching])
    starts_s = [costs.median_s(f"start of {what}") for what in ("the model", "the server")]
    known_s = [seconds for seconds in starts_s if seconds is not None]
    if len(known_s) < len(starts_s):
        return None

    # 2) The newest of its runs with these settings
    wanted = {"model": model, "recipe": recipe, "batching": batching}
    for run in _newest_runs(results):
        target = run.spec["target"]
        showcase = target.get("showcase") or {}
        steps = showcase.get("num_inference_steps")
        is_same = all(target.get(name) == value for name, value in wanted.items())
        asked = (run.spec["workload"] or {}).get("num_inference_steps")
        if steps is None or asked != steps or not is_same or not _is_this_machine(run):
            continue
        calibration = calibrate(run)
        if calibration.refusal is None:
            return MeasuredCard(
                calibration=calibration,
                slo=slo or promise_for(calibration.service_s),
                startup_s=sum(known_s),
                record=run.record,
                source=f"run {run.path.name} of study {EARLIER_STUDY}",
                steps=steps,
                folder=results_dir(results) / STUDY,
                budget=budget,
            )
    return None


def _newest_runs(results: str | os.PathLike[str] | None) -> Iterator[Run]:
    """The finished open-loop runs of notebook 03, the newest first."""
    study = results_dir(results) / EARLIER_STUDY
    if not study.is_dir():
        return
    for folder in sorted(run_folders(study), reverse=True):
        try:
            run = load_run(folder)
        except (OSError, ValueError):
            continue  # it is broken, or still going on
        is_finished = run.record["status"] == "finished"
        if is_finished and run.spec["arrivals"]["kind"] == "open_loop" and len(run.requests):
            yield run


def _is_this_machine(run: Run) -> bool:
    """Whether a run's machine has the CPU, cores and kind of GPU of this one."""
    described = run.record["machine"]
    names = [str(described["cpu"]), f"{described['cores']} cores"]
    if described["gpu"]:
        names.append(str(described["gpu"]))
    return ", ".join(names) == machine_name()


# ---- by a run that is made now


def _card_measured_now(
    model: str,
    recipe: str,
    batching: str,
    slo: str | None,
    results: str | os.PathLike[str] | None,
    budget: Budget,
    profile: str,
) -> MeasuredCard:
    from benchlib.queueing.estimates import calibrate, foretell
    from benchlib.serving.model.loading import load_pipeline
    from benchlib.serving.server import serve

    # 1) Start it, and time that
    began_s = time.monotonic()
    with budget.starting("the model"):
        pipe = load_pipeline(model, recipe=recipe)
    loaded_s = time.monotonic() - began_s
    alone_s = _alone_s(pipe)
    began_s = time.monotonic()
    with budget.starting("the server"):
        server = serve(pipe, batching=batching)  # type: ignore[arg-type]
    startup_s = loaded_s + time.monotonic() - began_s

    # 2) Load it, below what is foretold
    steps = pipe.spec["showcase"]["num_inference_steps"]
    workload = Workload(num_inference_steps=steps)
    foretold = foretell(server.spec, alone_s, workload)
    rate = max(LOWEST_RATE, CALIBRATE_AT * foretold.most_images_per_s)
    print_line(f"An image alone takes {number(foretold.service_s)} s.")
    request_s = time_request_s(foretold, budget)
    later = [
        simulation_part(profile, sample_requests(foretold), request_s),
        _part(CONFIRM, rate, budget),
    ]
    run = _run_at(CALIBRATE, rate, server, workload, budget, results, seed=0, later=later)
    if run is None:
        raise RuntimeError("the calibrating run was interrupted: run the cell again")

    # 3) What it shows
    calibration = calibrate(run)
    return MeasuredCard(
        calibration=calibration,
        slo=slo or promise_for(calibration.service_s),
        startup_s=startup_s,
        record=run.record,
        source="a run made now",
        steps=steps,
        folder=results_dir(results) / STUDY,
        budget=budget,
        server=server,
        pipe=pipe,
        request_s=request_s,
    )


def _alone_s(pipe: SDXLPipeline) -> list[float]:
    """The seconds of images made alone, after one that warms the model up."""
    from benchlib.serving.schemas import GenerateRequest

    request = GenerateRequest(prompt="a lighthouse at dusk", seed=1, **pipe.spec["showcase"])
    times_s = [pipe.generate(request).timings.total_s for _ in range(1 + ALONE)]
    return times_s[1:]


def _run_at(
    name: str,
    rate: float,
    server: Server,
    workload: Workload,
    budget: Budget,
    results: str | os.PathLike[str] | None,
    *,
    seed: int,
    later: Sequence[Part] = (),
) -> Run | None:
    """A run at `rate` requests/s, as long as the budget carries beside what comes `later`.

    None if there is no time for it.
    """
    parts = [_part(name, rate, budget), *later]
    plan = budget.plan(parts, keep_one=name == CALIBRATE)
    if name == CALIBRATE:
        print_line(plan)
    if name not in plan:
        for line in plan.left_out_lines():
            print_line(line)
        return None
    _, least = IMAGES[name]
    images = max(least, plan[name].images or 0)
    planned_s = (images + WARMUP_IMAGES) / rate
    point = Point(
        OpenLoop(rate, max_in_flight=MOST_IN_FLIGHT),
        workload,
        server,
        requests=images,
        warmup_s=WARMUP_IMAGES / rate,
        max_s=DRAIN * planned_s + DRAIN_S,
        seed=seed,
    )
    print_line(f"{name}:")
    with writing(results, STUDY, None) as writer, budget.measuring(name):
        writer.measure(point, server)
    return writer.runs[-1] if writer.runs else None


def _part(name: str, rate: float, budget: Budget) -> Part:
    wanted, least = IMAGES[name]
    overhead_s = budget.cost(RUN_COST, RUN_S) + WARMUP_IMAGES / rate
    return Part(
        name,
        overhead_s + wanted / rate,
        least_s=overhead_s + least / rate,
        worth=WORTH[name],
        overhead_s=overhead_s,
        image_s=1 / rate,
    )


# ---- a real fleet at the peak


def confirm_at_peak(
    card: MeasuredCard,
    outlook: DayOutlook,
    day: Day,
    *,
    replicas: int = 1,
    results: str | os.PathLike[str] | None = None,
) -> PeakRun | None:
    """A real run of so many `replicas` at the peak's load for each card, beside what is foretold.

    The load of a card at the peak is the peak's rate over the fewest cards that keep the promise.
    With one replica the server of the calibrating run is loaded. Several are started by
    serve(replicas=...), which needs Ray. None where nothing is foretold, where the card was measured
    by an earlier study, and where there is no time left.
    """
    from benchlib.serving.server import serve

    check_number("replicas", replicas, 1, whole=True)
    enough = outlook.enough
    if enough is None or card.server is None or card.pipe is None or card.budget.interrupted:
        return None

    # 1) The servers
    server = card.server
    if replicas > 1:
        target = card.record["spec"]["target"]
        card.server.stop()
        options: dict[str, Any] = {"replicas": replicas, "batching": target["batching"]}
        with card.budget.starting(f"{replicas} replicas"):
            server = serve(target["model"], recipe=target["recipe"], **options)

    # 2) The run, and what was foretold of its very arrivals
    rate = replicas * day.peak_rate / enough.most
    workload = Workload(num_inference_steps=card.steps)
    run = _run_at(CONFIRM, rate, server, workload, card.budget, results, seed=1)
    server.stop()
    if run is None:
        return None
    return judge_peak(card.calibration, run, replicas=replicas, slo=card.slo)
