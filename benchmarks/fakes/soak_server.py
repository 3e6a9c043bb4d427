"""Our server over a faulty pipeline, in a process of its own that keeps a record of each answer.

    python -m benchmarks.fakes.soak_server FOLDER --batching serial dynamic continuous

serves each policy on a port of its own. When all are ready, it prints a line of JSON: the URLs by
policy, and the digests of the images by seed. It ends with its stdin, and prints how many images
it made and how many were wrong. FOLDER gets `POLICY.jsonl`: one line a request, with one `write`,
before the answer begins to leave. Ignorant of who asks.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchlib.serving.app import create_app
from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.server import DrainingServer
from benchmarks.fakes.faulty_pipeline import FaultyPipeline, digest, smallest_pipeline
from benchmarks.soak_plan import SIZES, shots

MOST_TOGETHER = 4
DEADLINE_S = 3.0
RECORDED = ("/v1/images", "/benchmark")


class Recorder:
    """ASGI middleware: appends the id, the route and the status of each answer to a file."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self.app = app
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(RECORDED):
            await self.app(scope, receive, send)
            return
        status: int | None = None

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._note(scope, status)
            await send(message)

        try:
            await self.app(scope, receive, noted_send)
        finally:
            if status is None:
                self._note(scope, None)

    def _note(self, scope: Scope, status: int | None) -> None:
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode()
        line = {"id": request_id, "path": scope["path"], "status": status}
        os.write(self._file, f"{json.dumps(line)}\n".encode())


def make_truth(pipeline: FaultyPipeline) -> dict[int, str]:
    """The digest of each image, made alone and without a fault, by its seed.

    Each batch of each size is computed once too, because a shape's first call reserves memory.
    """
    truth = {}
    for shot in shots():
        request = GenerateRequest(**shot.to_request())
        [image] = pipeline.generate(request).images
        truth[shot.seed] = digest(image)
    for width, height in SIZES:
        request = GenerateRequest(prompt="a", num_inference_steps=1, width=width, height=height)
        for count in range(2, MOST_TOGETHER + 1):
            pipeline.generate([request] * count)
    return truth


@dataclass(frozen=True)
class Serving:
    """One policy's server, on a thread."""

    server: DrainingServer
    thread: threading.Thread
    url: str

    def stop(self) -> None:
        """Finish what is inside, and wait for the thread."""
        self.server.should_exit = True
        self.thread.join()


def serve_policy(pipeline: FaultyPipeline, batching: str, folder: Path) -> Serving:
    """Serve by one policy; return when it is ready. Raises what its warm-up raises."""
    engine = Engine(pipeline, EngineOptions(batching=batching, max_batch_size=MOST_TOGETHER))
    app = create_app(engine, deadline_s=DEADLINE_S)
    app.add_middleware(Recorder, path=folder / f"{batching}.jsonl")
    # Unless IPPROTO_TCP is named, asyncio leaves Nagle's algorithm on, which costs 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = DrainingServer(app, engine, log_level="warning")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name=batching)
    thread.start()
    engine.settled.wait()
    if engine.failure is not None:
        server.should_exit = True
        raise engine.failure
    return Serving(server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the records of the answers go")
    parser.add_argument("--batching", nargs="+", default=["continuous"])
    chosen = parser.parse_args()

    # 1) The truth, before any fault
    pipeline = FaultyPipeline(on_torch_thread(smallest_pipeline))
    truth = make_truth(pipeline)
    pipeline.truth = truth
    pipeline.made = 0

    # 2) Serve
    serving = {
        batching: serve_policy(pipeline, batching, chosen.folder) for batching in chosen.batching
    }
    urls = {batching: one.url for batching, one in serving.items()}
    print(json.dumps({"urls": urls, "truth": truth}), flush=True)

    # 3) Until stdin ends
    sys.stdin.read()
    for one in serving.values():
        one.stop()
    print(json.dumps({"made": pipeline.made, "wrong": pipeline.wrong}), flush=True)


if __name__ == "__main__":
    main()
