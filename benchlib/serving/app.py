"""The HTTP face of an engine: `create_app(engine)` -> FastAPI.

Knows HTTP: routes, error bodies, headers, limits of a body. Ignorant of torch, and of how the engine is waited for
(desk.py). `app` is made on first access, from the BENCHLIB_* settings, so that
`uvicorn benchlib.serving.app:app` works and importing `create_app` loads no model.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchlib.serving import openai_images
from benchlib.serving.engine.engine import Engine
from benchlib.serving.handoff import Desk, server_timing, unserved_timing
from benchlib.serving.schemas import GenerateRequest, GenerateResponse, Health, Problem, Readiness

log = logging.getLogger("uvicorn.error")  # shown by uvicorn as its own start-up lines are

MAX_BODY_BYTES = 2**20
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def _numbers(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


def _sizes(value: object) -> object:
    return [size.split("x") for size in value.split(",")] if isinstance(value, str) else value


class Settings(BaseSettings):
    """What the stand-alone server reads from the environment: BENCHLIB_MODEL, BENCHLIB_DEVICE and so on."""

    model_config = SettingsConfigDict(env_prefix="BENCHLIB_", extra="ignore")

    model: str = Field(
        "auto",
        description="auto (sdxl on CUDA, else tiny), tiny, sdxl, sdxl-random, hub id, folder, file",
    )
    device: str = Field(
        default="auto", description="auto (CUDA, else the CPU), cpu, cuda, cuda:1, mps"
    )
    dtype: str = Field(
        default="auto",
        description="auto (float16 on CUDA, else float32), float32, float16, bfloat16",
    )
    recipe: str = Field(
        default="baseline", description="named optimisations, such as channels-last+vae-tiling"
    )
    batching: Literal["serial", "dynamic", "continuous"] = Field(
        default="continuous",
        description="how requests share the model: serial, dynamic or continuous",
    )
    max_batch_size: int = Field(default=8, ge=1, description="most requests in one denoising step")
    max_wait_ms: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="how long dynamic batching waits for company",
    )
    batch_buckets: Annotated[list[int] | None, NoDecode, BeforeValidator(_numbers)] = Field(
        default=None, description="batch sizes to pad to, as compiled models want it: 1,2,4"
    )
    sizes: Annotated[list[tuple[int, int]] | None, NoDecode, BeforeValidator(_sizes)] = Field(
        default=None,
        description="sizes that are measured before it is ready: 1024x1024,512x512; its own if not given",
    )
    seed: int = Field(default=0, ge=0, description="draws the weights of the random models")
    torch_threads: int | None = Field(
        default=None, ge=1, description="CPU threads of torch; torch's own choice if not given"
    )
    max_queue: int = Field(
        default=64, ge=1, description="requests that may wait; one more gets 503"
    )
    deadline_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="a slower request gets 504"
    )
    max_pixel_steps: int | None = Field(
        None, ge=1, description="most width x height x steps of a request; more gets 422"
    )


def create_app(
    engine: Engine, *, deadline_s: float | None = None, max_pixel_steps: int | None = None
) -> FastAPI:
    """An app before `engine`: it starts the engine when it starts, and stops it when it ends.

    `deadline_s`: a request that is not answered this long after its arrival gets 504 and its work is dropped.
    `max_pixel_steps`: the most width x height x steps that one request may ask for; more is a 422.
    """

    desk = Desk(engine, deadline_s=deadline_s, max_pixel_steps=max_pixel_steps)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        # uvicorn has drained the requests by now, so nobody is left whom blocking the event loop could harm. A script
        # that has ended can't start a thread to wait here.
        engine.stop(drain_s=0.0)
        desk.close()

    app = FastAPI(
        title="benchlib", summary="Stable Diffusion XL, served to be measured", lifespan=lifespan
    )
    app.add_middleware(Edge)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if (
            error.status_code == 400
        ):  # FastAPI's own, for JSON that breaks Python's limits of digits or depth
            return _problem(
                request, 422, [{"loc": ("body",), "msg": error.detail, "type": "json_invalid"}]
            )
        return _problem(request, error.status_code, error.detail, error=error)

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> Response:
        return _problem(
            request, 422, [{key: e[key] for key in ("loc", "msg", "type")} for e in error.errors()]
        )

    @app.post(
        "/benchmark/generate",
        responses={code: {"model": Problem} for code in (413, 422, 500, 503, 504, 507)},
        summary="Make one image and say what it took",
    )
    async def generate(
        body: GenerateRequest, request: Request, response: Response
    ) -> GenerateResponse:
        made = await desk.make(request, [body])
        [done] = made.done
        response.headers["X-Seed"] = str(done.work.seed)
        response.headers["Server-Timing"] = server_timing(made)
        return GenerateResponse(
            time_s=done.work.service_s,
            mem_gb=done.memory.headline_gib,
            model_params=engine.spec["model_params"],
            **body.model_dump(exclude={"negative_prompt", "seed"}),
        )

    app.include_router(openai_images.make_router(desk))

    @app.get("/health")
    async def health() -> Health:
        return Health()

    @app.get("/ready", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        response.status_code = 200 if engine.state == "ready" else 503
        detail = None if engine.failure is None else str(engine.failure)
        return Readiness(status=engine.state, detail=detail, spec=engine.spec or None)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(desk.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return app


def _problem(
    request: Request, status: int, detail: object, *, error: HTTPException | None = None
) -> Response:
    """An error's answer, with the times until now. ASCII JSON: a lone surrogate can be named but not sent."""
    headers = {**((error and error.headers) or {}), "Server-Timing": unserved_timing(request)}
    if request.scope["path"].startswith(f"{openai_images.PREFIX}/"):
        status = (
            400 if status == 422 else status
        )  # as OpenAI has it; its clients tell the two apart
        body = openai_images.error_body(status, detail, getattr(error, "reason", None))
    else:
        body = {"detail": detail, "request_id": request.state.request_id}
    return Response(json.dumps(body), status, headers, media_type="application/json")


class Edge:
    """ASGI middleware around everything: when a request came, its id, and how much body it may send."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked_id = Headers(scope=scope).get("x-request-id", "")
        # Not uuid4, which asks the kernel, and so gives up the interpreter's lock to the engine's thread.
        request_id = (
            asked_id if _REQUEST_ID.fullmatch(asked_id) else f"{random.getrandbits(128):032x}"
        )
        scope.setdefault("state", {}).update(arrived_s=time.monotonic(), request_id=request_id)
        received = 0

        async def bounded_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
            return message

        async def tagged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self.app(scope, bounded_receive, tagged_send)


def engine_from(settings: Settings) -> Engine:
    """The engine that `settings` describe. As it loads it logs which model, why, and what an image will cost."""

    def load() -> Any:
        from benchlib.serving.model.loading import load_pipeline

        pipe = load_pipeline(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            recipe=settings.recipe,
            seed=settings.seed,
            torch_threads=settings.torch_threads,
        )
        log.info("Serving %(model)s on %(device)s in %(dtype)s: %(model_reason)s.", pipe.spec)
        usual = GenerateRequest(prompt="-")
        # On a CPU a step at full size takes as long as starting up; cost grows faster than pixels, so this bounds it.
        shrink, words = (4, "at least") if pipe.device.type == "cpu" else (1, "about")
        cost_s = shrink**2 * pipe.predict_s(
            usual.width // shrink, usual.height // shrink, usual.num_inference_steps
        )
        size = (usual.width, usual.height, usual.num_inference_steps)
        log.info("An image of %dx%d at %d steps will take %s %.2g s here.", *size, words, cost_s)
        return pipe

    options = ("batching", "max_batch_size", "max_wait_ms", "max_queue", "batch_buckets", "sizes")
    return Engine(load, **{name: getattr(settings, name) for name in options})


def __getattr__(name: str) -> FastAPI:
    if name != "app":
        raise AttributeError(name)
    settings = Settings()
    made = create_app(
        engine_from(settings),
        deadline_s=settings.deadline_s,
        max_pixel_steps=settings.max_pixel_steps,
    )
    globals()["app"] = made
    return made
