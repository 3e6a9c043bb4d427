"""Noise schedules: which noise levels an image passes through in a given number of steps.

Knows diffusers' schedulers. Ignorant of images, networks and queues.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one number of steps.

    `table` is None unless the scheduler is Euler's method. A work with a table needs no scheduler
    of its own. The table is (4, steps), float32, on the CPU. Its rows are the timestep, the divisor
    of the UNet's input, sigma, and the change of sigma.
    """

    timesteps: Tensor  # (steps,)
    init_noise_sigma: float | Tensor
    table: Tensor | None


class Schedules:
    """The schedules of one scheduler, each laid out once for its number of steps."""

    def __init__(self, scheduler: Any, device: torch.device) -> None:
        self._scheduler = scheduler
        self._device = device
        self._laid_out: dict[int, tuple[Schedule, Any]] = {}

    def find(self, steps: int) -> tuple[Schedule, Any]:
        """The schedule of `steps` steps, and a work's scheduler, None if there is a table."""
        if steps not in self._laid_out:
            self._laid_out[steps] = self._lay_out(steps)
        schedule, scheduler = self._laid_out[steps]
        if schedule.table is not None:
            return schedule, None
        return schedule, copy.deepcopy(scheduler)

    def _lay_out(self, steps: int) -> tuple[Schedule, Any]:
        own = copy.deepcopy(self._scheduler)
        own.set_timesteps(steps, device=self._device)
        if hasattr(own, "set_begin_index"):
            own.set_begin_index(0)
        table = None
        if type(own) is EulerDiscreteScheduler and own.config.prediction_type == "epsilon":
            sigma = own.sigmas[:-1]
            sigma_change = own.sigmas[1:] - sigma
            divisor = (sigma**2 + 1) ** 0.5
            table = torch.stack([own.timesteps.cpu(), divisor, sigma, sigma_change])
        return Schedule(own.timesteps, own.init_noise_sigma, table), own
