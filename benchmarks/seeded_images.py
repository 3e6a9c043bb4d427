"""Fetches the images of many seeds from a server, a few at a time, and keeps what tells them apart.

Knows the images API, and the headers that say how a request went. Ignorant of servers and models.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from benchlib.server_timing import parse_server_timing


@dataclass(frozen=True)
class Fetched:
    """What came of one seed. `digest` is that of the image's file, None without an image."""

    seed: int
    status: int
    digest: str | None
    replica: str | None
    retries: int
    batch_size: float | None


def fetch_all(
    url: str,
    body: Mapping[str, Any],
    seeds: Iterable[int],
    *,
    workers: int,
    on_done: Callable[[int, int], None] | None = None,
    timeout_s: float = 300.0,
) -> list[Fetched]:
    """The images of `seeds`, in their order, with `workers` requests at a time.

    `on_done(done, count)` is called after each answer.
    """
    seeds = list(seeds)
    lock = threading.Lock()
    done = 0
    with httpx.Client(base_url=url, timeout=timeout_s) as client:

        def fetch(seed: int) -> Fetched:
            nonlocal done
            fetched = fetch_one(client, dict(body) | {"seed": seed})
            with lock:
                done += 1
                if on_done is not None:
                    on_done(done, len(seeds))
            return fetched

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(fetch, seeds))


def fetch_one(client: httpx.Client, body: Mapping[str, Any]) -> Fetched:
    """The image of one body with a seed. A connection that breaks has the status 0."""
    try:
        answer = client.post("/v1/images/generations", json={**body, "response_format": "b64_json"})
    except httpx.HTTPError:
        return Fetched(body["seed"], 0, None, None, 0, None)
    timing = parse_server_timing(answer.headers.get("server-timing", ""))
    digest = None
    if answer.status_code == 200:
        file = base64.b64decode(answer.json()["data"][0]["b64_json"])
        digest = hashlib.sha256(file).hexdigest()
    batch = timing.get("batch", {}).get("desc")
    return Fetched(
        seed=body["seed"],
        status=answer.status_code,
        digest=digest,
        replica=timing.get("replica", {}).get("desc"),
        retries=int(timing.get("retry", {}).get("desc", 0)),
        batch_size=None if batch is None else float(batch),
    )
