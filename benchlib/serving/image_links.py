"""Image files under URLs of this server, for clients that take a link in place of the image.

Knows the files' names, how long and how many are kept, and the address that a client sees. The
files are in this process's memory alone: they end with it. Ignorant of how images are made.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from benchlib.serving.schemas import MAX_SIDE, Problem
from benchlib.telemetry import GIB

ROUTE = "/images"
LINK_ROUTE = f"{ROUTE}/{{name}}"
_NAME_BYTES = 24  # 192 random bits: nobody guesses a name
_HOST = re.compile(r"[A-Za-z0-9._~:\[\]-]+")

LINK_S = 600.0
MAX_LINKS = 1000
LINKS_GIB = 0.25
MOST_IMAGES = 10
"""The images of one request."""
LEAST_LINKS_GIB = MOST_IMAGES * MAX_SIDE**2 * 4 / GIB
"""All images of one request, at four bytes a pixel: above any file of theirs."""


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    ends_s: float


class ImageLinks:
    """The files that links lead to. Only the event loop's thread calls it.

    A file is dropped after `link_s` seconds, or once there are more than `max_links` files or more
    than `links_gib` of them: the oldest goes first.
    """

    def __init__(
        self,
        *,
        link_s: float = LINK_S,
        max_links: int = MAX_LINKS,
        links_gib: float = LINKS_GIB,
    ) -> None:
        if not link_s > 0:
            raise ValueError(f"link_s: {link_s} is no time; give seconds above 0")
        if max_links < MOST_IMAGES:
            raise ValueError(f"max_links: {max_links} is below the {MOST_IMAGES} of a request")
        if links_gib < LEAST_LINKS_GIB:
            raise ValueError(
                f"links_gib: {links_gib} does not hold the {MOST_IMAGES} images of a request; "
                f"give {LEAST_LINKS_GIB} or more"
            )
        self.link_s = link_s
        self.max_links = max_links
        self.max_bytes = int(links_gib * GIB)
        self.held_bytes = 0
        self._files: dict[str, _File] = {}  # by name, the oldest first

    def add(self, content: bytes, kind: str) -> str:
        """Keep a file of a `kind`, such as "png", and return its name."""
        name = f"{secrets.token_urlsafe(_NAME_BYTES)}.{kind}"
        self._files[name] = _File(content, f"image/{kind}", time.monotonic() + self.link_s)
        self.held_bytes += len(content)
        self.drop_old()
        while len(self._files) > self.max_links or self.held_bytes > self.max_bytes:
            self._drop(next(iter(self._files)))
        return name

    def find(self, name: str) -> _File | None:
        """The file of this name, unless it was dropped."""
        self.drop_old()
        return self._files.get(name)

    def leads_to_image(self, path: str) -> bool:
        """Whether `path` is that of a link whose file is still there."""
        folder, _, name = path.rpartition("/")
        return folder == ROUTE and self.find(name) is not None

    def drop_old(self) -> None:
        """Drop the files whose time has passed."""
        now_s = time.monotonic()
        while self._files:
            oldest = next(iter(self._files))
            if self._files[oldest].ends_s > now_s:
                return
            self._drop(oldest)

    def drop_all(self) -> None:
        """Drop every file."""
        self._files.clear()
        self.held_bytes = 0

    def _drop(self, name: str) -> None:
        self.held_bytes -= len(self._files.pop(name).content)


def link_to(http: Request, name: str) -> str:
    """The URL of a file for the client of `http`, with the proxy's host, scheme and prefix.

    X-Forwarded-Host and X-Forwarded-Proto are believed from anybody: they change the answer of
    their own request alone.
    """
    host = _first(http, "x-forwarded-host")
    if not _HOST.fullmatch(host):
        host = http.url.netloc
    scheme = _first(http, "x-forwarded-proto")
    if scheme not in ("http", "https"):
        scheme = http.url.scheme
    return f"{scheme}://{host}{http.scope['root_path']}{ROUTE}/{name}"


def _first(http: Request, header: str) -> str:
    """The first value of a header that each proxy may have added to: the client's own proxy's."""
    return http.headers.get(header, "").partition(",")[0].strip()


def make_links_router(links: ImageLinks) -> APIRouter:
    """The route that links lead to."""
    router = APIRouter()
    content: dict[str, Any] = {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}

    @router.get(
        LINK_ROUTE,
        response_class=Response,
        responses={200: {"content": content}, 404: {"model": Problem}},
        summary="The image of a link",
    )
    async def image(name: str) -> Response:
        file = links.find(name)
        if file is None:
            minutes = f"{links.link_s / 60:g} min"
            raise HTTPException(
                404,
                f"there is no image of this name here. A link lasts {minutes}, and less where many "
                "images are made; ask for b64_json to get the image itself",
            )
        left_s = max(0, int(file.ends_s - time.monotonic()))
        headers = {"Cache-Control": f"private, max-age={left_s}"}
        return Response(file.content, headers=headers, media_type=file.media_type)

    return router
