"""One image on its way, a batch of images side by side, and the arithmetic of a denoising step.

Knows Euler's method and classifier-free guidance. Ignorant of prompts, networks and queues: the
caller runs the UNet between `Batch.inputs` and `Batch.advance`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchlib.serving.model.schedulers import Schedule
from benchlib.serving.schemas import GenerateRequest


@dataclass(eq=False)
class Work:
    """One image on its way, with everything that its request sets.

    `SDXLPipeline.encode` makes a work; `step` and `decode` move it on. A time is the wall time of a
    whole call, however many works shared the call.
    """

    request: GenerateRequest
    seed: int
    schedule: Schedule
    scheduler: Any  # the work's own copy, or None where the schedule has a table
    # Further arguments of the scheduler's `step`, such as a generator.
    step_options: dict[str, Any]
    latents: Tensor  # (1, channels, height/scale, width/scale) by the scale of the VAE
    text: Tensor  # (1 or 2, 77, features); with guidance the unconditional half is first
    pooled: Tensor  # (1 or 2, features)
    time_ids: Tensor  # (1, 6)
    guidance_embedding: Tensor | None = None  # (1, features), for a UNet that reads the guidance
    steps_done: int = 0
    encode_s: float = 0.0
    step_s: list[float] = field(default_factory=list)
    launch_s: float = 0.0  # in calls of the UNet, which return before a GPU has finished
    decode_s: float = 0.0
    batch_rows: int = 0  # the sum of the batch sizes of its steps

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on: each step then takes two rows of the UNet."""
        return len(self.text) == 2

    @property
    def timestep(self) -> Tensor:
        """The timestep of the next step, a scalar."""
        return self.schedule.timesteps[self.steps_done]

    @property
    def steps_left(self) -> int:
        """The denoising steps that are not done."""
        return len(self.schedule.timesteps) - self.steps_done

    @property
    def finished(self) -> bool:
        """Whether every denoising step is done, so that only decoding is left."""
        return self.steps_left == 0

    @property
    def denoise_s(self) -> float:
        """Seconds of all denoising steps."""
        return sum(self.step_s)

    @property
    def service_s(self) -> float:
        """Seconds of engine work without queueing: the `time_s` of the HTTP answer."""
        return self.encode_s + self.denoise_s + self.decode_s


class Batch:
    """Works of one size side by side.

    A step is `inputs()`, the UNet, and `advance()` with the UNet's answer. The UNet's rows are one
    unconditional row for each guided work, one conditional row for each work, and padding up to
    `rows`. `text`, `pooled`, `time_ids` and `guidance_embedding` are the same in every step. While
    a batch is in use, no other batch may move its works.
    """

    def __init__(self, works: Sequence[Work], *, rows: int | None, device: torch.device) -> None:
        self._requested = (tuple(works), rows)
        self._works = sorted(works, key=lambda work: not work.guided)  # guided works first
        self._guided = sum(work.guided for work in works)
        self._latents = torch.cat([work.latents for work in self._works])
        self._dtype = self._latents.dtype

        # 1) Lay out the UNet's rows: each row has a work and one half of the work's text
        guided_works = self._works[: self._guided]
        unconditional = [(work, 0) for work in guided_works]
        conditional = [(work, -1) for work in self._works]
        layout = unconditional + conditional
        padding = max(0, (rows or 0) - len(layout))
        layout += layout[-1:] * padding
        numbers = [self._works.index(work) for work, _ in layout]
        self._work_of_row = torch.tensor(numbers, device=device)

        # 2) Lay out the conditions of each row
        self.text = torch.stack([work.text[half] for work, half in layout])
        self.pooled = torch.stack([work.pooled[half] for work, half in layout])
        self.time_ids = torch.cat([work.time_ids for work, _ in layout])
        embeddings = [work.guidance_embedding for work, _ in layout]
        given = [embedding for embedding in embeddings if embedding is not None]
        self.guidance_embedding = torch.cat(given) if given else None
        scales = [work.request.guidance_scale for work in guided_works]
        self._guidance = torch.tensor(scales, device=device)[:, None, None, None]

        # 3) Lay out the noise levels of the coming steps, or leave each work to its own scheduler
        self._levels = _euler_levels(self._works, device)
        self._step = 0
        self._schedulers: list[tuple[Any, dict[str, Any]]] = []

    def holds(self, works: Sequence[Work], rows: int | None) -> bool:
        """Whether this batch can take the next step of exactly these works."""
        return self._requested == (tuple(works), rows)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Returns the UNet's rows of latents and timesteps (rows,). Changes no work."""
        if self._levels is None:
            latents, timesteps = self._scheduler_inputs()
        else:
            timestep, divisor, _, _ = self._levels[self._step].unbind(1)
            latents = _divide(self._latents, divisor).to(self._dtype)
            timesteps = timestep.view(-1)
        return latents[self._work_of_row], timesteps[self._work_of_row]

    def advance(self, noise: Tensor) -> None:
        """Move each work one step on, given the UNet's answer to `inputs()`.

        Moves all works, or none if an error is raised. After an error the batch must not be used
        again.
        """
        # 1) Compute: nothing that belongs to a work changes here
        noise = self._guide(noise)
        if self._levels is None:
            latents = self._scheduler_step(noise)
        else:
            latents = self._euler_step(noise, self._levels[self._step])

        # 2) Commit
        self._latents = latents
        self._step += 1
        for number, work in enumerate(self._works):
            work.latents = latents[number : number + 1]
            work.steps_done += 1
            if self._schedulers:
                work.scheduler, work.step_options = self._schedulers[number]

    def _guide(self, noise: Tensor) -> Tensor:
        """Returns (works, channels, height/scale, width/scale): the noise after guidance."""
        count = self._guided
        conditional = noise[count : count + len(self._works)]
        if count == 0:
            return conditional
        unconditional = noise[:count]
        difference = conditional[:count] - unconditional
        guided = unconditional + (self._guidance * difference).to(noise.dtype)
        if count == len(self._works):
            return guided
        return torch.cat([guided, conditional[count:]])

    def _euler_step(self, noise: Tensor, levels: Tensor) -> Tensor:
        """Returns the works' latents after a step of Euler's method.

        Source: Karras et al., 2022, algorithm 1, without churn. Rounds where EulerDiscreteScheduler
        rounds.
        """
        _, _, sigma, sigma_change = levels.unbind(1)
        sample = self._latents.to(torch.float32)
        # The scheduler's sigma is a tensor without dimensions. On the CPU torch rounds it to the
        # noise's type.
        factor = sigma
        if noise.device.type == "cpu":
            factor = sigma.to(noise.dtype)
        original = sample - (factor * noise).to(noise.dtype)
        derivative = _divide(sample - original, sigma)
        return (sample + derivative * sigma_change).to(self._dtype)

    def _scheduler_inputs(self) -> tuple[Tensor, Tensor]:
        """Returns the UNet's inputs by copies of the works' schedulers, which can't step back."""
        self._schedulers = []
        latents = []
        for work in self._works:
            scheduler, options = copy.deepcopy((work.scheduler, work.step_options))
            self._schedulers.append((scheduler, options))
            latents.append(scheduler.scale_model_input(work.latents, work.timestep))
        timesteps = [work.timestep for work in self._works]
        return torch.cat(latents), torch.stack(timesteps)

    def _scheduler_step(self, noise: Tensor) -> Tensor:
        moved = []
        for number, work in enumerate(self._works):
            scheduler, options = self._schedulers[number]
            answer = scheduler.step(
                noise[number : number + 1],
                work.timestep,
                work.latents,
                **options,
                return_dict=False,
            )
            moved.append(answer[0].to(self._dtype))
        return torch.cat(moved)


def _divide(numerator: Tensor, divisor: Tensor) -> Tensor:
    """Returns the quotient, rounded as diffusers' scheduler rounds it.

    The scheduler's divisor is a scalar on the CPU. torch multiplies a numerator on a CUDA device by
    the reciprocal of such a divisor.
    """
    if numerator.device.type == "cuda":
        return numerator * divisor.reciprocal()
    return numerator / divisor


def _euler_levels(works: Sequence[Work], device: torch.device) -> Tensor | None:
    """Returns (steps, works, 4, 1, 1, 1), the tables' next columns; None without a table."""
    steps = min(work.steps_left for work in works)
    levels = []
    for work in works:
        if work.schedule.table is None:
            return None
        first = work.steps_done
        levels.append(work.schedule.table[:, first : first + steps])
    return torch.stack(levels).to(device)[..., None, None, None].movedim(2, 0)
