"""One image on its way, a batch of them side by side, and how a denoising step moves a batch on.

Knows schedulers and classifier-free guidance. Ignorant of prompts, networks and queues: the UNet is a function here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler

from benchlib.serving.schemas import GenerateRequest


@dataclass(frozen=True)
class Schedule:
    """The noise levels of so many steps. `table` is for Euler's method alone, and then a work needs no scheduler.

    `table` (4, steps), float32 on the CPU: timestep, divisor of the UNet's input, sigma, and the way to the next sigma.
    """

    timesteps: torch.Tensor  # (steps,)
    init_noise_sigma: float | torch.Tensor
    table: torch.Tensor | None


def make_schedule(scheduler: Any, steps: int, device: torch.device) -> tuple[Schedule, Any]:
    """A schedule, and the copy of `scheduler` that was laid out for it."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps, device=device)
    if hasattr(own, "set_begin_index"):
        own.set_begin_index(0)
    table = None
    if type(own) is EulerDiscreteScheduler and own.config.prediction_type == "epsilon":
        sigma, following = own.sigmas[:-1], own.sigmas[1:]
        table = torch.stack([own.timesteps.cpu(), (sigma**2 + 1) ** 0.5, sigma, following - sigma])
    return Schedule(own.timesteps, own.init_noise_sigma, table), own


@dataclass(eq=False)
class Work:
    """One image on its way: made by `encode`, moved by `step`, ended by `decode`. All that a request sets lives here.

    The times are undivided wall seconds of the calls it took part in; `batch_rows` sums their sizes over the steps.
    """

    request: GenerateRequest
    seed: int
    schedule: Schedule
    scheduler: Any  # a copy of its own, or None where the schedule has a table
    step_options: dict[
        str, Any
    ]  # what this scheduler's step takes beside the tensors, the generator for one
    latents: torch.Tensor  # (1, channels, height/8, width/8)
    text: torch.Tensor  # (rows, 77, features): 2 rows under guidance (unconditional first), else 1
    pooled: torch.Tensor  # (rows, features)
    time_ids: torch.Tensor  # (1, 6)
    steps_done: int = 0
    encode_s: float = 0.0
    step_s: list[float] = field(default_factory=list)
    decode_s: float = 0.0
    batch_rows: int = 0

    @property
    def steps_left(self) -> int:
        return len(self.schedule.timesteps) - self.steps_done

    @property
    def finished(self) -> bool:
        """Every denoising step is done; what is left is to decode."""
        return self.steps_left == 0

    @property
    def denoise_s(self) -> float:
        return sum(self.step_s)

    @property
    def service_s(self) -> float:
        """Seconds of engine work, queueing left out: the `time_s` of the HTTP answer."""
        return self.encode_s + self.denoise_s + self.decode_s


class Batch:
    """Works of one size side by side, guided ones first. What the UNet is given beside latents is laid out once.

    Good for as long as the members are the same and none of them has moved elsewhere. The UNet's rows are one
    unconditional row for each guided work, then one conditional row for each work, then padding up to `rows`.
    """

    def __init__(self, works: Sequence[Work], *, rows: int | None, device: torch.device) -> None:
        self.asked, self.rows = tuple(works), rows
        self.works = sorted(works, key=lambda work: len(work.text) == 1)
        self.guided = sum(len(work.text) == 2 for work in works)
        self.latents = torch.cat([work.latents for work in self.works])
        self._dtype = self.latents.dtype
        order = [*range(self.guided), *range(len(works))]
        order += order[-1:] * ((rows or 0) - len(order))
        self._of_row = torch.tensor(order, device=device)
        kind = [0] * self.guided + [-1] * (len(order) - self.guided)
        parts = list(zip([self.works[i] for i in order], kind, strict=True))
        self.text = torch.stack([work.text[k] for work, k in parts])
        self.pooled = torch.stack([work.pooled[k] for work, k in parts])
        self.time_ids = torch.cat([work.time_ids for work, _ in parts])
        self._guidance = torch.tensor(
            [[[[work.request.guidance_scale]]] for work in self.works[: self.guided]], device=device
        )
        self._next = 0
        self._tables: torch.Tensor | None = None
        if all(work.schedule.table is not None for work in works):
            steps = min(work.steps_left for work in works)
            tables = [
                work.schedule.table[:, work.steps_done : work.steps_done + steps]  # type: ignore[index]
                for work in self.works
            ]
            self._tables = torch.stack(tables).to(device)[..., None, None, None].movedim(2, 0)

    def holds(self, works: Sequence[Work], rows: int | None) -> bool:
        """Whether this batch can take the next step of just these works."""
        return self.rows == rows and self.asked == tuple(works)

    def step(self, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """Move each work on by one step of its own: all of them, or none where anything is raised.

        `predict` maps the UNet's rows and their timesteps (rows,) to the noise in them.
        """
        if self._tables is None:
            self._step_by_schedulers(predict)
        else:
            self._step_by_euler(predict, self._tables[self._next])
        self._next += 1

    def _step_by_euler(
        self, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], at: torch.Tensor
    ) -> None:
        """Euler's method (Karras et al., 2022, algorithm 1, no churn), rounded where EulerDiscreteScheduler does."""
        t, divisor, sigma, way = at.unbind(1)
        inputs = (self.latents / divisor).to(self._dtype)[self._of_row]
        noise = self._guide(predict(inputs, t.view(-1)[self._of_row]))
        sample = self.latents.to(torch.float32)
        on_cpu = noise.device.type == "cpu"  # where torch rounds a scalar that is the first factor
        original = sample - ((sigma.to(noise.dtype) if on_cpu else sigma) * noise).to(noise.dtype)
        self._commit((sample + (sample - original) / sigma * way).to(self._dtype))

    def _step_by_schedulers(
        self, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        """Each work by a scheduler of its own; copies, since a scheduler can't take a step back."""
        own = [copy.deepcopy((work.scheduler, work.step_options)) for work in self.works]
        times = [work.schedule.timesteps[work.steps_done] for work in self.works]
        inputs = [
            scheduler.scale_model_input(work.latents, t)
            for work, (scheduler, _), t in zip(self.works, own, times, strict=True)
        ]
        noise = self._guide(
            predict(torch.cat(inputs)[self._of_row], torch.stack(times)[self._of_row])
        )
        moved = [
            scheduler.step(noise[i : i + 1], t, work.latents, **options, return_dict=False)[0].to(
                self._dtype
            )
            for i, (work, (scheduler, options), t) in enumerate(
                zip(self.works, own, times, strict=True)
            )
        ]
        self._commit(torch.cat(moved))
        for work, (scheduler, options) in zip(self.works, own, strict=True):
            work.scheduler, work.step_options = scheduler, options

    def _guide(self, noise: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance where it is asked for; (works, channels, height/8, width/8)."""
        unconditional, conditional = (
            noise[: self.guided],
            noise[self.guided : self.guided + len(self.works)],
        )
        if not self.guided:
            return conditional
        apart = conditional[: self.guided] - unconditional
        guided = unconditional + (self._guidance * apart).to(noise.dtype)
        return (
            guided
            if self.guided == len(self.works)
            else torch.cat([guided, conditional[self.guided :]])
        )

    def _commit(self, latents: torch.Tensor) -> None:
        self.latents = latents
        for i, work in enumerate(self.works):
            work.latents = latents[i : i + 1]
            work.steps_done += 1
