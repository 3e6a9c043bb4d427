"""The headers of an answer: X-Seed, X-Nonfinite, and the W3C's Server-Timing.

Knows a finished job's times. Ignorant of routes, bodies and the header's spelling (rows.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import Request

from benchlib.server_timing import write_server_timing

if TYPE_CHECKING:
    from benchlib.serving.backend import ImageJob
    from benchlib.serving.handoff import Answer


def answer_headers(answer: Answer) -> dict[str, str]:
    """Return X-Seed and Server-Timing of an answer with images, and X-Nonfinite if one has no meaning.

    X-Seed is the first image's. X-Nonfinite is "latents" or "pixels": the place that is NaN or
    infinite in an image. Server-Timing has parts in milliseconds. They add up to `total`,
    which ends now. `wait` is the remaining time: between steps, threads and machines. For several
    images, `image` is the time of all files; the other parts are the last image's. A replica
    writes each file by itself, so there `image` is the last one's, too. What a lost replica had
    begun counts as `queue`.
    """
    job = answer.jobs[-1]
    last = answer.made[-1]
    assert job.admitted_s is not None
    parts_s = {
        "queue": job.admitted_s - job.arrived_s,
        "encode": last.encode_s,
        "denoise": last.denoise_s,
        "decode": last.decode_s,
        "image": answer.files_s,
    }
    total_s = time.monotonic() - job.arrived_s
    parts_s["wait"] = total_s - sum(parts_s.values())
    parts_s["total"] = total_s
    headers = {
        "X-Seed": str(answer.made[0].seed),
        "Server-Timing": write_server_timing(
            parts_s, last.mean_batch, replica=job.replica, retries=job.retries
        ),
    }
    for made in answer.made:
        if made.not_finite is not None:
            headers["X-Nonfinite"] = made.not_finite
    return headers


def error_headers(http: Request) -> dict[str, str]:
    """Return the Server-Timing of an answer without an image: `queue` and `total`, milliseconds."""
    now_s = time.monotonic()
    arrived_s = http.state.arrived_s
    jobs: Sequence[ImageJob] = getattr(http.state, "jobs", [])
    begun_s = arrived_s
    for job in jobs:
        begun_s = max(begun_s, job.admitted_s or now_s)
    parts_s = {"queue": begun_s - arrived_s, "total": now_s - arrived_s}
    return {"Server-Timing": write_server_timing(parts_s)}
