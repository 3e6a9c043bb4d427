"""The one thread of this process that computes with torch.

On a CPU each thread that calls torch grows an OpenMP pool of its own, and libgomp stops spinning at its barriers once
the pools together have more threads than there are cores: with two callers, 2 cores and the tiny model every image
took 2.5 to 3.5 times as long. So loading, warming up, `generate` and the engine all compute here, and take turns.
Ignorant of what is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NAME = "benchlib-torch"
_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=_NAME)
_change = threading.Lock()
_waiting = 0


def compute(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` on the torch thread, after what is under way there; return or raise what it does."""
    if threading.current_thread().name.startswith(_NAME):
        return function(*args, **kwargs)

    def begin() -> T:
        _count(-1)
        return function(*args, **kwargs)

    _count(1)
    return _executor.submit(begin).result()


def others_wait() -> bool:
    """Whether somebody waits for the torch thread: then what runs there, and could go on, had better stop."""
    return _waiting > 0


def _count(change: int) -> None:
    global _waiting
    with _change:
        _waiting += change
