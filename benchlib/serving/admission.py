"""Whether the model and this server take a request, asked before it waits for anything.

Knows steps, pixel steps, sides and adapters. Ignorant of queues, of the bounds of single fields (schemas.py),
and of torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError

from benchlib.lora import unknown_lora
from benchlib.serving.engine.engine import Engine
from benchlib.serving.schemas import BadField, GenerateRequest, unfit_sides

TOO_LARGE = "too_large"


async def check_admission(
    request: GenerateRequest, engine: Engine, *, max_pixel_steps: int | None
) -> None:
    """Raise RequestValidationError, which names each field at fault, unless the request is taken.

    Its `type` is TOO_LARGE for too many pixel steps.
    """
    # 1) The steps, which the scheduler counts
    schedules = engine.schedules
    try:
        if schedules is None:  # the engine will say why
            calls = request.num_inference_steps
        elif schedules.knows_calls(request):
            calls = schedules.count_calls(request)
        else:
            calls = await asyncio.to_thread(schedules.count_calls, request)
    except BadField as error:
        raise _invalid({error.field: error.problem}, "value_error") from error

    # 2) The pixel steps
    pixel_steps = request.width * request.height * calls
    if max_pixel_steps is not None and pixel_steps > max_pixel_steps:
        message = (
            f"width x height x num_inference_steps is {pixel_steps}, "
            f"above this server's limit of {max_pixel_steps}"
        )
        if calls != request.num_inference_steps:
            message += f" (the scheduler takes {calls} steps of the model)"
        fields = ("width", "height", "num_inference_steps")
        raise _invalid(dict.fromkeys(fields, message), TOO_LARGE)

    # 3) The sides; a model that loads has no multiple yet
    unfit = unfit_sides(request, engine.spec.get("size_multiple", 1))
    if unfit:
        raise _invalid(unfit, "multiple_of")

    # 4) The adapter; a model that loads has a spec later, and the engine will refuse
    unknown = unknown_lora(request.lora, engine.spec)
    if engine.spec and unknown is not None:
        raise _invalid({"lora": unknown}, "value_error")


def _invalid(problems: Mapping[str, str], kind: str) -> RequestValidationError:
    """The error of a bad body: what is wrong, by field."""
    return RequestValidationError(
        [
            {"loc": ("body", field), "msg": message, "type": kind}
            for field, message in problems.items()
        ]
    )
