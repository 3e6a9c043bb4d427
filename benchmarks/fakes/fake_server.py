"""A fake image server that records every request: the truth for the load generator.

Run as a process of its own (`python fake_server.py --service-s 0.02`), it prints its port, and ends
with its stdin. GET /requests returns all requests in order of arrival. POST
/benchmark/generate, or OpenAI's /v1/images/generations, answers after the service time. The first
word of a prompt may name another behaviour: see MODES. Ignorant of benchlib.
"""

import argparse
import asyncio
import heapq
import json
import os
import sys
import time
from contextlib import suppress

MODES = {
    "busy": "503 with Retry-After and words",
    "binary": "500 with a body that is not UTF-8",
    "redirect": "307 to itself",
    "text": "200, but neither JSON nor Server-Timing",
    "drop": "reads the request and closes the connection",
    "half": "closes the connection in the middle of the body",
    "drip": "a byte of the body every 50 ms, for ever",
    "hang": "no answer at all, until the client has gone",
}


class FakeServer:
    """Works `service_s` seconds on each request, first come first served.

    It works on `lanes` requests at once (0: any number). It closes a connection that was idle for
    `keep_alive_s` seconds. `stall_after_s` after its first request, the whole server freezes once
    for `stall_s`.

    `seen` has a dict for each request: path, body, `request_id`, `authorization`, `connection` (a
    number), and four readings of time.monotonic(), null if they never came. `received_s` is the
    request's arrival. At `begun_s` it got a lane and at `ended_s` it left the lane. At `answered_s`
    the answer was sent.
    A lane is free exactly at `ended_s`, even if the answer is late, so delays don't add up in the
    queue.
    """

    def __init__(self, service_s, lanes=0, keep_alive_s=75.0, stall_s=0.0, stall_after_s=0.0):
        self.service_s = service_s
        self.keep_alive_s = keep_alive_s
        self.stall_s = stall_s
        self.stall_after_s = stall_after_s
        self.free_s = [0.0] * lanes  # a heap: from when on each lane is free
        self.seen = []
        self.connections = 0

    async def serve_connection(self, reader, writer):
        self.connections += 1
        connection = self.connections
        with suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            while True:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self.keep_alive_s)
                method_path, *lines = head.decode("latin-1").strip().split("\r\n")
                headers = {
                    name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method_path.startswith("GET /requests"):
                    self.answer(writer, 200, json.dumps(self.seen).encode())
                elif method_path.startswith(
                    ("POST /benchmark/generate ", "POST /v1/images/generations ")
                ):
                    request = {
                        "path": method_path.split()[1],
                        "body": json.loads(body),
                        "connection": connection,
                    }
                    if not await self.generate(reader, writer, headers, request):
                        break
                else:
                    self.answer(writer, 404, b'{"detail": "Not Found"}')
                await writer.drain()
        writer.close()

    async def generate(self, reader, writer, headers, request):
        """Answers one request. Returns False if the connection must be closed."""
        # 1) Note the request
        body = request["body"]
        request |= {"request_id": headers.get("x-request-id"), "received_s": time.monotonic()}
        request["authorization"] = headers.get("authorization")
        request |= {"begun_s": None, "ended_s": None, "answered_s": None}
        if self.stall_s and not self.seen:
            asyncio.get_running_loop().call_later(self.stall_after_s, time.sleep, self.stall_s)
        self.seen.append(request)

        # 2) Wait for a lane, and work for the service time
        mode = body["prompt"].split()[0]
        if mode == "drop":
            return False
        if mode == "hang":
            await reader.read(1)
            return False
        request["begun_s"] = max(request["received_s"], self.free_s[0] if self.free_s else 0.0)
        request["ended_s"] = request["begun_s"] + self.service_s
        if self.free_s:
            heapq.heapreplace(self.free_s, request["ended_s"])
        await asyncio.sleep(max(0.0, request["ended_s"] - time.monotonic() - 0.002))
        while time.monotonic() < request["ended_s"]:  # asyncio's timers come a millisecond late
            await asyncio.sleep(0)

        # 3) Answer as the mode says
        queued_s = request["begun_s"] - request["received_s"]
        total_s = time.monotonic() - request["received_s"]
        total = f"total;dur={total_s * 1000:.6f}"
        queue = f'queue;desc="waiting; in line, really";dur={queued_s * 1000:.6f}'
        timing = f"{total}, {queue}"
        figures = {"time_s": self.service_s, "mem_gb": 0.25, "model_params": 1}
        answer = json.dumps(body | figures).encode()
        if mode in ("half", "drip"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
            while mode == "drip":
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
            return False
        request["answered_s"] = time.monotonic()
        if mode == "busy":
            self.answer(
                writer,
                503,
                b'{"detail":\n "the queue is full"}',
                f"Retry-After: 1\r\nServer-Timing: {timing}\r\n",
            )
        elif mode == "binary":
            self.answer(writer, 500, b"\xff\xfe broken")
        elif mode == "redirect":
            self.answer(writer, 307, b"", "Location: /benchmark/generate\r\n")
        elif mode == "text":
            self.answer(writer, 200, b"an image, honestly", kind="text/plain")
        else:
            self.answer(
                writer,
                200,
                answer,
                f'Server-Timing: {timing}\r\nServer-Timing: batch;desc="1.5"\r\n',
            )
        return True

    def answer(self, writer, status, body, headers="", kind="application/json"):
        head = f"HTTP/1.1 {status} Words\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode() + body)


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--service-s", type=float, default=0.0)
    arguments.add_argument("--lanes", type=int, default=0)
    arguments.add_argument("--keep-alive-s", type=float, default=75.0)
    arguments.add_argument("--stall-s", type=float, default=0.0)
    arguments.add_argument("--stall-after-s", type=float, default=0.0)
    arguments.add_argument("--port", type=int, default=0)
    options = vars(arguments.parse_args())
    port = options.pop("port")
    server = await asyncio.start_server(FakeServer(**options).serve_connection, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
    )
    await stdin.read()
    os._exit(0)  # a request that is still served may hang for ever


if __name__ == "__main__":
    asyncio.run(main())
