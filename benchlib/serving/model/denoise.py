"""One image on its way, and a batch of images side by side.

Knows classifier-free guidance. Ignorant of prompts, networks and queues: the caller runs the UNet
between `Batch.inputs` and `Batch.advance`. Ignorant of samplers, which have movers (movers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchlib.serving.model.movers import make_movers
from benchlib.serving.model.schedulers import Schedule
from benchlib.serving.schemas import GenerateRequest


@dataclass(eq=False)
class Work:
    """One image on its way, with everything that its request sets.

    `SDXLPipeline.encode` makes a work; `step` and `decode` move it on. A time is the wall time of a
    whole call, however many works shared the call. A work that its own scheduler has failed has a
    `failure`, and can't go on.
    """

    request: GenerateRequest
    seed: int
    schedule: Schedule
    scheduler: Any  # the work's own, or None where the schedule has a solver
    # Further arguments of the scheduler's `step`, such as a generator.
    step_options: dict[str, Any]
    generator: torch.Generator  # draws all noise of this work
    latents: Tensor  # (1, channels, height/scale, width/scale) by the scale of the VAE
    text: Tensor  # (1 or 2, 77, features); with guidance the unconditional half is first
    pooled: Tensor  # (1 or 2, features)
    time_ids: Tensor  # (1, 6)
    guidance_embedding: Tensor | None = None  # (1, features), for a UNet that reads the guidance
    noise: Tensor | None = None  # drawn for the coming step
    memory: Tensor | None = None  # what the solver's last step has left
    failure: Exception | None = None
    not_finite: str | None = None  # where numbers are NaN or infinite: "latents" or "pixels"
    steps_done: int = 0  # calls of the UNet: some samplers take two for one step
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
        """The timestep of the next step, a scalar, as the scheduler gives it."""
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
        solvers = [work.schedule.solver for work in works]
        # Guided works come first, then those of one solver stand together.
        self._works = sorted(
            works, key=lambda work: (not work.guided, solvers.index(work.schedule.solver))
        )
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
        guidance = torch.tensor(scales, device=device, dtype=torch.float32)
        self._guidance = guidance[:, None, None, None]

        # 3) Lay out how the works will move
        self._movers = make_movers(self._works, device)

    def holds(self, works: Sequence[Work], rows: int | None) -> bool:
        """Whether this batch can take the next step of exactly these works."""
        return self._requested == (tuple(works), rows)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Returns the UNet's rows of latents and timesteps (rows,). Moves no work."""
        inputs = [mover.inputs(self._latents[mover.rows]) for mover in self._movers]
        latents = torch.cat([scaled for scaled, _ in inputs])
        timesteps = torch.cat([timesteps for _, timesteps in inputs])
        return latents[self._work_of_row], timesteps[self._work_of_row]

    def advance(self, noise: Tensor) -> None:
        """Move each work one step on, given the UNet's answer to `inputs()`.

        Moves all works, or none if an error is raised. After an error the batch must not be used
        again. A work whose own scheduler raises gets a `failure`, and the others move.
        """
        # 1) Compute, first what can be computed again: after it, nothing raises
        noise = self._guide(noise)
        moved = torch.empty_like(self._latents)
        for mover in sorted(self._movers, key=lambda mover: mover.alone):
            rows = mover.rows
            mover.step(noise[rows], self._latents[rows], moved[rows])

        # 2) Commit
        self._latents = moved
        for mover in self._movers:
            mover.commit(moved[mover.rows])

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
