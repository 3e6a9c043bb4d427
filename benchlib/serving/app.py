"""The HTTP face of an engine, or of a fleet of them: `create_app(engine)` -> FastAPI.

Knows the parts of an app, and the benchmark's own route. Ignorant of torch, of what holds for every
request (edge.py), and of how a route waits for its jobs (handoff.py). `app` is created on first
access, from the BENCHLIB_* settings (standalone.py). So `uvicorn benchlib.serving.app:app` works,
and importing `create_app` loads no model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response

from benchlib.serving import image_links, openai_images
from benchlib.serving.access_log import AccessLog
from benchlib.serving.backend import Backend
from benchlib.serving.connection_limits import ConnectionLimits, Connections, ServedApp
from benchlib.serving.docs_pages import add_docs_pages
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.edge import Edge
from benchlib.serving.error_answers import ErrorAnswers
from benchlib.serving.handoff import HandOff
from benchlib.serving.headers import answer_headers
from benchlib.serving.image_links import ImageLinks
from benchlib.serving.lock import Lock, warn_of_open_door
from benchlib.serving.schemas import GenerateRequest, GenerateResponse, Problem
from benchlib.serving.status_routes import make_status_router


def create_app(
    engine: Backend[Any],
    door: DoorOptions | None = None,
    *,
    links: ImageLinks | None = None,
    limits: ConnectionLimits | None = None,
    stopping: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> ServedApp:
    """Return an app that starts `engine` when it starts, and stops `engine` when it ends.

    `door` says which requests and clients come in. `links`: how long and how many images are kept
    for links. `limits`: how long clients may take, and how many may be connected. `stopping()` is
    entered once the requests have been answered, and left once the engine has stopped.
    """
    door = door or DoorOptions()
    limits = limits or ConnectionLimits()
    links = links or ImageLinks()
    handoff = HandOff(engine, door, links)

    def refuse_rest() -> None:
        engine.drop_jobs()
        handoff.last_call.end_all()

    connections = Connections(
        limits,
        on_listening=engine.start,
        refuse_rest=refuse_rest,
        on_refused=handoff.metrics.count_connection_error,
        on_closed=handoff.metrics.count_closed,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not connections.attached:
            engine.start()
        yield
        # uvicorn has drained the requests. A thread can't start here: the script may have ended.
        connections.detach()
        with stopping():
            engine.stop(drain_s=0.0)
            handoff.close()

    summary = "Stable Diffusion XL, served to be measured"
    app = ServedApp(
        title="benchlib", summary=summary, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.connections = connections
    app.look_at_host = partial(warn_of_open_door, key=door.key)
    errors = ErrorAnswers(handoff.metrics)

    # The last is the first to see a request.
    app.add_middleware(Lock, key=door.key, refuse=errors.refuse_key, is_link=links.leads_to_image)
    app.add_middleware(AccessLog, on=door.access_log)
    app.add_middleware(Edge, root_path=door.root_path)
    errors.add_to(app)
    add_docs_pages(app, needs_key=door.key is not None)
    app.include_router(openai_images.make_router(handoff))
    app.include_router(image_links.make_links_router(links))
    app.include_router(make_status_router(engine, door, limits, handoff.metrics))

    @app.post(
        "/benchmark/generate",
        responses={code: {"model": Problem} for code in (401, 413, 422, 429, 500, 503, 504, 507)},
        summary="Make one image and report its time and memory",
    )
    async def generate(
        body: GenerateRequest, http: Request, response: Response
    ) -> GenerateResponse:
        answer = await handoff.make_images(http, [body])
        [made] = answer.made
        response.headers.update(answer_headers(answer))
        return GenerateResponse(
            time_s=made.service_s,
            mem_gb=made.peak_gib,
            model_params=engine.spec["model_params"],
            **body.model_dump(exclude={"negative_prompt", "seed", "scheduler", "lora"}),
        )

    return app


def __getattr__(name: str) -> FastAPI:
    if name != "app":
        raise AttributeError(name)
    from benchlib.serving.standalone import Settings, app_from

    app = app_from(Settings())
    globals()["app"] = app
    return app
