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
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchlib.serving import server as server_module
from benchlib.serving.app import create_app
from benchlib.serving.engine.engine import Engine
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchmarks.fakes.faulty_pipeline import FaultyPipeline, digest, smallest_pipeline
from benchmarks.soak_plan import SIZES, shots

MOST_TOGETHER = 4
DEADLINE_S = 2.0
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


def record_answers(folder: Path) -> None:
    """From here on each app that `serve` makes has a recorder, with a file named by its policy."""

    def recorded_app(engine: Engine, *options: Any, **named_options: Any) -> FastAPI:
        app = create_app(engine, *options, **named_options)
        path = folder / f"{engine.options.batching}.jsonl"
        app.add_middleware(Recorder, path=path)
        return app

    server_module.create_app = recorded_app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the records of the answers go")
    parser.add_argument("--batching", nargs="+", default=["continuous"])
    parser.add_argument("--port", type=int, default=0, help="of a single policy")
    parser.add_argument("--bare", action="store_true", help="know no image's digest")
    chosen = parser.parse_args()

    # 1) The truth, before any fault
    pipeline = FaultyPipeline(on_torch_thread(smallest_pipeline))
    truth = {} if chosen.bare else make_truth(pipeline)
    pipeline.truth = truth

    # 2) Serve
    record_answers(chosen.folder)
    servers = {}
    for batching in chosen.batching:
        servers[batching] = server_module.serve(
            pipeline,
            batching=batching,
            max_batch_size=MOST_TOGETHER,
            sizes=SIZES[:1],
            deadline_s=DEADLINE_S,
            name=batching,
            port=chosen.port,
        )
    urls = {batching: server.url for batching, server in servers.items()}
    print(json.dumps({"urls": urls, "truth": truth}), flush=True)

    # 3) Until stdin ends
    sys.stdin.read()
    for server in servers.values():
        server.stop()
    print(json.dumps({"made": pipeline.made, "wrong": pipeline.wrong}), flush=True)


if __name__ == "__main__":
    main()
