"""How a text names a LoRA adapter: "style", or "style:0.8" with its scale.

Pure; all wings know it. Ignorant of files, of models, and of which adapters there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST_SCALE = 10.0
"""A scale lies between minus this number and this number."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SCALE = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def check_lora_name(name: str) -> str:
    """Return `name`. Raises ValueError unless it can name an adapter."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "none":
        raise ValueError(
            f"{name!r} can't name an adapter; use 1 to 64 letters, digits, '_' and '-', "
            "but not 'none'"
        )
    return name


def split_lora(text: str) -> tuple[str, float]:
    """The adapter's name and its scale, 1 if `text` has none. Raises ValueError."""
    name, colon, number = text.partition(":")
    check_lora_name(name)
    if not colon:
        return name, 1.0
    if not _SCALE.fullmatch(number) or abs(float(number)) > MOST_SCALE:
        raise ValueError(
            f"{number!r} is no scale; write name:scale, as in {name}:0.8, "
            f"with a scale from {-MOST_SCALE:g} to {MOST_SCALE:g}"
        )
    return name, float(number)


def usual_spelling(text: str) -> str:
    """The one spelling of an adapter with its scale: "style:1.0" becomes "style".

    Raises ValueError as `split_lora` does.
    """
    name, scale = split_lora(text)
    if scale == 1:
        return name
    return f"{name}:{scale + 0.0:.10g}"


def unknown_lora(lora: str | None, spec: Mapping[str, Any]) -> str | None:
    """What is wrong with an adapter of a request, by the spec of a pipeline; None if nothing is."""
    if lora is None:
        return None
    name, _ = split_lora(lora)
    names = spec.get("loras", [])
    if name in names:
        return None
    if name in spec.get("fused_loras", {}):
        return f"{name!r} is fused into the weights, so every image has it; leave lora out"
    if not names:
        return f"there is no adapter {name!r}, because this model has none; leave lora out"
    return f"there is no adapter {name!r}; there are {', '.join(names)}"


def split_loras(given: object) -> object:
    """The adapters of a text such as "style=a.safetensors,face=b.safetensors", by name.

    A list of such texts, as a command line gives them, is taken as one. Any other value comes back
    as it is. Raises ValueError for a part without "=" and for a name that is there twice.
    """
    if isinstance(given, list):
        given = ",".join(given)
    if not isinstance(given, str):
        return given
    loras: dict[str, str] = {}
    for part in given.split(","):
        name, equals, path = part.partition("=")
        name = name.strip()
        if not equals or not path.strip():
            raise ValueError(f"{part!r} names no file; write name=path, as in style=a.safetensors")
        if name in loras:
            raise ValueError(f"{name!r} is there twice; give each adapter a name of its own")
        loras[name] = path.strip()
    return loras
