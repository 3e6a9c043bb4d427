"""The HTTP error of a request that gets no image, and when its client may try again.

Knows the status, the words and the headers of each of the engine's errors. Ignorant of routes, of
the shape of a body, and of what is refused before the engine (admission.py).
"""

from __future__ import annotations

import math

from starlette.exceptions import HTTPException

from benchlib.serving.engine.faults import EngineEnded, NotFinite, ShortOfMemory
from benchlib.serving.engine.jobs import Cancelled, DoesNotFit, Refused
from benchlib.serving.replicas.replica import LosesReplicas

# OpenAI's client 3.54 gives up at once where it is told to wait longer (MAX_RETRY_AFTER_DELAY).
MAX_RETRY_AFTER_S = 120
# The client would send a request again after any 5xx, unless it is told not to.
NO_RETRY = {"X-Should-Retry": "false"}


class Unserved(HTTPException):
    """A request gets no image. `reason` labels it in the metrics and in OpenAI's errors."""

    def __init__(
        self, status: int, reason: str, detail: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


def retry_later(status: int, reason: str, why: str, wait_s: float) -> Unserved:
    """The error of a request that may be sent again in `wait_s` seconds."""
    seconds = max(1, math.ceil(wait_s))
    words = f"{why}; try again in about {seconds} s"
    headers = {"Retry-After": str(min(seconds, MAX_RETRY_AFTER_S))}
    return Unserved(status, reason, words, headers=headers)


def unserved(error: Exception, request_id: str, *, loading: bool) -> Unserved:
    """The HTTP error that stands for `error`. `loading`: the engine has no model yet.

    A load generator takes a 503 for an orderly refusal, so an engine that has ended gives 500.
    """
    words = str(error)
    # 1) What may go well later
    if isinstance(error, Refused) and error.retry_after_s is not None:
        reason = "queue_full"
        if loading:
            reason = "loading"
        return retry_later(503, reason, words, error.retry_after_s)
    if isinstance(error, ShortOfMemory):
        return retry_later(503, "out_of_memory", words, error.retry_after_s)
    if isinstance(error, Refused):  # the engine is stopping or has stopped
        return Unserved(503, "stopping", words)
    if isinstance(error, Cancelled):
        return Unserved(503, "stopping", words)

    # 2) What would go wrong again
    if isinstance(error, DoesNotFit):
        return Unserved(507, "too_large", words, headers=NO_RETRY)
    if isinstance(error, NotFinite):
        headers = NO_RETRY | {"X-Nonfinite": error.place}
        return Unserved(500, "nonfinite", words, headers=headers)

    if isinstance(error, LosesReplicas):
        return Unserved(500, "loses_replicas", words, headers=NO_RETRY)

    # 3) What is the server's own fault
    if isinstance(error, EngineEnded):
        return Unserved(500, "engine_ended", words)
    words = f"the engine failed; the log says why under request id {request_id}"
    return Unserved(500, "failed", words)
