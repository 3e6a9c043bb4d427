"""The pages /docs and /redoc, which load nothing from elsewhere: they work without a network.

Knows the files of Swagger UI and Redoc, which the package fastapi-offline holds, and how a browser
gets past the lock. Ignorant of the routes that the pages describe.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from benchlib.serving.image_links import LINK_ROUTE
from benchlib.serving.lock import OPEN_PATH

PAGE = "/docs"
START = "/"  # whoever opens the server's bare address is sent to PAGE
FILES = "/docs-files"
# Redoc would load its logo from elsewhere.
OWN_IMAGES = {"Content-Security-Policy": "img-src 'self' data: blob:"}
_SCHEME = "ApiKey"  # what the schema calls the key


def add_docs_pages(app: FastAPI, *, needs_key: bool) -> None:
    """Add the pages and their files; with `needs_key`, let the schema say so.

    The app must have been made without FastAPI's own pages (docs_url=None, redoc_url=None).
    """
    app.mount(FILES, StaticFiles(packages=[("fastapi_offline", "static")]))
    if needs_key:
        _say_in_schema(app)

    @app.get(START, include_in_schema=False)
    async def start(http: Request) -> RedirectResponse:
        return RedirectResponse(f"{http.scope['root_path']}{PAGE}")

    @app.get(PAGE, include_in_schema=False)
    async def docs(http: Request) -> HTMLResponse:
        prefix = http.scope["root_path"]
        folder = f"{prefix}{FILES}"
        page = get_swagger_ui_html(
            openapi_url=f"{prefix}{app.openapi_url}",
            title=f"{app.title}: the API",
            swagger_js_url=f"{folder}/swagger-ui-bundle.js",
            swagger_css_url=f"{folder}/swagger-ui.css",
            swagger_favicon_url=f"{folder}/favicon.png",
        )
        page.headers.update(OWN_IMAGES)
        return page

    @app.get("/redoc", include_in_schema=False)
    async def redoc(http: Request) -> HTMLResponse:
        prefix = http.scope["root_path"]
        folder = f"{prefix}{FILES}"
        page = get_redoc_html(
            openapi_url=f"{prefix}{app.openapi_url}",
            title=f"{app.title}: the API",
            redoc_js_url=f"{folder}/redoc.standalone.js",
            redoc_favicon_url=f"{folder}/favicon.png",
            with_google_fonts=False,
        )
        page.headers.update(OWN_IMAGES)
        return page


def page_that_asks(http: Request) -> Response | None:
    """A page that asks for the key and then shows the docs, for a browser that opens them.

    A browser can't send a key with the address of a page. This page sends it with what it loads,
    and keeps it in its own memory alone. None for other requests.
    """
    wants_page = "text/html" in http.headers.get("accept", "")
    if http.state.path not in (START, PAGE) or not wants_page:
        return None
    text = files(__package__).joinpath("ask_for_key.html").read_text("utf-8")
    values = {"prefix": http.scope["root_path"], "files": FILES, "scheme": _SCHEME}
    return HTMLResponse(text.replace("{{values}}", json.dumps(values)), 401)


def _say_in_schema(app: FastAPI) -> None:
    """Let the schema name the key, and the answer without it, at all routes but the open ones."""
    make_schema = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make_schema()
        schemes = schema["components"].setdefault("securitySchemes", {})
        schemes[_SCHEME] = {"type": "http", "scheme": "bearer"}
        schema["security"] = [{_SCHEME: []}]
        for path, routes in schema["paths"].items():
            for route in routes.values():
                if path in (OPEN_PATH, LINK_ROUTE):
                    route["security"] = []
                # Without the key, a link that leads nowhere is refused as any other path is.
                if path != OPEN_PATH and "4XX" not in route["responses"]:
                    route["responses"].setdefault("401", {"description": "No key, or a wrong one"})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
