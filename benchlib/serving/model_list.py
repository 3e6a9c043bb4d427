"""What /v1/models lists: the model, and its LoRA adapters as vLLM lists them.

Knows a server's spec. Ignorant of routes, and of how adapters are switched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel


class Model(BaseModel):
    """`root` is what was loaded. `parent` is an adapter's model, and null for the model itself."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["benchlib"] = "benchlib"
    root: str
    parent: str | None = None


class ModelList(BaseModel):
    """The model that is served, and its adapters by request; empty while it loads."""

    object: Literal["list"] = "list"
    data: list[Model]


def models_of(spec: Mapping[str, Any], created: int) -> list[Model]:
    """The models of a server's spec, its own first; none for the empty spec of a server that loads.

    `created` is a moment in seconds since 1970.
    """
    if not spec:
        return []
    own = spec["model"]
    models = [Model(id=own, created=created, root=own)]
    for name in spec.get("loras") or ():
        file = spec["lora_files"][name]
        models.append(Model(id=name, created=created, root=file, parent=own))
    return models


def adapter_named(model: str | None, spec: Mapping[str, Any]) -> str | None:
    """The adapter that a request means by its `model`, or None for the model itself or no name.

    Raises KeyError if neither is called so. The model goes before an adapter of its name.
    """
    if model is None or model == spec["model"]:
        return None
    if model in (spec.get("loras") or ()):
        return model
    raise KeyError(model)
