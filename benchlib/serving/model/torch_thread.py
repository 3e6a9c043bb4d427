"""The one thread of this process that computes with torch.

On a CPU, each thread that calls torch grows an OpenMP pool of its own. libgomp stops spinning at
its barriers once all pools together have more threads than cores. With two callers on two cores,
images of the tiny model took 2.5 to 3.5 times as long. So loading, warm-up, `generate` and the
engine all compute here and take turns. Ignorant of what is computed.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from benchlib.serving.worker_threads import WorkerThreads

P = ParamSpec("P")
T = TypeVar("T")

_thread = WorkerThreads("benchlib-torch")


def on_torch_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` on the torch thread after earlier calls; return or raise what it does."""
    if _thread.here():
        return function(*args, **kwargs)
    return _thread.submit(function, *args, **kwargs).result()


def repeat_on_torch_thread(function: Callable[[], bool]) -> None:
    """Call `function` on the torch thread until it returns False.

    Other callers get their turn in between. Handing over every single call would cost more than a
    denoising step of a small model.
    """

    def repeat() -> bool:
        again = function()
        while again and not others_wait():
            again = function()
        return again

    while on_torch_thread(repeat):
        pass


def others_wait() -> bool:
    """Whether a call waits for the torch thread. A call that can pause should then pause."""
    return _thread.calls_wait


@atexit.register
def _close() -> None:
    """End the thread: inside torch it would crash the process when the interpreter ends."""
    _thread.close()
