"""The first import of torch, transformers and diffusers, with fewer looks at their files.

Three questions cost a twelfth of the imports' time on two CPU cores, and most looks at files:

- torch asks 137 times which module a frame is of, as it registers operators (torch/library.py).
  Python's `inspect` resolves the paths of all modules for that, with 37,000 looks. The frame itself
  names its module.
- transformers reads the 1,660 files of its models, twice: for its own names, and for those of its
  folder `models` (transformers/utils/import_utils.py). The first answer contains the second.
- transformers and diffusers each ask which packages are installed, and read the lists of all.

Each answer stays what it was. What is changed for the time of the imports is restored after them.
Knows these libraries' imports. Ignorant of models, and of who imports this.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from types import FrameType, ModuleType
from typing import Any

from benchlib.collector import collector_paused

Structure = dict[frozenset[str], dict[str, set[str]]]
"""Of a folder of transformers, by the backends that are needed: modules, and their names."""


@contextmanager
def replaced(home: Any, name: str, value: Any) -> Iterator[None]:
    """`home` has `value` under `name` within the block, unless another replaces that, too."""
    usual = getattr(home, name)
    setattr(home, name, value)
    try:
        yield
    finally:
        if getattr(home, name) is value:
            setattr(home, name, usual)


class _Blocks:
    """The blocks of `fewer_looks` that run now, in all threads. The last to end restores."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.running = 0
        self.replacements = ExitStack()


_BLOCKS = _Blocks()


@contextmanager
def fewer_looks() -> Iterator[None]:
    """Within the block a frame's module is found by its name, and packages are listed once.

    Blocks of several threads may overlap: the first replaces, and the last to end restores.
    """
    with _BLOCKS.lock:
        if _BLOCKS.running == 0:
            _BLOCKS.replacements.enter_context(_answers_replaced())
        _BLOCKS.running += 1
    try:
        yield
    finally:
        with _BLOCKS.lock:
            _BLOCKS.running -= 1
            if _BLOCKS.running == 0:
                _BLOCKS.replacements.close()


@contextmanager
def _answers_replaced() -> Iterator[None]:
    module_of = inspect.getmodule
    listed = cache(importlib.metadata.packages_distributions)

    def module_by_name(object: Any, _filename: str | None = None) -> ModuleType | None:  # noqa: A002 - as Python names it
        if isinstance(object, FrameType):
            named = sys.modules.get(object.f_globals.get("__name__", ""))
            if named is not None and vars(named).get("__file__") == object.f_code.co_filename:
                return named
        return module_of(object, _filename)

    def packages() -> dict[str, list[str]]:
        return dict(listed())

    with (
        replaced(inspect, "getmodule", module_by_name),
        replaced(importlib.metadata, "packages_distributions", packages),
    ):
        yield


def within(folder: str, structure: Structure) -> Structure:
    """What lies in `folder`, named from within it. transformers adds its own modules to the whole."""
    start = f"{folder}."
    return {
        backends: {
            module.removeprefix(start): set(names)
            for module, names in found.items()
            if module.startswith(start)
        }
        for backends, found in structure.items()
    }


def import_models_of_transformers() -> None:
    """Import `transformers.models` by what `import transformers` has found in its files."""
    import transformers
    from transformers.utils import import_utils

    usual = getattr(import_utils, "define_import_structure", None)
    if usual is None or "transformers.models" in sys.modules:
        return
    folder = Path(transformers.__file__).parent / "models"

    def found_before(module_path: Any, prefix: str | None = None) -> Structure:
        if prefix is None and Path(module_path) == folder / "__init__.py":
            whole: Structure = usual(folder, prefix="models")  # transformers has cached it
            return within("models", whole)
        asked: Structure = usual(module_path, prefix)
        return asked

    with replaced(import_utils, "define_import_structure", found_before):
        import transformers.models


with collector_paused(), fewer_looks():
    import_models_of_transformers()
    from benchlib.serving.model import adapters, pipeline  # noqa: F401 - they import all others
