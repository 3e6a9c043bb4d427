"""Clients that have closed their side of the connection: who waits for an answer, and who has left.

Both send the same FIN. What follows tells them apart: whoever has left answers each further byte by
a reset. So such a client is sent "100 Continue", which clients pass over (RFC 9110, section 15.2).

Knows sockets. Ignorant of requests and of limits.
"""

from __future__ import annotations

import asyncio
import socket

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
# A reset takes as long as the way to the client and back.
FIRST_LOOK_S = 0.05


def may_wait(transport: asyncio.Transport) -> bool:
    """Whether the client may still read; asyncio closes a connection of HTTPS by itself."""
    return transport.get_extra_info("ssl_object") is None


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has answered by a reset. asyncio no longer looks after its FIN."""
    connected = transport.get_extra_info("socket")
    return bool(connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
