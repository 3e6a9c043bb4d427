"""Measure how Stable Diffusion XL serves: load a model, serve it, load the server, read the plots.

A notebook finds all of its names here. Each name is imported on first use, so `import benchlib`
imports neither torch nor locust.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from benchlib.collector import collector_paused

if TYPE_CHECKING:
    from benchlib import plots
    from benchlib.budget import Budget, Part
    from benchlib.load.arrivals import ClosedLoop, OpenLoop, Ramp, Trace
    from benchlib.load.workers import ExternalWorkers
    from benchlib.load.workload import Workload
    from benchlib.questions.anatomy.judge import (
        cost_lines,
        judge_images,
        memory_growth,
        memory_parts,
        peak_stage,
    )
    from benchlib.questions.anatomy.measure import (
        arithmetic,
        dissect,
        dissect_options,
        watch_memory,
    )
    from benchlib.questions.batching.calibrated import calibrate_policies, foretell_gains
    from benchlib.questions.batching.forecast import predict_latency
    from benchlib.questions.batching.frontier import foretell_frontier
    from benchlib.questions.batching.judge import gains, judge_batching, rows_at_highest_rate
    from benchlib.questions.batching.measure import (
        check_forecast,
        compare_planned,
        compare_policies,
        fill_serial,
        measured_images_per_s,
        mixed_workload,
        plan_batching,
        predict_cases,
        predict_gains,
        send_rush,
    )
    from benchlib.questions.capacity.judge import judge_load, littles_law
    from benchlib.questions.capacity.measure import LoadTest, find_capacity, plan_capacity
    from benchlib.questions.compare.judge import compare, compare_studies
    from benchlib.questions.compare.measure import measure_examples
    from benchlib.questions.parameters import check_parameters
    from benchlib.questions.quickstart import judge_quickstart, run_times
    from benchlib.questions.scale.fleets import simulate_fleets
    from benchlib.questions.scale.judge import fleets_table, judge_scale
    from benchlib.questions.scale.measure import confirm_at_peak, measure_card
    from benchlib.questions.settings.judge import decide
    from benchlib.questions.settings.measure import settings_to_try, try_settings, usable_recipes
    from benchlib.questions.settings.measure_adapters import price_adapters
    from benchlib.questions.settings.pictures import picture_prompts
    from benchlib.queueing.day import plan_day
    from benchlib.queueing.estimates import Calibration, calibrate, foretell
    from benchlib.run import Point, run_load
    from benchlib.serving.model.loading import load_pipeline
    from benchlib.serving.schemas import GenerateRequest
    from benchlib.serving.server import Server, serve
    from benchlib.study.busy import record_of
    from benchlib.study.readable import readable
    from benchlib.study.store import Run, Study, load_run, load_study
    from benchlib.sweeps import sweep
    from benchlib.telemetry import process_memory_gib

_NAMES = {
    "benchlib.questions.anatomy.measure": (
        "arithmetic",
        "dissect",
        "dissect_options",
        "watch_memory",
    ),
    "benchlib.budget": ("Budget", "Part"),
    "benchlib.run": ("Point", "run_load"),
    "benchlib.queueing.estimates": ("Calibration", "calibrate", "foretell"),
    "benchlib.load.arrivals": ("ClosedLoop", "OpenLoop", "Ramp", "Trace"),
    "benchlib.load.workers": ("ExternalWorkers",),
    "benchlib.load.workload": ("Workload",),
    "benchlib.questions.capacity.judge": ("judge_load", "littles_law"),
    "benchlib.questions.capacity.measure": ("LoadTest", "find_capacity", "plan_capacity"),
    "benchlib.questions.batching.calibrated": ("calibrate_policies", "foretell_gains"),
    "benchlib.questions.batching.forecast": ("predict_latency",),
    "benchlib.questions.batching.frontier": ("foretell_frontier",),
    "benchlib.questions.batching.judge": ("gains", "judge_batching", "rows_at_highest_rate"),
    "benchlib.questions.batching.measure": (
        "check_forecast",
        "compare_planned",
        "compare_policies",
        "fill_serial",
        "measured_images_per_s",
        "mixed_workload",
        "plan_batching",
        "predict_cases",
        "predict_gains",
        "send_rush",
    ),
    "benchlib.serving.model.loading": ("load_pipeline",),
    "benchlib.serving.schemas": ("GenerateRequest",),
    "benchlib.serving.server": ("Server", "serve"),
    "benchlib.plots": ("plots",),
    "benchlib.questions.settings.measure": ("settings_to_try", "try_settings", "usable_recipes"),
    "benchlib.questions.settings.measure_adapters": ("price_adapters",),
    "benchlib.questions.settings.pictures": ("picture_prompts",),
    "benchlib.questions.compare.judge": ("compare", "compare_studies"),
    "benchlib.questions.compare.measure": ("measure_examples",),
    "benchlib.questions.anatomy.judge": (
        "cost_lines",
        "judge_images",
        "memory_growth",
        "memory_parts",
        "peak_stage",
    ),
    "benchlib.questions.settings.judge": ("decide",),
    "benchlib.questions.parameters": ("check_parameters",),
    "benchlib.questions.quickstart": ("judge_quickstart", "run_times"),
    "benchlib.queueing.day": ("plan_day",),
    "benchlib.questions.scale.fleets": ("simulate_fleets",),
    "benchlib.questions.scale.judge": ("fleets_table", "judge_scale"),
    "benchlib.questions.scale.measure": ("confirm_at_peak", "measure_card"),
    "benchlib.study.busy": ("record_of",),
    "benchlib.study.readable": ("readable",),
    "benchlib.study.store": ("Run", "load_run", "load_study", "Study"),
    "benchlib.sweeps": ("sweep",),
    "benchlib.telemetry": ("process_memory_gib",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
__all__ = [  # noqa: RUF022 - in the order in which a notebook meets them
    "load_pipeline", "GenerateRequest", "serve", "Server", "ClosedLoop", "OpenLoop", "Ramp",
    "Trace", "Workload", "run_load", "Run", "load_run", "load_study", "sweep", "Point",
    "find_capacity", "compare", "gains", "predict_latency", "plots", "process_memory_gib", "Study",
    "compare_studies", "usable_recipes", "try_settings", "decide", "dissect", "cost_lines",
    "arithmetic", "memory_parts", "watch_memory", "memory_growth", "peak_stage", "check_parameters",
    "run_times", "judge_quickstart", "dissect_options", "judge_images", "plan_capacity",
    "littles_law", "judge_load",
    "mixed_workload", "measured_images_per_s", "send_rush", "compare_policies",
    "plan_batching", "fill_serial", "compare_planned",
    "rows_at_highest_rate", "predict_gains", "check_forecast", "predict_cases", "judge_batching",
    "calibrate_policies", "foretell_gains", "foretell_frontier",
    "settings_to_try", "price_adapters", "picture_prompts", "measure_examples", "Budget", "Part", "calibrate",
    "Calibration", "foretell", "LoadTest", "record_of", "ExternalWorkers", "readable",
    "measure_card", "plan_day", "simulate_fleets", "fleets_table", "confirm_at_peak", "judge_scale",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'benchlib' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    home = _HOMES[name]
    with collector_paused():
        module = import_module(home)
    value: object = module if name == "plots" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
