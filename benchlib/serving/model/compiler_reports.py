"""Reports that torch's compiler makes for its logs alone, left out where nobody reads the logs.

For each graph it empties the CPU's caches, to time the graph's guards once (torch/_dynamo/guards.py).
For each operator it splits whole source files into tokens, to find the name of a function
(torch/_dynamo/symbolic_convert.py). On two CPU cores, these reports took a tenth of the first image
of a start that found all its graphs kept. Guards, graphs and their kernels stay the same.

Knows names within torch, and leaves those alone that a torch does not have. Ignorant of models.
"""

from __future__ import annotations

import os

import torch

from benchlib.serving.model.kept_artefacts import ARTEFACTS

_LOGS = ("TORCH_LOGS", "TORCH_TRACE", "TORCH_LOGS_OUT")


def leave_out_reports() -> None:
    """Leave them out for the whole process, unless the environment asks for torch's logs.

    Where earlier processes have compiled, torch also collects no garbage after each graph: it frees
    next to nothing then. A process that compiles by itself goes on collecting.
    """
    if any(name in os.environ for name in _LOGS):
        return
    for module, name, instead in (
        (torch._dynamo.guards, "profile_guard_manager", _no_latency),
        (torch._dynamo.symbolic_convert, "get_funcname", _no_name),
    ):
        if hasattr(module, name):
            setattr(module, name, instead)
    if ARTEFACTS.has_found_packs and hasattr(torch._dynamo.config, "run_gc_after_compile"):
        torch._dynamo.config.run_gc_after_compile = False


def _no_latency(root: object, f_locals: object, n_iters: int) -> float:  # noqa: ARG001
    """In place of the microseconds of a graph's guards."""
    return 0.0


def _no_name(filename: str, lineno: int) -> None:
    """In place of the name of the function that a line is in. torch takes None for "unknown"."""
