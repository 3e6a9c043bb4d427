"""Weights files: what the header of a .safetensors file says, and why a file is none.

Knows the format safetensors. Ignorant of what the weights mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from benchlib.serving.model.model_errors import ModelError

_MOST_HEADER_BYTES = 10**8  # the limit of the safetensors library


@dataclass(frozen=True)
class Header:
    """The names, shapes and types of a file's tensors, and the file's metadata.

    `dtypes` are in the format's own words: F32, F16, BF16, F8_E4M3 and so on.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]

    def params(self, prefix: str = "") -> int:
        """The number of parameters of the tensors whose names begin with `prefix`."""
        chosen = [shape for name, shape in self.shapes.items() if name.startswith(prefix)]
        return sum(math.prod(shape) for shape in chosen)


def read_header(path: Path) -> Header:
    """The header of a .safetensors file. Raises `ModelError` if the file is damaged or another."""
    shapes = {}
    dtypes = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                tensor = tensors.get_slice(name)
                shapes[name] = tuple(tensor.get_shape())
                dtypes[name] = tensor.get_dtype()
    except (SafetensorError, OSError) as error:
        words = _obstacle(path) or _damage(path, error)
        raise ModelError(f"model: {path} {words}") from error
    return Header(path, shapes, dtypes, metadata)


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """The tensors of a .safetensors file that have these names, on the CPU. Reads no others."""
    with safe_open(path, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in names}


def count_params(files: Iterable[Path]) -> int:
    """The number of parameters in .safetensors files."""
    return sum(read_header(file).params() for file in files)


def _obstacle(path: Path) -> str | None:
    """Why a file can't be opened, and the remedy; None if it can."""
    if path.is_symlink() and not path.exists():
        return f"is a link to {path.readlink()}, which is not there; download the file again"
    try:
        path.open("rb").close()
    except OSError as error:
        return f"can't be opened ({error.strerror}); give a file that this user may read"
    return None


def _damage(path: Path, error: Exception) -> str:
    """What is wrong with a file that safetensors refuses, and the remedy."""
    # 1) Something else was downloaded in its place
    with path.open("rb") as file:
        first = file.read(64)
        if first.startswith(b"version https://git-lfs"):
            return "is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
        if first.lstrip().startswith(b"<"):
            return "is a web page, not the weights; log in where it lies, and download it again"

        # 2) A part is missing
        header_bytes = int.from_bytes(first[:8], "little")
        size = path.stat().st_size
        if 0 < header_bytes <= _MOST_HEADER_BYTES and size > 8:
            file.seek(8)
            named = _named_bytes(file.read(header_bytes))
            whole = 8 + header_bytes + (named or 0)
            if named is not None and size < whole:
                return f"is cut: it has {size:,} of {whole:,} bytes; download it again"
    return f"is no safetensors file ({error}); download it again"


def _named_bytes(header: bytes) -> int | None:
    """The bytes of weights that a header names; None if it is no header."""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        return int(max(tensor["data_offsets"][1] for tensor in tensors.values()))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
