"""Whether the step times that a server measured at its start can carry a claim.

Knows the step times of a server's spec. Ignorant of how they were measured, and of drawing.

A server evens its step times out: no batch may take longer than a larger one. That is right for
planning, but it may turn a measurement beside other work into a gain. A busy machine that grows calm
while larger and larger batches are timed makes all of them look alike. So the server keeps what it
measured, and this file says whether that was disturbed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchlib.study.busy import suspect_reason
from benchlib.study.store import Run
from benchlib.study.wording import counted, number

UNEVEN = 1.1
"""A step that takes more than so many times as long as one of a larger batch was disturbed."""

Curves = Mapping[str, Any]


def measured_curves(curves: Curves) -> Curves:
    """The curves of one size as they were measured; older servers kept only the evened ones."""
    found: Curves = curves.get("measured") or curves
    return found


def disturbance(record: dict[str, Any], curves: Curves) -> str | None:
    """Why the step times of one size show no gain, in words; None where they were not disturbed.

    `record` is of a run on the server, for the cores of its machine.
    """
    busy = suspect_reason(record, curves.get("measured") or {})
    if busy is not None:
        return busy
    return _unevenness(measured_curves(curves)["step_s"])


def _unevenness(step_s: Mapping[str, float]) -> str | None:
    """Where a step of fewer rows took longer than one of more, the worst case in words.

    A single row is of an image without guidance. No claim is made of it, and it is timed first,
    while a GPU's clock still rises.
    """
    rows = sorted(n for n in map(int, step_s) if n > 1)
    worst = 1.0
    words = None
    for place, fewer in enumerate(rows[:-1]):
        more = min(rows[place + 1 :], key=lambda n: step_s[str(n)])
        if not step_s[str(more)] > 0:
            continue
        times = step_s[str(fewer)] / step_s[str(more)]
        if times > max(worst, UNEVEN):
            worst = times
            step = f"a step of {counted(fewer, 'row')}"
            words = f"{step} took {number(times)} times as long as one of {more}"
    return words


def first_disturbance(runs: Iterable[Run]) -> str | None:
    """Why the step times of the runs' servers show no gain; None where none was disturbed."""
    for run in runs:
        step_times = run.spec["target"].get("step_times") or {}
        for curves in step_times.values():
            reason = disturbance(run.record, curves)
            if reason is not None:
                return reason
    return None
