"""The routes that say how the server is: /health, /ready and /metrics.

Knows the engine's state and what is served. Ignorant of requests for images.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse

from benchlib.serving.backend import Backend
from benchlib.serving.connection_limits import ConnectionLimits
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.prometheus import Metrics
from benchlib.serving.schemas import Health, Readiness


def make_status_router(
    engine: Backend[Any], door: DoorOptions, limits: ConnectionLimits, metrics: Metrics
) -> APIRouter:
    """The three routes. /health says no more than a word where a key guards the others."""
    router = APIRouter()

    @router.get(
        "/health",
        summary="Whether the process works",
        responses={503: {"model": Health}},
        response_model_exclude_none=True,
    )
    async def health(response: Response) -> Health:
        if engine.failure is None:
            return Health()
        response.status_code = 503
        detail = engine.trouble if door.key is None else None
        return Health(status="failed", detail=detail)

    @router.get(
        "/ready",
        summary="Whether the model is loaded and warm, and what is served",
        responses={503: {"model": Readiness}},
    )
    async def ready(response: Response) -> Readiness:
        state = engine.state
        if state not in ("ready", "degraded"):
            response.status_code = 503
        replicas = engine.replicas
        ready_replicas = sum(replica.ready for replica in replicas)
        doing = engine.doing if state == "loading" else None
        return Readiness(
            status=state,
            replicas=len(replicas) or None,
            ready_replicas=ready_replicas if replicas else None,
            detail=engine.trouble or doing,
            spec=door.add_to(engine.spec, limits.in_force()) or None,
        )

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """The server's metrics in Prometheus' text format."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return router
