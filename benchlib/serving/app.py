"""The HTTP face of an engine: `create_app(engine)` -> FastAPI.

Knows routes, error bodies, headers and the limit of a body. Ignorant of torch, and of how a route
waits for its jobs (handoff.py). `app` is created on first access, from the BENCHLIB_* settings
(standalone.py). So `uvicorn benchlib.serving.app:app` works, and importing `create_app` loads no
model.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchlib.serving import openai_images
from benchlib.serving.engine.engine import Engine
from benchlib.serving.handoff import HandOff
from benchlib.serving.headers import answer_headers, error_headers
from benchlib.serving.schemas import GenerateRequest, GenerateResponse, Health, Problem, Readiness

MAX_BODY_BYTES = 2**20
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(
    engine: Engine, *, deadline_s: float | None = None, max_pixel_steps: int | None = None
) -> FastAPI:
    """Return an app that starts `engine` when it starts, and stops `engine` when it ends.

    `deadline_s`: a request without an answer this many seconds after its arrival gets 504.
    `max_pixel_steps`: the largest width x height x steps of a request; a larger one gets 422.
    """
    handoff = HandOff(engine, deadline_s=deadline_s, max_pixel_steps=max_pixel_steps)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        # uvicorn has drained the requests. A thread can't start here: the script may have ended.
        engine.stop(drain_s=0.0)
        handoff.close()

    summary = "Stable Diffusion XL, served to be measured"
    app = FastAPI(title="benchlib", summary=summary, lifespan=lifespan)
    app.add_middleware(Edge)
    app.include_router(openai_images.make_router(handoff))

    @app.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> Response:
        # FastAPI raises 400 for JSON with too many digits or too much nesting.
        if error.status_code == 400:
            problem = {"loc": ("body",), "msg": error.detail, "type": "json_invalid"}
            return _error_response(http, 422, [problem])
        return _error_response(http, error.status_code, error.detail, error)

    @app.exception_handler(RequestValidationError)
    async def bad_request(http: Request, error: RequestValidationError) -> Response:
        keys = ("loc", "msg", "type")
        problems = [{key: problem[key] for key in keys} for problem in error.errors()]
        return _error_response(http, 422, problems)

    @app.post(
        "/benchmark/generate",
        responses={code: {"model": Problem} for code in (413, 422, 500, 503, 504, 507)},
        summary="Make one image and report its time and memory",
    )
    async def generate(
        body: GenerateRequest, http: Request, response: Response
    ) -> GenerateResponse:
        answer = await handoff.make_images(http, [body])
        [job] = answer.jobs
        assert job.work is not None
        assert job.memory is not None
        response.headers.update(answer_headers(answer))
        return GenerateResponse(
            time_s=job.work.service_s,
            mem_gb=job.memory.headline_gib,
            model_params=engine.spec["model_params"],
            **body.model_dump(exclude={"negative_prompt", "seed", "scheduler", "lora"}),
        )

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
        """The server's metrics in Prometheus' text format."""
        return Response(handoff.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return app


def _error_response(
    http: Request, status: int, detail: object, error: HTTPException | None = None
) -> Response:
    """Return an error's answer. Its JSON is ASCII, because UTF-8 has no lone surrogates."""
    if openai_images.expects_openai(http):
        reason = getattr(error, "reason", None)
        status, body = openai_images.error_answer(status, detail, reason)
    else:
        body = {"detail": detail, "request_id": http.state.request_id}
    headers = error_headers(http)
    if error is not None:
        headers.update(error.headers or {})
    return Response(json.dumps(body), status, headers, media_type="application/json")


class Edge:
    """ASGI middleware that notes when a request arrived, gives it an id, and limits its body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            # uuid4 would call the kernel and hand the interpreter's lock to the torch thread.
            request_id = f"{random.getrandbits(128):032x}"
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


def __getattr__(name: str) -> FastAPI:
    if name != "app":
        raise AttributeError(name)
    from benchlib.serving.standalone import Settings, app_from

    app = app_from(Settings())
    globals()["app"] = app
    return app
