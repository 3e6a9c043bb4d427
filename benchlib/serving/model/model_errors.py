"""The errors of a model that can't be loaded or changed, and the check that its weights fit.

Knows a device's free memory. Ignorant of files, hubs and pipelines.
"""

from __future__ import annotations

import torch

from benchlib.machine import available_memory_gib
from benchlib.telemetry import GIB


class ModelError(RuntimeError):
    """A model can't be loaded: the message says why and what to do about it."""


class UnfitModel(ValueError):
    """A recipe can't change a model of this form: the message has the recipe and the remedy."""


def require_memory(params: int, device: torch.device, dtype: torch.dtype) -> None:
    """Raises `ModelError` if `params` parameters in `dtype` do not fit into `device`'s memory."""
    needed_gib = params * dtype.itemsize / GIB
    free_gib = free_memory_gib(device)
    if needed_gib > free_gib:
        dtype_name = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"model: its weights need {needed_gib:.1f} GiB in {dtype_name} and {device} has "
            f"{free_gib:.1f} GiB free; free memory, take a smaller dtype (dtype='bfloat16'), "
            "or use model='tiny'"
        )


def free_memory_gib(device: torch.device) -> float:
    """The GiB that `device` has free now."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return free_bytes / GIB
    return available_memory_gib()
