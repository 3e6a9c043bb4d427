"""Ends what still waits for an answer once a server's stop has taken long enough.

Knows asyncio's tasks. Ignorant of jobs, of connections, and of how long is long enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from benchlib.serving.unserved import Unserved

T = TypeVar("T")


class LastCall:
    """Awaits answers; `end_all` ends each wait with 503."""

    def __init__(self) -> None:
        self._ended = False
        self._waiting: set[asyncio.Task[Any]] = set()

    def end_all(self) -> None:
        """The server stops: everybody who waits is told so at once."""
        self._ended = True
        for task in tuple(self._waiting):
            task.cancel()

    async def wait_for(self, answer: Awaitable[T]) -> T:
        """Return what `answer` returns. Raises `Unserved` if `end_all` is called first."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            return await answer
        except asyncio.CancelledError:
            if not self._ended:
                raise
            task.uncancel()
            raise Unserved(503, "stopping", "the server is stopping") from None
        finally:
            self._waiting.discard(task)
