"""The rivals that `serving.py` compares with benchlib's server, each in a process of its own.

    python -m benchmarks.rivals naive --port 8001

| rival     | what it is                                                                    |
|-----------|-------------------------------------------------------------------------------|
| `naive`   | a simple careful server: FastAPI, and one thread for the stock pipeline       |
| `loop`    | the stock pipeline without a server                                           |
| `batches` | benchlib's pipeline without a server, eight images at a time                  |
| `nothing` | benchlib's app on a model that takes no time                                  |
| `route`   | a bare route that gives a fixed answer and does not read the request          |

`loop` and `batches` read a line of JSON, `[seconds, [request, ...]]`. They make the images in turn,
again and again, until the seconds are over. Then they print the seconds of each image.

LitServe, which is optional, has a file of its own (litserve_rival.py).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchlib.serving.schemas import GenerateRequest

TOGETHER = 8


def stock_pipeline() -> Any:
    """The stock diffusers pipeline over tiny's weights, after a warm-up.

    Call it on the thread that made it (see torch_thread.py).
    """
    import torch

    from benchlib.serving.model.models import load_diffusers

    pipe = load_diffusers("tiny", device=torch.device("cpu"), dtype=torch.float32, seed=0)
    pipe.set_progress_bar_config(disable=True)
    make_images(pipe, [{"prompt": "warm-up", "width": 64, "height": 64, "num_inference_steps": 2}])
    return pipe


def make_images(pipe: Any, requests: list[dict[str, Any]]) -> list[Any]:
    """PIL images of requests that differ only in prompt and seed."""
    import torch

    options = {key: value for key, value in requests[0].items() if value is not None}
    for name in ("prompt", "seed"):
        options.pop(name, None)
    prompts = [request["prompt"] for request in requests]
    seeds = [torch.Generator("cpu").manual_seed(request.get("seed") or 0) for request in requests]
    images: list[Any] = pipe(prompts, generator=seeds, **options).images
    return images


def naive() -> FastAPI:
    app = FastAPI()
    worker = ThreadPoolExecutor(max_workers=1)
    pipe = worker.submit(stock_pipeline).result()

    @app.post("/benchmark/generate")
    async def generate(body: GenerateRequest) -> dict[str, Any]:
        started_s = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(
            worker, make_images, pipe, [body.model_dump()]
        )
        return {"prompt": body.prompt, "time_s": time.monotonic() - started_s}

    return app


def nothing() -> FastAPI:
    from PIL import Image

    from benchlib.serving.app import create_app
    from benchlib.serving.engine.engine import Engine
    from benchmarks.fakes.fake_pipeline import FakePipeline

    class NoTime(FakePipeline):
        """A fake that notes no calls and makes no new images.

        Both would take longer than the engine.
        """

        def step(self, works: Any, *, rows: int | None = None) -> float:  # noqa: ARG002
            for work in works:
                work.steps_done += 1
                work.step_s.append(0.0)
                work.batch_rows += len(works)
            return 1e-6  # warm-up divides by the time of a step

        def decode(self, works: Any) -> list[Any]:
            return [image] * len(works)

    image = Image.new("RGB", (8, 8))
    return create_app(Engine(NoTime))


def route() -> FastAPI:
    app = FastAPI()

    @app.post("/benchmark/generate")
    async def generate() -> dict[str, Any]:
        return {
            "prompt": "a cat",
            "time_s": 0.003,
            "mem_gb": 0.5,
            "num_inference_steps": 8,
            "guidance_scale": 7.5,
            "width": 64,
            "height": 64,
            "model_params": 7,
        }

    return app


def loop() -> None:
    pipe = stock_pipeline()
    repeat(1, lambda requests: make_images(pipe, requests))


def batches() -> None:
    from benchlib.serving.model.loading import load_pipeline

    pipe = load_pipeline("tiny", device="cpu")
    usual = GenerateRequest(prompt="warm-up", num_inference_steps=2, width=64, height=64)
    pipe.generate([usual] * TOGETHER)

    def make(requests: list[dict[str, Any]]) -> None:
        pipe.generate([GenerateRequest(**request) for request in requests])

    repeat(TOGETHER, make)


def repeat(together: int, make: Callable[[list[dict[str, Any]]], object]) -> None:
    """Makes `together` images at a time, for the seconds of each line of standard input."""
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, requests = json.loads(line)
        end_s = time.monotonic() + seconds
        took_s: list[float] = []
        endless = itertools.cycle(requests)
        while (started_s := time.monotonic()) < end_s:
            make(list(itertools.islice(endless, together)))
            each_s = (time.monotonic() - started_s) / together
            took_s += [each_s] * together
        print(json.dumps(took_s), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A rival of benchlib's server.")
    parser.add_argument("rival", choices=["naive", "loop", "batches", "nothing", "route"])
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    if options.rival in ("loop", "batches"):
        return loop() if options.rival == "loop" else batches()
    make = {"naive": naive, "nothing": nothing, "route": route}[options.rival]
    return uvicorn.run(make(), port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
