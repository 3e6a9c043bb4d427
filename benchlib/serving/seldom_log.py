"""Lines of the log for events that strangers may cause as often as they like.

Knows the clock and the log. Ignorant of what the events are; the metrics count each of them.
"""

from __future__ import annotations

import logging
import time

EVERY_S = 60.0

log = logging.getLogger("uvicorn.error")


class SeldomLine:
    """A line that is written at the first event, and then at most once in EVERY_S.

    `words` ends in the number of events since the line before: "...: %d".
    """

    def __init__(self, words: str) -> None:
        self._words = words
        self._count = 0
        self._told_s = -EVERY_S

    def note(self) -> None:
        """An event: write the line if it is time."""
        self._count += 1
        now_s = time.monotonic()
        if now_s - self._told_s < EVERY_S:
            return
        log.warning(self._words, self._count)
        self._told_s = now_s
        self._count = 0
