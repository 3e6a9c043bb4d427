"""Users of the soak: they send asks, some of them badly, and keep a record of what came back.

Knows sockets and HTTP. Ignorant of the server's insides, of policies and of what is judged. All
run on one thread, in one event loop.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from PIL import Image

from benchmarks.fakes.faulty_pipeline import digest
from benchmarks.soak_plan import IMAGES, Ask

TIMEOUT_S = 120.0
SLOW_BYTES = 4096
SLOW_PAUSE_S = 0.02
LEFT_WITHIN_S = 0.3


@dataclass(frozen=True)
class Seen:
    """What a user saw: `status` is None where the user left, or the connection ended.

    `wrong` counts the images whose pixels are not the right ones. `at_s` is the reading of
    time.monotonic() when the ask was sent.
    """

    ask: Ask
    request_id: str
    at_s: float
    took_s: float
    status: int | None
    wrong: int = 0
    problem: str | None = None

    @property
    def expected(self) -> bool:
        """Whether this is an answer that the ask may get."""
        if self.ask.kind == "left":
            return self.problem is None
        return self.status in self.ask.statuses and not self.wrong and self.problem is None


class Users:
    """So many users of one server, who take the next ask from a common plan."""

    def __init__(self, url: str, truth: Mapping[int, str], *, name: str, count: int) -> None:
        self.url = url
        self.name = name
        self.count = count
        self.truth = truth
        self.seen: list[Seen] = []
        self._port = urlsplit(url).port
        self._numbers = itertools.count()
        self._draw = random.Random(name)

    async def run(self, asks: Iterator[Ask], goes_on: Callable[[], bool]) -> None:
        """Send asks until they end or `goes_on()` is false, and wait for the last answers."""
        limits = httpx.Limits(max_connections=self.count, max_keepalive_connections=self.count)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as client:

            async def user() -> None:
                while goes_on():
                    ask = next(asks, None)
                    if ask is None:
                        return
                    self.seen.append(await self._send(client, ask))

            await asyncio.gather(*(user() for _ in range(self.count)))

    async def _send(self, client: httpx.AsyncClient, ask: Ask) -> Seen:
        request_id = f"{self.name}-{next(self._numbers)}"
        at_s = time.monotonic()
        status = None
        body = b""
        problem = None
        try:
            if ask.kind == "left":
                await self._leave(ask, request_id)
            elif ask.kind == "slow":
                status, body = await self._read_slowly(ask, request_id)
            else:
                headers = {"X-Request-ID": request_id, "Content-Type": "application/json"}
                answer = await client.post(self.url + ask.path, content=ask.body, headers=headers)
                status = answer.status_code
                body = answer.content
                if answer.headers.get("x-request-id") != request_id:
                    problem = "the answer has another request's id"
                elif status == 503 and "retry-after" not in answer.headers:
                    problem = "it does not say when to try again"
        except (httpx.HTTPError, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
        took_s = time.monotonic() - at_s
        wrong = 0
        if status == 200 and ask.path == IMAGES:
            wrong = self._count_wrong(ask, body)
        return Seen(ask, request_id, at_s, took_s, status, wrong, problem)

    def _count_wrong(self, ask: Ask, body: bytes) -> int:
        files = [base64.b64decode(one["b64_json"]) for one in json.loads(body)["data"]]
        digests = [digest(Image.open(io.BytesIO(file))) for file in files]
        right = [self.truth[seed] for seed in ask.seeds]
        if len(digests) != len(right):
            return abs(len(digests) - len(right))
        return sum(one != other for one, other in zip(digests, right, strict=True))

    def _head(self, ask: Ask, request_id: str) -> bytes:
        lines = (
            f"POST {ask.path} HTTP/1.1",
            f"Host: 127.0.0.1:{self._port}",
            "Content-Type: application/json",
            f"X-Request-ID: {request_id}",
            f"Content-Length: {len(ask.body)}",
            "Connection: close",
        )
        return "\r\n".join((*lines, "", "")).encode()

    async def _leave(self, ask: Ask, request_id: str) -> None:
        """Send the whole request, and go away after a moment without a word."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._head(ask, request_id) + ask.body)
        await writer.drain()
        await asyncio.sleep(self._draw.uniform(0, LEFT_WITHIN_S))
        writer.close()
        await writer.wait_closed()

    async def _read_slowly(self, ask: Ask, request_id: str) -> tuple[int, bytes]:
        """Send the request, and read the answer a little at a time."""
        # A small buffer of our own: a large one would take the whole answer from the server.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=SLOW_BYTES)
        try:
            writer.write(self._head(ask, request_id) + ask.body)
            answer = b""
            while part := await reader.read(SLOW_BYTES):
                answer += part
                await asyncio.sleep(SLOW_PAUSE_S)
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body
