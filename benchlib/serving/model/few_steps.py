"""Few-step models: how many steps a distilled model is made for, and with which guidance.

A distilled model (SDXL Turbo, SDXL Lightning, Hyper-SD, LCM, ...) makes an image in one to eight
steps, mostly without guidance. Nothing in its weights says so: the name and the scheduler do.

Knows names and the configurations of schedulers and UNets. Ignorant of weights and requests.

Sources: the usage notes that are published with each model, and diffusers' guide to SDXL Turbo.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

GUIDANCE_OFF = 0.0
GUIDANCE_KEPT = 7.5
"""Hyper-SD's models with CFG in their names keep guidance: their usage notes say 5 to 8."""
LCM_GUIDANCE = 8.0
"""LCM's UNets take the guidance scale as an input. This is the scale of their usage notes."""

_NUMBER = re.compile(r"(?<!\d)([1-9]|1[0-6])[-_ ]?steps?(?![a-z])")
_KINDS = (
    ("Lightning", re.compile(r"lightning"), 4),
    ("Hyper-SD", re.compile(r"hyper[-_ ]?sd"), 4),
    ("DMD2", re.compile(r"(?<![a-z])dmd2?(?![a-z])"), 4),
    ("PCM", re.compile(r"(?<![a-z])pcm(?![a-z])"), 4),
    ("TCD", re.compile(r"(?<![a-z])tcd(?![a-z])"), 4),
    ("LCM", re.compile(r"(?<![a-z])lcm(?![a-z])"), 4),
    ("SDXL Turbo", re.compile(r"sdxl[-_ ]turbo"), 1),
    ("Turbo", re.compile(r"turbo"), 4),
)
"""Kinds of few-step models: the mark in a name, and the usual steps where it has no number."""

_KEEPS_GUIDANCE = re.compile(r"(?<![a-z])cfg(?![a-z])")
_BY_SCHEDULER = {"LCMScheduler": "LCM", "TCDScheduler": "TCD"}
_USUAL_STEPS = 4


@dataclass(frozen=True)
class FewSteps:
    """What a few-step model is made for, and the reason in words.

    `advice` says what is wrong with its scheduler, or is None.
    """

    kind: str
    steps: int
    guidance_scale: float
    reason: str
    advice: str | None = None

    @property
    def showcase(self) -> dict[str, Any]:
        """The fields of a usual request that differ from other models'."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}


def few_steps_of(names: Iterable[str], scheduler: Any, unet: Any) -> FewSteps | None:
    """What a model is made for, or None if nothing says that it takes few steps.

    `names` are those of the model, of its UNet and of its fused adapters: hub ids, folders or
    files. The last name with a mark counts, because an adapter changes the model before it.
    `scheduler` and `unet` are diffusers' objects.
    """
    # 1) A UNet that takes guidance as an input
    if unet.config.get("time_cond_proj_dim") is not None:
        reason = "its UNet takes the guidance scale as an input"
        return FewSteps("LCM", _USUAL_STEPS, LCM_GUIDANCE, reason)

    # 2) A name
    advice = _advice(scheduler.config)
    for name in reversed(list(names)):
        last = PurePath(name).name
        found = _read_name(last)
        if found is not None:
            kind, steps = found
            reason = f"{last!r} is the name of a {kind} model"
            guidance = GUIDANCE_KEPT if _KEEPS_GUIDANCE.search(last.lower()) else GUIDANCE_OFF
            return FewSteps(kind, steps, guidance, reason, advice)

    # 3) A scheduler that serves nothing else
    scheduler_class = type(scheduler).__name__
    if scheduler_class in _BY_SCHEDULER:
        reason = f"its scheduler is {scheduler_class}"
        return FewSteps(_BY_SCHEDULER[scheduler_class], _USUAL_STEPS, GUIDANCE_OFF, reason)
    return None


def _read_name(name: str) -> tuple[str, int] | None:
    """The kind and the steps that a name bears."""
    lower = name.lower()
    number = _NUMBER.search(lower)
    for kind, mark, usual in _KINDS:
        if mark.search(lower):
            steps = usual if number is None else int(number[1])
            return kind, steps
    return None


def _advice(config: Mapping[str, Any]) -> str | None:
    """What to do about a spacing that never starts from pure noise."""
    spacing = config.get("timestep_spacing")
    if spacing in (None, "trailing"):
        return None
    return (
        f"its scheduler has {spacing} spacing, and few-step models are made for trailing: "
        "the image may lack contrast"
    )
