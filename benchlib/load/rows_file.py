"""Appends rows to requests.jsonl, so that no kill loses a row whose write returned.

Knows files and JSON. Ignorant of what a row means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def line_of(row: Mapping[str, Any]) -> bytes:
    """The line of a row, with its newline."""
    text = json.dumps(row, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


class RowsFile:
    """A file that is open for appending: one `write` for each row, or for a batch of them."""

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._fd = os.open(path, flags, 0o644)

    def append(self, row: Mapping[str, Any]) -> None:
        self.write(line_of(row))

    def write(self, lines: bytes) -> None:
        """Appends whole lines. Raises OSError where the disk took only a part of them."""
        written = os.write(self._fd, lines)
        if written != len(lines):
            raise OSError("a row was written in part only: is the disk full?")
