"""Schedules: which noise levels an image passes through, by sampler and number of steps.

Knows diffusers' schedulers and their names. Ignorant of images, networks and queues.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchlib.serving.model.solvers import Solver, find_solver
from benchlib.serving.scheduler_names import SCHEDULERS, check_scheduler
from benchlib.serving.schemas import MAX_STEPS, BadField, GenerateRequest

# More samplers in more numbers of steps are laid out anew. Each takes up to 0.1 MB.
MOST_SCHEDULES = 500


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one sampler in one number of steps.

    There is a timestep for each call of the UNet. Some samplers call it twice in a step. `solver`
    is None if each work needs a scheduler of its own. Else `table` has the timestep and then the
    solver's columns: (columns, calls), float32, on the CPU.
    """

    timesteps: Tensor  # (calls,), as the scheduler's `step` takes them
    init_noise_sigma: float | Tensor
    solver: Solver | None = None
    table: Tensor | None = None

    @property
    def calls(self) -> int:
        """The calls of the UNet."""
        return len(self.timesteps)


class Schedules:
    """The schedules of one model, each laid out once. May be used by several threads.

    `own` is the model's own scheduler, `chosen` the name of the one to use in its place. The name of
    a request goes before both. A named scheduler is built from the configuration of `own`.
    """

    def __init__(self, own: Any, device: torch.device, *, chosen: str | None = None) -> None:
        self._own = own = copy.deepcopy(own)  # users may run the model's own scheduler
        self._device = device
        self._chosen = chosen
        self._built: dict[str | None, Any] = {None: own}
        self._laying_out = threading.Lock()
        self._laid_out: dict[tuple[str | None, int], tuple[Schedule, Any]] = {}

    def default(self) -> Any:
        """A scheduler as requests use it that name none. Raises ValueError if it can't be built."""
        return copy.deepcopy(self._build(self._chosen))

    def find(self, name: str | None, steps: int) -> Schedule:
        """The schedule of `steps` steps.

        Raises `BadField` if the scheduler refuses that number, or can't be built for this model.
        """
        return self._find(name, steps)[0]

    def nearest_steps(self, wanted: int) -> int:
        """The number of steps nearest to `wanted` that the default scheduler takes.

        Raises `BadField` if it takes no number.
        """
        for steps in sorted(range(1, MAX_STEPS + 1), key=lambda steps: abs(steps - wanted)):
            try:
                self.find(None, steps)
            except BadField:
                continue
            return steps
        self.find(None, wanted)
        return wanted

    def count_calls(self, request: GenerateRequest) -> int:
        """The calls of the UNet that the request takes. Raises `BadField` as `find` does."""
        return self.find(request.scheduler, request.num_inference_steps).calls

    def knows_calls(self, request: GenerateRequest) -> bool:
        """Whether `count_calls` answers at once. Else it may take half a second."""
        name = request.scheduler or self._chosen
        return (name, request.num_inference_steps) in self._laid_out

    def make_scheduler(self, name: str | None, steps: int, seed: int) -> Any:
        """A scheduler for one work, or None if the schedule has a solver.

        It is never copied again: the state of some schedulers can't be copied.
        """
        _, laid_out = self._find(name, steps)
        if laid_out is None:
            return None
        own = copy.deepcopy(laid_out)
        # This scheduler takes no generator. Without a seed it would draw from the process's own.
        if getattr(own, "noise_sampler_seed", seed) is None:
            own.noise_sampler_seed = seed
        return own

    def _find(self, name: str | None, steps: int) -> tuple[Schedule, Any]:
        key = (name or self._chosen, steps)
        known = self._laid_out.get(key)
        if known is None:
            with self._laying_out:
                known = self._lay_out(*key)
                self._laid_out[key] = known
                if len(self._laid_out) > MOST_SCHEDULES:
                    del self._laid_out[next(iter(self._laid_out))]
        return known

    def _build(self, name: str | None) -> Any:
        if name not in self._built:
            try:
                self._built[name] = build_scheduler(name, self._own.config)
            except Exception as error:
                raise BadField("scheduler", f"this model can't take {name!r} ({error})") from error
        return self._built[name]

    @torch.inference_mode(False)  # any thread may read what one thread has laid out
    def _lay_out(self, name: str | None, steps: int) -> tuple[Schedule, Any]:
        own = copy.deepcopy(self._build(name))
        try:
            own.set_timesteps(steps, device=self._device)
        except Exception as error:  # schedulers raise what they like
            kind = type(own).__name__
            problem = f"{kind} does not take {steps} steps ({error})"
            raise BadField("num_inference_steps", problem) from error
        if hasattr(own, "set_begin_index"):
            own.set_begin_index(0)
        if isinstance(own, diffusers.LMSDiscreteScheduler):
            # Its integrals take milliseconds. All works of one schedule share them.
            own.get_lms_coefficient = functools.cache(own.get_lms_coefficient)
        solver = find_solver(own)
        if solver is None:
            self._try_step(copy.deepcopy(own))
            return Schedule(own.timesteps, own.init_noise_sigma), own
        columns = [own.timesteps.cpu(), *solver.lay_out(own)]
        table = torch.stack([column.to(torch.float32) for column in columns])
        return Schedule(own.timesteps, own.init_noise_sigma, solver, table), None

    def _try_step(self, scheduler: Any) -> None:
        """Step once without a model. Raises `BadField` if the scheduler does not work here.

        Some schedulers look at the kind of prediction in a step only.
        """
        if getattr(scheduler, "noise_sampler_seed", 0) is None:
            scheduler.noise_sampler_seed = 0
        sample = torch.ones((1, 4, 8, 8), device=self._device, dtype=torch.float32)
        options = step_options(scheduler, torch.Generator("cpu").manual_seed(0))
        timestep = scheduler.timesteps[0]
        try:
            output = scheduler.scale_model_input(sample, timestep)
            scheduler.step(output, timestep, sample, **options)
        except torch.OutOfMemoryError:
            return  # it says nothing about the scheduler
        except Exception as error:
            problem = f"{type(scheduler).__name__} can't step with this model ({error})"
            raise BadField("scheduler", problem) from error


def build_scheduler(name: str | None, config: Any) -> Any:
    """The scheduler called `name`, from a model's own configuration.

    Raises ValueError for an unknown name, and what the scheduler raises for a bad configuration.
    """
    named = SCHEDULERS[check_scheduler(str(name))]
    kind = getattr(diffusers, named.class_name)
    # Diffusers warns of each option that the class does not have, and leaves it out. An option that
    # is null in the file of another class may have no null here: EDM's sigma_min.
    options = inspect.signature(kind.__init__).parameters
    known = {}
    for key, value in config.items():
        needs_value = key in options and options[key].default is not None
        if key.startswith("_") or (key in options and not (value is None and needs_value)):
            known[key] = value
    scheduler = kind.from_config(known, **named.changes)
    # As diffusers does, keep the other options for whoever builds the next scheduler from this one.
    others = {key: value for key, value in config.items() if key not in scheduler.config}
    scheduler.register_to_config(**others)
    return scheduler


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """The further arguments of a scheduler's `step`, as the stock pipeline gives them."""
    if scheduler is None:
        return {}
    parameters = inspect.signature(scheduler.step).parameters
    options = {"eta": 0.0, "generator": generator}
    return {name: value for name, value in options.items() if name in parameters}
