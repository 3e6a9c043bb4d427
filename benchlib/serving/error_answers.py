"""The answer of each error: its body, its headers, and the reason that /metrics counts.

Knows the shape that a client of each route expects. Ignorant of why a request fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from benchlib.serving import openai_images
from benchlib.serving.docs_pages import page_that_asks
from benchlib.serving.headers import error_headers
from benchlib.serving.prometheus import Metrics
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.unserved import Unserved

REASONS = {
    404: "not_found",
    405: "method",
    413: "body_too_large",
}
FIELDS = frozenset({*GenerateRequest.model_fields, *openai_images.ImagesRequest.model_fields})


class ErrorAnswers:
    """Writes the answers of errors, and counts those of 400 to 499 by their reasons."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def add_to(self, app: FastAPI) -> None:
        """Let the errors that routes raise be answered here."""

        @app.exception_handler(HTTPException)
        async def http_error(http: Request, error: HTTPException) -> Response:
            return self.refuse(http, error)

        @app.exception_handler(RequestValidationError)
        async def bad_request(http: Request, error: RequestValidationError) -> Response:
            problems = [_shown(problem) for problem in error.errors()]
            return self._answer(http, 422, problems)

    def refuse_key(self, http: Request, error: Unserved) -> Response:
        """The answer of a request without the key. A browser at the docs gets a page that asks."""
        answer = self.refuse(http, error)
        page = page_that_asks(http)
        if page is None:
            return answer
        for name in (*error_headers(http), *(error.headers or {})):
            page.headers[name] = answer.headers[name]
        return page

    def refuse(self, http: Request, error: HTTPException) -> Response:
        """The answer of an error that has a status."""
        # FastAPI raises 400 for JSON with too many digits or too much nesting.
        if error.status_code == 400:
            problem = {"loc": ("body",), "msg": error.detail, "type": "json_invalid"}
            return self._answer(http, 422, [problem])
        return self._answer(http, error.status_code, error.detail, error)

    def _answer(
        self, http: Request, status: int, detail: object, error: HTTPException | None = None
    ) -> Response:
        """`detail` is a sentence, or FastAPI's list of problems.

        The JSON is ASCII, because UTF-8 has no lone surrogates.
        """
        reason = getattr(error, "reason", None)
        if openai_images.expects_openai(http):
            status, body = openai_images.error_body(status, detail, reason)
        else:
            body = {"detail": detail, "request_id": http.state.request_id}
        headers = error_headers(http)
        if error is not None:
            headers.update(error.headers or {})
        self.metrics.count_client_error(status, reason or _reason_of(status, detail))
        return Response(json.dumps(body), status, headers, media_type="application/json")


def _shown(problem: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer shows of pydantic's problem: not the input, which may be large."""
    return {
        "loc": problem["loc"],
        "msg": problem["msg"],
        "type": problem["type"],
    }


def _reason_of(status: int, detail: object) -> str:
    """The first field at fault, or what the status stands for.

    Clients choose the names of unknown fields, so these have one word in common.
    """
    if not isinstance(detail, list):
        return REASONS.get(status, "other")
    place = detail[0]["loc"]
    if len(place) < 2 or not isinstance(place[1], str):
        return "body"
    return place[1] if place[1] in FIELDS else "unknown_field"
