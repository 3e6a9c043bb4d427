"""Memory of the device that a pipeline computes on: the peak since a reset, and what tensors hold.

Knows CUDA's allocator and Linux's /proc. Ignorant of pipelines.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class PeakMemory:
    """The most memory in use since the last reset, in GiB. `rss_gib` is the whole process's. Unknown is None."""

    allocated_gib: float | None = None
    reserved_gib: float | None = None
    rss_gib: float | None = None

    @property
    def headline_gib(self) -> float | None:
        return self.rss_gib if self.allocated_gib is None else self.allocated_gib

    def highest(self, other: PeakMemory) -> PeakMemory:
        """The peak over both."""
        return max(self, other, key=lambda peak: peak.headline_gib or 0.0)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak. Without Linux's /proc the RSS peak can't be reset and stays that of the process's life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(
                "5"
            )  # proc(5): 5 resets the peak resident set size


def peak_memory(device: torch.device) -> PeakMemory:
    if device.type == "cuda":
        told = torch.cuda.memory_stats_as_nested_dict(
            device
        )  # `max_memory_allocated` flattens and sorts it, each time
        return PeakMemory(
            *(told[f"{kind}_bytes"]["all"]["peak"] / 2**30 for kind in ("allocated", "reserved"))
        )
    return PeakMemory(rss_gib=_peak_rss_gib()) if device.type == "cpu" else PeakMemory()


def held_gib(tensors: Iterable[torch.Tensor]) -> float:
    """Memory that `tensors` take, what several share counted once; of a quantised one, that of its parts."""
    plain, todo = [], list(tensors)
    while todo:
        tensor = todo.pop()
        if hasattr(tensor, "__tensor_flatten__"):
            todo += [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        else:
            plain.append(
                (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size())
            )
    held = end = 0
    for first, last in sorted(plain):
        held += max(0, last - max(first, end))
        end = max(end, last)
    return held / 2**30


def _peak_rss_gib() -> float:
    """Peak resident set of this process: VmHWM of /proc (resettable), else getrusage's (of its whole life)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (
            peak * (1 if sys.platform == "darwin" else 1024) / 2**30
        )  # getrusage(2): bytes on macOS, else KiB
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 2**30
