"""The HTTP face of an engine: `create_app(engine)` -> FastAPI.

Knows HTTP: routes, status codes, headers, limits of a body, a client that goes away. Ignorant of torch: it hands
requests to the engine and waits. `app` is made on first access, from the BENCHLIB_* settings, so that
`uvicorn benchlib.serving.app:app` works and importing `create_app` loads no model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchlib.serving.engine import Cancelled, DoesNotFit, Done, Engine, Job, Refused
from benchlib.serving.schemas import GenerateRequest, GenerateResponse, Health, Problem, Readiness

log = logging.getLogger("uvicorn.error")  # shown by uvicorn as its own start-up lines are

MAX_BODY_BYTES = 2**20
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Settings(BaseSettings):
    """What the stand-alone server reads from the environment: BENCHLIB_MODEL, BENCHLIB_DEVICE and so on."""

    model_config = SettingsConfigDict(env_prefix="BENCHLIB_", extra="ignore")

    model: str = Field(
        "auto", description="auto (sdxl on CUDA, else tiny), tiny, sdxl, sdxl-random, hub id, folder, file"
    )
    device: str = Field(default="auto", description="auto (CUDA, else the CPU), cpu, cuda, cuda:1, mps")
    dtype: str = Field(default="auto", description="auto (float16 on CUDA, else float32), float32, float16, bfloat16")
    recipe: Literal["baseline"] = Field(default="baseline", description="named optimisations; only baseline as yet")
    batching: Literal["serial"] = Field(
        default="serial", description="how requests share the model; only serial as yet"
    )
    seed: int = Field(default=0, ge=0, description="draws the weights of the random models")
    torch_threads: int | None = Field(
        default=None, ge=1, description="CPU threads of torch; torch's own choice if not given"
    )
    max_queue: int = Field(default=64, ge=1, description="requests that may wait; one more gets 503")
    deadline_s: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="a slower request gets 504")
    max_pixel_steps: int | None = Field(
        None, ge=1, description="most width x height x steps of a request; more gets 422"
    )


def create_app(engine: Engine, *, deadline_s: float | None = None, max_pixel_steps: int | None = None) -> FastAPI:
    """An app before `engine`: it starts the engine when it starts, and stops it when it ends.

    `deadline_s`: a request that is not answered this long after its arrival gets 504 and its work is dropped.
    `max_pixel_steps`: the most width x height x steps that one request may ask for; more is a 422.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop, drain_s=0.0)  # uvicorn has drained the requests by now

    app = FastAPI(
        title="benchlib",
        summary="Stable Diffusion XL, served to be measured",
        lifespan=lifespan,
        responses={code: {"model": Problem} for code in (413, 422)},
    )
    app.add_middleware(Edge)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's own, for JSON that breaks Python's limits of digits or depth
            return _problem(request, 422, [{"loc": ("body",), "msg": error.detail, "type": "json_invalid"}], headers={})
        return _problem(request, error.status_code, error.detail, headers=dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> Response:
        return _problem(
            request, 422, [{key: e[key] for key in ("loc", "msg", "type")} for e in error.errors()], headers={}
        )

    @app.post(
        "/benchmark/generate",
        responses={code: {"model": Problem} for code in (500, 503, 504, 507)},
        summary="Make one image and say what it took",
    )
    async def generate(body: GenerateRequest, request: Request, response: Response) -> GenerateResponse:
        if max_pixel_steps is not None and body.pixel_steps > max_pixel_steps:
            message = (
                f"width x height x num_inference_steps is {body.pixel_steps}, above this server's {max_pixel_steps}"
            )
            fields = ("width", "height", "num_inference_steps")
            raise RequestValidationError([{"loc": ("body", f), "msg": message, "type": "too_large"} for f in fields])
        try:
            job = engine.submit(body, request_id=request.state.request_id, arrived_s=request.state.arrived_s)
        except Refused as error:
            retry = {} if error.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            raise HTTPException(503, str(error), headers=retry) from error
        request.state.job = job
        done = await _result(engine, job, request, deadline_s)
        work = done.work
        response.headers["X-Seed"] = str(work.seed)
        response.headers["Server-Timing"] = _server_timing(job, done)
        return GenerateResponse(
            time_s=work.service_s,
            mem_gb=done.memory.headline_gib,
            model_params=engine.spec["model_params"],
            **body.model_dump(exclude={"negative_prompt", "seed"}),
        )

    @app.get("/health")
    async def health() -> Health:
        return Health()

    @app.get("/ready", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        response.status_code = 200 if engine.state == "ready" else 503
        return Readiness(status=engine.state, detail=None if engine.failure is None else str(engine.failure))

    return app


async def _result(engine: Engine, job: Job, request: Request, deadline_s: float | None) -> Done:
    """Wait for the job, and no longer than its client or its deadline: past either its work is dropped."""
    result = asyncio.ensure_future(asyncio.wrap_future(job.future))
    gone = asyncio.ensure_future(_gone(request))
    left_s = None if deadline_s is None else max(0.0, job.arrived_s + deadline_s - time.monotonic())
    try:
        waiting: set[asyncio.Future[Any]] = {result, gone}
        await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        if gone.done():
            raise HTTPException(499, "the client has gone")
        raise HTTPException(504, f"not done within the deadline of {deadline_s} s")
    except (Refused, Cancelled) as error:  # the engine was stopped meanwhile
        raise HTTPException(503, str(error)) from error
    except DoesNotFit as error:
        raise HTTPException(507, str(error)) from error
    except HTTPException:
        raise
    except Exception as error:
        raise HTTPException(500, f"the engine failed; the log says why under request id {job.request_id}") from error
    finally:
        gone.cancel()
        if not result.done():
            engine.cancel(job)
            result.add_done_callback(lambda dropped: dropped.cancelled() or dropped.exception())  # it is seen, not lost


async def _gone(request: Request) -> None:
    """Return when the client has closed its connection. The body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _server_timing(job: Job, done: Done) -> str:
    """The W3C Server-Timing header: milliseconds that add up to `total`, which ends as the answer begins.

    `wait` is what is left after the queue and the engine's own work: between steps, and between the threads.
    """
    assert job.admitted_s is not None
    work = done.work
    parts = {
        "queue": job.admitted_s - job.arrived_s,
        "encode": work.encode_s,
        "denoise": work.denoise_s,
        "decode": work.decode_s,
        "image": 0.0,
    }
    total_s = time.monotonic() - job.arrived_s
    parts["wait"] = total_s - sum(parts.values())
    durations = ", ".join(f"{name};dur={seconds * 1000:.6f}" for name, seconds in [*parts.items(), ("total", total_s)])
    return f'{durations}, batch;desc="{work.batch_rows / work.steps_done}"'


def _problem(request: Request, status: int, detail: object, *, headers: dict[str, str]) -> Response:
    """An error's answer, with the times until now. ASCII JSON: a lone surrogate can be named but not sent."""
    job: Job | None = getattr(request.state, "job", None)
    now_s, arrived_s = time.monotonic(), request.state.arrived_s
    queue_s = 0.0 if job is None else (job.admitted_s or now_s) - arrived_s
    timing = f"queue;dur={queue_s * 1000:.6f}, total;dur={(now_s - arrived_s) * 1000:.6f}"
    body = json.dumps({"detail": detail, "request_id": request.state.request_id})
    return Response(body, status, headers | {"Server-Timing": timing}, media_type="application/json")


class Edge:
    """ASGI middleware around everything: when a request came, its id, and how much body it may send."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked_id = Headers(scope=scope).get("x-request-id", "")
        request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else uuid.uuid4().hex
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
        from benchlib.serving.pipeline import load_pipeline

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
        shrink, words = (2, "at least") if pipe.device.type == "cpu" else (1, "about")
        cost_s = shrink**2 * pipe.predict_s(usual.width // shrink, usual.height // shrink, usual.num_inference_steps)
        size = (usual.width, usual.height, usual.num_inference_steps)
        log.info("An image of %dx%d at %d steps will take %s %.2g s here.", *size, words, cost_s)
        return pipe

    return Engine(load, batching=settings.batching, max_queue=settings.max_queue)


def __getattr__(name: str) -> FastAPI:
    if name != "app":
        raise AttributeError(name)
    settings = Settings()
    made = create_app(engine_from(settings), deadline_s=settings.deadline_s, max_pixel_steps=settings.max_pixel_steps)
    globals()["app"] = made
    return made
