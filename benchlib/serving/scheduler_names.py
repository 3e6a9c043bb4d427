"""The names of samplers as people write them, and the diffusers scheduler behind each name.

Knows names, classes and configurations. Ignorant of torch and diffusers, so that a server can check
a request's field before a model is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_THIRD = {"solver_order": 3}
# Its scheduler would set the option itself, with a warning for each request.
_SINGLE = {"lower_order_final": True}


@dataclass(frozen=True)
class Named:
    """A scheduler of diffusers, and what its configuration changes in the model's own."""

    class_name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


SCHEDULERS = {
    "euler": Named("EulerDiscreteScheduler"),
    "euler-karras": Named("EulerDiscreteScheduler", _KARRAS),
    "euler-trailing": Named("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler-a": Named("EulerAncestralDiscreteScheduler"),
    "dpmpp-2m": Named("DPMSolverMultistepScheduler"),
    "dpmpp-2m-karras": Named("DPMSolverMultistepScheduler", _KARRAS),
    "dpmpp-2m-sde": Named("DPMSolverMultistepScheduler", _SDE),
    "dpmpp-2m-sde-karras": Named("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "dpmpp-3m-sde": Named("DPMSolverMultistepScheduler", _SDE | _THIRD),
    "dpmpp-3m-sde-karras": Named("DPMSolverMultistepScheduler", _SDE | _THIRD | _KARRAS),
    "dpmpp-2s": Named("DPMSolverSinglestepScheduler", _SINGLE),
    "dpmpp-2s-karras": Named("DPMSolverSinglestepScheduler", _SINGLE | _KARRAS),
    "dpmpp-sde": Named("DPMSolverSDEScheduler"),
    "dpmpp-sde-karras": Named("DPMSolverSDEScheduler", _KARRAS),
    "dpm2": Named("KDPM2DiscreteScheduler"),
    "dpm2-karras": Named("KDPM2DiscreteScheduler", _KARRAS),
    "dpm2-a": Named("KDPM2AncestralDiscreteScheduler"),
    "dpm2-a-karras": Named("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "heun": Named("HeunDiscreteScheduler"),
    "heun-karras": Named("HeunDiscreteScheduler", _KARRAS),
    "lms": Named("LMSDiscreteScheduler"),
    "lms-karras": Named("LMSDiscreteScheduler", _KARRAS),
    "unipc": Named("UniPCMultistepScheduler"),
    "unipc-karras": Named("UniPCMultistepScheduler", _KARRAS),
    "deis": Named("DEISMultistepScheduler"),
    "deis-karras": Named("DEISMultistepScheduler", _KARRAS),
    "ddim": Named("DDIMScheduler"),
    "ddpm": Named("DDPMScheduler"),
    "pndm": Named("PNDMScheduler"),
    "lcm": Named("LCMScheduler"),
    "tcd": Named("TCDScheduler"),
    "edm-euler": Named("EDMEulerScheduler"),
    "edm-dpmpp-2m": Named("EDMDPMSolverMultistepScheduler"),
}
"""The table that docs/samplers.md shows."""


def check_scheduler(name: str) -> str:
    """Return `name`. Raises ValueError, which lists the names, if there is no such sampler."""
    if name not in SCHEDULERS:
        raise ValueError(f"{name!r} is not known; use one of {', '.join(SCHEDULERS)}")
    return name


SchedulerName = Annotated[
    str,
    AfterValidator(check_scheduler),
    Field(json_schema_extra={"enum": list(SCHEDULERS)}),
]
