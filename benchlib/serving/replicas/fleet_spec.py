"""What a fleet says of itself: one replica's spec for all, and the step times of each.

Knows specs alone. Ignorant of queues and of locks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchlib.serving.engine.step_times import StepTimesBySize


def describe_fleet(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The spec of the replicas in `specs`, which are by name, in their order.

    All but the step times are alike. "step_times" is of the middle replica by `step_of_image_s`, of two
    the slower one's; "step_times_by_replica" has all.
    """
    by_seconds = sorted(specs, key=lambda name: step_of_image_s(specs[name]))
    middle = by_seconds[len(by_seconds) // 2]
    every = {name: spec["step_times"] for name, spec in specs.items()}
    return {**specs[middle], "step_times_by_replica": every}


def step_of_image_s(spec: Mapping[str, Any]) -> float:
    """Seconds of a step of one guided image, added up over the sizes that were measured."""
    by_size = StepTimesBySize.from_spec(spec["step_times"])
    rows = spec.get("guided_rows", 2)
    return sum(times.step(rows) for times in by_size.values())


def step_span_in_words(spec: Mapping[str, Any]) -> str | None:
    """How long a step of one image takes on the quickest and the slowest replica, in words.

    None for a spec without replicas. The size is the first that was measured.
    """
    every = spec.get("step_times_by_replica")
    if not every:
        return None
    rows = spec.get("guided_rows", 2)
    step_ms = {}
    for name, by_size in every.items():
        size, times = next(iter(StepTimesBySize.from_spec(by_size).items()))
        step_ms[name] = 1000 * times.step(rows)
    in_order = sorted(step_ms, key=lambda name: step_ms[name])
    quickest = in_order[0]
    slowest = in_order[-1]
    width, height = size
    return (
        f"{width}x{height}: {step_ms[quickest]:.3g} ms (replica {quickest}) to "
        f"{step_ms[slowest]:.3g} ms (replica {slowest})"
    )
