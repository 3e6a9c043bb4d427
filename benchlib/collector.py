"""Python's collector, paused while many objects are made that stay.

An import of torch and diffusers, a load and a first compilation make millions of objects. The
collector walks all of them again and again, and frees next to nothing. On two CPU cores that was a
quarter of the time of the imports, and a sixth of the time of a first image that is compiled.

Knows the collector's switch, which is one for the whole process. Ignorant of what is made.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pauses:
    """The blocks of all threads that run now. The last to end lets the collector go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._was_on = False

    def begin(self) -> None:
        with self._lock:
            if self._running == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._running += 1

    def end(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0 and self._was_on:
                _call_all_old()
                gc.enable()


def _call_all_old() -> None:
    """Move all objects to the oldest generation: the next full collection walks them, and no other.

    It would undo a `gc.freeze` of others, and then leaves it.
    """
    if gc.get_freeze_count() == 0:
        gc.freeze()
        gc.unfreeze()


_PAUSES = _Pauses()


@contextmanager
def collector_paused() -> Iterator[None]:
    """The collector does nothing within the block; other threads' garbage waits, too."""
    _PAUSES.begin()
    try:
        yield
    finally:
        _PAUSES.end()
