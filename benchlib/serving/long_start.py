"""Waits for what may take long, such as a model's start, and tells meanwhile what is done.

Knows the clock and the words of a line. Ignorant of how a model is loaded and where a line goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchlib.serving.backend import Backend

TELL_EVERY_S = 20.0


def wait_and_tell(
    ends_within: Callable[[float], bool], what: Callable[[], str], tell: Callable[[str], None]
) -> float | None:
    """Return once `ends_within(seconds)` is true. A wait below TELL_EVERY_S tells nothing.

    A longer one tells lines such as "sdxl: loading the model, 20 s so far", in which `what` gives the
    words before the comma. Returns its seconds, or None if nothing was told.
    """
    began_s = time.monotonic()
    if ends_within(TELL_EVERY_S):
        return None
    ended = False
    while not ended:
        tell(f"{what()}, {time.monotonic() - began_s:.0f} s so far")
        ended = ends_within(TELL_EVERY_S)
    return time.monotonic() - began_s


def wait_for_start(engine: Backend[Any], model: str, tell: Callable[[str], None]) -> None:
    """Return once `engine` is ready or has failed. A start below TELL_EVERY_S tells nothing.

    A longer one tells what it does. Where it ends well, the last line is "sdxl: ready after 190 s".
    """

    def who() -> str:
        replicas = len(engine.replicas)
        if not replicas:
            return model
        return "1 replica" if replicas == 1 else f"{replicas} replicas"

    took_s = wait_and_tell(engine.settled.wait, lambda: f"{who()}: {engine.doing}", tell)
    if took_s is not None and engine.state == "ready":
        tell(f"{who()}: ready after {took_s:.0f} s")
