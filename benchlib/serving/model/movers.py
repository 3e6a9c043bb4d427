"""The works of a batch, moved one step on: many by one solver, or one by its own scheduler.

Knows what a failed step must leave as it was. Ignorant of guidance, networks and queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from benchlib.serving.model.solvers import Moment, Solver, divide

if TYPE_CHECKING:
    from benchlib.serving.model.denoise import Work


class Mover(Protocol):
    """Moves the works in `rows` of a batch.

    A step is `inputs`, `step` and `commit`, and a work changes in the last alone. After an error
    the first two may be called again.
    """

    rows: slice
    alone: bool  # whether `step` may change what can't be computed again

    def inputs(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The UNet's input, and its timesteps (works,) in float32."""
        ...

    def step(self, output: Tensor, latents: Tensor, moved: Tensor) -> None:
        """Write the works' new latents into `moved`."""
        ...

    def commit(self, moved: Tensor) -> None:
        """Move the works."""
        ...


def make_movers(works: Sequence[Work], device: torch.device) -> list[Mover]:
    """The movers of `works`, in their order. Neighbours with one solver share a mover."""
    movers: list[Mover] = []
    first = 0
    for solver, neighbours in groupby(works, key=lambda work: work.schedule.solver):
        group = list(neighbours)
        end = first + len(group)
        if solver is None:
            movers += [OwnMover(work, first + n) for n, work in enumerate(group)]
        else:
            movers.append(SharedMover(solver, group, slice(first, end), device))
        first = end
    return movers


class SharedMover:
    """Works with one solver: a step moves all of them at once, each from its own noise level."""

    alone = False

    def __init__(
        self, solver: Solver, works: Sequence[Work], rows: slice, device: torch.device
    ) -> None:
        self.rows = rows
        self._solver = solver
        self._works = works
        self._device = device
        steps = min(work.steps_left for work in works)
        tables = []
        for work in works:
            assert work.schedule.table is not None
            tables.append(work.schedule.table[:, work.steps_done : work.steps_done + steps])
        # Its shape is (steps, columns, works, 1, 1, 1).
        self._tables = torch.stack(tables, dim=-1).to(device).movedim(1, 0)[..., None, None, None]
        self._step = 0
        self._memory = self._gather_memory()
        self._next_memory: Tensor | None = None
        self._noise: Tensor | None = None

    def inputs(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        if self._solver.noisy:
            # Drawn before the UNet is called, so that a GPU need not wait for the CPU after it.
            for work in self._works:
                if work.noise is None:
                    shape = work.latents.shape
                    work.noise = torch.randn(shape, generator=work.generator, dtype=torch.float32)
            noises = [work.noise for work in self._works if work.noise is not None]
            self._noise = torch.cat(noises).to(self._device)
        timesteps, divisor, *_ = self._tables[self._step].unbind(0)
        return divide(latents, divisor), timesteps.view(-1)

    def step(self, output: Tensor, latents: Tensor, moved: Tensor) -> None:
        columns = self._tables[self._step].unbind(0)[1:]
        at = Moment(latents, output, columns, self._noise, self._memory)
        sample, self._next_memory = self._solver.step(at)
        moved.copy_(sample)

    def commit(self, moved: Tensor) -> None:
        self._step += 1
        self._memory = self._next_memory
        for number, work in enumerate(self._works):
            row = slice(number, number + 1)
            work.latents = moved[row]
            work.noise = None
            work.steps_done += 1
            if self._memory is not None:
                work.memory = self._memory[row]

    def _gather_memory(self) -> Tensor | None:
        if not self._solver.remembers:
            return None
        memories = []
        for work in self._works:
            memory = work.memory
            memories.append(torch.zeros_like(work.latents) if memory is None else memory)
        return torch.cat(memories)


class OwnMover:
    """One work, moved by a scheduler of its own, which can't step back.

    If the scheduler raises, only this work fails.
    """

    alone = True

    def __init__(self, work: Work, row: int) -> None:
        self.rows = slice(row, row + 1)
        self._work = work

    def inputs(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        work = self._work
        timesteps = work.timestep.to(torch.float32).view(1)
        try:
            scaled = work.scheduler.scale_model_input(latents, work.timestep)
            return scaled.to(latents.dtype), timesteps
        except Exception as error:  # noqa: BLE001 - kept, and raised for this work alone
            work.failure = error
            return latents, timesteps

    def step(self, output: Tensor, latents: Tensor, moved: Tensor) -> None:
        work = self._work
        if work.failure is not None:
            return
        try:
            # A scheduler may keep the output for later steps, and a recorded UNet overwrites it
            own_output = output.clone()
            answer = work.scheduler.step(
                own_output, work.timestep, latents, **work.step_options, return_dict=False
            )
            moved.copy_(answer[0])
        except Exception as error:  # noqa: BLE001 - kept, and raised for this work alone
            work.failure = error

    def commit(self, moved: Tensor) -> None:
        if self._work.failure is None:
            self._work.latents = moved
            self._work.steps_done += 1
