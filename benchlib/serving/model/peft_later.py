"""peft is imported where there is an adapter, and not before: its import takes seconds.

peft imports transformers' text generation, and by it scikit-learn if that is installed. diffusers
imports peft where it defines its pipelines, where it checks a network, and in each forward of a
UNet. The first two ask whether an object is one of peft's, and none is while peft is not imported.
The last changes the scale of peft's layers, and a scale of 1.0 changes nothing. So a finder of
Python's gives the first a class that answers, and the others an answer before their import.

Knows diffusers' modules that import peft. If they were imported before, they stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LAYERS = "peft.tuners.tuners_utils"
_ASKS = ("diffusers.loaders.lora_base", "diffusers.hooks.layerwise_casting")
_CHECKS = "diffusers.pipelines.pipeline_loading_utils"
_SCALES = "diffusers.utils.peft_utils"


class _AnswersWithoutPeft(type):
    def __instancecheck__(cls, thing: object) -> bool:
        kind = getattr(sys.modules.get(_LAYERS), "BaseTunerLayer", ())
        return isinstance(thing, kind)


class PeftLayer(metaclass=_AnswersWithoutPeft):
    """Stands for peft's BaseTunerLayer in `isinstance`. Without peft there is no such layer."""


def _disable_input_dtype_casting(*arguments: Any, **options: Any) -> Any:
    """As peft's function of this name."""
    from peft.helpers import disable_input_dtype_casting

    return disable_input_dtype_casting(*arguments, **options)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules with the names that diffusers imports from peft, instead of peft."""
    names: dict[str, dict[str, object]] = {
        "peft": {},
        "peft.helpers": {"disable_input_dtype_casting": _disable_input_dtype_casting},
        "peft.tuners": {},
        _LAYERS: {"BaseTunerLayer": PeftLayer},
    }
    installed = find_spec("peft")
    for name, content in names.items():
        module = ModuleType(name)
        module.__dict__.update(content, __spec__=installed)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


class _WithoutPeft(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        if "peft" in sys.modules:
            super().exec_module(module)
            return
        try:
            with _stand_ins():
                super().exec_module(module)
        except ImportError:  # another diffusers imports more of peft
            super().exec_module(module)


class _AnswersFirst(SourceFileLoader):
    def exec_module(self, module: Any) -> None:
        super().exec_module(module)
        if module.__name__ == _SCALES:
            module.scale_lora_layers = _unless_1(module.scale_lora_layers)
            module.unscale_lora_layers = _unless_1(module.unscale_lora_layers)
        else:
            module._unwrap_model = _unless_imported(module._unwrap_model, module.is_compiled_module)


def _unless_1(change: Callable[..., None]) -> Callable[..., None]:
    """diffusers' function `change`, called for another scale than 1.0 alone."""

    @wraps(change)
    def change_layers(model: object, weight: float | None = None) -> None:
        if weight is not None and weight != 1.0:
            change(model, weight)

    return change_layers


def _unless_imported(
    unwrap: Callable[[Any], Any], is_compiled: Callable[[Any], bool]
) -> Callable[[Any], Any]:
    """diffusers' function `unwrap`, which without peft unwraps what torch has compiled alone."""

    @wraps(unwrap)
    def unwrap_network(model: Any) -> Any:
        if "peft" in sys.modules:
            return unwrap(model)
        return model._orig_mod if is_compiled(model) else model

    return unwrap_network


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in (*_ASKS, _CHECKS, _SCALES):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            kind = _WithoutPeft if name in _ASKS else _AnswersFirst
            spec.loader = kind(name, spec.origin)
        return spec


def import_peft_later() -> None:
    """Let modules of diffusers that are imported from now on leave peft out, if it is installed."""
    if find_spec("peft") is not None and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
