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
class NamedScheduler:
    """A scheduler of diffusers, and what its configuration changes in the model's own."""

    class_name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


SCHEDULERS = {
    "euler": NamedScheduler("EulerDiscreteScheduler"),
    "euler-karras": NamedScheduler("EulerDiscreteScheduler", _KARRAS),
    "euler-trailing": NamedScheduler("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler-a": NamedScheduler("EulerAncestralDiscreteScheduler"),
    "dpmpp-2m": NamedScheduler("DPMSolverMultistepScheduler"),
    "dpmpp-2m-karras": NamedScheduler("DPMSolverMultistepScheduler", _KARRAS),
    "dpmpp-2m-sde": NamedScheduler("DPMSolverMultistepScheduler", _SDE),
    "dpmpp-2m-sde-karras": NamedScheduler("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "dpmpp-3m-sde": NamedScheduler("DPMSolverMultistepScheduler", _SDE | _THIRD),
    "dpmpp-3m-sde-karras": NamedScheduler("DPMSolverMultistepScheduler", _SDE | _THIRD | _KARRAS),
    "dpmpp-2s": NamedScheduler("DPMSolverSinglestepScheduler", _SINGLE),
    "dpmpp-2s-karras": NamedScheduler("DPMSolverSinglestepScheduler", _SINGLE | _KARRAS),
    "dpmpp-sde": NamedScheduler("DPMSolverSDEScheduler"),
    "dpmpp-sde-karras": NamedScheduler("DPMSolverSDEScheduler", _KARRAS),
    "dpm2": NamedScheduler("KDPM2DiscreteScheduler"),
    "dpm2-karras": NamedScheduler("KDPM2DiscreteScheduler", _KARRAS),
    "dpm2-a": NamedScheduler("KDPM2AncestralDiscreteScheduler"),
    "dpm2-a-karras": NamedScheduler("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "heun": NamedScheduler("HeunDiscreteScheduler"),
    "heun-karras": NamedScheduler("HeunDiscreteScheduler", _KARRAS),
    "lms": NamedScheduler("LMSDiscreteScheduler"),
    "lms-karras": NamedScheduler("LMSDiscreteScheduler", _KARRAS),
    "unipc": NamedScheduler("UniPCMultistepScheduler"),
    "unipc-karras": NamedScheduler("UniPCMultistepScheduler", _KARRAS),
    "deis": NamedScheduler("DEISMultistepScheduler"),
    "deis-karras": NamedScheduler("DEISMultistepScheduler", _KARRAS),
    "ddim": NamedScheduler("DDIMScheduler"),
    "ddpm": NamedScheduler("DDPMScheduler"),
    "pndm": NamedScheduler("PNDMScheduler"),
    "lcm": NamedScheduler("LCMScheduler"),
    "tcd": NamedScheduler("TCDScheduler"),
    "edm-euler": NamedScheduler("EDMEulerScheduler"),
    "edm-dpmpp-2m": NamedScheduler("EDMDPMSolverMultistepScheduler"),
}
"""The table that docs/samplers.md shows."""


_TWO_CALLS = (
    "DPMSolverSDEScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
"""The second-order ones, which call the UNet twice in each step but the last."""


def count_unet_calls(steps: int, class_name: str | None, *, skips_prk_steps: bool = True) -> int:
    """The calls of the UNet that a scheduler of diffusers takes for `steps` steps, 1 or more.

    An unknown class counts as one call a step. PNDM may begin with three Runge-Kutta steps of four
    calls each; SDXL's files skip these.
    """
    if class_name in _TWO_CALLS:
        return 2 * steps - 1
    if class_name == "PNDMScheduler":
        return steps + 1 if skips_prk_steps else steps + 9
    return steps


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
