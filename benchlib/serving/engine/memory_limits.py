"""How many jobs may share a call after a larger batch ran out of memory.

Knows which batches failed and which succeeded. Ignorant of the model and of the jobs themselves.
"""

from __future__ import annotations

import logging
from collections import Counter

from benchlib.serving.engine.faults import Part
from benchlib.serving.engine.step_times import Size

log = logging.getLogger(__name__)

PartAndSize = tuple[Part, Size]
RETRY_CALLS = 100


class MemoryLimits:
    """The most jobs in one call, by part and size. Without a failed batch there is no limit.

    A batch that runs out of memory sets the limit to half of its jobs. Memory may have been short
    for a moment only, so the limit doubles after RETRY_CALLS successful calls at the limit. A batch
    that never fits thus costs one call in RETRY_CALLS. Each change is logged.
    """

    def __init__(self) -> None:
        self._most: dict[PartAndSize, int] = {}
        self._went_well: Counter[PartAndSize] = Counter()  # calls at the limit since it changed

    def most(self, part: Part, size: Size) -> int | None:
        """The most jobs of this size in one call, or None for any number."""
        return self._most.get((part, size))

    def failed(self, part: Part, size: Size, jobs: int) -> None:
        """Halve the limit: a batch of `jobs` ran out of memory.

        Raises ValueError for a batch of one.
        """
        if jobs < 2:
            raise ValueError(f"jobs: a batch of {jobs} can't be halved")
        reason = f"{jobs} at once ran out of memory"
        self._set(part, size, jobs // 2, reason)

    def went_well(self, part: Part, size: Size, jobs: int) -> None:
        """Count a successful call of `jobs`; double the limit after RETRY_CALLS at the limit."""
        kind = (part, size)
        if jobs != self._most.get(kind):
            return
        self._went_well[kind] += 1
        if self._went_well[kind] >= RETRY_CALLS:
            reason = f"{RETRY_CALLS} calls of {jobs} went well"
            self._set(part, size, 2 * jobs, reason)

    def _set(self, part: Part, size: Size, most: int, reason: str) -> None:
        kind = (part, size)
        self._most[kind] = most
        self._went_well[kind] = 0
        log.warning(
            "%s of %dx%d: at most %d at once from here on: %s",
            part,
            *size,
            most,
            reason,
        )
