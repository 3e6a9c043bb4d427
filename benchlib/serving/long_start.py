"""Waits for a model to be ready, and tells what a long start does meanwhile.

Knows the clock and the words of a line. Ignorant of how a model is loaded and where a line goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchlib.serving.backend import Backend

TELL_EVERY_S = 20.0


def wait_for_start(engine: Backend[Any], model: str, tell: Callable[[str], None]) -> None:
    """Return once `engine` is ready or has failed. A start below TELL_EVERY_S tells nothing.

    A longer one tells lines such as "sdxl: loading the model, 20 s so far". Where it ends well, the
    last line is "sdxl: ready after 190 s".
    """
    began_s = time.monotonic()
    if engine.settled.wait(TELL_EVERY_S):
        return
    who = model
    replicas = len(engine.replicas)
    if replicas:
        who = "1 replica" if replicas == 1 else f"{replicas} replicas"
    settled = False
    while not settled:
        tell(f"{who}: {engine.doing}, {time.monotonic() - began_s:.0f} s so far")
        settled = engine.settled.wait(TELL_EVERY_S)
    if engine.state == "ready":
        tell(f"{who}: ready after {time.monotonic() - began_s:.0f} s")
