"""Measure how Stable Diffusion XL serves: load a model, serve it, load the server, read the plots.

These are the names that a notebook uses, imported on first use: `import benchlib` imports neither torch nor locust.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchlib.bench import Point, Run, find_capacity, load_run, load_study, run_load, sweep
    from benchlib.load.arrivals import ClosedLoop, OpenLoop, Ramp, Trace
    from benchlib.load.workload import Workload
    from benchlib.serving.pipeline import load_pipeline
    from benchlib.serving.schemas import GenerateRequest
    from benchlib.serving.server import Server, serve
    from benchlib.study import plots
    from benchlib.study.comparison import compare
    from benchlib.telemetry import process_memory_gib

_HOMES = {
    "ClosedLoop": "benchlib.load.arrivals",
    "GenerateRequest": "benchlib.serving.schemas",
    "OpenLoop": "benchlib.load.arrivals",
    "Ramp": "benchlib.load.arrivals",
    "Point": "benchlib.bench",
    "Run": "benchlib.bench",
    "Server": "benchlib.serving.server",
    "Trace": "benchlib.load.arrivals",
    "Workload": "benchlib.load.workload",
    "compare": "benchlib.study.comparison",
    "find_capacity": "benchlib.bench",
    "load_pipeline": "benchlib.serving.pipeline",
    "load_run": "benchlib.bench",
    "load_study": "benchlib.bench",
    "plots": "benchlib.study",
    "process_memory_gib": "benchlib.telemetry",
    "run_load": "benchlib.bench",
    "serve": "benchlib.serving.server",
    "sweep": "benchlib.bench",
}
__all__ = [  # noqa: RUF022 - in the order in which a notebook meets them
    "load_pipeline",
    "GenerateRequest",
    "serve",
    "Server",
    "ClosedLoop",
    "OpenLoop",
    "Ramp",
    "Trace",
    "Workload",
    "run_load",
    "Run",
    "load_run",
    "load_study",
    "sweep",
    "Point",
    "find_capacity",
    "compare",
    "plots",
    "process_memory_gib",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'benchlib' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _HOMES[name]
    value: object = import_module(f"{home}.plots") if name == "plots" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
