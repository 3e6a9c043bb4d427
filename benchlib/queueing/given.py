"""Checks what a person gives to calibrate and foretell, and words the errors.

Knows runs, servers' specs and numbers. Ignorant of what is estimated with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchlib.load.bounds import check_number
from benchlib.load.workload import Workload
from benchlib.serving.engine.policy_names import BATCHINGS
from benchlib.study.store import Run

_OF_SHOWCASE = ("width", "height", "num_inference_steps")
_PLANNED_BY = ("showcase", "max_batch_size", "max_wait_ms", "step_times")
_IS_SPEC = "it must be a server's spec, as server.spec is"


def checked_runs(runs: Any) -> list[Run]:
    """The runs of one run or of several. Raises ValueError for anything but runs."""
    if isinstance(runs, Run):
        return [runs]
    fix = "give a run, or a list of runs, as bl.load_run(path) and study.runs are"
    if isinstance(runs, str | Mapping) or not isinstance(runs, Iterable):
        raise ValueError(f"runs: {_shown(runs)} is no run; {fix}")
    found = list(runs)
    for place, run in enumerate(found):
        if not isinstance(run, Run):
            raise ValueError(f"runs[{place}]: {_shown(run)} is no run; {fix}")
    return found


def checked_seconds(image_s: Any) -> list[float]:
    """The seconds of images as floats. Raises ValueError unless they are a list of such numbers."""
    values = image_s.tolist() if hasattr(image_s, "tolist") else image_s
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"image_s: {_shown(image_s)} is no list; give the seconds as [1.2, 1.3]")
    seconds = list(values)
    if not seconds:
        raise ValueError("image_s is empty: give the seconds of one image or more")
    for place, value in enumerate(seconds):
        check_number(f"image_s[{place}]", value, 0, above=True)
    return [float(value) for value in seconds]


def check_spec(spec: Any) -> None:
    """Raises ValueError, naming the field, unless `spec` has what a server's spec needs."""
    # 1) Any server's
    if not isinstance(spec, Mapping):
        raise ValueError(f"spec: {_shown(spec)} is no spec; {_IS_SPEC}")
    if spec.get("batching") is None:
        raise ValueError(f"spec has no batching; {_IS_SPEC}")
    batching = spec["batching"]
    if batching not in BATCHINGS:
        raise ValueError(f"spec: batching {batching!r} must be one of {', '.join(BATCHINGS)}")
    check_one_card("spec", spec)
    if batching == "serial":
        return

    # 2) One whose requests share steps
    for name in _PLANNED_BY:
        if not spec.get(name) and spec.get(name) != 0:
            raise ValueError(f"spec has no {name}; {_IS_SPEC}")
    check_number("spec: max_batch_size", spec["max_batch_size"], 1, whole=True)
    check_number("spec: max_wait_ms", spec["max_wait_ms"], 0)
    showcase = spec["showcase"]
    for name in _OF_SHOWCASE:
        if name not in showcase:
            raise ValueError(f"spec: its showcase has no {name}; {_IS_SPEC}")
        check_number(f"spec: showcase: {name}", showcase[name], 1, whole=True)


def check_one_card(name: str, spec: Mapping[str, Any]) -> None:
    """Raises ValueError for the spec of a server with several replicas: one card is simulated."""
    replicas = spec.get("replicas")
    if replicas is not None and replicas > 1:
        raise ValueError(
            f"{name}: its server has {replicas} replicas, and one card is simulated; give that of a "
            "server with one, and see notebook 07 for several"
        )


def check_workload(workload: Any) -> None:
    """Raises ValueError for anything but a Workload or None."""
    if workload is not None and not isinstance(workload, Workload):
        raise ValueError(f"workload: {_shown(workload)} is no workload; give a bl.Workload or None")


def _shown(value: Any) -> str:
    """A value in a few characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
