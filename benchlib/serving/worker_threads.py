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
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class WorkerThreads:
    """At most `count` daemon threads: each of the first calls starts one.

    Calls begin in the order of `submit`.
    """

    def __init__(self, name: str, count: int = 1) -> None:
        self.name = name
        self.count = count
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None ends a thread
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
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._change:
            if self._closed:
                raise RuntimeError(f"the threads {self.name!r} have ended")
            self._calls.put(call)
            if len(self._threads) < self.count:
                self._start_one()
        return future

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
            call()
            del call  # a thread that waits for the next call must not keep the last one's results
