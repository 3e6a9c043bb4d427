"""The clock of a device: times of work that the host has only launched.

Knows how torch's devices say that they have finished. Ignorant of the work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch


class DeviceClock:
    """Reads the time of one device's work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Monotonic seconds, read when the device has finished all its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.monotonic()

    def mark(self) -> Any:
        """A mark in the device's work. On CUDA the host does not wait for it, and so runs ahead."""
        if self._device.type != "cuda":
            return self.now()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, marks: Sequence[Any]) -> list[float]:
        """Seconds from each mark to the next, once the device has passed the last one."""
        if self._device.type != "cuda":
            return [end - start for start, end in pairwise(marks)]
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]
