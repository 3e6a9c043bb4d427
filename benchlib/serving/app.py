"""The HTTP face of an engine: `create_app(engine)` -> FastAPI.

Knows routes and error bodies. Ignorant of torch, of what holds for every request (edge.py), and of
how a route waits for its jobs (handoff.py). `app` is created on first access, from the BENCHLIB_*
settings (standalone.py). So `uvicorn benchlib.serving.app:app` works, and importing `create_app`
loads no model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from benchlib.serving import image_links, openai_images
from benchlib.serving.connection_limits import ConnectionLimits, Connections, ServedApp
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.edge import Edge
from benchlib.serving.engine.engine import Engine
from benchlib.serving.handoff import HandOff
from benchlib.serving.headers import answer_headers, error_headers
from benchlib.serving.image_links import ImageLinks
from benchlib.serving.schemas import GenerateRequest, GenerateResponse, Health, Problem, Readiness


def create_app(
    engine: Engine,
    door: DoorOptions | None = None,
    *,
    links: ImageLinks | None = None,
    limits: ConnectionLimits | None = None,
    before_stop: Callable[[], None] | None = None,
) -> FastAPI:
    """Return an app that starts `engine` when it starts, and stops `engine` when it ends.

    `door` says which requests and clients come in. `links`: how long and how many images are kept
    for links. `limits`: how long clients may take, and how many may be connected. `before_stop` is
    called once the requests have been answered, before the engine stops.
    """
    door = door or DoorOptions()
    links = links or ImageLinks()
    handoff = HandOff(engine, door, links)

    def refuse_rest() -> None:
        engine.drop_jobs()
        handoff.last_call.end_all()

    connections = Connections(
        limits or ConnectionLimits(), on_listening=engine.start, refuse_rest=refuse_rest
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not connections.attached:
            engine.start()
        yield
        # uvicorn has drained the requests. A thread can't start here: the script may have ended.
        connections.detach()
        if before_stop is not None:
            before_stop()
        engine.stop(drain_s=0.0)
        handoff.close()

    summary = "Stable Diffusion XL, served to be measured"
    app = ServedApp(title="benchlib", summary=summary, lifespan=lifespan)
    app.connections = connections
    app.add_middleware(Edge, root_path=door.root_path)
    app.include_router(openai_images.make_router(handoff))
    app.include_router(image_links.make_links_router(links))

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

    @app.get("/health", responses={503: {"model": Health}}, response_model_exclude_none=True)
    async def health(response: Response) -> Health:
        if engine.failure is None:
            return Health()
        response.status_code = 503
        return Health(status="failed", detail=engine.trouble)

    @app.get("/ready", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        response.status_code = 200 if engine.state == "ready" else 503
        spec = door.add_to(engine.spec) or None
        return Readiness(status=engine.state, detail=engine.trouble, spec=spec)

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


def __getattr__(name: str) -> FastAPI:
    if name != "app":
        raise AttributeError(name)
    from benchlib.serving.standalone import Settings, app_from

    app = app_from(Settings())
    globals()["app"] = app
    return app
