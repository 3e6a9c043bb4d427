"""The access log: a line of JSON for each request, once its answer has begun.

Knows what a line holds: no prompt, no key, and no path, because the path of an image's link is a
secret. Ignorant of routes, and of who made the times.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchlib.printing import print_line
from benchlib.server_timing import parse_server_timing, replica_of

log = logging.getLogger("benchlib.access")
servers_log = logging.getLogger("uvicorn.error")


class AccessLog:
    """ASGI middleware that logs each request by the logger "benchlib.access", if it is `on`.

    It runs inside `Edge`. The lines go to stdout, unless the logger has a handler.
    """

    def __init__(self, app: ASGIApp, on: bool) -> None:
        self.app = app
        self.on = on
        if on:
            log.setLevel(logging.INFO)
            log.propagate = False
            if not log.handlers:
                log.addHandler(StdoutHandler())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.on or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        headers = Headers()

        async def watched_send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = Headers(raw=message["headers"])
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        finally:
            log.info(json.dumps(access_line(scope, status, headers)))


class StdoutHandler(logging.Handler):
    """Writes to what is stdout at the time: a notebook and a test have their own.

    Once nobody reads stdout, the lines go to uvicorn's log.
    """

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record), otherwise=servers_log)


def access_line(scope: Scope, status: int, headers: Mapping[str, str]) -> dict[str, Any]:
    """What is logged of a request, by the ASGI scope that its route has filled.

    `queue_s` and so on are those of the answer's Server-Timing, in seconds; an answer without has
    `total_s` alone. `route` is None if there is no such route. `steps` are summed over the images.
    """
    state = scope["state"]
    route = scope.get("route")
    client = scope.get("client")
    line = {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": state["request_id"],
        "client": client[0] if client else None,
        "method": state["method"],
        "route": getattr(route, "path", None),
        "status": status,
    }
    jobs = state.get("jobs", ())
    if jobs:
        request = jobs[0].request
        line["images"] = len(jobs)
        line["width"] = request.width
        line["height"] = request.height
        line["steps"] = sum(job.request.num_inference_steps for job in jobs)
    line["total_s"] = time.monotonic() - state["arrived_s"]
    timing = parse_server_timing(headers.get("server-timing", ""))
    for part, metric in timing.items():
        if "dur" in metric:
            line[f"{part}_s"] = float(metric["dur"]) / 1000
        elif part == "batch":
            line["batch_size"] = float(metric["desc"])
    line.update(replica_of(timing))
    return line
