"""The edge of the app: what holds for every request, whichever route it takes.

Knows arrival times, request ids, the largest body, the prefix of a proxy, and that HEAD is GET
without a body. Ignorant of routes and of what they answer.
"""

from __future__ import annotations

import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2**20
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
OWN_FOLDERS = ("/v1", "/benchmark", "/images")
"""The first parts of our routes that have several."""


class Edge:
    """ASGI middleware: notes a request's arrival, id and path, and limits its body.

    `root_path` is a proxy's prefix, such as "/sdxl". uvicorn's own `--root-path` and the header
    X-Forwarded-Prefix say the same. The proxy may take it off the path or leave it on.
    `http.state.path` is the path without it.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        # 1) What routes and error handlers read
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            # uuid4 would call the kernel and hand the interpreter's lock to the torch thread.
            request_id = f"{random.getrandbits(128):032x}"
        state = scope.setdefault("state", {})
        state.update(arrived_s=time.monotonic(), request_id=request_id, method=scope["method"])
        scope = {**scope, **self._place(scope, headers)}
        state["path"] = scope["path"].removeprefix(scope["root_path"])

        # 2) A HEAD request takes the route of GET
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope["method"] = "GET"

        # 3) The body and the answer
        received = 0
        is_too_large = int(headers.get("content-length", 0)) > MAX_BODY_BYTES

        async def bounded_receive() -> Message:
            nonlocal received
            if not is_too_large:
                message = await receive()
                received += len(message.get("body", b""))
                if received <= MAX_BODY_BYTES:
                    return message
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")

        async def tagged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            elif is_head:
                message["body"] = b""
            await send(message)

        await self.app(scope, bounded_receive, tagged_send)

    def _place(self, scope: Scope, headers: Headers) -> dict[str, str]:
        """The path and the prefix, as ASGI has them: the path begins with the prefix, once."""
        # 1) The prefix: the proxy's word is the newest
        given: str = scope.get("root_path", "")
        prefix = "/" + (given or self.root_path).strip("/")
        forwarded = headers.get("x-forwarded-prefix", "").rstrip("/")
        if _PREFIX.fullmatch(forwarded):
            prefix = forwarded
        prefix = prefix.rstrip("/")

        # 2) The path without what uvicorn put before it
        path: str = scope["path"].removeprefix(given)
        path = "/" + path.removeprefix("/")
        # 3) And without the prefix that the proxy left on
        if prefix not in OWN_FOLDERS and f"{path}/".startswith(f"{prefix}/"):
            path = path.removeprefix(prefix) or "/"
        return {"path": prefix + path, "root_path": prefix}
