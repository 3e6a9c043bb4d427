"""Prints a line at once. Where nobody can read it any more, the line goes to the log instead.

Standard library only. Knows streams whose reader has ended. Ignorant of what a line says: all wings
know this file.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress
from functools import cache
from typing import TextIO

log = logging.getLogger("benchlib")


def print_line(
    words: object, stream: TextIO | None = None, *, otherwise: logging.Logger = log
) -> None:
    """Print `words` to `stream`, which is stdout by default. Never raises if that can't be written.

    The reader of a pipe may end, as in `... | head -1`; a terminal may close; a disk may be full.
    What is served or measured goes on. The words go to the log `otherwise` then, as INFO; a warning
    before the first of them says so.
    """
    place = stream or sys.stdout
    if place is None:  # the program was started without one
        otherwise.info("%s", words)
        return
    try:
        place.write(f"{words}\n")
        place.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed, or can't spell a letter
        _warn_once(place, str(error), otherwise)
        otherwise.info("%s", words)


@cache
def _warn_once(place: TextIO, reason: str, otherwise: logging.Logger) -> None:
    name = getattr(place, "name", "a stream")
    words = "%s can't be written (%s): its lines go to this log, as INFO"
    otherwise.warning(words, name, reason)
    for stream in (place, sys.stderr):  # the log may go to a stderr that nobody reads either
        atexit.register(flush_or_drop, stream)


def flush_or_drop(place: TextIO | None) -> None:
    """Write what `place` still holds, or drop it if nobody can read it.

    Python's own end would try in vain, and change the exit status to 120.
    """
    if place is None:
        return
    try:
        place.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, place.fileno())
            os.close(nowhere)
