"""Checks the numbers of a plan and the fields of a request, and words the errors.

Knows what no server can take, and the narrower bounds of our own server. Ignorant of what the
values are for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from benchlib.lora import split_lora


def check_number(
    field: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Raises ValueError, naming `field` and the fix, unless `low <= value <= high`.

    With `above`, `low` itself is refused. Booleans, NaN, infinities and anything but int or float
    (`whole`: anything but int) are refused.
    """
    number = (
        isinstance(value, int if whole else int | float)
        and not isinstance(value, bool)
        # Refuses NaN and infinity. `math.isfinite` raises for an int that is too large for a float.
        and abs(value) <= sys.float_info.max
    )
    if not number or not low <= value <= high or (above and value == low):
        noun = "a whole number" if whole else "a finite number"
        limits = f"from {low} to {high}"
        if above:
            limits = f"above {low}"
        elif high == math.inf:
            limits = f"of {low} or more"
        raise ValueError(f"{field} must be {noun} {limits}, got {value!r}")


def check_text(field: str, text: Any, shortest: int = 0, longest: float = math.inf) -> None:
    """Raises ValueError, naming `field`, unless `text` is text of so many characters."""
    if not isinstance(text, str) or not shortest <= len(text) <= longest:
        limits = f"{shortest} characters or more"
        if longest < math.inf:
            limits = f"{shortest} to {longest} characters"
        raise ValueError(f"{field} must be text of {limits}, got {str(text)[:40]!r}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{field} holds half a character (a lone surrogate), "
            f"which UTF-8 cannot carry: {text[:40]!r}"
        )


def _check_pixels(field: str, pixels: Any) -> None:
    check_number(field, pixels, 1, whole=True)


def _check_name(field: str, name: Any) -> None:
    # Another server may have names of its own.
    if name is not None:
        check_text(field, name, shortest=1)


_Checks: TypeAlias = dict[str, Callable[[str, Any], None]]

FIELD_CHECKS: _Checks = {
    "prompts": lambda field, text: check_text(field, text, shortest=1),
    "width": _check_pixels,
    "height": _check_pixels,
    "num_inference_steps": lambda field, steps: check_number(field, steps, 1, whole=True),
    "guidance_scale": lambda field, scale: check_number(field, scale, 0),
    "negative_prompt": lambda field, text: None if text is None else check_text(field, text),
    "lora": _check_name,
    "scheduler": _check_name,
}
"""What holds for every server, in the order in which a request's fields are drawn."""


def _check_size(field: str, pixels: Any) -> None:
    check_number(field, pixels, 64, 2048, whole=True)
    if pixels % 8:
        raise ValueError(f"{field} must be a multiple of 8, got {pixels}")


def _check_lora(field: str, lora: Any) -> None:
    if lora is None:
        return
    try:
        split_lora(lora)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{field}: {error}") from None


_LONGEST = 4000  # characters

OWN_CHECKS: _Checks = {
    "prompts": lambda field, text: check_text(field, text, 1, _LONGEST),
    "width": _check_size,
    "height": _check_size,
    "num_inference_steps": lambda field, steps: check_number(field, steps, 1, 150, whole=True),
    "guidance_scale": lambda field, scale: check_number(field, scale, 0, 30),
    "negative_prompt": lambda field, text: (
        None if text is None else check_text(field, text, 0, _LONGEST)
    ),
    "lora": _check_lora,
    "scheduler": _check_name,
}
"""What our own server takes of these fields."""

_TEXTS = ("prompt", "negative_prompt", "lora", "scheduler")
_REQUEST_CHECKS: _Checks = {
    **{"prompt" if field == "prompts" else field: check for field, check in FIELD_CHECKS.items()},
    "seed": lambda field, seed: check_number(field, seed, 0, whole=True),
}


def check_request(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one request that are not None; a number may be text, as in a .csv file.

    Raises ValueError that names `where` and the field.
    """
    body = {}
    for field, value in fields.items():
        if field not in _REQUEST_CHECKS:
            names = ", ".join(_REQUEST_CHECKS)
            raise ValueError(
                f"{where}: {field!r} is not a field of a request; the fields are {names}"
            )
        if isinstance(value, str) and field not in _TEXTS:
            value = float(value) if field == "guidance_scale" else int(value)
        if value is not None:
            _REQUEST_CHECKS[field](f"{where}: {field}", value)
            body[field] = value
    return body


def check_own_request(where: str, fields: Mapping[str, Any]) -> None:
    """Raises ValueError, naming `where` and the field, for what our own server refuses."""
    for field, value in fields.items():
        check = OWN_CHECKS.get("prompts" if field == "prompt" else field)
        if check is not None:
            check(f"{where}: {field}", value)
