"""A time limit for the handshakes of HTTPS. uvicorn sets none, and asyncio's own is 60 s.

Knows how asyncio makes a server. Ignorant of requests: a connection has none before its handshake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def limit_handshakes(loop: asyncio.AbstractEventLoop, limit_s: float) -> Callable[[], None]:
    """From now on, servers of `loop` that speak HTTPS close a client that is slower than `limit_s`.

    Returns the function that undoes it for servers to come. A server without HTTPS takes no such
    limit, so it stays as it is.
    """
    create = loop.create_server

    async def create_limited(*given: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", limit_s)
        server: asyncio.Server = await create(*given, **options)
        return server

    loop.create_server = create_limited  # type: ignore[method-assign]

    def undo() -> None:
        loop.create_server = create  # type: ignore[method-assign]

    return undo
