"""Memory: the peak since a reset, what networks and tensors hold, and what a decode needs.

Knows CUDA's allocator, Linux's /proc and the shape of a VAE. Ignorant of pipelines, requests and
engines.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchlib.telemetry import GIB


@dataclass(frozen=True)
class PeakMemory:
    """The most memory in use since the last reset, in GiB; unknown is None.

    `rss_gib` is the peak of the whole process.
    """

    allocated_gib: float | None = None
    reserved_gib: float | None = None
    rss_gib: float | None = None

    @property
    def headline_gib(self) -> float | None:
        """The peak of allocated memory, else of the process's RSS."""
        return self.rss_gib if self.allocated_gib is None else self.allocated_gib

    def highest(self, other: PeakMemory) -> PeakMemory:
        """The higher one of two peaks."""
        return max(self, other, key=lambda peak: peak.headline_gib or 0.0)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak.

    Without Linux's /proc the RSS peak can't be reset and stays the peak of the process's life.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):
            # proc(5): writing 5 resets the peak resident set size.
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> PeakMemory:
    """The peak since the last reset: CUDA's allocator's, on a CPU the process's, else unknown."""
    if device.type == "cuda":
        # `max_memory_allocated` would flatten and sort these statistics at each call.
        statistics = torch.cuda.memory_stats_as_nested_dict(device)
        return PeakMemory(
            allocated_gib=statistics["allocated_bytes"]["all"]["peak"] / GIB,
            reserved_gib=statistics["reserved_bytes"]["all"]["peak"] / GIB,
        )
    if device.type == "cpu":
        return PeakMemory(rss_gib=_peak_rss_gib())
    return PeakMemory()


def _peak_rss_gib() -> float:
    """The process's peak RSS in GiB.

    The source is VmHWM of /proc, which can be reset, else getrusage, which can't.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit_bytes = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
        return peak * unit_bytes / GIB
    peak_kib = int(status.split("VmHWM:")[1].split()[0])
    return peak_kib * 1024 / GIB


def held_gib(tensors: Iterable[torch.Tensor]) -> float:
    """The GiB that `tensors` hold. Memory that several tensors share counts once.

    A quantised tensor counts as its parts.
    """
    # 1) List the range of addresses of each plain tensor
    ranges = []
    pending = list(tensors)
    while pending:
        tensor = pending.pop()
        if hasattr(tensor, "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            pending += [getattr(tensor, name) for name in names]
        else:
            first = tensor.data_ptr()
            size = tensor.numel() * tensor.element_size()
            ranges.append((first, first + size))

    # 2) Add up the bytes that each range adds to the ranges before it
    held_bytes = 0
    end = 0
    for first, last in sorted(ranges):
        held_bytes += max(0, last - max(first, end))
        end = max(end, last)
    return held_bytes / GIB


def own_memory(network: torch.nn.Module) -> None:
    """Copy weights that lie in a mapped file into memory of their own.

    Loaders map a file whose numbers need no conversion. Such a file, overwritten in place, would
    change the running model. torch can't resize a storage that it has not allocated.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():
            tensor.data = tensor.data.clone()


def describe_network(network: torch.nn.Module) -> dict[str, Any]:
    """A network's number of parameters, their GiB, and the type of its largest parameter."""
    parameters = list(network.parameters())
    largest = max(parameters, key=torch.Tensor.numel)
    return {
        "params": sum(p.numel() for p in parameters),
        "gib": held_gib(parameters),
        "dtype": str(largest.dtype).removeprefix("torch."),
    }


def decode_peak_gib(vae: Any, width: int, height: int, images: int) -> float:
    """An estimate, in GiB, of the peak memory of decoding `images` images at once.

    The widest activations at full resolution have `block_out_channels[1]` channels. Four of them
    are alive at a time; the measured number for 1024x1024 is 3.6.
    """
    if vae.use_slicing:
        images = 1
    if vae.use_tiling:
        width = min(width, vae.tile_sample_min_size)
        height = min(height, vae.tile_sample_min_size)
    widest = vae.config.block_out_channels[:2][-1]
    values = 4 * widest * images * width * height
    # `vae.dtype` would look at all parameters, which takes as long as a small image's answer.
    itemsize = next(vae.parameters()).dtype.itemsize
    return float(values * itemsize / GIB)
