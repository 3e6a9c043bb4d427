"""The one thread of this process that computes with torch.

On a CPU, each thread that calls torch grows an OpenMP pool of its own. libgomp stops spinning at
its barriers once all pools together have more threads than cores. With two callers on two cores,
images of the tiny model took 2.5 to 3.5 times as long. So loading, warm-up, `generate` and the
engine all compute here and take turns. Ignorant of what is computed.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, ParamSpec, TypeVar

from benchlib.printing import print_line
from benchlib.serving.long_start import wait_and_tell
from benchlib.serving.worker_threads import WorkerThreads

P = ParamSpec("P")
T = TypeVar("T")

_thread = WorkerThreads("benchlib-torch")


def on_torch_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` on the torch thread after earlier calls; return or raise what it does."""
    if _thread.here():
        return function(*args, **kwargs)
    return _thread.submit(function, *args, **kwargs).result()


def long_torch_call(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `on_torch_thread`, for a call that may take long: it prints so after 20 s, and at its end.

    The lines are "sdxl: loading the model, 20 s so far" and "sdxl: loading the model took 25 s", if
    that is `what`. A call from the torch thread itself prints nothing, because another thread waits
    for it. So an engine that loads has the lines of its own start only.
    """
    if _thread.here():
        return function(*args, **kwargs)
    future = _thread.submit(function, *args, **kwargs)
    took_s = _wait_for(future, what)
    try:
        result = future.result()
    finally:
        del future  # an error's traceback holds this frame, which must not lead back to the error
    if took_s is not None:
        print_line(f"{what} took {took_s:.0f} s")
    return result


def _wait_for(future: Future[Any], what: str) -> float | None:
    """Return once `future` has ended: the seconds of a long wait, or None."""

    def ends_within(seconds: float) -> bool:
        return bool(wait([future], seconds).done)

    return wait_and_tell(ends_within, lambda: what, print_line)


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
