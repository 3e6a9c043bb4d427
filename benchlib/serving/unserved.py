"""The HTTP error of a request that gets no image, and when its client may try again.

Knows the headers of a refusal. Ignorant of why a request is refused.
"""

from __future__ import annotations

import math

from starlette.exceptions import HTTPException

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
