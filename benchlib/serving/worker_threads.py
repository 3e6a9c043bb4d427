"""Threads that carry out calls one by one, and that may outlive the script that started them.

An executor of the standard library refuses work as soon as the main thread has ended, and Python
waits for all of its queued calls. At that time a server still has requests to finish and others to
drop. So these are daemon threads, and their owner ends them with `close`. Ignorant of what the
calls do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class QueuedCall(Generic[T]):
    """A call to be made, and the future of its result."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._function = function

    def carry_out(self) -> None:
        """Make the call, unless its future has been cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            self.future.set_exception(error)
            # The error's traceback holds this frame: it must not lead back to the error.
            del self
        else:
            self.future.set_result(result)


class WorkerThreads:
    """At most `count` daemon threads: each of the first calls starts one.

    Calls begin in the order of `submit`.
    """

    def __init__(self, name: str, count: int = 1) -> None:
        self.name = name
        self.count = count
        self._calls: SimpleQueue[QueuedCall[Any] | None] = SimpleQueue()  # None ends a thread
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._change = threading.Lock()

    @property
    def calls_wait(self) -> bool:
        """Whether a call waits for a thread, or `close` does."""
        return not self._calls.empty()

    def here(self) -> bool:
        """Whether the caller runs on one of these threads."""
        return threading.current_thread() in self._threads

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call and return its future. Raises RuntimeError after `close`."""
        call = QueuedCall(partial(function, *args, **kwargs))
        with self._change:
            if self._closed:
                raise RuntimeError(f"the threads {self.name!r} have ended")
            self._calls.put(call)
            if len(self._threads) < self.count:
                self._start_one()
        return call.future

    def close(self) -> None:
        """End the threads once they have carried out the waiting calls."""
        with self._change:
            self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _start_one(self) -> None:
        name = f"{self.name}-{len(self._threads)}"
        thread = threading.Thread(target=self._main_loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _main_loop(self) -> None:
        while (call := self._calls.get()) is not None:
            call.carry_out()
            del call  # a thread that waits for the next call must not keep the last one's results
