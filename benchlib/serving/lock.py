"""The lock on the app: without the API key there is no answer but /health's and a link's.

Knows the header Authorization. Ignorant of routes, and of how an error is written.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Callable

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from benchlib.serving.unserved import Unserved

log = logging.getLogger("uvicorn.error")  # uvicorn shows its own start-up lines by this name

OPEN_PATH = "/health"
_ASK = {"WWW-Authenticate": 'Bearer realm="benchlib"'}


class Lock:
    """ASGI middleware that refuses requests without `key`; None lets everybody in.

    It runs inside `Edge`. `refuse(http, error)` makes the answer. `is_link(path)` tells of a link to
    an image: whoever opens it, such as a browser, can send no key, and the link is a secret itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        refuse: Callable[[Request, Unserved], Response],
        is_link: Callable[[str], bool],
    ) -> None:
        self.app = app
        self.is_link = is_link
        self.key = None if key is None else key.encode()
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.key is None or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        http = Request(scope)
        path = http.state.path
        is_open = path == OPEN_PATH or self.is_link(path)
        fault = None if is_open else self._fault(http)
        if fault is None:
            await self.app(scope, receive, send)
            return
        answer = self.refuse(http, fault)
        await answer(scope, receive, send)

    def _fault(self, http: Request) -> Unserved | None:
        """What is wrong with the request's key. No text repeats a key, right or wrong."""
        assert self.key is not None
        header = http.headers.get("authorization")
        if header is None:
            words = "this server needs a key: send it as Authorization: Bearer KEY"
            return Unserved(401, "missing_api_key", words, headers=_ASK)
        scheme, _, given = header.partition(" ")
        # Headers are Latin-1; two texts with other characters can't be compared in constant time.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self.key)
        if scheme.lower() == "bearer" and is_right:
            return None
        words = "the key is wrong: send this server's as Authorization: Bearer KEY"
        return Unserved(401, "invalid_api_key", words, headers=_ASK)


def warn_of_open_door(host: str, key: str | None) -> None:
    """Log what it means to listen on `host`, unless a key is set or only this machine gets there."""
    if key is None and not _is_loopback(host):
        log.warning(
            "Without an API key, whoever reaches %s over the network can make images, read "
            "/metrics and take all of this machine's time. Set BENCHLIB_API_KEY, give api_key to "
            "bl.serve, or listen on 127.0.0.1.",
            host,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
