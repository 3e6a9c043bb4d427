"""Marks when a request got its connection and its answer, and tests if a connection lives.

geventhttpclient's pool lacks all three. Knows the pool's private functions, which have no
public counterpart. Ignorant of users, plans and rows.
"""

# gevent's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import time
from select import POLLIN
from typing import Any

import gevent
import gevent.socket
from gevent.local import local
from gevent.monkey import get_original

poll = get_original("select", "poll")
sending = local()
"""Each greenlet's own: `sending.call` is the request that it is sending."""


def mark_moments(pool: Any) -> None:
    """Makes `pool` mark `sent_s` and `read_s` of each greenlet's call, and use `is_alive` below.

    Waiting for a connection is send lag: a request counts as sent once it has one.
    """
    get_socket = pool.get_socket

    def get_socket_and_mark() -> Any:
        socket = get_socket()
        sending.call.sent_s = time.monotonic()
        return socket

    pool.get_socket = get_socket_and_mark
    pool._create_tcp_socket = MarkingSocket
    pool._is_socket_alive = is_alive


class MarkingSocket(gevent.socket.socket):  # type: ignore[misc]
    """Marks when an answer could be read, before this process works on any other answer."""

    def recv(self, *args: Any) -> bytes:
        data: bytes = super().recv(*args)
        sending.call.read_s = time.monotonic()
        gevent.sleep(0)
        return data


def is_alive(socket: Any) -> bool:
    """Whether an idle connection is still good.

    The server must have sent nothing on it, and must not have closed it. The test of
    geventhttpclient lets all other greenlets run first, and takes each connection past the 1,024th
    for dead.
    """
    waiting = poll()
    waiting.register(socket, POLLIN)
    return not waiting.poll(0)
